// What several views are made of.

import { h, s } from "./dom.js";
import * as f from "./figures.js";

export const TONES = {
  running: "run", waiting: "wait", paused: "warn", pausing: "warn", queued: "wait", finished: "good", failed: "bad", cancelled: "mute", unreadable: "bad",
  committed: "good", damaged: "bad", open: "run",
  alive: "good", suspect: "warn", dead: "bad", left: "mute", draining: "warn", drained: "mute",
};

/** Children as they are put into an element. */
export function flat(children) {
  return children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false && each !== "").map((each) => (each instanceof Node ? each : document.createTextNode(each)));
}

/** A state in a word, with its colour. */
export function badge(text, tone = TONES[text] ?? "mute") {
  return h("span", { class: `badge ${tone}` }, text);
}

/** A part of a whole as a bar; `tone` is its colour. */
export function meter(part, label, tone = "run") {
  const share = Number.isFinite(part) ? Math.min(1, Math.max(0, part)) : 0;
  return h(
    "span",
    { class: "meter", role: "img", "aria-label": label },
    h("span", { class: `fill ${tone}`, style: { width: `${(share * 100).toFixed(1)}%` } }),
  );
}

/** One figure of a row of them. */
export function figure(label, value, more, extra) {
  return h(
    "div",
    { class: "figure", "data-key": `figure-${label}` },
    h("dt", {}, label),
    h("dd", {}, h("span", { class: "value" }, value), more && h("span", { class: "more" }, more), extra),
  );
}

/** A row of figures. */
export function figures(...items) {
  return h("dl", { class: "figures" }, items);
}

/** A part of a view with a heading; `more` stands at the heading's end. */
export function section(title, more, ...children) {
  const id = `s-${title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  return h(
    "section",
    { class: "section", "aria-labelledby": id, "data-key": id },
    h("div", { class: "head" }, h("h2", { id }, title), more && h("div", { class: "aside" }, more)),
    children,
  );
}

/** What stands where nothing is yet. */
export function empty(title, ...text) {
  return h("div", { class: "empty" }, h("p", { class: "title" }, title), h("p", {}, text));
}

/** What is said of a fault, or of what is not as it should be. */
export function notice(text, tone = "warn", key = text) {
  return text && h("p", { class: `notice ${tone}`, "data-key": `n-${key}` }, text);
}

/** A button that does something (main.js); `label` of `about` says it for those who do not see where it stands. */
export function button(text, what, { label, ...about } = {}, kind = "") {
  const data = Object.fromEntries(Object.entries(about).map(([name, value]) => [`data-${name}`, value]));
  return h("button", { type: "button", class: `button ${kind}`, "data-do": what, "aria-label": label, ...data }, text);
}

/** A table; a column is [title, class, scope of the cell]; a row is { key, cells, ... }. */
export function table(caption, columns, rows, attributes = {}) {
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption}: the table`, ...attributes },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, columns.map(([title, kind]) => h("th", { scope: "col", class: kind }, title)))),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            { "data-key": row.key },
            row.cells.map((cell, at) =>
              at === 0 ? h("th", { scope: "row", class: columns[at][1] }, h("span", { class: "name" }, cell)) : h("td", { class: columns[at][1] }, cell),
            ),
          ),
        ),
      ),
    ),
  );
}

/** Ways to the pages before and after page `at` (0 is the first); null: there is one. */
export function pager(at, pages) {
  if (pages < 2) return null;
  return h("div", { class: "pages" }, button("Previous", "page", { to: at - 1 }, at ? "small" : "small off"), h("span", { class: "quiet" }, `page ${at + 1} of ${pages}`), button("Next", "page", { to: at + 1 }, at + 1 < pages ? "small" : "small off"));
}

/** A small line of the last values, as an ornament of the figure beside it. */
export function spark(values, width = 120, height = 28) {
  const most = Math.max(...values, 0);
  if (values.length < 2 || most <= 0) return null;
  const step = width / (values.length - 1);
  const y = (value) => height - 2 - (value / most) * (height - 4);
  const points = values.map((value, at) => `${(at * step).toFixed(1)},${y(value).toFixed(1)}`);
  return s(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    s("path", { class: "area", d: `M0,${height}L${points.join("L")}L${width},${height}Z` }),
    s("path", { class: "line", d: `M${points.join("L")}` }),
  );
}

/** Metrics in a line. */
export function metrics(values) {
  const names = Object.keys(values ?? {}).sort();
  return names.slice(0, 3).map((name) => h("span", { class: "pair" }, h("span", { class: "name" }, name), " ", f.real(values[name])));
}
