// Curves, steps and timelines, as SVG of the width that there is.

import { h, s } from "./dom.js";
import * as f from "./figures.js";

const LEFT = 52;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 22;

/** Ticks at round numbers, at most about so many. */
export function ticks(low, high, most = 4) {
  if (!(high > low)) return [low];
  const raw = (high - low) / most;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * size).find((each) => each >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

const TIME_STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

/** Ticks at round times of this machine's clock, at most so many. */
export function timeTicks(first, last, most) {
  const step = TIME_STEPS_S.find((each) => (last - first) / each <= most) ?? Math.ceil((last - first) / most / 86400) * 86400;
  const away = new Date(first * 1000).getTimezoneOffset() * 60;
  const found = [];
  for (let at = Math.ceil((first - away) / step) * step + away; at <= last; at += step) found.push(at);
  return found;
}

function range(values, fromZero) {
  const finite = values.filter(Number.isFinite);
  if (!finite.length) return [0, 1];
  let low = fromZero ? Math.min(0, ...finite) : Math.min(...finite);
  let high = Math.max(...finite);
  if (low === high) {
    const room = Math.abs(low) * 0.1 || 1;
    low = fromZero ? low : low - room;
    high += room;
  }
  const room = (high - low) * 0.06;
  return [fromZero ? low : low - room, high + room];
}

/**
 * A chart of one series: `points` are [x, y] in the order of x; `kind` is line, step or bar.
 * `options`: width, height, label (what it is, for those who do not see it), x and y (how a value is written), fromZero,
 * domain ([first, last] of x, which is a time in seconds).
 */
export function chart(points, options) {
  const { width, height = 120, kind = "line", label, x = f.count, y = f.real, tick = y, fromZero = false, tone = "one" } = options;
  const good = points.filter(([, value]) => Number.isFinite(value));
  const [first, last] = options.domain ?? [good[0]?.[0] ?? 0, good.at(-1)?.[0] ?? 1];
  const [low, high] = range(good.map(([, value]) => value), fromZero);
  const inner = Math.max(40, width - LEFT - RIGHT);
  const px = (value) => LEFT + (last > first ? (value - first) / (last - first) : 0.5) * inner;
  const py = (value) => TOP + (1 - (value - low) / (high - low)) * (height - TOP - BOTTOM);
  const parts = [];
  for (const value of ticks(low, high, Math.max(2, Math.floor(height / 44)))) {
    const at = py(value).toFixed(1);
    parts.push(s("line", { class: "grid", x1: LEFT, x2: LEFT + inner, y1: at, y2: at }));
    parts.push(s("text", { class: "tick", x: LEFT - 8, y: Number(at) + 3.5, "text-anchor": "end" }, tick(value)));
  }
  const most = Math.max(2, Math.floor(inner / 110));
  const wanted = options.domain ? timeTicks(first, last, most) : ticks(first, last, most).filter(Number.isInteger);
  for (const value of wanted) {
    const at = px(value);
    const anchor = at > LEFT + inner - 24 ? "end" : at < LEFT + 24 ? "start" : "middle";
    parts.push(s("text", { class: "tick", x: at.toFixed(1), y: height - 6, "text-anchor": anchor }, x(value)));
  }
  parts.push(...drawn(good, kind, tone, px, py, low, inner));
  const shown = good.at(-1);
  const text = shown ? `${label}: ${y(shown[1])} at ${x(shown[0])}, from ${y(Math.min(...good.map((p) => p[1])))} to ${y(Math.max(...good.map((p) => p[1])))}` : `${label}: nothing yet`;
  return s("svg", { class: `chart ${tone}`, width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text }, parts, hovers(good, px, inner, height, x, y));
}

function drawn(good, kind, tone, px, py, low, inner) {
  if (!good.length) return [];
  const at = ([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`;
  const base = py(Math.max(low, 0)).toFixed(1);
  if (kind === "bar") {
    const wide = Math.max(1, Math.min(14, (inner / good.length) * 0.7));
    const bar = ([x, y]) => `M${(px(x) - wide / 2).toFixed(1)},${base}V${py(y).toFixed(1)}h${wide.toFixed(1)}V${base}Z`;
    return [s("path", { class: "bars", d: good.map(bar).join("") })];
  }
  const join = kind === "step" ? good.map((p, i) => (i ? `H${px(p[0]).toFixed(1)}V${py(p[1]).toFixed(1)}` : at(p))).join("") : good.map(at).join("L");
  const ends = `L${px(good.at(-1)[0]).toFixed(1)},${base}L${px(good[0][0]).toFixed(1)},${base}Z`;
  const found = [];
  if (good.length > 1) found.push(s("path", { class: "area", d: `M${join}${ends}` }), s("path", { class: "line", d: `M${join}` }));
  const [x, y] = good.at(-1);
  found.push(s("circle", { class: "last", cx: px(x).toFixed(1), cy: py(y).toFixed(1), r: 3.5 }));
  return found;
}

function hovers(good, px, inner, height, x, y) {
  if (good.length > 200) return null; // the finest that a pointer can tell apart
  return good.map(([at, value], i) => {
    const from = i ? (px(good[i - 1][0]) + px(at)) / 2 : LEFT;
    const to = i + 1 < good.length ? (px(at) + px(good[i + 1][0])) / 2 : LEFT + inner;
    const area = { class: "hover", x: from.toFixed(1), y: 0, width: Math.max(0.5, to - from).toFixed(1), height };
    return s("g", { class: "spot" },
      s("rect", area, s("title", {}, `${x(at)}: ${y(value)}`)),
      s("circle", { class: "dot", cx: px(at).toFixed(1), cy: 0, r: 0 }));
  });
}

const SPANS = [
  ["arrive", "arrival, folded along"],
  ["fold", "the last folds"],
  ["commit", "checkpoint and commit"],
];

/** The parts of a committed round in seconds: until the last update was accepted, until the model, until the commit. */
export function spansOf(receipt) {
  const total = receipt?.duration_s;
  if (!Number.isFinite(total)) return null;
  const tail = Math.min(total, receipt.last_accepted_to_commit_s ?? 0);
  const fold = Math.min(tail, receipt.last_accepted_to_sealed_s ?? 0);
  return [Math.max(0, total - tail), fold, tail - fold];
}

/** One round's bar of a timeline, where the longest takes `longest` seconds. */
export function spanBar(receipt, longest) {
  const spans = spansOf(receipt);
  if (!spans || !(longest > 0)) return null;
  const said = spans.map((value, at) => `${SPANS[at][1]} ${f.seconds(value)}`).join(", ");
  return h(
    "span",
    { class: "spans", role: "img", "aria-label": said, title: said },
    spans.map((value, at) => h("span", { class: `span ${SPANS[at][0]}`, style: { width: `${((value / longest) * 100).toFixed(2)}%` } })),
  );
}

/** What the colours of the bars say. */
export function spanLegend() {
  return h("ul", { class: "legend" }, SPANS.map(([kind, text]) => h("li", {}, h("span", { class: `key ${kind}` }), text)));
}
