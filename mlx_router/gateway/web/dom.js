/** Building and updating the document. Strings always become text nodes, never markup. */

/** An element with attributes, `on…` listeners and children; null children and attributes are left out. */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.replace(/^on/, ""), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Set a text where it differs, so that a selection or a screen reader is not disturbed. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set or remove an attribute where it differs. */
export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

const nodesOf = new WeakMap();

/**
 * Make `parent` show `items`, one child each, in order. A child stays the same element as long as its key is there,
 * so that focus and selection survive an update. A child marked data-keep stays in front.
 */
export function keyed(parent, items, keyOf, create, update) {
  const known = nodesOf.get(parent) ?? new Map();
  const next = new Map();
  let place = parent.querySelector(":scope > [data-keep]");
  for (const item of items) {
    const key = keyOf(item);
    if (next.has(key)) continue;
    const node = known.get(key) ?? create(item);
    next.set(key, node);
    update(node, item);
    const wanted = place === null ? parent.firstChild : place.nextSibling;
    if (wanted !== node) parent.insertBefore(node, wanted);
    place = node;
  }
  for (const [key, node] of known) if (!next.has(key)) node.remove();
  nodesOf.set(parent, next);
}

/** A value kept in one of the browser's storages; null where storage is switched off. */
export function remember(storage, name, value) {
  try {
    if (value === null || value === "") storage().removeItem(name);
    else storage().setItem(name, value);
  } catch {
    /* storage is switched off */
  }
}

/** What `remember` kept, or null. */
export function recall(storage, name) {
  try {
    return storage().getItem(name);
  } catch {
    return null;
  }
}

export const forever = () => window.localStorage;
export const thisTab = () => window.sessionStorage;
