/** Short news of what the reader did, in a corner; errors stay until they are dismissed. */

import { byId, h } from "./dom.js";
import { say, sayAttribute } from "./i18n.js";
import { errorBox } from "./errors.js";

const LINGER_MS = 8000;

/** Say that something worked. */
export function tell(key, values) {
  const note = h("div", { class: "message" }, say(h("p"), key, values));
  byId("messages").append(note);
  setTimeout(() => note.remove(), LINGER_MS);
}

/** Say that something failed. */
export function complain(error, onToken) {
  const close = sayAttribute(h("button", { type: "button", class: "quiet close" }, "×"), "label", "message.dismiss");
  const note = h("div", { class: "message bad", role: "alert" }, errorBox(error, onToken), close);
  close.addEventListener("click", () => note.remove());
  note.querySelector(".error-box button")?.addEventListener("click", () => note.remove());
  byId("messages").append(note);
}

/** Tell a screen reader, and nobody else. */
export function announce(key, values) {
  say(byId("announcer"), key, values);
}
