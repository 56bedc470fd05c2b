/** What the page knows of the gateway, kept fresh by polling while somebody looks. */

import { call } from "./api.js";

const SLOWEST_MS = 10_000;

/** The last GET /v1/status, null before the first. */
export const known = { status: null, error: null };

const listeners = new Set();

/** Call `listener(status, error)` after every look at the gateway. */
export function onStatus(listener) {
  listeners.add(listener);
}

/** Look at `path` again and again; `onResult(body)` or `onError(error)`. Returns `{now, pause, resume}`. */
export function poll(path, intervalMs, onResult, onError) {
  let timer = 0;
  let paused = false;
  let failures = 0;
  let round = 0;

  async function look() {
    clearTimeout(timer);
    const mine = ++round;
    try {
      const body = await call(path);
      if (mine !== round) return;
      failures = 0;
      onResult(body);
    } catch (error) {
      if (mine !== round) return;
      failures += 1;
      onError(error);
    }
    schedule();
  }

  function schedule() {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    timer = setTimeout(look, Math.min(intervalMs * 2 ** Math.min(failures, 4), failures ? SLOWEST_MS : intervalMs));
  }

  document.addEventListener("visibilitychange", () => (document.hidden || paused ? clearTimeout(timer) : look()));
  look();
  return {
    now: look,
    pause: () => {
      paused = true;
      round += 1; // what is under way comes too late
      clearTimeout(timer);
    },
    resume: () => {
      paused = false;
      look();
    },
  };
}

let watcher = null;

/** Begin to watch GET /v1/status. */
export function watchStatus(intervalMs) {
  const notify = () => listeners.forEach((listener) => listener(known.status, known.error));
  watcher = poll(
    "/v1/status",
    intervalMs,
    (body) => {
      known.status = body;
      known.error = null;
      notify();
    },
    (error) => {
      known.error = error;
      notify();
    },
  );
}

/** Look at the gateway now, after something was changed. */
export function refresh() {
  return watcher?.now();
}

/** What a specialist says of an adapter, and the specialist itself; null where neither is known. */
export function findAdapter(specialist, adapter) {
  const servers = (known.status?.specialists ?? []).filter((item) => item.name === specialist);
  for (const server of servers) {
    const found = (server.adapters ?? []).find((item) => item.id === adapter);
    if (found) return { server, adapter: found };
  }
  return servers.length ? { server: servers[0], adapter: null } : null;
}

/** The score that a label must reach, as the gateway applies it; null where it is not known. */
export function thresholdOf(label) {
  const { thresholds, min_score: least } = known.status?.router ?? {};
  return thresholds ? Math.max(thresholds[label] ?? 0.5, least?.[label] ?? 0) : null;
}

/** The same beside other labels' scores, best first: the best one must be clear of the fallback's own too. */
export function thresholdAmong(scores, label) {
  const { fallback, fallback_share: share } = known.status?.router ?? {};
  const threshold = thresholdOf(label);
  if (threshold === null || !share || label === fallback || label !== scores[0][0]) return threshold;
  return Math.max(threshold, Math.min(scoreOf(scores, fallback) / share, 1));
}

/** A label's score; 0 where it is not among them. */
export function scoreOf(scores, label) {
  return scores.find(([name]) => name === label)?.[1] ?? 0;
}

/** A base model's name; of a folder on the server's disk, only its end. */
export function baseName(base) {
  const id = base?.id ?? "";
  return /^[/~]|^[A-Za-z]:/.test(id) ? `…/${id.split(/[/\\]/).filter(Boolean).slice(-2).join("/")}` : id;
}

/** `sha256:` and the first twelve digits. */
export function shortDigest(digest) {
  return /^sha256:[0-9a-f]{13,}$/.test(digest ?? "") ? digest.slice(0, 19) : (digest ?? "");
}
