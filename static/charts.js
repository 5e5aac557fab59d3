// What is drawn from numbers: 8x8 pictures, the accuracy chart, the table of what was taken for what.

const SVG = "http://www.w3.org/2000/svg";

function colour(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}

// Paint 64 numbers: 0..16 as ink, or -100..100 as for and against.
export function picture(canvas, cells, signed = false) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(8, 8);
  const [plus, minus] = signed ? [colour("--accent"), colour("--second")] : [colour("--ink"), colour("--ink")];
  cells.forEach((cell, i) => {
    const [r, g, b] = cell < 0 ? minus : plus;
    image.data.set([r, g, b, Math.round((255 * Math.abs(cell)) / (signed ? 100 : 16))], 4 * i);
  });
  context.putImageData(image, 0, 0);
}

export function newPicture(label) {
  const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  return canvas;
}

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

// A point is [epoch s, version, samples, accuracy, accuracy_100, samples/s, people's accuracy].
export function accuracyChart(svg, points) {
  const width = svg.clientWidth || 320;
  const height = svg.clientHeight || 210;
  const [left, right, top, bottom] = [36, width - 8, 8, height - 22];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const parts = [];
  // The first moments of a new model would flatten all that comes after: lines leave the picture there.
  const settled = points.slice(points.length > 30 ? Math.ceil(points.length / 10) : 0);
  const shown = settled.flatMap((p) => [p[3], p[4], p[6]]).filter((v) => v !== null);
  const low = Math.min(0.8, Math.floor(Math.min(...shown, 1) * 5) / 5);
  // Points stand side by side, not at their times: while nothing is learned there is nothing to see.
  const x = (i) => left + ((right - left) * i) / Math.max(1, points.length - 1);
  const y = (v) => bottom - ((bottom - top) * (Math.max(v, low) - low)) / (1 - low);
  for (let v = low; v <= 1.001; v += low < 0.5 ? 0.2 : 0.1) {
    parts.push(element("line", { class: "grid", x1: left, x2: right, y1: y(v), y2: y(v) }));
    parts.push(element("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, `${Math.round(100 * v)} %`));
  }
  points.forEach((p, i) => {
    if (i && p[2] < points[i - 1][2]) parts.push(element("line", { class: "restart", x1: x(i), x2: x(i), y1: top, y2: bottom }));
  });
  for (const [name, column] of [["total", 3], ["people", 6], ["recent", 4]]) {
    const line = points.flatMap((p, i) => (p[column] === null ? [] : [`${x(i).toFixed(1)},${y(p[column]).toFixed(1)}`]));
    if (line.length > 1) parts.push(element("polyline", { class: name, points: line.join(" ") }));
  }
  if (points.length > 1) {
    for (const [i, anchor] of [[0, "start"], [points.length - 1, "end"]]) {
      parts.push(element("text", { x: x(i), y: height - 4, "text-anchor": anchor }, clock.format(points[i][0] * 1000)));
    }
    const last = points.at(-1);
    svg.setAttribute("aria-label", `Accuracy over time; now ${percent(last[4])} of the last 100, ${percent(last[3])} since the start`);
  } else {
    parts.push(element("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "fills as the model learns"));
  }
  svg.replaceChildren(...parts);
}

export function percent(share, digits = 0) {
  return share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`;
}

const compact = new Intl.NumberFormat("en", { notation: "compact" });

export function confusionTable(table, counts) {
  const cell = (name, text, label) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (name === "th") made.scope = label;
    return made;
  };
  const head = document.createElement("tr");
  head.append(cell("td", ""), ...counts.map((_, digit) => cell("th", digit, "col")), cell("th", "right", "col"));
  const [r, g, b] = colour("--accent");
  const [wr, wg, wb] = colour("--wrong");
  const rows = counts.map((row, digit) => {
    const all = row.reduce((sum, n) => sum + n, 0);
    const made = document.createElement("tr");
    made.append(cell("th", digit, "row"));
    row.forEach((n, said) => {
      const found = cell("td", n ? compact.format(n) : "");
      const strength = all ? n / all : 0;
      if (said === digit) found.style.background = `rgb(${r} ${g} ${b} / ${0.3 * strength})`;
      else if (n) found.style.background = `rgb(${wr} ${wg} ${wb} / ${Math.min(0.3, 0.06 + 2 * strength)})`;
      made.append(found);
    });
    made.append(cell("td", all ? percent(row[digit] / all) : "–"));
    return made;
  });
  table.replaceChildren(head, ...rows);
}
