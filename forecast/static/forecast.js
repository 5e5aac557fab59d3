// One key's history, forecast and median; everything comes from /forecast/keys and /forecast/data.

const $ = (id) => document.getElementById(id);
const SUMS = [7, 30, 90]; // days ahead
const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const monthDay = { day: "numeric", month: "short", timeZone: "UTC" };
const month = new Intl.DateTimeFormat("en", monthDay);
const dayName = new Intl.DateTimeFormat("en", { ...monthDay, weekday: "short", year: "numeric" });

let keys = []; // [region, network, station]
let shown = null; // the answer of /forecast/data for the chosen key
let asked = 0; // number of the newest request, so that a late answer to an old one is dropped
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
  for (const text of cells) {
    made.append(Object.assign(document.createElement("td"), { textContent: text }));
  }
  return made;
}

function date(day) {
  return new Date(Date.parse(shown.first_day) + 86400000 * (day - shown.history.length));
}

function frame() {
  const width = $("days").clientWidth || 320;
  const height = $("days").clientHeight || 240;
  const [left, right, top, bottom] = [44, width - 8, 8, height - 22];
  const days = shown.history.length + shown.forecast.length;
  const seen = shown.history.filter((value) => value !== null);
  const largest = Math.max(4, ...seen, ...shown.forecast, ...shown.median);
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
  const line = (name, x1, x2, y1, y2) => element("line", { class: name, x1, x2, y1, y2 });
  const label = (at, down, anchor, text) =>
    element("text", { x: at, y: down, "text-anchor": anchor }, text);
  for (let value = 0; value <= most; value += step) {
    parts.push(line("grid", left, right, y(value), y(value)));
    parts.push(label(left - 6, y(value) + 4, "end", short.format(value)));
  }
  for (let day = 0; day < days; day += 1) {
    if (date(day).getUTCDate() !== 1 || x(day) > right - 20) continue;
    parts.push(line("grid", x(day), x(day), bottom, bottom + 4));
    parts.push(label(x(day), height - 5, "middle", month.format(date(day))));
  }
  const first = shown.history.length; // of the days ahead
  parts.push(line("today", x(first - 0.5), x(first - 0.5), top, bottom));
  parts.push(...lines("history", shown.history, 0, x, y));
  parts.push(...lines("usual", shown.median, first, x, y));
  parts.push(...lines("ours", shown.forecast, first, x, y));
  if (pointed !== null) parts.push(line("cursor", x(pointed), x(pointed), top, bottom));
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
  $("reading").textContent = reading();
  draw();
}

// The sentence about the day under the pointer.
function reading() {
  if (pointed === null) return "Point at a day, or use the arrow keys on the chart.";
  const name = dayName.format(date(pointed));
  const ahead = pointed - shown.history.length;
  if (ahead < 0) {
    const value = shown.history[pointed];
    return `${name}: ${value === null ? "not observed" : count.format(value)}`;
  }
  const forecast = count.format(shown.forecast[ahead]);
  const median = count.format(shown.median[ahead]);
  const days = ahead ? "days" : "day";
  return `${name}, ${ahead + 1} ${days} ahead: forecast ${forecast}, median ${median}`;
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

async function show() {
  asked += 1;
  const mine = asked;
  const [region, network, station] = keys[$("station").value];
  try {
    const found = await ask(`data?${new URLSearchParams({ region, network, station })}`);
    if (mine !== asked) return;
    shown = found;
    const title = `Impressions a day of ${station} in ${region}: history, forecast and median`;
    $("days").setAttribute("aria-label", title);
    $("sums").replaceChildren(...SUMS.map((days) => {
      const sums = [shown.forecast, shown.median].map((values) => sum(values.slice(0, days)));
      return row(`${days} days`, ...sums.map((value) => count.format(value)));
    }));
    point(null);
  } catch (error) {
    if (mine === asked) fail(error);
  }
}

function stations() {
  const networks = new Map();
  keys.forEach(([region, network, station], i) => {
    if (region !== $("region").value) return;
    if (!networks.has(network)) {
      const group = Object.assign(document.createElement("optgroup"), { label: network });
      networks.set(network, group);
    }
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

function origin(state) {
  if (state.parent === null) return "trained on the whole history";
  if (state.kept) return "yesterday's (today's fine-tune was not better)";
  return "fine-tuned on this day and a replay of older days";
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
  $("origin").textContent = origin(state);
  const [series, places] = [keys.length, regions.length].map((n) => count.format(n));
  $("series").textContent = `${series} in ${places} regions`;
  const errors = Object.entries(state.errors);
  errors.sort(([a], [b]) => parseInt(a, 10) - parseInt(b, 10));
  $("errors").replaceChildren(...errors.map(([days, error]) =>
    row(days, error.model.toFixed(1), error.median.toFixed(1))));
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

for (const name of ["pointermove", "pointerdown"]) {
  $("days").addEventListener(name, (event) => shown && point(under(event)));
}
$("days").addEventListener("pointerleave", () => point(null));
$("days").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !shown) return;
  event.preventDefault();
  point((pointed ?? shown.history.length - 1) + step);
});
new ResizeObserver(draw).observe($("days"));
begin().catch(fail);
