/** The admin token: asked for when it is needed, kept in this tab only. */

import { setToken, token } from "./api.js";
import { ask } from "./dialog.js";
import { byId, h } from "./dom.js";
import { say } from "./i18n.js";
import { tell } from "./messages.js";
import { known, refresh } from "./state.js";

/** Ask for the token; true when there is one afterwards. */
export async function openToken() {
  const forget = (close) => {
    if (!token()) return null;
    const clear = () => {
      setToken("");
      close();
      tell("token.forgotten");
      renderToken();
    };
    return say(h("button", { type: "button", class: "quiet first", onclick: clear }), "token.forget");
  };
  const given = await ask({
    title: "token.title",
    text: "token.text",
    confirm: "token.save",
    fields: [{ name: "token", label: "token.label", type: "password", required: true }],
    extra: forget,
  });
  if (given?.token) {
    setToken(given.token);
    tell("token.kept");
    renderToken();
    refresh();
  }
  return Boolean(token());
}

/** Ask for the token where the gateway wants one and there is none. */
export async function ensureToken() {
  if (token() || !known.status?.gateway?.admin_token_required) return true;
  return openToken();
}

/** Say on the button whether a token is set. */
export function renderToken() {
  const button = byId("token");
  button.dataset.state = token() ? "set" : "unset";
  say(byId("token-text"), token() ? "token.set" : "token.unset");
}
