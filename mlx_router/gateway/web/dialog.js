/** One modal question at a time; Escape and "Cancel" answer null. */

import { h } from "./dom.js";
import { say } from "./i18n.js";

/**
 * Ask for confirmation, or for values.
 *
 * `fields` are `{name, label, hint, value, type, required, options, pattern}`; label and hint are keys of strings.js.
 * Resolves to `{name: value}` (checkboxes as booleans), or null.
 */
export function ask({ title, text, values, confirm, danger = false, fields = [], extra = null }) {
  return new Promise((resolve) => {
    const inputs = fields.map(input);
    const cancel = say(h("button", { type: "button", class: "quiet" }), "dialog.cancel");
    const submit = say(h("button", { type: "submit", class: danger ? "danger" : "primary" }), confirm);
    const form = h(
      "form",
      { method: "dialog", autocomplete: "off" },
      say(h("h2", { id: "dialog-title" }), title, values),
      text ? say(h("p", { id: "dialog-text" }), text, values) : null,
      ...inputs.map(({ row }) => row),
      h("div", { class: "dialog-actions" }, extra ? extra(() => finish(null)) : null, cancel, submit),
    );
    const dialog = h("dialog", { "aria-labelledby": "dialog-title", "aria-describedby": text ? "dialog-text" : null }, form);
    const finish = (result) => {
      dialog.close();
      dialog.remove();
      resolve(result);
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      finish(Object.fromEntries(inputs.map(({ name, read }) => [name, read()])));
    });
    cancel.addEventListener("click", () => finish(null));
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      finish(null);
    });
    document.body.append(dialog);
    dialog.showModal();
    (inputs.find(({ control }) => !control.value)?.control ?? (danger ? cancel : submit)).focus();
  });
}

function input({ name, label, hint, value = "", type = "text", required = false, options = null, pattern = null }) {
  const id = `field-${name}`;
  const attributes = { id, name, required, "aria-describedby": hint ? `${id}-hint` : null };
  const control = options
    ? h("select", attributes, ...options.map((option) => h("option", { value: option, selected: option === value }, option)))
    : h("input", { ...attributes, type, pattern, spellcheck: "false", autocapitalize: "off", autocomplete: "off" });
  if (type === "checkbox") control.checked = Boolean(value);
  else if (!options) control.value = value;
  const caption = say(h("label", { for: id }), label);
  const help = hint ? say(h("span", { class: "hint", id: `${id}-hint` }), hint) : null;
  const row = type === "checkbox" ? h("div", { class: "field check" }, control, caption, help) : h("div", { class: "field" }, caption, control, help);
  return { name, row, control, read: () => (type === "checkbox" ? control.checked : control.value.trim()) };
}
