// Pictures in, boxes out: what the user does, and what the server says.

import { Camera } from "/page/camera.js";
import { showObjects, showPageGone, showRoundTrip, showState } from "/page/panels.js";
import { Stage } from "/page/stage.js";

const LOOK_MS = 1000;
const $ = (id) => document.getElementById(id);
const drop = $("drop");
const stage = new Stage($("canvas"), drop);
const camera = new Camera($("video"), answerFrame);

let blob = null; // the picture that is shown, as it is sent
let busy = false;
let again = false;
let wasReady = false;
let frameTimes = [];

/** Objects in an image file, by the thresholds as they are now. */
async function detect(image) {
  const query = new URLSearchParams({ conf: $("conf").value, iou: $("iou").value });
  let answer;
  try {
    answer = await fetch(`/api/detect?${query}`, { method: "POST", body: image });
  } catch {
    throw new Error("`pinstream view` does not answer: start it again");
  }
  if (answer.status === 503) throw new Error("This is asked about as soon as the server is back.");
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function show(picture, content) {
  $("invitation").hidden = true;
  drop.dataset.empty = "false";
  stage.show(picture, content.detections);
  // A screen reader is not to read every frame of a camera.
  $("count").setAttribute("aria-live", camera.on ? "off" : "polite");
  showObjects(content.detections, (index) => stage.highlight(index));
  showRoundTrip(content.round_trip_ms);
  say("");
}

function say(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

/** A picture that was dropped, pasted or chosen. */
async function take(file) {
  if (!file) return;
  stopCamera();
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    say(`the browser cannot show ${file.name ?? "this"}: choose a JPEG, PNG, BMP or WebP file`);
    return;
  }
  blob = file;
  show(picture, { detections: [], round_trip_ms: null });
  $("count").textContent = "...";
  await refresh();
}

/** Asks about the picture once more; while an answer is on its way, only the latest wish counts. */
async function refresh() {
  if (!blob || camera.on) return;
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  do {
    again = false;
    const asked = blob;
    try {
      const content = await detect(asked);
      if (asked === blob && !camera.on) show(stage.picture, content);
    } catch (error) {
      if (asked === blob) {
        $("count").textContent = "-";
        say(error.message);
      }
    }
  } while (again);
  busy = false;
}

async function answerFrame(frame, bitmap) {
  try {
    const content = await detect(frame);
    if (!camera.on) return;
    show(bitmap, content);
    const now = performance.now();
    frameTimes = [...frameTimes.filter((time) => now - time < 2000), now];
    const seconds = (now - frameTimes[0]) / 1000;
    $("rate").textContent = seconds > 0.3 ? `${((frameTimes.length - 1) / seconds).toFixed(1)} frames/s` : "";
  } catch (error) {
    if (!camera.on) return;
    show(bitmap, { detections: [], round_trip_ms: null });
    $("count").textContent = "-";
    say(error.message);
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
}

async function startCamera() {
  blob = null;
  try {
    await camera.start();
  } catch (error) {
    stopCamera();
    say(`no camera: ${error.message}`);
    return;
  }
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Stop the camera";
}

function stopCamera() {
  camera.stop();
  $("rate").textContent = "";
  $("camera").setAttribute("aria-pressed", "false");
  $("camera").textContent = "Use the camera";
}

function showThresholds() {
  for (const name of ["conf", "iou"]) $(`${name}-value`).textContent = Number($(name).value).toFixed(2);
}

async function look() {
  try {
    const answer = await fetch("/api/state", { signal: AbortSignal.timeout(3000) });
    if (!answer.ok) throw new Error(answer.statusText);
    const state = await answer.json();
    showState(state);
    if (state.ready && !wasReady) refresh(); // what failed while it was away
    wasReady = state.ready;
  } catch {
    wasReady = false;
    showPageGone();
  }
  setTimeout(look, LOOK_MS);
}

for (const name of ["conf", "iou"]) {
  $(name).addEventListener("input", () => {
    showThresholds();
    refresh();
  });
}
$("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
$("camera").addEventListener("click", () => (camera.on ? stopCamera() : startCamera()));
drop.addEventListener("click", () => drop.dataset.empty === "true" && $("file").click());
// On the whole page: a picture that misses the frame must not replace the page.
for (const event of ["dragenter", "dragover"]) {
  document.addEventListener(event, (moved) => {
    moved.preventDefault();
    drop.dataset.over = "true";
  });
}
document.addEventListener("dragleave", (moved) => {
  if (!moved.relatedTarget) drop.dataset.over = "false";
});
document.addEventListener("drop", (dropped) => {
  dropped.preventDefault();
  drop.dataset.over = "false";
  take(dropped.dataTransfer.files[0]);
});
document.addEventListener("paste", (pasted) => take(pasted.clipboardData.files[0]));

drop.dataset.empty = "true";
showThresholds();
look();
