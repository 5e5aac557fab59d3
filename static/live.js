// What the server tells as it happens, and what the page shows of it.

import { accuracyChart, confusionTable, newPicture, percent, picture } from "./charts.js";

const SHOWN = 24;
const SILENT = 25000; // ms; the server is heard every ten seconds, so a longer silence is a dead connection
const whole = new Intl.NumberFormat("en");
const $ = (id) => document.getElementById(id);

export class Live {
  constructor(onModel) {
    this.onModel = onModel;
    this.model = { version: null };
    this.points = [];
    this.last = {};
    this.strip();
    accuracyChart($("chart"), this.points);
    new ResizeObserver(() => accuracyChart($("chart"), this.points)).observe($("chart"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
    document.addEventListener("visibilitychange", () => this.follow());
    setInterval(() => performance.now() - this.heard > SILENT && this.follow(), 5000);
    this.follow();
  }

  // Listen while the page can be seen: a browser opens only six connections to one server, for all its tabs.
  follow() {
    clearTimeout(this.again);
    this.source?.close();
    this.source = null;
    this.heard = performance.now();
    if (!document.hidden) this.connect();
  }

  connect() {
    const source = new EventSource("events");
    this.source = source;
    const on = (name, show) =>
      source.addEventListener(name, (event) => {
        this.heard = performance.now();
        show(JSON.parse(event.data));
      });
    on("beat", () => {});
    on("model", (model) => this.showModel(model));
    on("parts", (parts) => this.showParts(parts));
    on("scores", (scores) => this.showScores(scores));
    on("weights", (weights) => this.showWeights(weights));
    on("samples", (samples) => samples.forEach((sample) => this.showSample(sample)));
    on("whole_history", (points) => this.showHistory(points));
    on("history", (points) => this.showHistory([...this.points, ...points]));
    source.onerror = () => {
      this.pill("down", "the server does not answer; trying again");
      // The browser tries again by itself, except after an answer that is no stream.
      if (source.readyState === EventSource.CLOSED) this.again = setTimeout(() => this.follow(), 2000);
    };
  }

  pill(state, text) {
    $("link").className = `pill ${state}`;
    if ($("link").textContent !== text) $("link").textContent = text;
  }

  showParts(parts) {
    const { model, ...others } = parts;
    const wrong = Object.values(others).filter((state) => state !== "up");
    if (!this.model.version) wrong.push(model);
    this.pill(wrong.length ? "down" : "up", wrong.length ? wrong.join(" ") : "live");
  }

  showModel(model) {
    this.model = model;
    const known = model.version !== null;
    $("samples").textContent = known ? whole.format(model.samples) : "–";
    $("version").textContent = known ? whole.format(model.version) : "–";
    $("rate").textContent = known ? whole.format(Math.round(10 * model.rate) / 10) : "–";
    $("accuracy").textContent = percent(model.accuracy, 1);
    $("accuracy-new").textContent = percent(model.accuracy_new, 1);
    $("accuracy-100").textContent = percent(model.accuracy_100);
    this.onModel(model);
  }

  showScores(scores) {
    this.last.scores = scores;
    if (scores.confusion?.length) confusionTable($("confusion"), scores.confusion);
    const [n, right] = scores.people ?? [0, 0];
    $("people").textContent = n ? percent(right / n) : "–";
    if (n) $("people").append(Object.assign(document.createElement("small"), { textContent: ` of ${whole.format(n)}` }));
  }

  showHistory(points) {
    this.points = points.slice(-720);
    accuracyChart($("chart"), this.points);
  }

  strip() {
    $("weights").replaceChildren(
      ...Array.from({ length: 10 }, (_, digit) => {
        const item = document.createElement("li");
        item.append(newPicture(`Weights of ${digit}`), String(digit));
        return item;
      }),
    );
  }

  showWeights(weights) {
    this.last.weights = weights;
    weights.forEach((cells, digit) => picture($("weights").children[digit].firstChild, cells, true));
  }

  showSample(sample) {
    const { x, y, predicted, source } = sample;
    const wrong = predicted !== null && predicted !== y;
    const item = document.createElement("li");
    const from = source === "page" ? ", from this page" : "";
    const canvas = newPicture(`${y}, ${predicted === null ? "not predicted" : `predicted ${predicted}`}${from}`);
    const text = document.createElement("span");
    text.textContent = predicted === null ? `${y}` : wrong ? `✕ ${predicted}→${y}` : `✓ ${y}`;
    item.append(canvas, text);
    item.classList.toggle("wrong", wrong);
    item.classList.toggle("from-page", source === "page");
    item.title = source === "page" ? "taught on this page" : "from the stream";
    picture(canvas, x);
    item.cells = x;
    $("strip").prepend(item);
    while ($("strip").childElementCount > SHOWN) $("strip").lastChild.remove();
  }

  repaint() {
    if (this.last.weights) this.showWeights(this.last.weights);
    if (this.last.scores) this.showScores(this.last.scores);
    for (const item of $("strip").children) picture(item.firstChild, item.cells);
  }
}
