/** The answer as it streams: text, code between fences, and how long everything took. */

import { byId, h, keyed, setText } from "./dom.js";
import { duration, number, onLanguage, say } from "./i18n.js";
import { errorBox } from "./errors.js";

const SHORTEST_MS = 100; // of a stream, to speak of its speed

let text = "";
let reasoning = "";
let figures = {};
let waiting = false; // a frame is requested

/** Cut a text at ``` fences: `{code, language, text}` in order. An open fence is code to the end. */
export function blocks(source) {
  const found = [];
  let code = false;
  let language = "";
  let lines = [];
  const close = () => {
    const body = lines.join("\n");
    if (code || body.trim()) found.push({ code, language, text: code ? body : body.replace(/^\n+|\n+$/g, "") });
    lines = [];
  };
  for (const line of source.split("\n")) {
    const fence = /^\s*```+\s*([\w+#.-]*)\s*$/.exec(line);
    if (!fence || (code && fence[1])) {
      lines.push(line);
      continue;
    }
    close();
    code = !code;
    language = code ? fence[1] : "";
  }
  if (!code || lines.length) close();
  return found;
}

/** A new answer begins. */
export function beginAnswer() {
  text = reasoning = "";
  figures = {};
  byId("answer").hidden = false;
  byId("answer").dataset.state = "waiting";
  byId("answer-text").setAttribute("aria-busy", "true");
  byId("answer-error").replaceChildren();
  byId("copy").hidden = true;
  say(byId("answer-state"), "answer.waiting");
  render();
}

/** More of the answer has come. */
export function extendAnswer(more, thought = "") {
  text += more;
  reasoning += thought;
  byId("answer").dataset.state = "streaming";
  say(byId("answer-state"), text ? "answer.streaming" : "answer.reasoning");
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    render();
  });
}

/** Show figures: encodeMs, firstMs, totalMs, tokens, cut (stopped at the limit of tokens). */
export function showFigures(more) {
  Object.assign(figures, more);
  renderFigures();
}

/** The answer has ended: `how` is done, stopped or failed. */
export function endAnswer(how, error = null, onToken = null) {
  byId("answer").dataset.state = how;
  byId("answer-text").removeAttribute("aria-busy");
  byId("copy").hidden = !text;
  say(byId("answer-state"), figures.cut && how === "done" ? "answer.cut" : `answer.${how}`);
  if (error) byId("answer-error").replaceChildren(errorBox(error, onToken));
  render();
}

/** The answer's text. */
export function answerText() {
  return text;
}

function render() {
  const thoughts = byId("reasoning");
  thoughts.hidden = !reasoning;
  setText(byId("reasoning-text"), reasoning.trim());
  const items = blocks(text).map((block, index) => ({ ...block, index }));
  keyed(byId("answer-text"), items, ({ index, code }) => `${index} ${code}`, createBlock, (node, block) => {
    setText(node.querySelector("code") ?? node, block.text);
    if (block.language) node.dataset.language = block.language;
  });
  renderFigures();
}

function createBlock({ code }) {
  return code ? h("pre", { tabindex: "0" }, h("code")) : h("p");
}

/** Tokens a second after the first one; undefined where they came so fast that it would say nothing. */
export function rateOf({ firstMs, totalMs, tokens }) {
  const streamedMs = totalMs - firstMs;
  return tokens > 1 && streamedMs >= SHORTEST_MS ? (tokens - 1) / (streamedMs / 1000) : undefined;
}

function renderFigures() {
  const { encodeMs, firstMs, totalMs, tokens } = figures;
  const rate = rateOf(figures);
  const items = [
    ["figure.route", duration(encodeMs)],
    ["figure.first", duration(firstMs)],
    ["figure.total", duration(totalMs)],
    ["figure.tokens", number(tokens)],
    ["figure.rate", number(rate, rate < 10 ? 1 : 0)],
  ];
  keyed(byId("figures"), items, ([key]) => key, createFigure, (node, [, value]) => setText(node.querySelector("dd"), value));
}

function createFigure([key]) {
  return h("div", {}, say(h("dt"), key), h("dd"));
}

/** Copy the answer. */
export async function copyAnswer() {
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(text);
    say(button, "answer.copied");
  } catch {
    say(button, "answer.not_copied");
  }
  setTimeout(() => say(button, "answer.copy"), 2000);
}

onLanguage(renderFigures);
