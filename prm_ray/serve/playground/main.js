// The playground: what its buttons do. Rewards come from the server; ranking them anew needs no request.

import { RequestError, ask, curl, keepKey, key } from "./api.js";
import * as form from "./form.js";
import { draw, hideDetails } from "./results.js";

const EXAMPLE = {
  problem: "12+5*7+15",
  candidates: [
    "12+35+15\n37+15\n52",
    "12+35+15\n47+15\n62",
    "17*7+15\n119+15\n134",
    "12+35+15\n47+15\n52",
    "12+35+15\n167+15\n172",
  ],
};

const byId = (id) => document.getElementById(id);
const state = { models: [], shown: null, aggregation: null, abort: null };

function chosenModel() {
  return state.models.find((model) => model.id === byId("model").value);
}

async function loadModels() {
  try {
    const reply = await ask("v1/models");
    state.models = reply.data;
    byId("model").replaceChildren(...reply.data.map((model) => new Option(model.id, model.id)));
    allowGenerating(reply);
    showModel();
    complain("");
  } catch (error) {
    byId("model-facts").textContent = "The models are not known yet.";
    allowGenerating({ best_of: null, unknown: true });
    fail(error);
  }
}

function allowGenerating({ best_of, max_candidates, unknown }) {
  for (const id of ["count", "generate"]) byId(id).disabled = !best_of;
  byId("count").max = max_candidates ?? "";
  if (best_of) byId("count").value = best_of;
  const none = "This server has no generator (setting serve.generator), so candidates are written or pasted above.";
  byId("generate-hint").textContent = best_of || unknown ? "" : none;
}

function showModel() {
  const model = chosenModel();
  if (!model) return;
  let kind = `logits (${model.reward})`;
  if (model.reward === "log_ratio") kind = model.with_reference ? "log-ratio to its reference" : "log-prob";
  byId("model-facts").textContent = `Reward: ${kind}. Steps by ${model.step_rule}. Ranks by ${model.aggregation}.`;
  state.aggregation = null;
}

/** Runs one request at a time, shows that it runs, lets it be cancelled. */
async function busy(words, work) {
  if (state.abort) return;
  state.abort = new AbortController();
  setBusy(words);
  complain("");
  try {
    await work(state.abort.signal);
  } catch (error) {
    if (error.name === "AbortError") byId("summary").textContent = "Cancelled.";
    else fail(error);
  } finally {
    state.abort = null;
    setBusy(null);
  }
}

function setBusy(words) {
  const isBusy = words !== null;
  byId("results").setAttribute("aria-busy", String(isBusy));
  // Not `disabled`: the focus would be lost.
  const buttons = [byId("score"), byId("generate"), ...document.querySelectorAll(".example")];
  for (const button of buttons) button.setAttribute("aria-disabled", String(isBusy));
  byId("cancel").hidden = !isBusy;
  if (isBusy) byId("summary").textContent = words;
}

async function score(signal, { movesFocus, note = "" }) {
  if (!state.models.length) await loadModels(); // the server may have been away when the page was opened
  const { problem, candidates } = form.read();
  const body = { model: byId("model").value || undefined, problem, responses: candidates.map(({ text }) => text) };
  const start = performance.now();
  const reply = await ask("v1/rewards", body, signal);
  const seconds = (performance.now() - start) / 1000;
  const model = state.models.find(({ id }) => id === reply.model);
  state.shown = { reply, body, candidates, note };
  offerAggregations(reply, model?.aggregation);
  byId("facts").textContent = factsOf(reply, seconds);
  byId("empty").hidden = true;
  byId("after").hidden = false;
  byId("command").hidden = true;
  byId("copy-status").textContent = "";
  show();
  if (movesFocus) byId("results-title").focus({ preventScroll: true });
  reveal();
}

/** Scrolls to the results where they are out of sight: below on a phone, above beside many candidates. */
function reveal() {
  const { top } = byId("results-title").getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.6) byId("results-title").scrollIntoView();
}

function factsOf({ usage, model }, seconds) {
  const count = (value) => value.toLocaleString("en");
  const tokens = `${count(usage.total_tokens)} tokens (problem ${count(usage.prompt_tokens)}, candidates ${count(usage.completion_tokens)})`;
  return `${model} \u00b7 ${tokens} \u00b7 ${seconds < 10 ? seconds.toFixed(2) : Math.round(seconds)} s`;
}

