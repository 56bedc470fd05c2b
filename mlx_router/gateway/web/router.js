/** The router: the active version with its figures, the others, activate and roll back. */

import { call } from "./api.js";
import { ask } from "./dialog.js";
import { byId, h, keyed, setText } from "./dom.js";
import { duration, moment, number, onLanguage, say, sayAttribute, score } from "./i18n.js";
import { complain, tell } from "./messages.js";
import { known, onStatus, refresh } from "./state.js";
import { ensureToken, openToken } from "./token.js";

const SHOWN = 5; // versions before "show all"
const FIGURES = ["top1", "top3", "macro_f1", "ece"];
let busy = false;
let all = false;

/** Wire the panel. */
export function startRouter() {
  byId("rollback").addEventListener("click", rollback);
  byId("versions-all").addEventListener("click", () => {
    all = !all;
    render();
  });
  onStatus(render);
  onLanguage(render);
}

function render() {
  const router = known.status?.router;
  if (!router) return;
  setText(byId("router-version"), router.version ?? "–");
  const mark = byId("router-state");
  mark.dataset.state = router.ready ? (router.notice ? "warn" : "good") : "bad";
  say(mark, router.ready ? (router.notice ? "router.substitute" : "router.serving") : "router.not_ready");
  const notice = byId("router-notice");
  notice.hidden = !(router.notice || router.reason);
  setText(byId("router-notice-text"), router.notice ?? router.reason ?? "");
  say(byId("router-notice-next"), router.ready ? "router.notice_next" : "router.reason_next");
  renderFigures(router);
  renderVersions(router);
}

/** Figures of the test split, wherever the version keeps them. */
function renderFigures(router) {
  const metrics = router.metrics?.test ?? router.metrics ?? {};
  const cache = router.cache ?? {};
  const looks = (cache.hits ?? 0) + (cache.misses ?? 0);
  const items = [
    ...FIGURES.filter((name) => typeof metrics[name] === "number").map((name) => [`metric.${name}`, score(metrics[name], 3)]),
    ["metric.domains", number(router.domains)],
    ...(metrics.n ? [["metric.n", number(metrics.n)]] : []),
    ["metric.encode", duration(router.encode_p50_ms || null)],
    ["metric.cache", looks ? `${number((100 * cache.hits) / looks)} %` : "–"],
  ];
  const create = ([key]) => h("div", {}, sayAttribute(say(h("dt"), key), "title", `${key}_help`), h("dd"));
  keyed(byId("router-figures"), items, ([key]) => key, create, (row, [, value]) => setText(row.lastChild, value));
  const loaded = byId("router-loaded");
  say(loaded, router.loaded_at ? "router.loaded" : "router.never", { time: () => moment(router.loaded_at) });
}

function renderVersions(router) {
  const versions = [...(router.versions ?? [])].reverse();
  const shown = all ? versions : versions.slice(0, SHOWN);
  keyed(byId("versions"), shown, (name) => name, createVersion, (row, name) => {
    const active = name === router.version;
    row.dataset.state = active ? "active" : "other";
    row.querySelector(".tag").hidden = !active;
    const button = row.querySelector("button");
    button.hidden = active;
    button.disabled = busy;
  });
  byId("versions-empty").hidden = versions.length > 0;
  const more = byId("versions-all");
  more.hidden = versions.length <= SHOWN;
  say(more, all ? "router.show_fewer" : "router.show_all", { count: () => number(versions.length) });
  byId("rollback").disabled = busy || versions.length < 2;
}

function createVersion(name) {
  const button = say(h("button", { type: "button", class: "quiet small", onclick: () => activate(name) }), "router.activate_named", { name });
  return h("li", {}, h("span", { class: "mono" }, name), say(h("span", { class: "tag" }), "router.active"), button);
}

async function activate(version) {
  const sure = await ask({ title: "activate.title", text: "activate.text", values: { version }, confirm: "router.activate" });
  if (sure) await change("/v1/router/activate", { version });
}

async function rollback() {
  const version = known.status?.router?.version ?? "–";
  const sure = await ask({ title: "rollback.title", text: "rollback.text", values: { version }, confirm: "router.rollback" });
  if (sure) await change("/v1/router/rollback", {});
}

async function change(path, body) {
  if (!(await ensureToken())) return;
  busy = true;
  render();
  try {
    const { version, previous } = await call(path, { body, admin: true, timeoutMs: 60_000 });
    await settle();
    tell("done.activated", { version, previous: previous ?? "–" });
  } catch (error) {
    await settle();
    complain(error, openToken);
  }
}

/** Show the new state; a button that is gone hands its focus to the rollback. */
async function settle() {
  busy = false;
  await refresh();
  render();
  if (document.activeElement === document.body) byId("rollback").focus();
}
