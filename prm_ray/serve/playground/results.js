// Draws a reply: answers best first, their steps with rewards. Every text enters the page as text, never as markup.

import { MEANINGS, largest, lowestStep, rank, signed, strength, writer } from "./ranking.js";

const ranking = document.getElementById("ranking");

/** Fills the ranking and returns a summary of it. Candidates have the `number` of their field and their `text`. */
export function draw(reply, candidates, aggregation) {
  const ranked = rank(reply.results, aggregation);
  const scale = largest(reply.results);
  const rewards = ranked.filter(({ rank }) => rank).map(({ reward }) => Math.abs(reward));
  const style = { aggregation, scale, write: writer(scale), writeReward: writer(Math.max(0, ...rewards)) };
  ranking.replaceChildren(...ranked.map((entry) => card(entry, candidates[entry.result.index], style)));
  document.getElementById("scale-low").textContent = signedEnd(-scale, style);
  document.getElementById("scale-high").textContent = signedEnd(scale, style);
  document.getElementById("aggregation-hint").textContent = `${aggregation}: ${MEANINGS[aggregation] ?? "as the server has it"}`;
  return summary(ranked, candidates, style);
}

function signedEnd(value, style) {
  return value === 0 ? "0" : style.write(value);
}

function summary(ranked, candidates, { aggregation, writeReward }) {
  const scored = ranked.filter(({ rank }) => rank);
  const failed = ranked.length - scored.length;
  const lines = [`${scored.length} of ${ranked.length} scored.`];
  if (!failed) lines[0] = ranked.length === 1 ? "1 candidate scored." : `${ranked.length} candidates scored.`;
  if (scored.length) {
    const best = scored.filter(({ rank }) => rank === 1).map(({ result }) => candidates[result.index].number);
    const names = best.length > 1 ? `candidates ${best.join(", ")} (tied)` : `candidate ${best[0]}`;
    lines.push(`Best by ${aggregation}: ${names} with ${writeReward(scored[0].reward)}.`);
  }
  if (failed) lines.push(failed === 1 ? "1 could not be scored." : `${failed} could not be scored.`);
  return lines.join(" ");
}

function card(entry, { number, text }, style) {
  const item = element("li", entry.rank === 1 ? "answer best" : "answer");
  const head = element("div", "head");
  const title = element("h3");
  title.append(element("span", "rank", entry.rank ?? "\u2013"), element("span", "name", `Candidate ${number}`));
  head.append(title);
  item.append(head);
  if (entry.rank === null) {
    item.classList.add("failed");
    head.append(element("span", "tag", "Not scored"));
    const reason = entry.result.error.message.replace(/^response \d+\b/, "This candidate"); // the server counts from 0
    item.append(element("p", "reason", reason), element("p", "excerpt", text.slice(0, 300)));
    return item;
  }
  if (entry.rank === 1) head.append(element("span", "tag", "Best"));
  if (entry.tied) head.append(element("span", "tag plain", "Tied"));
  if (entry.result.truncated) head.append(element("span", "tag plain", "Cut"));
  const reward = element("p", "reward");
  reward.append(element("span", "unit", style.aggregation), element("span", "number", style.writeReward(entry.reward)));
  head.append(reward);
  item.append(steps(entry.result, number, style));
  return item;
}

function steps(result, number, style) {
  const list = element("ol", "steps");
  list.setAttribute("role", "list"); // VoiceOver takes a list without bullets for none unless it is said
  list.setAttribute("aria-label", `Steps of candidate ${number}`);
  const lowest = lowestStep(result.steps);
  result.steps.forEach((each, index) => {
    list.append(step(each, { index, count: result.steps.length, isLowest: index === lowest, number }, style));
  });
  list.firstElementChild.tabIndex = 0;
  list.addEventListener("keydown", move);
  return list;
}

function step(found, place, style) {
  const item = element("li", place.isLowest ? "step lowest" : "step");
  item.tabIndex = -1;
  item.dataset.sign = found.reward < 0 ? "minus" : "plus";
  // Length of the bar and strength of the colour, which style.css mixes for either theme.
  item.style.setProperty("--strength", strength(found.reward, style.scale));
  const bar = element("span", "bar");
  bar.setAttribute("aria-hidden", "true");
  const text = found.text.replace(/^\n+|\s+$/g, "");
  const shown = text.trim() ? element("span", "text", text) : element("span", "text blank", "(blank)");
  const detail = element("span", "detail", detailOf(found, place));
  detail.id = `detail-${place.number}-${place.index}`;
  detail.setAttribute("role", "tooltip");
  item.setAttribute("aria-describedby", detail.id);
  item.append(element("span", "for-readers", "reward "), element("span", "number", style.write(found.reward)), bar, shown);
  if (place.isLowest) item.append(element("span", "mark", "lowest"));
  item.append(detail);
  return item;
}

function detailOf(found, { index, count, isLowest }) {
  const parts = [
    `Step ${index + 1} of ${count}`,
    `reward ${signed(found.reward, 4)}`,
    `up to here ${signed(found.prefix_reward, 4)}`,
    found.num_tokens === 1 ? "1 token" : `${found.num_tokens} tokens`,
  ];
  return parts.join(" \u00b7 ") + (isLowest ? " \u00b7 lowest of this answer" : "");
}

/** Arrow keys, Home and End go from step to step. Tab leaves for the next answer. */
function move(event) {
  const all = [...event.currentTarget.children];
  const here = all.indexOf(event.target);
  if (here < 0) return;
  const places = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: all.length - 1 };
  const next = all[places[event.key]];
  if (!next || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** Escape hides the details that are open, until the pointer or the focus comes anew. */
export function hideDetails() {
  for (const each of ranking.querySelectorAll(".step:hover, .step:focus")) {
    each.classList.add("hushed");
    for (const leaving of ["blur", "pointerleave"]) {
      each.addEventListener(leaving, () => each.classList.remove("hushed"), { once: true });
    }
  }
}

function element(name, className = "", text = null) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}
