// Labels over the picture: colours, opacity, one class alone, and the class under the pointer.
// All of it happens here, without asking the server again.

/** Labels of a PNG, {width, height, data: Uint8Array, certainty: Uint8Array}: red is the class
 * index, green how certain it is where that was asked for. */
export async function readLabels(blob) {
  const bitmap = await createImageBitmap(blob, {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const pixels = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
  return {
    width,
    height,
    data: Uint8Array.from(pixels, (pixel) => pixel & 255),
    certainty: Uint8Array.from(pixels, (pixel) => (pixel >> 8) & 255),
  };
}

/** The share of the pixels, 0 to 1, of each class. */
export function shares(labels, count) {
  const counts = new Float64Array(count);
  for (const label of labels.data) counts[label] += 1;
  return counts.map((number) => number / labels.data.length);
}

/** The share of the pixels on which two label maps of one size agree. */
export function agreement(one, other) {
  let equal = 0;
  for (let i = 0; i < one.data.length; i += 1) equal += one.data[i] === other.data[i];
  return equal / one.data.length;
}

const STEP = 0.02; // of the picture's side, for an arrow key
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class View {
  /** onPoint is called with the class index under the pointer or cursor, or null. */
  constructor(canvas, tip, onPoint) {
    this.canvas = canvas;
    this.tip = tip;
    this.classes = []; // of the labels, in their order
    this.onPoint = onPoint;
    this.context = canvas.getContext("2d");
    this.paint = new OffscreenCanvas(1, 1);
    this.opacity = 0.5;
    this.fading = false; // whether colours fade where labels are uncertain
    this.only = null;
    this.frame = null;
    this.labels = null;
    this.at = null;
    canvas.addEventListener("pointermove", (event) => this.#pointed(event));
    canvas.addEventListener("pointerdown", (event) => this.#pointed(event));
    canvas.addEventListener("pointerleave", () => this.#point(null));
    canvas.addEventListener("blur", () => this.#point(null));
    canvas.addEventListener("keydown", (event) => this.#moved(event));
  }

  /** Show a frame (a bitmap, closed when the next one comes) and its labels. */
  show(frame, labels) {
    this.frame?.close();
    this.frame = frame;
    this.labels = labels;
    this.#colour();
    this.draw();
    this.#point(this.at);
  }

  /** Paint one class alone; null paints all. */
  highlight(index) {
    this.only = index;
    if (this.labels) {
      this.#colour();
      this.draw();
    }
  }

  draw() {
    if (!this.frame) return;
    const { width, height } = this.frame;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    this.context.globalAlpha = 1;
    this.context.drawImage(this.frame, 0, 0);
    this.context.globalAlpha = this.opacity;
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(this.paint, 0, 0, width, height);
    if (this.at && document.activeElement === this.canvas) this.#cross(width, height);
  }

  #cross(width, height) {
    const [x, y] = [this.at[0] * width, this.at[1] * height];
    const arm = Math.max(width, height) / 60;
    this.context.globalAlpha = 1;
    for (const [style, thickness] of [["#000000", 5], ["#ffffff", 2]]) {
      this.context.strokeStyle = style;
      this.context.lineWidth = (thickness * arm) / 16;
      this.context.beginPath();
      this.context.moveTo(x - arm, y);
      this.context.lineTo(x + arm, y);
      this.context.moveTo(x, y - arm);
      this.context.lineTo(x, y + arm);
      this.context.stroke();
    }
  }

  #colour() {
    const { width, height, data, certainty } = this.labels;
    const table = new Uint32Array(256);
    for (const { id, color } of this.classes) {
      const visible = this.only === null || this.only === id;
      if (visible) table[id] = (255 << 24) | (color[2] << 16) | (color[1] << 8) | color[0];
    }
    this.paint.width = width;
    this.paint.height = height;
    const context = this.paint.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < data.length; i += 1) pixels[i] = table[data[i]];
    if (this.fading) {
      for (let i = 0; i < data.length; i += 1) {
        if (pixels[i]) image.data[4 * i + 3] = certainty[i];
      }
    }
    context.putImageData(image, 0, 0);
  }

  #pointed(event) {
    const box = this.#box();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    this.#point(x >= 0 && x < 1 && y >= 0 && y < 1 ? [x, y] : null);
  }

  /** Where the picture is in the window; the canvas may leave room beside it. */
  #box() {
    const outer = this.canvas.getBoundingClientRect();
    const scale = Math.min(outer.width / this.canvas.width, outer.height / this.canvas.height);
    const [width, height] = [this.canvas.width * scale, this.canvas.height * scale];
    const left = outer.left + (outer.width - width) / 2;
    return { left, top: outer.top + (outer.height - height) / 2, width, height };
  }

  #moved(event) {
    const arrow = ARROWS[event.key];
    if (!arrow || !this.labels) return;
    event.preventDefault();
    const inside = (value) => Math.min(Math.max(value, 0), 0.999);
    const [x, y] = this.at ?? [0.5, 0.5];
    this.#point([inside(x + STEP * arrow[0]), inside(y + STEP * arrow[1])]);
  }

  #point(at) {
    const had = this.at;
    this.at = at;
    this.tip.hidden = !at || !this.labels;
    if (had || at) this.draw();
    if (this.tip.hidden) {
      this.onPoint(null);
      return;
    }
    const { width, height, data } = this.labels;
    const place = Math.floor(at[1] * height) * width + Math.floor(at[0] * width);
    const index = data[place];
    const sure = Math.round((100 * this.labels.certainty[place]) / 255);
    this.tip.textContent = this.classes[index].name + (this.fading ? `, ${sure}% certain` : "");
    this.#placeTip(at);
    this.onPoint(index);
  }

  #placeTip([x, y]) {
    const frame = this.canvas.parentElement.getBoundingClientRect();
    const box = this.#box();
    const left = box.left - frame.left + x * box.width + 14;
    const top = box.top - frame.top + y * box.height + 14;
    const { offsetWidth, offsetHeight } = this.tip;
    this.tip.style.left = `${Math.max(0, Math.min(left, frame.width - offsetWidth - 4))}px`;
    this.tip.style.top = `${Math.max(0, Math.min(top, frame.height - offsetHeight - 4))}px`;
  }
}