function offerAggregations(reply, own) {
  const scored = reply.results.find((result) => result.rewards);
  const names = scored ? Object.keys(scored.rewards) : [];
  if (!names.includes(state.aggregation)) state.aggregation = names.includes(own) ? own : names[0] ?? own;
  const choices = names.map((name) => {
    const label = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "aggregation", value: name });
    radio.checked = name === state.aggregation;
    const text = document.createElement("span");
    text.textContent = name === own ? `${name} (default)` : name;
    if (name === own) text.title = "What this model ranks by unless asked otherwise";
    label.append(radio, text);
    return label;
  });
  document.querySelector("#aggregations .choices").replaceChildren(...choices);
  byId("reading").hidden = names.length === 0;
}

function show() {
  const { reply, candidates, note } = state.shown;
  byId("summary").textContent = draw(reply, candidates, state.aggregation) + (note && ` ${note}`);
}

async function generate(signal) {
  const body = {
    messages: [{ role: "user", content: form.read().problem }],
    best_of: Number(byId("count").value) || undefined,
    prm: { model: byId("model").value || undefined, return_candidates: true },
  };
  const { prm_metadata: made } = await ask("v1/chat/completions", body, signal);
  form.replace(null, made.candidates.map(({ text }) => text));
  byId("summary").textContent = "Scoring\u2026";
  const missing = made.num_requested - made.num_candidates;
  const note = missing > 0 ? `${missing} of ${made.num_requested} did not come: ${made.problems.join("; ")}.` : "";
  await score(signal, { movesFocus: true, note });
}

function complain(message) {
  byId("notice").textContent = message;
}

function fail(error) {
  if (!(error instanceof RequestError)) throw error;
  complain(error.message);
  byId("summary").textContent = state.shown ? "Below is what was scored before." : "Nothing scored.";
  if (state.abort) reveal();
  if (error.status !== 401) return;
  byId("key").setAttribute("aria-invalid", "true");
  byId("key-box").open = true;
  byId("key").focus();
}

async function copy() {
  const command = curl("v1/rewards", state.shown.body);
  const needsKey = key() ? " Put your key into PRM_RAY_KEY first." : "";
  try {
    await navigator.clipboard.writeText(command);
    byId("copy-status").textContent = `Copied.${needsKey}`;
  } catch { // no secure context, or not allowed
    byId("command").hidden = false;
    byId("command").value = command;
    byId("command").select();
    byId("copy-status").textContent = `This browser does not let the page copy: press Ctrl+C.${needsKey}`;
  }
}

function ready(needsCandidates) {
  return !state.abort && form.isComplete({ needsCandidates });
}

function scoreNow(movesFocus) {
  if (ready(true)) busy("Scoring\u2026", (signal) => score(signal, { movesFocus }));
}

function showExample() {
  if (state.abort) return;
  form.replace(EXAMPLE.problem, EXAMPLE.candidates);
  scoreNow(true);
}

function takeKey() {
  keepKey(byId("key").value.trim());
  byId("key").removeAttribute("aria-invalid");
  loadModels();
}

function wire() {
  form.start((message) => { byId("summary").textContent = message; });
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    scoreNow(true);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideDetails();
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    scoreNow(false); // the focus stays, to go on writing
  });
  for (const button of document.querySelectorAll(".example")) button.addEventListener("click", showExample);
  byId("generate").addEventListener("click", () => {
    if (ready(false)) busy("Generating\u2026", generate);
  });
  byId("cancel").addEventListener("click", () => {
    byId("score").focus();
    state.abort?.abort();
  });
  byId("model").addEventListener("change", showModel);
  byId("key").value = key();
  byId("key").addEventListener("change", () => {
    if (byId("key").value.trim() !== key()) takeKey();
  });
  byId("key").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    takeKey();
  });
  document.querySelector("#aggregations").addEventListener("change", (event) => {
    state.aggregation = event.target.value;
    show();
  });
  byId("copy").addEventListener("click", copy);
}

wire();
loadModels();
