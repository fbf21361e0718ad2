// The picture with its boxes on the canvas.

const GOLDEN_RATIO = 0.6180339887;

/** The same hue for the same class, as `pinstream detect --out` draws it. */
export function classColour(classId) {
  return `hsl(${Math.round(((classId * GOLDEN_RATIO) % 1) * 360)} 85% 52%)`;
}

export class Stage {
  constructor(canvas, frame) {
    this.canvas = canvas;
    this.frame = frame;
    this.picture = null;
    this.found = [];
    this.highlighted = null;
    new ResizeObserver(() => this.draw()).observe(frame);
  }

  /** Shows a picture (anything that drawImage takes) and its objects; boxes are in the picture's pixels. */
  show(picture, found) {
    if (this.picture !== picture) this.picture?.close?.();
    this.picture = picture;
    this.found = found;
    this.highlighted = null;
    this.draw();
  }

  highlight(index) {
    this.highlighted = index;
    this.draw();
  }

  draw() {
    if (!this.picture) return;
    const { width, height } = this.picture;
    const most = Math.max(240, window.innerHeight * 0.78);
    const scale = Math.min(this.frame.clientWidth / width, most / height);
    const dense = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale * dense);
    this.canvas.height = Math.round(height * scale * dense);
    this.canvas.style.width = `${Math.round(width * scale)}px`;
    this.canvas.style.height = `${Math.round(height * scale)}px`;
    this.canvas.hidden = false;
    const context = this.canvas.getContext("2d");
    context.drawImage(this.picture, 0, 0, this.canvas.width, this.canvas.height);
    context.scale(dense, dense);
    const others = this.highlighted === null ? 1 : 0.25;
    // Best scores last, so that their boxes lie on top; but their labels choose their places first.
    for (let index = this.found.length - 1; index >= 0; index -= 1) {
      if (index !== this.highlighted) this.#box(context, this.found[index], scale, others);
    }
    const taken = [];
    if (this.highlighted !== null) {
      this.#box(context, this.found[this.highlighted], scale, 1, true);
      this.#label(context, this.found[this.highlighted], scale, 1, taken);
    }
    this.found.forEach((item, index) => {
      if (index !== this.highlighted) this.#label(context, item, scale, others, taken);
    });
    this.canvas.dataset.scale = scale * dense;
    this.canvas.dataset.boxes = this.found.length;
    this.canvas.setAttribute("aria-label", described(this.found));
  }

  #box(context, item, scale, alpha, strong = false) {
    const [x1, y1, x2, y2] = item.box.map((value) => value * scale);
    const colour = classColour(item.class_id);
    context.globalAlpha = alpha;
    context.lineWidth = strong ? 4 : 2.5;
    context.strokeStyle = colour;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    context.globalAlpha = alpha * (strong ? 0.18 : 0.07);
    context.fillStyle = colour;
    context.fillRect(x1, y1, x2 - x1, y2 - y1);
    context.globalAlpha = 1;
  }

  /** At the first corner of its box where it covers no other label; never outside of the picture. */
  #label(context, item, scale, alpha, taken) {
    const [x1, y1, x2, y2] = item.box.map((value) => value * scale);
    const text = `${item.class} ${item.score.toFixed(2)}`;
    context.font = `600 12.5px system-ui, "Segoe UI", Roboto, sans-serif`;
    const width = context.measureText(text).width + 10;
    const height = 19;
    const [right, bottom] = [this.canvas.clientWidth - width, this.canvas.clientHeight - height];
    const corners = [[x1, y1 - height], [x2 - width, y1 - height], [x1, y1], [x1, y2], [x1, y2 - height], [x2 - width, y1]];
    const places = corners
      .filter(([, top]) => top >= 0 && top <= bottom)
      .map(([left, top]) => ({ left: Math.max(0, Math.min(left, right)), top, width, height }));
    const free = places.find((place) => !taken.some((other) => overlap(place, other)));
    const place = free ?? places[0] ?? { left: Math.max(0, Math.min(x1, right)), top: 0, width, height };
    taken.push(place);
    context.globalAlpha = alpha;
    context.fillStyle = classColour(item.class_id);
    context.beginPath();
    context.roundRect(place.left, place.top, width, height, 3);
    context.fill();
    context.fillStyle = readableOn(item.class_id);
    context.fillText(text, place.left + 5, place.top + 13.5);
    context.globalAlpha = 1;
  }
}

function overlap(a, b) {
  return a.left < b.left + b.width && b.left < a.left + a.width && a.top < b.top + b.height && b.top < a.top + a.height;
}

function described(found) {
  const counts = new Map();
  for (const item of found) counts.set(item.class, (counts.get(item.class) ?? 0) + 1);
  const words = [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
  return found.length ? `The picture with ${found.length} objects: ${words}` : "The picture; nothing was found in it";
}

/** Black on the hues that are bright at this lightness, else white. */
function readableOn(classId) {
  const hue = ((classId * GOLDEN_RATIO) % 1) * 360;
  return hue > 35 && hue < 200 ? "#10150f" : "#ffffff";
}
