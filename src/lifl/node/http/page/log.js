// The end of the node's log.

import { h } from "./dom.js";
import { button, empty, notice, section } from "./parts.js";
import { state } from "./state.js";

const LINE = /^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)[,.]?\d* ([A-Z]+) (.*)$/s;
const LEVELS = ["", "INFO", "WARNING", "ERROR"];

/** A line in its parts; one that cannot be read so is a text. */
export function parsed(line) {
  if (line.startsWith("{")) {
    try {
      const { at, level, logger, event, text: rest, ...more } = JSON.parse(line);
      const text = [event ?? logger ?? "", rest ?? "", ...Object.entries(more).map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)];
      return { time: String(at ?? "").slice(0, 19).replace("T", " "), level: String(level ?? "").toUpperCase(), text: text.filter(Boolean).join(" ") };
    } catch { /* a text */ }
  }
  const found = LINE.exec(line);
  return found ? { time: found[1], level: found[2], text: found[3] } : { time: "", level: "", text: line };
}

/** The view of the log. */
export function logView() {
  const head = h("div", { class: "top" }, h("h1", {}, "Log"));
  if (!state.log) return [head, h("p", { class: "quiet" }, "Loading …")];
  if (state.log.fault) return [head, notice(state.log.fault, "bad")];
  if (!state.log.lines) return [head, empty("This node logs to its terminal", "Started with -d it writes a file, whose end is shown here.")];
  const { log, level } = state.filter;
  const rank = (name) => Math.max(0, LEVELS.indexOf(name === "CRITICAL" ? "ERROR" : name));
  const lines = state.log.lines.map((line, at) => ({ ...parsed(line), at })).filter((line) => line.text.toLowerCase().includes(log.toLowerCase()) && (!level || rank(line.level) >= rank(level))).reverse();
  return [
    head,
    section(
      "The last lines",
      "the newest first",
      h(
        "div",
        { class: "tools" },
        h("label", { class: "search" }, h("span", { class: "unseen" }, "Find in the log"), h("input", { type: "search", placeholder: "Find in the log", "data-filter": "log", value: log })),
        h("label", {}, h("span", { class: "unseen" }, "Level"), h("select", { "data-filter": "level" }, LEVELS.map((each) => h("option", { value: each, selected: each === level }, each ? `${each.toLowerCase()} and worse` : "all levels")))),
        button("Reload", "log", {}, "small"),
      ),
      lines.length
        ? h("ol", { class: "log", tabindex: "0", "aria-label": "Log lines" }, lines.slice(0, 400).map((line) => h("li", { "data-key": line.at, class: line.level.toLowerCase() }, h("time", {}, line.time), h("span", { class: "level" }, line.level), h("span", { class: "text" }, line.text))))
        : empty("No such line", "Nothing in the end of the log is like that."),
    ),
  ];
}
