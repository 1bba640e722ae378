// Elements, and how what is shown becomes what is to be shown.
//
// A view is a function that returns new elements; `morph` changes the page's to be like them, in place, so that focus,
// selection and scroll positions stay.  Elements of lists carry `data-key`.  There are no listeners on them: a click
// on `data-do` is handled in one place (main.js).  All text is set as text: nothing that a node says is ever markup.

const SVG = "http://www.w3.org/2000/svg";

function made(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== undefined && child !== null && child !== false && child !== "") element.append(child);
  }
  return element;
}

/** An element of HTML. */
export function h(name, attributes, ...children) {
  return made(document.createElement(name), attributes, children);
}

/** An element of SVG. */
export function s(name, attributes, ...children) {
  return made(document.createElementNS(SVG, name), attributes, children);
}

/** A field of a form: its name, what it is typed into, and what is said of it. */
export function field(title, input, more) {
  return h("label", { class: "field" }, h("span", { class: "name" }, title), input, more && h("span", { class: "quiet" }, more));
}

const KEPT = new Set(["style", "open"]); // of an element; `open` is the user's

function morphAttributes(old, next) {
  for (const { name } of [...old.attributes]) {
    if (!KEPT.has(name) && !next.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (!KEPT.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.style && old.style.cssText !== next.style.cssText) old.style.cssText = next.style.cssText;
}

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null;
}

function isLike(old, next) {
  return old.nodeType === next.nodeType && old.nodeName === next.nodeName && keyOf(old) === keyOf(next);
}

function morphNode(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  morphAttributes(old, next);
  if (!old.hasAttribute("data-own")) morph(old, [...next.childNodes]);
}

/** Have an element have these children. */
export function morph(parent, children) {
  const keyed = new Map();
  for (const child of parent.childNodes) {
    const key = keyOf(child);
    if (key !== null) keyed.set(key, child);
  }
  let at = parent.firstChild;
  for (const next of children) {
    const key = keyOf(next);
    let old = key !== null ? keyed.get(key) : at;
    if (old && !isLike(old, next)) old = null;
    if (!old) {
      parent.insertBefore(next, at);
      continue;
    }
    if (old === at) at = at.nextSibling;
    else parent.insertBefore(old, at);
    morphNode(old, next);
  }
  while (at) {
    const after = at.nextSibling;
    at.remove();
    at = after;
  }
}
