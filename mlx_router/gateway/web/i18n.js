/** Every text of the page in the reader's language, numbers and times included. */

import { forever, recall, remember, setText } from "./dom.js";
import { STRINGS } from "./strings.js";

export const LANGUAGES = Object.keys(STRINGS);
const KEY = "mlx-router.language";
const ATTRIBUTES = { label: "aria-label", title: "title", placeholder: "placeholder" };
const valuesOf = new WeakMap();
const listeners = new Set();
let language = initial();

function initial() {
  const stored = recall(forever, KEY);
  if (LANGUAGES.includes(stored)) return stored;
  const wanted = (navigator.languages?.length ? navigator.languages : [navigator.language ?? ""]).map((tag) => tag.slice(0, 2));
  return wanted.find((tag) => LANGUAGES.includes(tag)) ?? "en";
}

/** "en" or "fr". */
export function currentLanguage() {
  return language;
}

/** A text; `{name}` is replaced by `values.name`, which may be a function of no argument. */
export function t(key, values = {}) {
  const text = STRINGS[language][key] ?? STRINGS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    return value === undefined ? whole : String(typeof value === "function" ? value() : value);
  });
}

/** Put a text into an element, and keep it there in whatever language is chosen later. */
export function say(node, key, values = {}) {
  node.dataset.t = key;
  valuesOf.set(node, values);
  setText(node, t(key, values));
  return node;
}

/** The same for an attribute: aria-label (as "label"), title or placeholder. */
export function sayAttribute(node, suffix, key) {
  node.setAttribute(`data-t-${suffix}`, key);
  node.setAttribute(ATTRIBUTES[suffix], t(key));
  return node;
}

/** Take the text away again. */
export function unsay(node) {
  delete node.dataset.t;
  setText(node, "");
}

/** Translate everything below `root` that carries data-t, data-t-label, data-t-title or data-t-placeholder. */
export function translate(root = document) {
  for (const node of root.querySelectorAll("[data-t]")) setText(node, t(node.dataset.t, valuesOf.get(node)));
  for (const suffix of Object.keys(ATTRIBUTES)) {
    for (const node of root.querySelectorAll(`[data-t-${suffix}]`)) sayAttribute(node, suffix, node.getAttribute(`data-t-${suffix}`));
  }
  document.documentElement.lang = language;
}

/** Call `listener` after every change of language. */
export function onLanguage(listener) {
  listeners.add(listener);
}

/** Change the language and remember it. */
export function setLanguage(tag) {
  language = LANGUAGES.includes(tag) ? tag : "en";
  remember(forever, KEY, language);
  translate();
  for (const listener of listeners) listener(language);
}

const formats = new Map();

function format(kind, options) {
  const key = `${language} ${kind} ${JSON.stringify(options)}`;
  if (!formats.has(key)) {
    const Format = kind === "number" ? Intl.NumberFormat : Intl.DateTimeFormat;
    formats.set(key, new Format(language === "fr" ? "fr-FR" : "en-GB", options));
  }
  return formats.get(key);
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** A plain number; "–" where there is none. */
export function number(value, digits = 0) {
  return isNumber(value) ? format("number", { maximumFractionDigits: digits }).format(value) : "–";
}

/** A probability or a figure in [0, 1], always with the same digits. */
export function score(value, digits = 2) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return isNumber(value) ? format("number", options).format(value) : "–";
}

/** Milliseconds, as seconds from one second on. */
export function duration(ms) {
  if (!isNumber(ms)) return "–";
  if (ms < 1000) return `${number(ms, ms < 10 ? 1 : 0)}\u00a0ms`;
  const digits = ms < 10_000 ? 2 : 1;
  return `${score(ms / 1000, digits)}\u00a0s`;
}

/** Seconds as their two largest units. */
export function age(seconds) {
  if (!isNumber(seconds)) return "–";
  const units = [[t("unit.day"), 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = Math.max(0, units.findIndex(([, size], index) => seconds >= size || index === 3));
  let rest = Math.floor(seconds);
  const parts = units.slice(first, first + 2).map(([unit, size]) => {
    const count = Math.floor(rest / size);
    rest -= count * size;
    return `${number(count)}\u00a0${unit}`;
  });
  return parts.join("\u00a0");
}

/** Bytes in decimal units. */
export function bytes(value) {
  if (!isNumber(value)) return "–";
  const units = [["gigabyte", 1e9], ["megabyte", 1e6], ["kilobyte", 1e3]];
  const [unit, size] = units.find(([, least]) => value >= least) ?? units[2];
  const digits = value / size >= 100 ? 0 : 1;
  return format("number", { style: "unit", unit, maximumFractionDigits: digits }).format(value / size);
}

/** A moment (Unix seconds) as the time of day. */
export function clock(unix) {
  return isNumber(unix) ? format("date", { hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(unix * 1000) : "–";
}

/** A moment (Unix seconds) with its day. */
export function moment(unix) {
  return isNumber(unix) ? format("date", { dateStyle: "medium", timeStyle: "short" }).format(unix * 1000) : "–";
}
