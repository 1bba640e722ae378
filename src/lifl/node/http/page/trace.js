// What happened in a round, and when: the trace that Perfetto opens, drawn as lines of bars.

import { ticks } from "./charts.js";
import { h } from "./dom.js";
import * as f from "./figures.js";
import { table } from "./parts.js";

const ROWS_DRAWN = 120;
const ROWS_TOLD = 400;
const TONES = { round: "run", updates: "two", node: "good" };

function secondsOf(micros) {
  return f.seconds(micros / 1e6);
}

/** The groups of a trace with their rows: { name, rows: [{ name, events }] }. */
export function groupsOf({ traceEvents: events }) {
  const names = new Map(events.filter((each) => each.ph === "M").map((each) => [`${each.name}/${each.pid}/${each.tid ?? ""}`, each.args.name]));
  const groups = new Map();
  for (const each of events) {
    if (each.ph !== "X") continue;
    if (!groups.has(each.pid)) groups.set(each.pid, { name: names.get(`process_name/${each.pid}/`) ?? "", rows: new Map() });
    const { rows } = groups.get(each.pid);
    if (!rows.has(each.tid)) rows.set(each.tid, { name: names.get(`thread_name/${each.pid}/${each.tid}`) ?? "", events: [] });
    rows.get(each.tid).events.push(each);
  }
  return [...groups.values()].map((group) => ({ name: group.name, rows: [...group.rows.values()] }));
}

function bar(each, all) {
  const said = `${each.name}: ${secondsOf(each.dur)}, from ${secondsOf(each.ts)} on`;
  const place = { left: `${((each.ts / all) * 100).toFixed(3)}%`, width: `${((each.dur / all) * 100).toFixed(3)}%` };
  return h("span", { class: `bar ${TONES[each.cat] ?? "run"}`, style: place, title: said }, each.name);
}

function axis(all) {
  const marks = ticks(0, all / 1e6, 4).filter((each) => each * 1e6 < all * 0.94);
  return h("div", { class: "trace-row", "aria-hidden": "true" }, h("span", {}), h("span", { class: "marks" }, marks.map((each) => h("span", { style: { left: `${((each * 1e6) / all) * 100}%` } }, f.seconds(each)))));
}

/** A trace, for the dialog. */
export function traceView(trace) {
  const spans = trace.traceEvents.filter((each) => each.ph === "X");
  const all = Math.max(1, ...spans.map((each) => each.ts + each.dur));
  let room = ROWS_DRAWN;
  const drawn = groupsOf(trace).map((group) => {
    const rows = group.rows.slice(0, Math.max(0, room));
    room -= rows.length;
    const left = group.rows.length - rows.length;
    return h(
      "section",
      { class: "trace-group" },
      h("h3", {}, group.name),
      rows.map((row) => h("div", { class: "trace-row" }, h("span", { class: "name", title: row.name }, row.name), h("span", { class: "track" }, row.events.map((each) => bar(each, all))))),
      left ? h("p", { class: "quiet" }, `${f.plural(left, "more line")} in the file.`) : null,
    );
  });
  const told = spans.slice(0, ROWS_TOLD).map((each, at) => ({ key: at, cells: [each.name, each.cat, secondsOf(each.ts), secondsOf(each.dur)] }));
  return [
    h("p", { class: "quiet" }, `${f.plural(spans.length, "span")} in ${secondsOf(all)}. The file opens at ui.perfetto.dev and in chrome://tracing.`),
    h("div", { class: "trace", "aria-hidden": "true" }, axis(all), drawn),
    h("details", { class: "details" }, h("summary", {}, "The trace as a table"), table("Spans of the round", [["What"], ["Of"], ["Begins", "num"], ["Takes", "num"]], told), spans.length > ROWS_TOLD ? h("p", { class: "quiet" }, `${f.count(spans.length - ROWS_TOLD)} more are in the file.`) : null),
  ];
}
