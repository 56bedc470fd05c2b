/** What an error means to the reader, and what to do next. The server's own words follow as detail. */

import { h } from "./dom.js";
import { number, say } from "./i18n.js";
import { STRINGS } from "./strings.js";

/** `{title, next, values, detail, wantsToken}`; title and next are keys of strings.js. */
export function explain(error) {
  const known = (part, code) => (`error.${code}.${part}` in STRINGS.en ? `error.${code}.${part}` : null);
  const byStatus = { 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 413: "body_too_large", 429: "overloaded" };
  const family = byStatus[error.status] ?? (error.status >= 500 ? "server" : "request");
  const code = known("title", error.code) ? error.code : family;
  const waits = error.retryAfterS !== null && error.retryAfterS !== undefined;
  return {
    title: `error.${code}.title`,
    next: waits ? "error.retry_after" : `error.${code}.next`,
    values: { seconds: () => number(error.retryAfterS), status: String(error.status || "") },
    detail: [error.detail, error.requestId && `(${error.requestId})`].filter(Boolean).join(" "),
    wantsToken: code === "invalid_api_key",
  };
}

/** An error as elements: what happened, what to do, the server's words, and a button where a token would help. */
export function errorBox(error, onToken) {
  const { title, next, values, detail, wantsToken } = explain(error);
  return h(
    "div",
    { class: "error-box" },
    h("p", {}, say(h("strong"), title, values), " ", say(h("span"), next, values)),
    detail ? h("p", { class: "detail", lang: "en" }, detail) : null,
    wantsToken && onToken ? say(h("button", { type: "button", class: "quiet", onclick: onToken }), "token.enter") : null,
  );
}
