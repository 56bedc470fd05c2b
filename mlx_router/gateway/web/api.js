/** The gateway's endpoints. Every failure is an ApiError that says what happened; errors.js says what to do about it. */

import { recall, remember, thisTab } from "./dom.js";
import { events } from "./sse.js";

const TOKEN = "mlx-router.token";
const NEEDS_KEY = "mlx-router.needs-key";
const TIMEOUT_MS = 15_000;
export const ADMIN_TIMEOUT_MS = 150_000; // the gateway itself waits two minutes for a specialist

/** `code` is the envelope's, or one of ours: network, timeout, stopped, bad_answer, broken_stream. */
export class ApiError extends Error {
  constructor(code, { status = 0, message = "", param = null, retryAfterS = null, requestId = "", detail = "" } = {}) {
    super(message || code);
    Object.assign(this, { code, status, detail: message || detail, param, retryAfterS, requestId });
  }
}

/** The admin token or API key of this tab, "" where none is set. */
export function token() {
  return recall(thisTab, TOKEN) ?? "";
}

/** Keep a token for this tab, or forget it. */
export function setToken(value) {
  remember(thisTab, TOKEN, value);
  if (!value) remember(thisTab, NEEDS_KEY, null);
}

/** The token goes along with what asks for it: administration, and everything once the gateway wanted a key. */
function authorization(admin) {
  const value = token();
  return value && (admin || recall(thisTab, NEEDS_KEY)) ? { authorization: `Bearer ${value}` } : {};
}

async function send(path, { body, admin = false, signal, accept = "application/json" }) {
  const options = {
    method: body === undefined ? "GET" : "POST",
    headers: { accept, ...authorization(admin) },
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    signal,
  };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  if (response.status === 401 && !admin && token() && !recall(thisTab, NEEDS_KEY)) {
    remember(thisTab, NEEDS_KEY, "yes");
    return send(path, { body, admin, signal, accept });
  }
  return response;
}

/** Read a JSON endpoint; with `body`, post to it. Raises ApiError. */
export async function call(path, { body, admin = false, signal = null, timeoutMs = TIMEOUT_MS } = {}) {
  const limit = AbortSignal.timeout(timeoutMs);
  try {
    const response = await send(path, { body, admin, signal: signal ? AbortSignal.any([signal, limit]) : limit });
    if (!response.ok) throw await failure(response);
    return await response.json().catch((error) => {
      throw error instanceof SyntaxError ? new ApiError("bad_answer", { status: response.status }) : error;
    });
  } catch (error) {
    throw translated(error, signal, limit);
  }
}

/** Ask for a chat completion: its headers at once, then its chunks as they come. Raises ApiError, also in between. */
export async function chat(body, signal) {
  let response;
  try {
    response = await send("/v1/chat/completions", { body, signal, accept: "text/event-stream" });
    if (!response.ok) throw await failure(response);
  } catch (error) {
    throw translated(error, signal);
  }
  return { headers: response.headers, chunks: chunks(response, signal) };
}

async function* chunks(response, signal) {
  try {
    if (!(response.headers.get("content-type") ?? "").startsWith("text/event-stream")) {
      const whole = await response.json();
      const choice = whole.choices?.[0] ?? {};
      yield { ...whole, choices: [{ ...choice, delta: choice.message ?? {} }] };
      return;
    }
    let finished = false;
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.code ?? "broken_stream", chunk.error);
      finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
      yield chunk;
    }
    if (!finished) throw new ApiError("broken_stream");
  } catch (error) {
    throw error instanceof SyntaxError ? new ApiError("bad_answer") : translated(error, signal, null, "broken_stream");
  }
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? {};
  const retryAfter = Number(response.headers.get("retry-after") ?? NaN);
  return new ApiError(typeof error.code === "string" ? error.code : `status_${response.status}`, {
    status: response.status,
    message: typeof error.message === "string" ? error.message : "",
    param: error.param ?? null,
    retryAfterS: Number.isFinite(retryAfter) ? retryAfter : null,
    requestId: response.headers.get("x-request-id") ?? "",
  });
}

function translated(error, signal, limit = null, otherwise = "network") {
  if (error instanceof ApiError) return error;
  if (signal?.aborted) return new ApiError("stopped");
  if (limit?.aborted) return new ApiError("timeout");
  return new ApiError(otherwise);
}
