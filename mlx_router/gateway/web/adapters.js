/** Adapters of every specialist: what they are, and load, swap, unload and pin with the admin token. */

import { ADMIN_TIMEOUT_MS, call } from "./api.js";
import { hostOf } from "./decision.js";
import { ask } from "./dialog.js";
import { byId, h, keyed, setAttribute, setText } from "./dom.js";
import { bytes, duration, number, onLanguage, say, t } from "./i18n.js";
import { complain, tell } from "./messages.js";
import { baseName, known, onStatus, refresh, shortDigest } from "./state.js";
import { ensureToken, openToken } from "./token.js";

const NAME = "[A-Za-z0-9][A-Za-z0-9._\\-]*";
const ORDER = ["resident", "available", "quarantined", "missing", "unloaded"];
const busy = new Set(); // names of adapters with an action under way

/** Wire the table. */
export function startAdapters() {
  byId("adapter-filter").addEventListener("input", render);
  byId("adapter-load").addEventListener("click", () => loadFrom());
  byId("adapter-table").addEventListener("keydown", moveFocus);
  onStatus(render);
  onLanguage(render);
}

/** Arrow keys go to the same button of the row above or below. */
function moveFocus(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const row = event.target.closest("tr");
  if (!step || !row || event.target.tagName !== "BUTTON") return;
  const rows = [...byId("adapter-table").querySelectorAll("tr.adapter")];
  const next = rows[rows.indexOf(row) + step];
  const index = [...row.querySelectorAll("button")].indexOf(event.target);
  const buttons = next ? [...next.querySelectorAll("button")] : [];
  if (!buttons.length) return;
  event.preventDefault();
  buttons[Math.min(index, buttons.length - 1)].focus();
}

function domainsOf(status) {
  const found = new Map();
  for (const [domain, { kind, name }] of Object.entries(status.routes ?? {})) {
    if (kind === "adapter") found.set(name, [...(found.get(name) ?? []), domain]);
  }
  return found;
}

function render() {
  const status = known.status;
  if (!status) return;
  const filter = byId("adapter-filter").value.trim().toLowerCase();
  const domains = domainsOf(status);
  const groups = (status.specialists ?? []).map((server) => ({
    server,
    rows: (server.adapters ?? [])
      .map((adapter) => ({ adapter, server, domains: domains.get(adapter.id) ?? [] }))
      .filter((row) => !filter || [row.adapter.id, row.adapter.state, ...row.domains].some((text) => String(text).toLowerCase().includes(filter)))
      .sort((a, b) => ORDER.indexOf(a.adapter.state) - ORDER.indexOf(b.adapter.state) || a.adapter.id.localeCompare(b.adapter.id)),
  }));
  const total = groups.reduce((sum, { rows }) => sum + rows.length, 0);
  keyed(byId("adapter-table"), groups, ({ server }) => server.url, createGroup, updateGroup);
  const empty = byId("adapters-empty");
  empty.hidden = total > 0;
  say(empty, filter ? "adapters.no_match" : groups.length ? "adapters.none" : "adapters.no_specialist");
  byId("adapter-load").disabled = !groups.length;
}

function createGroup() {
  const head = h(
    "th",
    { colspan: "7", scope: "colgroup" },
    h("span", { class: "group-name mono" }),
    h("span", { class: "group-base mono" }),
    h("span", { class: "bank" }, h("span", { class: "bank-track", role: "img" }, h("span", { class: "fill" })), h("span", { class: "bank-text" })),
  );
  return h("tbody", {}, h("tr", { class: "group" }, head));
}

function updateGroup(body, { server, rows }) {
  const { bank, base } = server;
  setText(body.querySelector(".group-name"), `${server.name} ${hostOf(server.url)}`);
  setText(body.querySelector(".group-base"), baseName(base));
  setAttribute(body.querySelector(".group-base"), "title", base?.digest);
  body.querySelector(".bank").hidden = !bank?.slots;
  if (bank?.slots) {
    const text = t("adapters.bank", { used: number(bank.used), slots: number(bank.slots), bytes: bytes(bank.bytes) });
    body.querySelector(".bank .fill").style.width = `${Math.min(100, (100 * bank.used) / bank.slots)}%`;
    setAttribute(body.querySelector(".bank-track"), "aria-label", text);
    setText(body.querySelector(".bank-text"), text);
  }
  const items = [null, ...rows];
  keyed(body, items, (row) => (row ? `row ${row.adapter.id}` : "head"), (row) => (row ? createRow() : body.firstChild), (node, row) => row && updateRow(node, row));
}

function cell(role, label, ...children) {
  const node = h("td", { class: role }, ...children);
  if (label) node.prepend(say(h("span", { class: "cell-label", "aria-hidden": "true" }), label));
  return node;
}

function createRow() {
  return h(
    "tr",
    { class: "adapter" },
    h("th", { scope: "row" }, h("span", { class: "adapter-name mono" })),
    cell("domains-cell", null, h("span", { class: "adapter-domains" })),
    cell("state-cell", null, h("span", { class: "state" }), h("span", { class: "pin-mark" }), h("span", { class: "why" })),
    cell("digest-cell", null, h("span", { class: "digest mono" })),
    cell("num rank-cell", "adapters.rank", h("span", { class: "rank" })),
    cell("num", "adapters.requests", h("span", { class: "active" }), h("span", { class: "requests" })),
    h("td", { class: "actions" }),
  );
}

