// A plan: which node takes which updates, with how many leaves, and why.

import { h } from "./dom.js";
import * as f from "./figures.js";
import { badge, empty, figure, figures, table } from "./parts.js";

const NAMES_SHOWN = 16;

/** The reasons of a plan, a line each. */
function why(plan) {
  return plan.nodes.flatMap((each) => each.reasons.map((reason) => `${f.nodeName(each.node)}: ${reason}`));
}

function drawnText({ why: unknown, clients, of }) {
  if (unknown) return `Whom round 1 selects cannot be told before clients are there: ${unknown}.`;
  const more = clients.length - NAMES_SHOWN;
  return `Round 1 selects, of ${f.plural(of, "listed client")}, if all are there: ${clients.slice(0, NAMES_SHOWN).join(", ")}${more > 0 ? ` and ${f.count(more)} more` : ""}.`;
}

/** A plan, for the dialog; `about` is what `lifl plan` tells besides. */
export function planView(request, plan, about = {}) {
  const used = plan.nodes.filter((each) => each.updates || each.node === plan.top);
  const between = plan.transfers.reduce((sum, each) => sum + each.nbytes, 0);
  const columns = [["Node", "mono"], ["Part"], ["Updates", "num"], ["Leaves", "num"], ["Leaf tasks", "num"], ["Q", "num"], ["Arena, at most", "num"], ["Its partial after", "num"]];
  const rows = used.map((each) => ({
    key: each.node,
    cells: [
      h("span", { title: each.node }, f.nodeName(each.node)),
      [each.leaves ? badge("leaves", "run") : "", each.middle ? badge("middle", "warn") : "", each.node === plan.top ? badge("top", "good") : ""],
      f.count(each.updates),
      f.count(each.leaves),
      f.count(each.leaf_tasks),
      f.real(each.queue),
      f.size(each.peak_bytes),
      f.seconds(each.ready_s),
    ],
  }));
  const reasons = why(plan);
  return [
    figures(
      figure("Updates", f.count(plan.updates), `of ${f.size(request.model_bytes)}, ${request.timing}`),
      figure("Nodes used", f.count(used.length), `of ${f.count(plan.nodes.length)}, by ${plan.policy}`),
      figure("Between nodes", f.size(between), "at most"),
      figure("Expected time", f.seconds(plan.completion_s), "from the first update to the model"),
    ),
    h("div", { class: "plan" }, rows.length ? table("Nodes of the plan", columns, rows) : empty("No node has a part")),
    h("h3", {}, "Why"),
    h("ul", { class: "lines" }, reasons.map((line) => h("li", {}, line))),
    about.treatment?.length ? [h("h3", {}, "Tensors"), h("ul", { class: "lines" }, about.treatment.map((line) => h("li", {}, line)))] : null,
    about.options?.length ? [h("h3", {}, "Options of rounds"), h("ul", { class: "lines" }, about.options.map(({ round, options }) => h("li", {}, `round ${f.count(round)}: ${Object.entries(options).map(([name, value]) => `${name} ${f.real(value)}`).join(", ")}`)))] : null,
    about.drawn ? h("p", { class: "quiet" }, drawnText(about.drawn)) : null,
  ];
}
