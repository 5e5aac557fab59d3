// The page: draw, get an answer, say what it was, see the model move.

import { Board } from "./board.js";
import { percent, picture } from "./charts.js";
import { Live } from "./live.js";

const $ = (id) => document.getElementById(id);
const DIGITS = [...Array(10).keys()];
const LEARNED_WITHIN = 15000; // ms until the page stops waiting for the job

let asked = 0; // number of the newest question, so that a late answer to an old one is dropped
let answer = null; // the newest answer
let taught = null; // {partition, offset, before, at}: what the model has still to learn

const board = new Board($("board"), drawn);
const live = new Live(modelMoved);

$("bars").append(
  ...DIGITS.map((digit) => {
    const item = document.createElement("li");
    const [name, track, share] = ["span", "span", "span"].map((tag) => document.createElement(tag));
    name.textContent = digit;
    track.className = "track";
    track.append(document.createElement("i"), document.createElement("b"));
    item.append(name, track, share);
    return item;
  }),
);
$("labels").append(
  ...DIGITS.map((digit) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: digit });
    button.addEventListener("click", () => teach(digit));
    return button;
  }),
);
showBars(null);
$("clear").addEventListener("click", () => board.clear());
$("choose").addEventListener("click", () => $("image").click());
$("image").addEventListener("change", () => takeImage($("image").files[0]));
document.addEventListener("paste", (event) => takeImage([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));

// A public page gets its token in the address, behind #, which is never sent to a server.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
const token = given ?? stored("getItem", "token") ?? "";
if (given !== null) {
  stored("setItem", "token", given);
  history.replaceState(null, "", location.pathname + location.search);
}

// The session's storage, or nothing where the browser blocks it: then a token lasts for this visit.
function stored(method, ...values) {
  try {
    return sessionStorage[method](...values);
  } catch {
    return null;
  }
}

async function takeImage(file) {
  $("image").value = "";
  if (!file) return;
  try {
    await board.image(file);
  } catch {
    say("", "This file can't be read as an image.");
  }
}

async function drawn() {
  $("hint").hidden = !board.empty;
  taught = null;
  say("", "");
  if (board.empty) {
    asked += 1;
    showAnswer(null);
    return;
  }
  await ask();
}

// Ask about the drawing as it is; `before` are the probabilities to compare with.
async function ask(before = null) {
  asked += 1;
  const mine = asked;
  const found = await post("predict", { imgStr: board.base64() });
  if (mine !== asked) return null;
  if (found.success) showAnswer(found, before);
  else {
    showAnswer(null);
    say("", found.error);
  }
  return found.success ? found : null;
}

async function post(path, fields) {
  const options = { method: "POST", body: new URLSearchParams(fields), headers: token ? { "X-Feedback-Token": token } : {} };
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout?.(10000) });
    return await response.json();
  } catch {
    const what = response ? `answered with ${response.status} and no JSON` : "does not answer";
    return { success: false, error: `The page's server ${what}. Your drawing is still here: try again in a moment.` };
  }
}

function showAnswer(found, before = null) {
  answer = found;
  $("answer").textContent = found ? found.predict_result : "–";
  $("teach").hidden = !found || document.body.dataset.feedback !== "true";
  picture($("seen"), found ? found.x : Array(64).fill(0));
  $("seen").setAttribute("aria-label", found ? "What the model saw: your drawing as 8 by 8 cells" : "What the model saw: nothing yet");
  showBars(found, before);
  $("by").textContent = found
    ? `by version ${found.model_version.toLocaleString("en")}, after ${found.samples.toLocaleString("en")} samples`
    : "Draw something: the answer comes when you lift the pen.";
  [...$("labels").children].forEach((button, digit) => {
    button.classList.toggle("best", digit === found?.predict_result && taught === null);
    button.classList.toggle("taught", digit === taught?.label);
    button.disabled = taught !== null;
    button.setAttribute("aria-label", digit === found?.predict_result ? `${digit}, as it said` : `No, it is ${digit}`);
  });
}

function showBars(found, before = null) {
  [...$("bars").children].forEach((item, digit) => {
    const share = found?.probabilities?.[digit] ?? 0;
    item.classList.toggle("best", digit === found?.predict_result);
    item.querySelector("i").style.width = `${100 * share}%`;
    const moved = before && Math.abs(share - before[digit]) > 0.005; // a mark stands where the share was before
    item.querySelector("b").hidden = !moved;
    item.querySelector("b").style.width = moved ? `${100 * before[digit]}%` : "0";
    item.lastChild.textContent = found?.probabilities ? percent(share, 1) : "";
  });
}

async function teach(label) {
  if (!answer) return;
  const before = answer;
  taught = { label, before, partition: null };
  showAnswer(answer);
  say(`Sending your ${label}…`, "");
  const mine = taught;
  const sent = await post("feedback", { imgStr: board.base64(), actual_y: label });
  if (mine !== taught) return;
  if (!sent.success) {
    taught = null;
    showAnswer(answer);
    say("", sent.error);
    return;
  }
  Object.assign(taught, { partition: String(sent.partition), offset: sent.offset });
  say(`Kafka has your ${label} (partition ${sent.partition}, offset ${sent.offset}); the job learns it…`, "");
  setTimeout(() => {
    if (mine === taught && !mine.learned) say("Kafka has it, but the job has not learned it yet. Is the job running?", "");
  }, LEARNED_WITHIN);
  modelMoved(live.model);
}

// Called at each change of the model: once it has learned what was taught, ask again and show what moved.
async function modelMoved(model) {
  if (!taught || taught.learned || taught.partition === null || !((model.progress?.[taught.partition] ?? 0) > taught.offset)) return;
  const { before, label } = taught;
  taught.learned = true;
  const mine = taught;
  const now = await ask(before.probabilities);
  if (!now || mine !== taught) return;
  const line = document.createElement("b");
  line.textContent = `Learned: version ${before.model_version.toLocaleString("en")} → ${now.model_version.toLocaleString("en")}.`;
  const [was, is] = [before, now].map((each) => percent(each.probabilities?.[label], 2));
  const moved = was === is ? ` ${label} stays at ${is}.` : ` ${label} was at ${was}, now it is at ${is}.`;
  $("said").replaceChildren(line, now.probabilities ? moved : "");
}

function say(sentence, problem) {
  $("said").textContent = sentence;
  $("problem").textContent = problem;
}
