// The tree of a round: which update sits where, what folds, what waits.
//
// A small tree is drawn from left to right, as its updates travel: updates, leaves, middles, top.  A large one is a wall
// of its nodes, where each leaf is one cell.

import { h, s } from "./dom.js";
import * as f from "./figures.js";
import { meter } from "./parts.js";

const TASKS_DRAWN_MAX = 72;
const ROW = 26;
const BOX_HIGH = 20;
const NARROW = 560;
const DOTS_MAX = 6;
const DOT = 11;
const CELL = 9;
const LETTER = 6.8; // of a box's text, at most on the average
const BOX_EDGES = 24;
const CARD_CELLS = 122;
const WIDE_CELLS = 620;
const STATES = ["waiting", "running", "sealed"];
const SAID = { waiting: "waits", running: "folds", sealed: "is sealed" };

function idOf(task) {
  return `${task.node}/${task.branch}/${task.number}`;
}

/** The tree in words, for who does not see it. */
export function treeText(now) {
  const tasks = now.tree ?? [];
  const parts = ["leaf", "middle", "top"].map((role) => {
    const own = tasks.filter((task) => task.role === role);
    if (!own.length) return "";
    const states = STATES.map((state) => [own.filter((task) => task.state === state).length, state]).filter(([n]) => n);
    return `${f.plural(own.length, role, role === "leaf" ? "leaves" : `${role}s`)}: ${states.map(([n, state]) => `${n} ${state}`).join(", ")}`;
  });
  return parts.filter(Boolean).join("; ");
}

/** The tree of a round; `width` is what there is. */
export function tree(now, width) {
  const tasks = now.tree ?? [];
  if (!tasks.length) return null;
  const total = now.tasks ?? tasks.length;
  const drawn = tasks.length <= TASKS_DRAWN_MAX && total <= TASKS_DRAWN_MAX ? drawing(tasks, now, width) : wall(tasks, now, total);
  return h("div", { class: "tree" }, legend(), drawn, names(now));
}

