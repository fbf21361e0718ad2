// The panels beside the picture. Whatever comes from the server is set as text, never as HTML.

import { classColour } from "/page/stage.js";

const $ = (id) => document.getElementById(id);
const HISTORY_S = 60;
const history = new Array(HISTORY_S).fill(0);
let roundTripMs = null;
let timing = [];

export function showObjects(found, highlight) {
  $("count").textContent = found.length;
  $("objects").replaceChildren(...found.map((item, index) => objectRow(item, index, highlight)));
}

function objectRow(item, index, highlight) {
  const button = element("button", "", "");
  button.type = "button";
  button.setAttribute("aria-label", `${item.class}, score ${item.score.toFixed(2)}`);
  const swatch = element("span", "swatch");
  const bar = element("span", "bar");
  const filled = element("i");
  swatch.style.background = filled.style.background = classColour(item.class_id);
  filled.style.width = `${item.score * 100}%`;
  bar.append(filled);
  button.append(swatch, element("span", "name", item.class), bar, element("span", "score", item.score.toFixed(2)));
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => highlight(index));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => highlight(null));
  const row = document.createElement("li");
  row.append(button);
  return row;
}

export function showRoundTrip(ms) {
  roundTripMs = ms;
  showTime();
}

export function showState(state) {
  const status = $("status");
  status.dataset.state = state.ready ? "ready" : "down";
  status.textContent = state.ready ? "ready" : "not reachable";
  $("reason").hidden = state.ready;
  $("reason").textContent = state.ready ? "" : `${state.reason} This page looks again every second.`;
  $("model").textContent = state.model;
  $("address").textContent = state.server;
  if (state.timing.length) timing = state.timing;
  showTime();
  showMetrics(state);
}

export function showPageGone() {
  $("status").dataset.state = "down";
  $("status").textContent = "page server stopped";
  $("reason").hidden = false;
  $("reason").textContent = "`pinstream view` does not answer any more: start it again, and this page goes on.";
}

/** Where the time of a request goes on the server: waiting, each step, and what lies between the steps. */
function showTime() {
  const [whole, ...steps] = timing;
  if (!whole) return;
  const compute = (step) => step.compute_input_ms + step.compute_infer_ms + step.compute_output_ms;
  const parts = (steps.length ? steps : [whole]).map((step, index) => ({
    name: step.model.startsWith(`${whole.model}_`) ? step.model.slice(whole.model.length + 1) : step.model,
    ms: compute(step),
    colour: `var(--split-${2 + (index % 3)})`,
  }));
  const waiting = [whole, ...steps].reduce((sum, step) => sum + step.queue_ms, 0);
  parts.unshift({ name: "waiting in queues", ms: waiting, colour: "var(--split-1)" });
  const inside = parts.reduce((sum, part) => sum + part.ms, 0);
  parts.push({ name: "between the steps", ms: Math.max(0, whole.total_ms - inside), colour: "var(--split-5)" });
  $("split").replaceChildren(...parts.map(segment));
  $("split").setAttribute("aria-label", parts.map((part) => `${part.name} ${part.ms.toFixed(1)} ms`).join(", "));
  $("legend").replaceChildren(...parts.flatMap(legendRow));
  const roundTrip = roundTripMs === null ? "" : `, round trip ${roundTripMs.toFixed(1)} ms`;
  $("round-trip").textContent = `${whole.total_ms.toFixed(1)} ms${roundTrip}`;
}

function segment(part) {
  const piece = element("i");
  piece.style.flexGrow = part.ms;
  piece.style.background = part.colour;
  return piece;
}

function legendRow(part) {
  const swatch = element("span", "swatch");
  swatch.style.background = part.colour;
  return [swatch, element("dt", "", part.name), element("dd", "", `${part.ms.toFixed(1)} ms`)];
}

function showMetrics(state) {
  history.shift();
  history.push(state.ready ? state.requests_per_s : 0);
  const highest = Math.max(1, ...history);
  const points = history.map((value, index) => `${index} ${(19 - (value / highest) * 17).toFixed(2)}`).join("L");
  $("line").setAttribute("d", `M${points}`);
  $("area").setAttribute("d", `M0 20L${points}L${HISTORY_S - 1} 20Z`);
  $("requests").textContent = state.ready ? `${state.requests_per_s.toFixed(1)} requests/s` : "";
  const rows = state.ready ? metricRows(state) : [];
  $("metrics").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
}

function metricRows(state) {
  const rows = [];
  if (state.batch !== null) rows.push(["images in a batch", state.batch.toFixed(1)]);
  const metrics = state.metrics;
  if (metrics === null) return [...rows, ["metrics endpoint", "not reachable"]];
  rows.push(["requests waiting", metrics.pending], ["requests failed", metrics.failures]);
  if (metrics.cpu !== null) rows.push(["CPU", percent(metrics.cpu)]);
  if (metrics.memory_total) rows.push(["host memory", used(metrics.memory_used, metrics.memory_total)]);
  metrics.gpus.forEach((gpu, index) => {
    const name = metrics.gpus.length > 1 ? `GPU ${index}` : "GPU";
    if (gpu.utilization !== null) rows.push([name, percent(gpu.utilization)]);
    if (gpu.memory_total) rows.push([`${name} memory`, used(gpu.memory_used, gpu.memory_total)]);
    if (gpu.power_w !== null) rows.push([`${name} power`, `${Math.round(gpu.power_w)} W`]);
  });
  return rows;
}

const percent = (share) => `${Math.round(share * 100)} %`;
const used = (part, whole) => `${(part / 2 ** 30).toFixed(1)} of ${(whole / 2 ** 30).toFixed(1)} GiB`;

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== "") made.textContent = text;
  return made;
}
