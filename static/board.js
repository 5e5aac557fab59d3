// The drawing board: pen strokes as SVG polylines, from pointer, keyboard or an image.

const SVG = "http://www.w3.org/2000/svg";
const SIZE = 280;
const STEP = 20; // of the keyboard's grid
const NEAR = 3; // points nearer to the last one are left out
const IMAGE = 48; // pixels along a side of a picture after shrinking

export class Board {
  constructor(board, onDrawn) {
    this.board = board;
    this.ink = board.querySelector("#ink");
    this.cursor = board.querySelector("#cursor");
    this.onDrawn = onDrawn;
    this.pointer = null; // what draws or erases now: {id, kind, stroke}; one at a time
    this.penSeen = false; // from then on a touch is a palm
    this.pen = null; // the keyboard's stroke
    for (let x = STEP; x < SIZE; x += STEP * 3) {
      for (let y = STEP; y < SIZE; y += STEP * 3) {
        const dot = document.createElementNS(SVG, "circle");
        for (const [name, value] of Object.entries({ cx: x, cy: y, r: 1.5 })) dot.setAttribute(name, value);
        board.querySelector("#guide").append(dot);
      }
    }
    board.addEventListener("pointerdown", (event) => this.down(event));
    board.addEventListener("pointermove", (event) => this.move(event));
    // A browser may lose a pointerup; what it always says is that the pointer is no longer captured.
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      board.addEventListener(name, (event) => this.up(event));
    }
    board.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press, or a pen's barrel button
    board.addEventListener("keydown", (event) => this.key(event));
    board.addEventListener("blur", () => this.cursor.toggleAttribute("hidden", true));
  }

  get empty() {
    return !this.ink.childElementCount;
  }

  clear() {
    this.ink.replaceChildren();
    this.pointer = null;
    this.lift();
    this.onDrawn();
  }

  // The drawing as it is sent: base64 of an SVG.
  base64() {
    const lines = [...this.ink.children].map((line) =>
      line.localName === "path"
        ? `<path d="${line.getAttribute("d")}"/>`
        : `<polyline points="${line.getAttribute("points")}" fill="none" stroke="#000" stroke-width="18"/>`,
    );
    return btoa(`<svg xmlns="${SVG}" viewBox="0 0 ${SIZE} ${SIZE}">${lines.join("")}</svg>`);
  }

  stroke(x, y) {
    const line = document.createElementNS(SVG, "polyline");
    this.ink.append(line);
    const stroke = { line, points: [] };
    this.extend(stroke, x, y);
    this.extend(stroke, x + 0.1, y, 0); // so that a dot can be seen
    return stroke;
  }

  extend(stroke, x, y, near = NEAR) {
    const last = stroke.points.at(-1);
    if (last && Math.hypot(x - last[0], y - last[1]) < near) return;
    stroke.points.push([x, y]);
    stroke.line.setAttribute("points", stroke.points.map(([a, b]) => `${+a.toFixed(1)},${+b.toFixed(1)}`).join(" "));
  }

  place(event) {
    const box = this.board.getBoundingClientRect();
    return [((event.clientX - box.left) * SIZE) / box.width, ((event.clientY - box.top) * SIZE) / box.height];
  }

  down(event) {
    const { button, pointerId: id, pointerType: kind } = event;
    const eraser = button === 5;
    if ((button > 0 && !eraser) || this.ignores(event)) return;
    event.preventDefault();
    if (kind === "pen" && this.pointer?.kind === "touch") this.pointer.stroke?.line.remove(); // the palm came first
    this.lift();
    if (this.ink.querySelector("path")) this.ink.replaceChildren(); // a picture gives way to a drawing
    // A stroke whose end was lost stays as it is.
    this.pointer = { id, kind, stroke: eraser ? null : this.stroke(...this.place(event)) };
    if (eraser) this.erase(event);
    try {
      this.board.setPointerCapture(id);
    } catch {
      // The pointer is gone already.
    }
  }

  // A palm beside a pen, and a second finger beside the first, draw nothing.
  ignores(event) {
    if (event.pointerType === "pen") this.penSeen = true;
    if (event.pointerType !== "touch") return false;
    return this.penSeen || (this.pointer?.kind === "touch" && !event.isPrimary);
  }

  move(event) {
    if (event.pointerType === "pen") this.penSeen = true; // it hovers before it writes
    if (event.pointerId !== this.pointer?.id) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const each of moves.length ? moves : [event]) {
      if (this.pointer.stroke) this.extend(this.pointer.stroke, ...this.place(each));
      else this.erase(each);
    }
  }

  // Take away the strokes under a pen's eraser.
  erase(event) {
    for (const found of document.elementsFromPoint(event.clientX, event.clientY)) {
      if (found.parentNode === this.ink) found.remove();
    }
  }

  up(event) {
    if (event.pointerId !== this.pointer?.id) return;
    this.pointer = null;
    this.onDrawn();
  }

  lift() {
    const was = this.pen;
    this.pen = null;
    this.cursor.classList.remove("down");
    return was;
  }

  key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const [x, y] = ["cx", "cy"].map((name) => Number(this.cursor.getAttribute(name)));
    if (event.key in ways) {
      const [dx, dy] = ways[event.key];
      const to = [x + dx * STEP, y + dy * STEP].map((v) => Math.min(SIZE - STEP, Math.max(STEP, v)));
      this.cursor.setAttribute("cx", to[0]);
      this.cursor.setAttribute("cy", to[1]);
      if (this.pen) this.extend(this.pen, ...to);
    } else if (event.key === " ") {
      if (this.lift()) this.onDrawn();
      else {
        if (this.ink.querySelector("path")) this.ink.replaceChildren();
        this.pen = this.stroke(x, y);
        this.cursor.classList.add("down");
      }
    } else if (event.key === "Enter") {
      this.lift();
      this.onDrawn();
    } else if (event.key === "Escape") this.clear();
    else return;
    event.preventDefault();
    this.cursor.toggleAttribute("hidden", false);
  }

  // Take the dark (or, on dark paper, the light) pixels of an image as ink.
  async image(file) {
    const bitmap = await createImageBitmap(file);
    const scale = IMAGE / Math.max(bitmap.width, bitmap.height);
    const width = Math.max(1, Math.round(bitmap.width * scale));
    const height = Math.max(1, Math.round(bitmap.height * scale));
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    const grey = Array.from({ length: width * height }, (_, i) => 0.3 * data[4 * i] + 0.59 * data[4 * i + 1] + 0.11 * data[4 * i + 2]);
    const d = runs(inked(grey, width, height), width, height);
    this.ink.replaceChildren();
    this.lift();
    if (d) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", d);
      this.ink.append(path);
    }
    this.onDrawn();
  }
}

