/** The prompt: routed while it is typed, answered when it is sent. */

import { beginAnswer, copyAnswer, endAnswer, extendAnswer, showFigures } from "./answer.js";
import { call, chat } from "./api.js";
import { clearDecision, showAnswerer, showDecision, showDecisionError } from "./decision.js";
import { refreshDecisions } from "./decisions.js";
import { byId, h, keyed } from "./dom.js";
import { duration, number, onLanguage, say, t } from "./i18n.js";
import { announce } from "./messages.js";
import { known, onStatus } from "./state.js";

const TYPING_PAUSE_MS = 200; // without a keystroke, before the prompt is routed
const AUTO = "ailiance/auto";
const EVERY_LABEL = 1000; // the most scores that a decision gives: the fallback's counts wherever it stands
const EXAMPLES = ["ask.example_1", "ask.example_2", "ask.example_3", "ask.example_4"];

let onToken = () => {};
let answering = null; // AbortController of the answer under way
let routing = null; // AbortController of the decision under way
let typing = 0; // timer

/** Wire the form; `wantToken` opens the token's dialog. */
export function startPrompt(wantToken) {
  onToken = wantToken;
  const prompt = byId("prompt");
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (answering) stop();
    else ask();
  });
  prompt.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(preview, TYPING_PAUSE_MS);
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
    event.preventDefault();
    if (!answering) ask();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !answering || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    stop();
  });
  byId("copy").addEventListener("click", copyAnswer);
  byId("examples").append(...EXAMPLES.map(example));
  onStatus(renderModels);
  onLanguage(renderModels);
  renderModels();
  clearDecision();
}

function example(key) {
  const use = () => {
    byId("prompt").value = t(key);
    byId("prompt").focus();
    clearTimeout(typing);
    preview();
  };
  return h("li", {}, say(h("button", { type: "button", class: "chip", onclick: use }), key));
}

function body() {
  const limit = Number.parseInt(byId("max-tokens").value, 10);
  return {
    model: byId("model").value || AUTO,
    messages: [{ role: "user", content: byId("prompt").value }],
    stream: true,
    stream_options: { include_usage: true },
    ...(limit > 0 ? { max_tokens: limit } : {}),
  };
}

/** Show where the prompt would go. */
async function preview() {
  if (answering) return;
  routing?.abort();
  if (!byId("prompt").value.trim()) return clearDecision();
  const mine = (routing = new AbortController());
  try {
    const decision = await route(mine.signal);
    if (mine === routing) showDecision(decision);
  } catch (error) {
    if (mine === routing && error.code !== "stopped") showDecisionError(error, onToken);
  }
}

function route(signal) {
  return call("/v1/route", { body: { prompt: byId("prompt").value, top: EVERY_LABEL }, signal });
}

/** Route, then stream the answer. A prompt that cannot be routed is sent all the same: the gateway has a fallback. */
async function ask() {
  clearTimeout(typing);
  routing?.abort();
  routing = null;
  const prompt = byId("prompt");
  if (!prompt.value.trim()) {
    prompt.focus();
    announce("ask.empty");
    return;
  }
  const mine = (answering = new AbortController());
  const request = body();
  showBusy(true);
  beginAnswer();
  try {
    const decision = await route(mine.signal);
    showDecision(decision);
    showFigures({ encodeMs: decision.encode_ms });
  } catch (error) {
    if (error.code !== "stopped") showDecisionError(error, onToken);
  }
  try {
    const figures = await stream(request, mine.signal);
    endAnswer("done");
    announce("answer.announce_done", { tokens: () => number(figures.tokens), time: () => duration(figures.totalMs) });
  } catch (error) {
    const stopped = error.code === "stopped";
    endAnswer(stopped ? "stopped" : "failed", stopped ? null : error, onToken);
    announce(stopped ? "answer.stopped" : "answer.failed");
  }
  answering = null;
  showBusy(false);
  refreshDecisions();
}

async function stream(request, signal) {
  const began = performance.now();
  const { headers, chunks } = await chat(request, signal);
  showAnswerer(headers);
  const figures = {};
  let pieces = 0;
  try {
    for await (const chunk of chunks) {
      const { delta = {}, finish_reason: finish } = chunk.choices?.[0] ?? {};
      const thought = delta.reasoning_content ?? delta.reasoning ?? "";
      if (delta.content || thought) {
        figures.firstMs ??= performance.now() - began;
        pieces += 1;
        extendAnswer(delta.content ?? "", thought);
      }
      if (finish === "length") figures.cut = true;
      figures.tokens = chunk.usage?.completion_tokens ?? pieces;
      showFigures(figures);
    }
  } finally {
    figures.totalMs = performance.now() - began;
    showFigures(figures);
  }
  return figures;
}

function stop() {
  answering?.abort();
}

function showBusy(busy) {
  byId("ask").dataset.state = busy ? "answering" : "idle";
  say(byId("send"), busy ? "ask.stop" : "ask.send");
  say(byId("send-hint"), busy ? "ask.stop_hint" : "ask.send_hint");
}

/** What `model` may be: automatic, the base, adapters by specialist, other servers. */
function renderModels() {
  const status = known.status ?? {};
  const groups = new Map();
  for (const { name, adapters } of status.specialists ?? []) {
    const usable = (adapters ?? []).filter(({ state }) => state === "resident" || state === "available");
    groups.set(name, [...new Set([...(groups.get(name) ?? []), ...usable.map(({ id }) => id)])]);
  }
  const upstreams = (status.upstreams ?? []).map(({ name }) => name);
  const items = [
    { value: AUTO, key: "ask.auto" },
    { value: "base", key: "ask.base" },
    ...[...groups].filter(([, names]) => names.length).map(([label, names]) => ({ value: `group ${label}`, label, names })),
    ...upstreams.map((value) => ({ value })),
  ];
  const select = byId("model");
  const chosen = select.value;
  keyed(select, items, ({ value }) => value, createModel, updateModel);
  if (chosen && select.value !== chosen) select.value = [...select.options].some(({ value }) => value === chosen) ? chosen : AUTO;
}

function createModel({ value, key, label }) {
  if (label) return h("optgroup", { label });
  return key ? say(h("option", { value }), key) : h("option", { value }, value);
}

function updateModel(node, { names }) {
  if (!names) return;
  const items = [...names].sort();
  keyed(node, items, (name) => name, (name) => h("option", { value: name }, name), () => {});
}