function legend() {
  const dot = (kind) => s("svg", { class: "mark", viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" }, s("circle", { class: `dot ${kind}`, cx: 6, cy: 6, r: 4 }));
  const items = [
    [dot("here"), "update is here"],
    [dot("due"), "update is expected"],
    [h("span", { class: "key waiting" }), "waits"],
    [h("span", { class: "key running" }), "folds"],
    [h("span", { class: "key sealed" }), "sealed"],
  ];
  return h("ul", { class: "legend" }, items.map(([mark, text]) => h("li", {}, mark, text)));
}

function names(now) {
  const list = (title, clients, tone, all = clients?.length) =>
    clients?.length
      ? h("p", { class: "names", "data-key": title }, h("span", { class: "title" }, title), clients.slice(0, 12).map((name) => h("span", { class: `chip ${tone}` }, name)), all > 12 && h("span", { class: "more" }, `and ${f.count(all - 12)} more`))
      : null;
  return [list("On their way", now.arriving, "arrive", now.uploading), list("Wait for room", now.waiting, "wait")];
}

// ---- a small tree ----------------------------------------------------------------------------------------------------

/** Where each task stands: { task, x (its column from the left), y }, and how many rows and columns there are. */
export function placed(tasks) {
  const byId = new Map(tasks.map((task) => [idOf(task), { task, children: [], parent: null, row: 0, depth: 0 }]));
  const tops = [...byId.values()].filter(({ task }) => task.role === "top");
  const roots = [];
  for (const item of byId.values()) {
    const { task } = item;
    const above = task.parent_number === null ? null : byId.get(`${task.node}/${task.branch}/${task.parent_number}`);
    const parent = above ?? (task.role !== "top" && tops.length === 1 && task.parent_number === null ? tops[0] : null);
    if (parent && parent !== item) {
      item.parent = parent;
      parent.children.push(item);
    } else roots.push(item);
  }
  let rows = 0;
  let deepest = 0;
  const firstOf = (item) => (item.first ??= Math.min(item.children.length ? Infinity : item.task.number, ...item.children.map(firstOf)));
  const place = (item, depth) => {
    item.depth = depth;
    deepest = Math.max(deepest, depth);
    const own = [];
    item.children.sort((a, b) => firstOf(a) - firstOf(b));
    for (const child of item.children) {
      place(child, depth + 1);
      own.push(child.row);
    }
    if (item.task.updates_expect > 0 || !item.children.length) {
      if (item.children.length) own.push(rows++); // the updates that it takes itself
      else own.push((item.row = rows++));
    }
    item.row = (Math.min(...own) + Math.max(...own)) / 2;
    item.dotsRow = Math.max(...own);
  };
  roots.sort((a, b) => (a.task.role === "top" ? -1 : 0) - (b.task.role === "top" ? -1 : 0));
  for (const root of roots) place(root, 0);
  for (const item of byId.values()) if (!item.children.length && deepest) item.depth = deepest; // all leaves in a line
  return { items: [...byId.values()], rows, columns: deepest + 1 };
}

function drawing(tasks, now, width) {
  const { items, rows, columns } = placed(tasks);
  const most = Math.min(DOTS_MAX, Math.max(1, ...items.map(({ task }) => task.updates_expect)));
  const isNarrow = width < NARROW;
  const room = width - 34;
  const named = !isNarrow && items.some(({ task }) => task.updates_expect && task.clients?.length);
  const left = most * DOT + (named ? 150 : 14);
  const manyNodes = new Set(items.map(({ task }) => task.node)).size > 1;
  const letters = Math.max(...items.map(({ task }) => nameOf(task, manyNodes, isNarrow).length + counted(task).length));
  const boxWide = Math.max(isNarrow ? 78 : 112, Math.ceil(BOX_EDGES + letters * LETTER));
  const least = isNarrow ? 14 : 40;
  const gap = columns > 1 ? Math.max(least, Math.min(220, (room - left - columns * boxWide - 4) / (columns - 1))) : least;
  const wide = Math.max(left + columns * boxWide + (columns - 1) * gap + 4, 200);
  const high = rows * ROW + 8;
  const at = { box: boxWide, x: (depth) => wide - 4 - boxWide - depth * (boxWide + gap), y: (row) => 4 + row * ROW + ROW / 2, isNarrow };
  return h(
    "div",
    { class: "canvas", tabindex: "0", role: "region", "aria-label": "The tree, drawn" },
    s(
      "svg",
      { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": `Round ${now.round ?? ""}: ${treeText(now)}` },
      items.filter(({ parent }) => parent).map((item) => edge(item, at)),
      items.map((item) => dots(item, at)),
      items.map((item) => box(item, at, manyNodes)),
    ),
  );
}

function curve(from, to, bend) {
  return `M${from}C${from[0] + bend},${from[1]} ${to[0] - bend},${to[1]} ${to}`;
}

function edge({ task, parent, row, depth }, { x, y, box: wide }) {
  const from = [x(depth) + wide, y(row)];
  const to = [x(parent.depth), y(parent.row)];
  const near = x(parent.depth) - x(parent.depth + 1) - wide; // one gap: long edges run straight until then
  const straight = from[0] + Math.max(0, to[0] - from[0] - near);
  const line = straight > from[0] ? `M${from}H${straight}` : "";
  return s("path", { class: `edge ${task.state}`, "data-key": `e${idOf(task)}`, d: line + curve([straight, from[1]], to, near / 2).replace("M", line ? "L" : "M") });
}

function nameOf(task, manyNodes, isNarrow) {
  if (task.role === "top") return "top";
  if (manyNodes) return `${f.nodeName(task.node).slice(0, 4)} ${task.role[0]}${task.number}`;
  return `${isNarrow && task.role === "middle" ? "mid" : task.role} ${task.number}`;
}

function counted(task) {
  return `${task.inputs}/${task.expect}`;
}

function box({ task, row, depth }, { x, y, box: wide, isNarrow }, manyNodes) {
  const [left, top] = [x(depth), y(row) - BOX_HIGH / 2];
  const said = `${task.role} ${task.number} ${SAID[task.state]}: ${task.inputs} of ${task.expect} inputs${task.pid ? `, pid ${task.pid}` : ""}${task.cpu_s ? `, ${f.seconds(task.cpu_s)} of CPU` : ""}, node ${f.nodeName(task.node)}`;
  const share = task.expect ? Math.min(1, task.inputs / task.expect) : 0;
  return s(
    "g",
    { class: `task ${task.state} ${task.role}`, "data-key": `t${idOf(task)}` },
    s("title", {}, said),
    s("rect", { class: "box", x: left, y: top, width: wide, height: BOX_HIGH, rx: 5 }),
    s("rect", { class: "share", x: left + 2, y: top + BOX_HIGH - 3, width: ((wide - 4) * share).toFixed(1), height: 2, rx: 1 }),
    s("text", { x: left + 8, y: top + 13.5 }, nameOf(task, manyNodes, isNarrow)),
    s("text", { class: "of", x: left + wide - 8, y: top + 13.5, "text-anchor": "end" }, counted(task)),
  );
}

function dots({ task, depth, row, dotsRow, children }, { x, y, isNarrow }) {
  const due = task.updates_expect;
  if (!due) return null;
  const isTail = children.length > 0; // what the top takes itself: a row of its own, as far left as it gets
  const at = y(dotsRow);
  const right = x(depth) - (isTail ? 34 : 9);
  const shown = Math.min(due, DOTS_MAX);
  const title = task.clients?.length ? task.clients.join(", ") : `${task.updates} of ${due} updates`;
  const marks = Array.from({ length: shown }, (_, i) => {
    const here = i < (due > DOTS_MAX ? Math.round((task.updates / due) * shown) : task.updates);
    return s("circle", { class: `dot ${here ? "here" : "due"}`, cx: right - (shown - 1 - i) * DOT, cy: at, r: 3.6 });
  });
  const text = due > DOTS_MAX ? `${task.updates}/${due}` : isNarrow ? "" : short((task.clients ?? []).slice(0, 2).join(", "));
  return s(
    "g",
    { class: "updates", "data-key": `u${idOf(task)}` },
    s("title", {}, title),
    isTail && s("path", { class: `edge ${task.updates ? "running" : "waiting"}`, d: curve([right + 6, at], [x(depth), y(row)], 18) }),
    marks,
    text && s("text", { class: "client", x: right - shown * DOT - 1, y: at + 3.5, "text-anchor": "end" }, text),
  );
}

function short(name) {
  return name.length > 20 ? `${name.slice(0, 19)}…` : name;
}

// ---- a large one -----------------------------------------------------------------------------------------------------

function wall(tasks, now, total) {
  const byNode = new Map();
  for (const task of tasks) {
    const own = byNode.get(task.node) ?? [];
    own.push(task);
    byNode.set(task.node, own);
  }
  const hasTop = (own) => own.some((task) => task.role === "top");
  const nodes = [...byNode].sort(([a, ofA], [b, ofB]) => hasTop(ofB) - hasTop(ofA) || (a < b ? -1 : 1));
  const many = nodes.length > 1;
  return [
    h("p", { class: "quiet", "data-key": "wall-text" }, `${treeText(now)}.`, total > tasks.length ? ` Of ${f.count(total)} tasks ${f.count(tasks.length)} are shown.` : ""),
    h("div", { class: many ? "wall" : "wall one", role: "list", "aria-label": "Nodes of the round", "data-key": "wall" }, nodes.map(([node, own]) => card(node, own, hasTop(own), many))),
  ];
}

function card(node, own, top, many) {
  const due = own.reduce((sum, task) => sum + task.updates_expect, 0);
  const here = own.reduce((sum, task) => sum + task.updates, 0);
  const roles = ["leaf", "middle", "top"].map((role) => [role, own.filter((task) => task.role === role)]).filter(([, list]) => list.length);
  return h(
    "div",
    { class: `card ${top ? "has-top" : ""}`, role: "listitem", "data-key": node },
    h("p", { class: "title" }, h("span", { class: "mono" }, f.nodeName(node)), top ? h("span", { class: "badge run" }, "top") : ""),
    h("p", { class: "sum" }, h("span", {}, `${f.count(here)} of ${f.count(due)} updates`), meter(due ? here / due : 1, `${here} of ${due} updates are here`, here >= due ? "good" : "run")),
    roles.map(([role, list]) =>
      h("div", { class: `cells-row ${role}`, "data-key": role }, h("span", { class: "label" }, role === "leaf" ? "leaves" : role === "middle" ? "middles" : "top"), cells(list, role, many)),
    ),
  );
}

function cells(list, role, many) {
  const cell = role === "leaf" ? CELL : CELL + 3;
  const step = cell + 3;
  const perRow = Math.floor((many ? CARD_CELLS : WIDE_CELLS) / step);
  const columns = Math.min(perRow, list.length);
  const rows = Math.ceil(list.length / perRow);
  const groups = STATES.map((state) => {
    const path = list
      .map((task, at) => [task, at])
      .filter(([task]) => task.state === state)
      .map(([, at]) => `M${(at % perRow) * step},${Math.floor(at / perRow) * step}h${cell}v${cell}h-${cell}z`)
      .join("");
    return path && s("path", { class: `cell ${state}`, d: path, "data-key": state });
  });
  const states = STATES.map((state) => `${list.filter((task) => task.state === state).length} ${state}`).join(", ");
  const [w, t] = [columns * step - 3, rows * step - 3];
  return s("svg", { class: "cells", width: w, height: t, viewBox: `0 0 ${w} ${t}`, role: "img", "aria-label": `${list.length} ${role}: ${states}` }, groups);
}

/** The same as a table's rows. */
export function treeRows(tasks) {
  return tasks.map((task) => ({
    key: idOf(task),
    cells: [`${task.role} ${task.number}`, f.nodeName(task.node), task.state, `${task.inputs}/${task.expect}`, task.updates_expect ? `${task.updates}/${task.updates_expect}` : f.NONE, task.pid ? String(task.pid) : f.NONE, task.cpu_s ? f.seconds(task.cpu_s) : f.NONE, (task.clients ?? []).join(", ")],
  }));
}

export const TREE_COLUMNS = [["Task"], ["Node", "mono"], ["State"], ["Inputs", "num"], ["Updates", "num"], ["PID", "num"], ["CPU", "num"], ["Clients"]];

