/** The gateway, the specialists and the other servers: are they well, and what are they doing? */

import { hostOf } from "./decision.js";
import { byId, h, keyed, setAttribute, setText } from "./dom.js";
import { age, bytes, duration, number, onLanguage, say, t } from "./i18n.js";
import { known, onStatus } from "./state.js";

/** Wire the list. */
export function startProcesses() {
  onStatus(render);
  onLanguage(render);
}

/** What the supervisor of this very gateway says of its children, by name; an old record is none. */
function childrenOf({ processes, gateway }) {
  const list = Array.isArray(processes?.children) ? processes.children.filter((child) => child?.name) : [];
  const ours = list.some(({ kind, pid }) => kind === "gateway" && pid === gateway?.pid);
  return new Map(ours ? list.map((child) => [child.name, child]) : []);
}

function render() {
  const { status, error } = known;
  if (!status) return;
  const children = childrenOf(status);
  const items = [
    gatewayItem(status, children.get("gateway"), error),
    ...(status.specialists ?? []).map((server) => serverItem(server, children.get(server.name), "process.specialist")),
    ...(status.upstreams ?? []).map((server) => serverItem(server, null, "process.upstream")),
  ];
  const shown = new Set(["gateway", ...(status.specialists ?? []).map(({ name }) => name)]);
  for (const [name, child] of children) if (!shown.has(name)) items.push(childItem(name, child));
  keyed(byId("processes"), items, ({ id }) => id, createItem, updateItem);
  const configError = status.gateway?.config_error;
  byId("config-error").hidden = !configError;
  setText(byId("config-error-text"), configError ?? "");
}

function gatewayItem({ gateway = {}, parts = {} }, child, error) {
  const draining = parts.gateway?.ready === false;
  return {
    id: "gateway",
    name: "gateway",
    kind: "process.gateway",
    address: location.host,
    state: error ? "down" : draining ? "draining" : "up",
    reason: gateway.log_error ?? null,
    facts: [
      ["process.uptime", age(gateway.uptime_s)],
      ["process.requests", number(gateway.requests)],
      ["process.rate", number(gateway.requests_per_s, 1)],
      ["process.p50", duration(gateway.p50_ms)],
      ["process.memory", bytes(memoryOf(child) ?? gateway.memory_peak_bytes)],
      ...common(child, gateway.pid),
    ],
  };
}

/** A server as the gateway sees it; while it is not up, its supervisor knows better why. */
function serverItem(server, child, kind) {
  const queue = server.queue ?? {};
  const local = child?.url === server.url ? child : null;
  const ailing = server.state !== "up" && local && local.state !== "ready";
  return {
    id: `${server.name} ${server.url}`,
    name: server.name,
    kind,
    address: hostOf(server.url),
    state: ailing ? local.state : server.state,
    reason: ailing ? (local.reason ?? local.last_end ?? server.reason) : server.reason,
    facts: [
      ["process.running", number(queue.running)],
      ["process.waiting", queue.limit ? `${number(queue.waiting)} / ${number(queue.limit)}` : number(queue.waiting)],
      ["process.served", number(server.served)],
      ["process.failed", number(server.failed)],
      ...(local ? [["process.memory", bytes(memoryOf(local))], ...common(local)] : []),
    ],
  };
}

function childItem(name, child) {
  return {
    id: `child ${name}`,
    name,
    kind: "process.child",
    address: child.port ? `:${child.port}` : "",
    state: child.state,
    reason: child.reason ?? child.last_end ?? null,
    facts: [["process.memory", bytes(memoryOf(child))], ...common(child)],
  };
}

function memoryOf(child) {
  return child?.memory_bytes ?? null;
}

function common(child, pid = null) {
  const facts = [];
  if (child?.restarts !== undefined && child?.restarts !== null) facts.push(["process.restarts", number(child.restarts)]);
  if (child?.pid ?? pid) facts.push(["process.pid", String(child?.pid ?? pid)]);
  return facts;
}

const STATES = {
  up: "good",
  ready: "good",
  unknown: "idle",
  starting: "warn",
  stopping: "warn",
  draining: "warn",
  backing_off: "warn",
  down: "bad",
  failed: "bad",
  stopped: "bad",
};

function createItem() {
  return h(
    "li",
    { class: "process" },
    h("div", { class: "process-head" }, h("span", { class: "process-name mono" }), h("span", { class: "process-kind" }), h("span", { class: "process-address mono" }), h("span", { class: "state" })),
    h("p", { class: "process-reason", lang: "en" }),
    h("dl", { class: "facts" }),
  );
}

function updateItem(node, { name, kind, address, state, reason, facts }) {
  setText(node.querySelector(".process-name"), name);
  say(node.querySelector(".process-kind"), kind);
  setText(node.querySelector(".process-address"), address);
  const mark = node.querySelector(".state");
  const word = String(state).replaceAll(" ", "_");
  mark.dataset.state = STATES[word] ?? "idle";
  say(mark, Object.hasOwn(STATES, word) ? `process_state.${word}` : "adapter_state.other", { state });
  const why = node.querySelector(".process-reason");
  why.hidden = !reason;
  setText(why, reason ?? "");
  keyed(node.querySelector(".facts"), facts, ([key]) => key, ([key]) => h("div", {}, say(h("dt"), key), h("dd")), (row, [, value]) => setText(row.lastChild, value));
  setAttribute(node, "aria-label", t("process.named", { name }));
}
