// One key's history, forecast and median; everything comes from /forecast/keys and /forecast/data.

const $ = (id) => document.getElementById(id);
const SUMS = [7, 30, 90]; // days ahead
const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const dayName = new Intl.DateTimeFormat("en", { weekday: "short", day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const month = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", timeZone: "UTC" });

let keys = []; // [region, network, station]
let shown = null; // what /forecast/data said of the chosen key
let asked = 0; // number of the newest question, so that a late answer to an old one is dropped
let pointed = null; // the day under the pointer, counted from the first of the history

async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(20000) }).catch(() => null);
  if (!response) throw new Error("The page's server does not answer. Try again in a moment.");
  const answer = await response.json();
  if (!answer.success) throw new Error(answer.error);
  return answer;
}

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function row(head, ...cells) {
  const made = document.createElement("tr");
  made.append(Object.assign(document.createElement("th"), { scope: "row", textContent: head }));
  made.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
  return made;
}

function date(day) {
  return new Date(Date.parse(shown.first_day) + 86400000 * (day - shown.history.length));
}

function frame() {
  const [width, height] = [$("days").clientWidth || 320, $("days").clientHeight || 240];
  const [left, right, top, bottom] = [44, width - 8, 8, height - 22];
  const days = shown.history.length + shown.forecast.length;
  const largest = Math.max(4, ...shown.history.filter((v) => v !== null), ...shown.forecast, ...shown.median);
  const unit = 10 ** Math.floor(Math.log10(largest / 4));
  const step = unit * [1, 2, 2.5, 5, 10].find((times) => times * unit * 4 >= largest * 0.98);
  const most = Math.max(largest, Math.ceil(largest / step) * step);
  return {
    width, height, left, right, top, bottom, days, step, most,
    x: (day) => left + ((right - left) * day) / (days - 1),
    y: (value) => bottom - ((bottom - top) * value) / most,
  };
}

function draw() {
  if (!shown) return;
  const { width, height, left, right, top, bottom, days, step, most, x, y } = frame();
  const parts = [];
  for (let value = 0; value <= most; value += step) {
    parts.push(element("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
    parts.push(element("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short.format(value)));
  }
  for (let day = 0; day < days; day += 1) {
    if (date(day).getUTCDate() !== 1 || x(day) > right - 20) continue;
    parts.push(element("line", { class: "grid", x1: x(day), x2: x(day), y1: bottom, y2: bottom + 4 }));
    parts.push(element("text", { x: x(day), y: height - 5, "text-anchor": "middle" }, month.format(date(day))));
  }
  const today = x(shown.history.length - 0.5);
  parts.push(element("line", { class: "today", x1: today, x2: today, y1: top, y2: bottom }));
  for (const [name, values, from] of [
    ["history", shown.history, 0], ["usual", shown.median, shown.history.length], ["ours", shown.forecast, shown.history.length],
  ]) parts.push(...lines(name, values, from, x, y));
  if (pointed !== null) parts.push(element("line", { class: "cursor", x1: x(pointed), x2: x(pointed), y1: top, y2: bottom }));
  $("days").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("days").replaceChildren(...parts);
}

// A day that was not observed is a gap, not a zero.
function lines(name, values, from, x, y) {
  const parts = [];
  let points = [];
  for (const [i, value] of [...values, null].entries()) {
    if (value !== null) points.push(`${x(from + i).toFixed(1)},${y(value).toFixed(1)}`);
    else if (points.length) {
      parts.push(element("polyline", { class: name, points: points.join(" ") }));
      points = [];
    }
  }
  return parts;
}

function point(day) {
  if (!shown) return;
  const last = shown.history.length + shown.forecast.length - 1;
  pointed = day === null ? null : Math.max(0, Math.min(last, day));
  const ahead = pointed - shown.history.length;
  if (pointed === null) $("reading").textContent = "Point at a day, or use the arrow keys on the chart.";
  else if (ahead < 0) {
    const value = shown.history[pointed];
    $("reading").textContent = `${dayName.format(date(pointed))}: ${value === null ? "not observed" : count.format(value)}`;
  } else {
    $("reading").textContent = `${dayName.format(date(pointed))}, ${ahead + 1} ${ahead ? "days" : "day"} ahead: ` +
      `forecast ${count.format(shown.forecast[ahead])}, median ${count.format(shown.median[ahead])}`;
  }
  draw();
}

async function show() {
  asked += 1;
  const mine = asked;
  const [region, network, station] = keys[$("station").value];
  try {
    const found = await ask(`data?${new URLSearchParams({ region, network, station })}`);
    if (mine !== asked) return;
    shown = found;
    $("days").setAttribute("aria-label", `Impressions a day of ${station} in ${region}: history, forecast and median`);
    $("sums").replaceChildren(...SUMS.map((days) => row(`${days} days`,
      ...[shown.forecast, shown.median].map((values) => count.format(values.slice(0, days).reduce((a, b) => a + b, 0))))));
    point(null);
  } catch (error) {
    if (mine === asked) fail(error);
  }
}

function stations() {
  const networks = new Map();
  keys.forEach(([region, network, station], i) => {
    if (region !== $("region").value) return;
    if (!networks.has(network)) networks.set(network, Object.assign(document.createElement("optgroup"), { label: network }));
    networks.get(network).append(new Option(station, i));
  });
  $("station").replaceChildren(...networks.values());
  return show();
}

function fail(error) {
  $("state").textContent = "no forecast";
  $("state").className = "pill down";
  $("problem").textContent = error.message;
  $("none").hidden = false;
  document.querySelectorAll(".shown").forEach((section) => { section.hidden = true; });
}

async function begin() {
  const state = await ask("keys");
  keys = state.keys;
  document.querySelectorAll(".shown").forEach((section) => { section.hidden = false; });
  const regions = [...new Set(keys.map(([region]) => region))];
  $("state").textContent = `data up to ${state.as_of}`;
  $("state").className = "pill up";
  $("as-of").textContent = dayName.format(new Date(state.as_of));
  $("model").textContent = state.model;
  $("origin").textContent = state.parent === null ? "trained on the whole history"
    : state.kept ? "yesterday's (today's fine-tune was not better)" : "fine-tuned on this day and a replay of older days";
  $("series").textContent = `${count.format(keys.length)} in ${count.format(regions.length)} regions`;
  const errors = Object.entries(state.errors).sort(([a], [b]) => parseInt(a, 10) - parseInt(b, 10));
  $("errors").replaceChildren(...errors.map(([days, error]) => row(days, error.model.toFixed(1), error.median.toFixed(1))));
  $("region").replaceChildren(...regions.map((name) => new Option(name, name)));
  $("region").addEventListener("change", stations);
  $("station").addEventListener("change", show);
  await stations();
}

function under(event) {
  const { left, right, days } = frame();
  const at = event.clientX - $("days").getBoundingClientRect().left;
  return Math.round(((at - left) / (right - left)) * (days - 1));
}

for (const name of ["pointermove", "pointerdown"]) $("days").addEventListener(name, (event) => shown && point(under(event)));
$("days").addEventListener("pointerleave", () => point(null));
$("days").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !shown) return;
  event.preventDefault();
  point((pointed ?? shown.history.length - 1) + step);
});
new ResizeObserver(draw).observe($("days"));
begin().catch(fail);
