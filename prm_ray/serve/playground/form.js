// The candidates' text areas: added, removed, cut out of one paste, brought back.

const list = document.getElementById("candidates");
const problem = document.getElementById("problem");
const restore = document.getElementById("restore");
let earlier = null;

/** The problem and the candidates that have text, each with the number of its field. */
export function read() {
  const candidates = fields().map((field, index) => ({ number: index + 1, text: field.value }));
  return { problem: problem.value, candidates: candidates.filter(({ text }) => text.trim()) };
}

/** Puts texts in place of what is there, which `Bring back my text` undoes; null leaves the problem. */
export function replace(newProblem, texts) {
  const before = { problem: problem.value, texts: fields().map((field) => field.value) };
  if (before.texts.some((text) => text.trim())) keep(before);
  fill(newProblem, texts);
}

/** Marks what is missing, moves the focus there and returns false; or returns true. */
export function isComplete({ needsCandidates }) {
  const found = read();
  const faults = [];
  mark(problem, "problem-error", found.problem.trim() ? "" : "Write a problem first.", faults);
  const message = "Write at least one candidate, or let the generator write some.";
  mark(fields()[0], "candidates-error", !needsCandidates || found.candidates.length ? "" : message, faults);
  faults[0]?.focus();
  return faults.length === 0;
}

export function start(announce) {
  fill("", ["", ""]);
  document.getElementById("add").addEventListener("click", () => add("").focus());
  restore.addEventListener("click", () => {
    fill(earlier.problem, earlier.texts);
    keep(null);
    problem.focus();
  });
  list.addEventListener("paste", (event) => paste(event, announce));
  problem.addEventListener("input", () => mark(problem, "problem-error", "", []));
  list.addEventListener("input", () => mark(fields()[0], "candidates-error", "", []));
}

function fields() {
  return [...list.querySelectorAll("textarea")];
}

function fill(newProblem, texts) {
  if (newProblem !== null) problem.value = newProblem;
  list.replaceChildren();
  for (const text of texts) add(text);
  mark(problem, "problem-error", "", []);
  mark(fields()[0], "candidates-error", "", []);
}

function keep(texts) {
  earlier = texts;
  restore.hidden = texts === null;
}

function mark(field, errorId, message, faults) {
  document.getElementById(errorId).textContent = message;
  if (message) field.setAttribute("aria-invalid", "true");
  else field.removeAttribute("aria-invalid");
  if (message) faults.push(field);
}

function add(text, after = null) {
  const item = document.createElement("li");
  const field = document.createElement("textarea");
  field.rows = 2;
  field.value = text;
  field.setAttribute("aria-describedby", "candidates-hint candidates-error");
  const remove = document.createElement("button");
  remove.type = "button";
  remove.className = "quiet remove";
  remove.textContent = "\u00d7";
  remove.addEventListener("click", () => drop(item));
  item.append(field, remove);
  if (after) after.after(item);
  else list.append(item);
  number();
  return field;
}

function drop(item) {
  const place = fields().indexOf(item.querySelector("textarea"));
  if (fields().length === 1) item.querySelector("textarea").value = "";
  else item.remove();
  number();
  fields()[Math.min(place, fields().length - 1)].focus();
}

function number() {
  fields().forEach((field, index) => {
    field.setAttribute("aria-label", `Candidate ${index + 1}`);
    field.nextElementSibling.setAttribute("aria-label", `Remove candidate ${index + 1}`);
  });
}

function paste(event, announce) {
  const pieces = event.clipboardData.getData("text").split(/^[ \t]*---[ \t]*\r?$/m).map(trimLines);
  const texts = pieces.filter((text) => text.trim());
  if (pieces.length < 2 || !texts.length) return;
  event.preventDefault();
  const field = event.target;
  field.setRangeText(texts[0], field.selectionStart, field.selectionEnd, "end");
  let item = field.closest("li");
  for (const text of texts.slice(1)) item = add(text, item).closest("li");
  item.querySelector("textarea").focus();
  announce(`Pasted ${texts.length} candidates.`);
}

function trimLines(text) {
  return text.replace(/^(?:[ \t]*\r?\n)+/, "").trimEnd();
}