// Where the ink is: darker or lighter than a threshold halfway between dark and light, whichever the border is not.
function inked(grey, width, height) {
  const low = Math.min(...grey);
  const high = Math.max(...grey);
  if (high - low < 32) return grey.map(() => false);
  let threshold = (low + high) / 2;
  for (let round = 0; round < 8; round += 1) {
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
    threshold = (mean(grey.filter((v) => v <= threshold)) + mean(grey.filter((v) => v > threshold))) / 2;
  }
  const border = grey.filter((_, i) => i < width || i >= width * (height - 1) || i % width === 0 || i % width === width - 1);
  const darkPaper = border.filter((v) => v <= threshold).length > border.length / 2;
  return grey.map((v) => v > threshold === darkPaper);
}

// The rows of ink as one path of rectangles, fitted onto the board.
function runs(ink, width, height) {
  const unit = SIZE / IMAGE;
  const [left, top] = [(SIZE - width * unit) / 2, (SIZE - height * unit) / 2];
  let d = "";
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (!ink[y * width + x]) continue;
      let end = x;
      while (end < width && ink[y * width + end]) end += 1;
      const place = [left + x * unit, top + y * unit, (end - x) * unit, unit].map((v) => +v.toFixed(2));
      d += `M${place[0]} ${place[1]}h${place[2]}v${place[3]}h${-place[2]}z`;
      x = end;
    }
  }
  return d;
}
