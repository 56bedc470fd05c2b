/** The router's decision: scores as bars with their thresholds, the reason in a sentence, and the way to the answer. */

import { byId, h, keyed, setAttribute, setText } from "./dom.js";
import { onLanguage, say, score, t, unsay } from "./i18n.js";
import { errorBox } from "./errors.js";
import { baseName, findAdapter, known, scoreOf, shortDigest, thresholdAmong, thresholdOf } from "./state.js";

const BARS = 6;
let shown = null; // the decision on screen
let answered = null; // {adapter, specialist, digest}, once the answer's headers are here

/** Show a decision (the body of POST /v1/route). */
export function showDecision(decision) {
  shown = decision;
  answered = null;
  byId("decision").dataset.state = "shown";
  byId("decision-error").replaceChildren();
  render();
}

/** Show who answered, as the headers of the answer say. */
export function showAnswerer(headers) {
  const get = (name) => headers.get(`x-router-${name}`) ?? "";
  const digest = headers.get("x-adapter-digest") ?? "";
  answered = { adapter: get("adapter"), specialist: get("specialist"), digest: digest === "base" ? "" : digest };
  const before = shown ?? { scores: [], selections: [] };
  shown = {
    ...before,
    domain: get("domain") || before.domain,
    score: Number(get("score") || before.score),
    reason: get("reason") || before.reason,
    router: get("version") || before.router,
    detail: headers.get("x-router-detail") ?? "",
  };
  byId("decision").dataset.state = "shown";
  render();
}

/** Show why there is no decision. */
export function showDecisionError(error, onToken) {
  clearDecision();
  byId("decision-error").replaceChildren(errorBox(error, onToken));
}

/** Nothing was asked. */
export function clearDecision() {
  shown = answered = null;
  byId("decision").dataset.state = "empty";
  byId("decision-error").replaceChildren();
  render();
}

function render() {
  renderBars();
  renderReason();
  renderLine();
}

function renderBars() {
  const { scores = [], domain, reason } = shown ?? {};
  const chosen = reason === "classified" || reason === "unavailable" ? domain : null;
  keyed(byId("bars"), scores.slice(0, BARS), ([label]) => label, createBar, (row, [label, value]) => {
    const threshold = thresholdAmong(scores, label);
    const passed = threshold !== null && value >= threshold;
    row.dataset.state = label === chosen ? "chosen" : passed ? "passed" : "under";
    setText(row.querySelector(".value"), score(value));
    row.querySelector(".fill").style.width = `${Math.min(100, Math.max(0.4, value * 100))}%`;
    const tick = row.querySelector(".tick");
    tick.hidden = threshold === null;
    tick.style.left = `${(threshold ?? 0) * 100}%`;
    const values = { score: score(value), threshold: score(threshold) };
    setText(row.querySelector(".need"), threshold === null ? "" : `${passed ? "≥" : "<"} ${values.threshold}`);
    const key = threshold === null ? "decision.bar" : passed ? "decision.bar_passed" : "decision.bar_under";
    setAttribute(row.querySelector(".track"), "aria-label", t(key, values));
  });
}

function createBar([label]) {
  return h(
    "li",
    { class: "bar" },
    h("span", { class: "label mono" }, label),
    h("span", { class: "track", role: "img" }, h("span", { class: "fill" }), h("span", { class: "tick" })),
    h("span", { class: "value" }),
    h("span", { class: "need" }),
  );
}

function renderReason() {
  const node = byId("decision-reason");
  if (!shown?.reason) {
    unsay(node);
    return say(node, "decision.empty");
  }
  const [best, bestScore] = shown.scores?.[0] ?? [shown.domain, shown.score];
  const others = (shown.selections ?? []).map(({ domain }) => domain).filter((domain) => domain !== shown.domain);
  say(node, reasonKey(best, bestScore, others), {
    domain: shown.domain,
    best,
    others: others.join(", "),
    score: () => score(shown?.score),
    best_score: () => score(bestScore),
    threshold: () => score(thresholdOf(best)),
    rival: known.status?.router?.fallback,
    rival_score: () => score(scoreOf(shown?.scores ?? [], known.status?.router?.fallback)),
    floor: () => score(known.status?.router?.out_of_domain),
  });
  setText(byId("decision-detail"), shown.detail ?? "");
}

function reasonKey(best, bestScore, others) {
  const threshold = thresholdOf(best);
  if (shown.reason === "classified" && others.length) return "reason.classified_also";
  if (shown.reason === "below_threshold" && threshold !== null && bestScore >= threshold) return "reason.near_fallback";
  return `reason.${shown.reason}`;
}

function renderLine() {
  const line = byId("line");
  line.dataset.state = answered ? "answered" : shown ? "planned" : "empty";
  const target = answered ?? shown?.target ?? null;
  const stations = [
    station("line.domain", shown?.domain, shown?.domain ? score(domainScore()) : ""),
    adapterStation(target),
    specialistStation(target),
  ];
  keyed(line, stations, ({ caption }) => caption, createStation, (node, { value, key, sub, title }) => {
    const name = node.querySelector(".name");
    if (key) say(name, key);
    else {
      unsay(name);
      setText(name, value || "–");
    }
    name.classList.toggle("mono", !key);
    setText(node.querySelector(".sub"), sub || "");
    setAttribute(node.querySelector(".sub"), "title", title);
  });
}

/** The domain's own score: where the fallback answers, the decision's is that of the best label. */
function domainScore() {
  const fell = shown.reason === "below_threshold" || shown.reason === "out_of_domain";
  return fell && shown.scores ? scoreOf(shown.scores, shown.domain) : shown.score;
}

function station(caption, value, sub = "", { key = null, title = null } = {}) {
  return { caption, value, sub, key, title };
}

function adapterStation(target) {
  if (!target) return station("line.adapter", "", "", { key: shown ? "line.nobody" : null });
  const found = findAdapter(target.specialist, target.adapter);
  if (target.adapter === "none" && answered) return station("line.adapter", "", "", { key: target.specialist === "none" ? "line.nobody" : "line.own_model" });
  if (!target.adapter || target.adapter === "base") {
    if (!found) return station("line.adapter", "", "", { key: "line.own_model" });
    return station("line.adapter", "", baseName(found.server.base), { key: "line.base" });
  }
  const digest = target.digest || found?.adapter?.digest || "";
  return station("line.adapter", target.adapter, shortDigest(digest), { title: digest || null });
}

function specialistStation(target) {
  const name = target?.specialist === "none" ? "" : target?.specialist;
  const server = [...(known.status?.specialists ?? []), ...(known.status?.upstreams ?? [])].find((item) => item.name === name);
  return station("line.specialist", name, server ? hostOf(server.url) : "");
}

/** `host:port` of a URL. */
export function hostOf(url) {
  try {
    return new URL(url).host;
  } catch {
    return "";
  }
}

function createStation({ caption }) {
  return h("li", { class: "station" }, say(h("span", { class: "caption" }), caption), h("span", { class: "name" }), h("span", { class: "sub mono" }));
}

onLanguage(render);
