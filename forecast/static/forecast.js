// Draws one key's history, forecast and median; everything comes from /forecast/keys and /forecast/data.
const at = (id) => document.getElementById(id);
const [WIDTH, HEIGHT, LEFT, BOTTOM] = [960, 320, 70, 24];
let keys = [];

async function ask(path) {
  const answer = await (await fetch(path)).json();
  if (!answer.success) throw new Error(answer.error);
  return answer;
}

function fill(select, names) {
  select.replaceChildren(...names.map((name) => new Option(name, name)));
}

function element(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function draw({ history, forecast, median, first_day }) {
  const days = history.length + forecast.length;
  const most = Math.max(1, ...history.filter((v) => v !== null), ...forecast, ...median);
  const x = (day) => LEFT + (day / (days - 1)) * (WIDTH - LEFT);
  const y = (value) => (HEIGHT - BOTTOM) * (1 - value / most) + 8;
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    parts.push(element("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: y(share * most), y2: y(share * most) }));
    parts.push(element("text", { x: LEFT - 6, y: y(share * most) + 4, "text-anchor": "end" },
      Math.round(share * most).toLocaleString()));
  }
  parts.push(element("line", { class: "axis", x1: x(history.length), x2: x(history.length), y1: 8, y2: y(0) }));
  parts.push(element("text", { x: x(history.length) + 4, y: HEIGHT - 2 }, first_day));
  const line = (name, values, from) => {
    let points = [];
    for (const [i, value] of [...values, null].entries()) { // a day that was not observed is a gap, not a zero
      if (value !== null) points.push(`${x(from + i)},${y(value)}`);
      else if (points.length) { parts.push(element("polyline", { class: name, points: points.join(" ") })); points = []; }
    }
  };
  line("history", history, 0);
  line("median", median, history.length);
  line("forecast", forecast, history.length);
  at("chart").replaceChildren(...parts);
}

async function show() {
  const [network, station] = at("station").value.split("/");
  try {
    draw(await ask(`data?${new URLSearchParams({ region: at("region").value, network, station })}`));
  } catch (error) {
    at("state").textContent = error.message;
  }
}

function stations() {
  fill(at("station"), keys.filter(([region]) => region === at("region").value).map(([, n, s]) => `${n}/${s}`));
  return show();
}

try {
  const state = await ask("keys");
  keys = state.keys;
  at("state").textContent = `Data to ${state.as_of}; model ${state.model}` +
    (state.parent === null ? ", fully trained" : state.kept ? ", kept from the day before" : ", fine-tuned on that day");
  at("errors").replaceChildren(...Object.entries(state.errors).map(([days, error]) => {
    const row = document.createElement("tr");
    row.append(...[days, error].map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return row;
  }));
  fill(at("region"), [...new Set(keys.map(([region]) => region))]);
  at("region").addEventListener("change", stations);
  at("station").addEventListener("change", show);
  await stations();
} catch (error) {
  at("state").textContent = error.message;
}