function updateRow(row, { adapter, server, domains }) {
  const { id, state } = adapter;
  setText(row.querySelector(".adapter-name"), id);
  setText(row.querySelector(".adapter-domains"), domains.join(", "));
  const mark = row.querySelector(".state");
  mark.dataset.state = { resident: "good", quarantined: "bad", missing: "warn" }[state] ?? "idle";
  say(mark, ORDER.includes(state) ? `adapter_state.${state}` : "adapter_state.other", { state });
  const pin = row.querySelector(".pin-mark");
  pin.hidden = !adapter.pinned;
  say(pin, "adapters.pinned");
  setText(row.querySelector(".why"), state === "missing" ? "" : (adapter.reason ?? ""));
  row.dataset.state = state;
  setText(row.querySelector(".digest"), shortDigest(adapter.digest) || "–");
  setAttribute(row.querySelector(".digest"), "title", adapter.digest);
  setText(row.querySelector(".rank"), number(adapter.rank));
  setText(row.querySelector(".requests"), number(adapter.requests));
  setText(row.querySelector(".active"), adapter.active ? t("adapters.active", { count: number(adapter.active) }) : "");
  setAttribute(row, "aria-busy", busy.has(id) ? "true" : null);
  keyed(row.querySelector(".actions"), actionsOf(adapter), (key) => key, (key) => createAction(key), (button, key) => {
    setAttribute(button, "aria-label", t(`${key}_named`, { name: id }));
    setAttribute(button, "aria-disabled", busy.has(id) ? "true" : null);
    button.onclick = () => !busy.has(id) && ACTIONS[key](adapter, server);
  });
}

function createAction(key) {
  return say(h("button", { type: "button", class: "quiet small" }), key);
}

function actionsOf({ state, pinned }) {
  if (state === "resident") return ["action.swap", pinned ? "action.unpin" : "action.pin", "action.unload"];
  if (state === "available") return ["action.load", "action.pin", "action.unload"];
  if (state === "unloaded") return ["action.load", "action.load_from"];
  return ["action.load_from"];
}

const ACTIONS = {
  "action.load": ({ id }, { name }) => act(id, "load_lora_adapter", { lora_name: id, specialist: name }),
  "action.load_from": ({ id }, { name }) => loadFrom(id, name),
  "action.swap": ({ id, digest }, { name }) => swap(id, name, digest),
  "action.unload": ({ id }, { name }) => unload(id, name),
  "action.pin": ({ id }, { name }) => act(id, "pin_lora_adapter", { lora_name: id, pinned: true, specialist: name }),
  "action.unpin": ({ id }, { name }) => act(id, "pin_lora_adapter", { lora_name: id, pinned: false, specialist: name }),
};

const pathField = { name: "lora_path", label: "adapters.path", hint: "adapters.path_hint" };

async function swap(name, specialist, digest) {
  const given = await ask({
    title: "swap.title",
    text: "swap.text",
    values: { name, digest: shortDigest(digest) },
    confirm: "action.swap_now",
    fields: [pathField],
  });
  if (given) await act(name, "load_lora_adapter", { lora_name: name, ...withPath(given), load_inplace: true, specialist });
}

async function loadFrom(name = "", specialist = "") {
  const names = [...new Set((known.status?.specialists ?? []).map((server) => server.name))];
  const given = await ask({
    title: "load.title",
    text: "load.text",
    confirm: "action.load_now",
    fields: [
      { name: "lora_name", label: "adapters.name", value: name, required: true, pattern: NAME, hint: "adapters.name_hint" },
      pathField,
      { name: "specialist", label: "adapters.specialist", options: names, value: specialist || names[0] },
      { name: "load_inplace", label: "adapters.replace", type: "checkbox" },
    ],
  });
  if (!given) return;
  const { lora_name: chosen, load_inplace: replace, specialist: server } = given;
  await act(chosen, "load_lora_adapter", { lora_name: chosen, ...withPath(given), ...(replace ? { load_inplace: true } : {}), specialist: server });
}

async function unload(name, specialist) {
  const sure = await ask({ title: "unload.title", text: "unload.text", values: { name }, confirm: "action.unload", danger: true });
  if (sure) await act(name, "unload_lora_adapter", { lora_name: name, specialist });
}

function withPath({ lora_path: path }) {
  return path ? { lora_path: path } : {};
}

async function act(name, action, body) {
  if (!(await ensureToken())) return;
  busy.add(name);
  render();
  const began = performance.now();
  try {
    const answer = await call(`/v1/${action}`, { body, admin: true, timeoutMs: ADMIN_TIMEOUT_MS });
    const roundTripMs = performance.now() - began;
    await settle(name);
    report(name, action, body, answer, roundTripMs);
  } catch (error) {
    await settle(name);
    complain(error, openToken);
  }
}

/** Show the new state; a button that is gone hands its focus to the first one of its row. */
async function settle(name) {
  const row = document.activeElement.closest("tr.adapter");
  busy.delete(name);
  await refresh();
  render();
  if (row && document.activeElement === document.body) row.querySelector("button")?.focus();
}

function report(name, action, body, answer, roundTripMs) {
  const values = {
    name,
    time: () => duration(answer.ms?.total ?? roundTripMs),
    digest: shortDigest(answer.digest) || "–",
    previous: shortDigest(answer.previous_digest) || "–",
  };
  if (action === "pin_lora_adapter") tell(body.pinned ? "done.pinned" : "done.unpinned", values);
  else if (action === "unload_lora_adapter") tell("done.unloaded", values);
  else tell(answer.status === "replaced" ? "done.replaced" : "done.loaded", values);
}
