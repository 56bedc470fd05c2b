/** The last decisions, newest first, live. */

import { byId, h, keyed, setAttribute, setText } from "./dom.js";
import { clock, duration, moment, number, onLanguage, say, score, t } from "./i18n.js";
import { poll } from "./state.js";
import { errorBox } from "./errors.js";
import { openToken } from "./token.js";

const KEPT = 40;
const REASONS = ["classified", "below_threshold", "out_of_domain", "explicit", "unavailable"];
let rows = [];
let paused = false;
let watcher = null;

/** Wire the table and begin to watch GET /v1/decisions. */
export function startDecisions(intervalMs) {
  const button = byId("decisions-pause");
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    say(button, paused ? "decisions.resume" : "decisions.pause");
    if (paused) watcher.pause();
    else watcher.resume();
  });
  onLanguage(render);
  watcher = poll(
    `/v1/decisions?limit=${KEPT}`,
    intervalMs,
    ({ data = [] }) => {
      rows = data;
      byId("decisions-error").replaceChildren();
      render();
    },
    (error) => byId("decisions-error").replaceChildren(errorBox(error, openToken)),
  );
}

/** Look now, after an answer has ended. */
export function refreshDecisions() {
  if (!paused) watcher?.now();
}

function render() {
  byId("decisions-empty").hidden = rows.length > 0;
  byId("decisions-wrap").hidden = rows.length === 0;
  keyed(byId("decision-table"), rows, ({ request_id: id, time }) => `${id} ${time}`, createRow, updateRow);
}

function cell(name, label) {
  return h("td", { class: name }, label ? say(h("span", { class: "cell-label", "aria-hidden": "true" }), label) : null, h("span"));
}

function createRow() {
  return h(
    "tr",
    { class: "past" },
    cell("when"),
    cell("what mono"),
    cell("num score-cell"),
    h("td", { class: "reason-cell" }, h("span", { class: "tag" }), h("span", { class: "why" })),
    cell("who mono"),
    cell("num status-cell", "decisions.status"),
    cell("num", "decisions.first"),
    cell("num", "decisions.total"),
    cell("num", "decisions.tokens"),
  );
}

function updateRow(row, item) {
  const cells = [...row.children].map((node) => node.lastElementChild);
  const [when, what, value, why, who, status, first, total, tokens] = cells;
  setText(when, clock(item.time));
  setAttribute(when, "title", moment(item.time));
  setText(what, item.domain);
  const meaningless = item.reason === "explicit" || item.score === null || item.score === undefined;
  setText(value, meaningless ? "–" : score(item.score));
  const tag = row.querySelector(".tag");
  const reason = REASONS.includes(item.reason) ? item.reason : "other";
  tag.dataset.state = reason === "unavailable" ? "warn" : reason === "classified" ? "good" : "idle";
  say(tag, `tag.${reason}`, { reason: item.reason ?? "–" });
  setText(why, [item.detail, item.error].filter(Boolean).join(" · "));
  setText(who, [item.adapter, item.specialist].filter((name) => name && name !== "-" && name !== "none").join(" · ") || "–");
  setText(status, String(item.status ?? "–"));
  row.dataset.state = item.status >= 500 ? "bad" : item.status >= 400 || item.error ? "warn" : "good";
  setText(first, duration(item.first_byte_ms));
  setText(total, duration(item.total_ms));
  setText(tokens, item.completion_tokens ? number(item.completion_tokens) : "–");
  setAttribute(row, "title", item.prompt ? t("decisions.prompt", { prompt: item.prompt }) : null);
}
