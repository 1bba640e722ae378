// The cluster: what it does now, its jobs, its nodes, and the workers of the node that serves this page.

import { h } from "./dom.js";
import * as f from "./figures.js";
import { badge, button, empty, figure, figures, meter, metrics, notice, section, spark, table, TONES } from "./parts.js";
import { state } from "./state.js";
import { mayAct } from "./visit.js";

const ACTIVE = ["running", "waiting", "queued", "pausing", "paused"];

function seen(name) {
  return state.seen.map((each) => each[name]);
}

function total(cpu) {
  return Object.values(cpu ?? {}).reduce((sum, value) => sum + value, 0);
}

/** The jobs, those that run first. */
export function jobsInOrder() {
  const order = (job) => (ACTIVE.includes(job.status) ? 0 : 1);
  return [...(state.jobs ?? [])].sort((a, b) => order(a) - order(b) || b.submitted_unix_s - a.submitted_unix_s);
}

/** The front view. */
export function overview() {
  const { node } = state;
  if (!node) return [h("h1", {}, "Overview"), h("p", { class: "quiet" }, "Waiting for the node …")];
  const several = state.nodes.length > 1;
  return [
    h("div", { class: "top" }, h("h1", {}, several ? "Cluster" : "Overview"), h("p", { class: "quiet" }, several ? `${f.plural(state.nodes.length, "node")}, seen from ` : "Node ", h("span", { class: "mono" }, f.nodeName(node.node)), `, up ${f.seconds(node.uptime_s)}`)),
    warnings(node),
    now(node),
    jobs(),
    several ? nodes() : null,
    workers(),
  ];
}

function warnings(node) {
  const found = (node.warnings ?? []).map((text) => notice(text));
  if (node.store?.trouble) found.unshift(notice(node.store.trouble, "bad"));
  return found;
}

function now(node) {
  const last = state.seen.at(-1);
  const arena = clusterArena(node);
  const busy = state.workers.filter((worker) => worker.state !== "idle").length;
  const load = loadOf(node);
  return section(
    "Now",
    null,
    figures(
      figure("Updates arrive", f.rate(load.rate), "smoothed", spark(seen("rate"))),
      figure("Aggregators", f.count(busy), `of ${f.count(state.workers.length)} workers`, spark(seen("aggregators"))),
      figure("Load", f.percent(load.share), `of ${f.real(load.capacity)} folds at a time`, meter(load.share, `load ${f.percent(load.share)}`, load.share > 0.9 ? "warn" : "run")),
      figure("Arena", f.size(arena.used), `of ${f.size(arena.all)}`, meter(arena.used / arena.all, `${f.percent(arena.used / arena.all)} of the arena in use`, arena.used / arena.all > 0.9 ? "warn" : "run")),
      figure("Received", last ? `${f.size(last.in)}/s` : f.NONE, `${f.size(node.gateway?.received_bytes)} in all`, spark(seen("in"))),
      figure("CPU of the node", last ? f.percent(total(last.cpu)) : f.NONE, "of a core; beside workers", spark(state.seen.map((each) => total(each.cpu)))),
    ),
  );
}

function clusterArena(node) {
  if (state.nodes.length < 2) return { used: node.arena.used_bytes, all: node.arena.bytes };
  const alive = state.nodes.filter((each) => each.state !== "dead" && each.state !== "left");
  return { used: alive.reduce((sum, each) => sum + each.arena_used_bytes, 0), all: alive.reduce((sum, each) => sum + each.arena_bytes, 0) || 1 };
}

function loadOf(node) {
  const rows = state.nodes.length > 1 ? state.nodes.filter((each) => each.state === "alive") : [{ ...node.load, capacity: node.capacity }];
  const rate = rows.reduce((sum, each) => sum + (each.rate_per_s ?? 0), 0);
  const work = rows.reduce((sum, each) => sum + (each.rate_per_s ?? 0) * (each.execution_s ?? 0), 0);
  const capacity = rows.reduce((sum, each) => sum + (each.capacity ?? 0), 0);
  return { rate, capacity, share: capacity > 0 ? work / capacity : 0 };
}

/** A job's progress, as it is shown in lists. */
export function progress(job) {
  const share = job.rounds ? job.committed / job.rounds : 0;
  return h("span", { class: "progress" }, h("span", { class: "num" }, `${f.count(job.committed)} / ${f.count(job.rounds)}`), meter(share, `${job.committed} of ${job.rounds} rounds are committed`, TONES[job.status] === "bad" ? "bad" : job.status === "finished" ? "good" : "run"));
}

function jobs() {
  const all = jobsInOrder();
  const body = all.length
    ? table(
        "Jobs",
        [["Job"], ["State"], ["Rounds committed", "wide"], ["Now"], ["Clients", "num"], ["Last metrics"], ["Submitted", "num"]],
        all.map((job) => ({
          key: job.name,
          cells: [
            h("a", { href: `#/jobs/${encodeURIComponent(job.name)}` }, job.name),
            badge(job.status),
            progress(job),
            h("span", { class: "quiet" }, nowText(job)),
            f.count(job.clients),
            h("span", { class: "pairs" }, metrics(job.metrics)),
            f.moment(job.submitted_unix_s),
          ],
        })),
      )
    : empty("No job yet", mayAct() ? "Submit one here, or with " : "One appears here as soon as it is submitted, as with ", h("code", {}, "lifl submit job.toml"), ".");
  const aside = [all.length ? f.plural(all.length, "job") : "", mayAct() ? h("a", { class: "button small", href: "#/submit" }, "Submit a job") : ""];
  return section("Jobs", aside, body);
}

function nowText(job) {
  const { now } = job;
  if (!now) return f.NONE;
  return `round ${f.count(now.round)}: ${f.count(now.accepted)} of ${f.count(now.goal)} updates`;
}

/** The nodes, as a table. */
export function nodes() {
  const alive = state.nodes.filter((each) => each.state === "alive").length;
  return section(
    "Nodes",
    `${alive} of ${f.count(state.nodes.length)} alive`,
    table(
      "Nodes",
      [["Node", "mono"], ["State"], ["Load", "wide"], ["Arrival", "num"], ["Arena", "wide"], ["Workers", "num"], ["Address", "mono"], ...(mayAct() ? [[h("span", { class: "unseen" }, "Drain")]] : [])],
      state.nodes.map((each) => {
        const load = each.capacity > 0 ? (each.rate_per_s * each.execution_s) / each.capacity : 0;
        const arena = each.arena_bytes ? each.arena_used_bytes / each.arena_bytes : 0;
        return {
          key: each.node,
          cells: [
            h("span", { title: each.node }, f.nodeName(each.node), each.coordinator ? h("span", { class: "badge mute" }, "coordinates") : ""),
            h("span", {}, badge(each.state), each.drain ? badge(each.drain) : ""),
            h("span", { class: "progress" }, h("span", { class: "num" }, f.percent(load)), meter(load, `load ${f.percent(load)}`, load > 0.9 ? "warn" : "run")),
            f.rate(each.rate_per_s),
            h("span", { class: "progress" }, h("span", { class: "num" }, f.size(each.arena_used_bytes)), meter(arena, `${f.percent(arena)} of ${f.size(each.arena_bytes)}`)),
            f.count(each.workers),
            each.gateway,
            ...(mayAct() ? [drainButton(each)] : []),
          ],
        };
      }),
    ),
  );
}

function drainButton(node) {
  if (node.state !== "alive") return "";
  return node.drain
    ? button("Let take part", "undrain", { node: node.node }, "small")
    : button("Drain", "drain", { node: node.node }, "small");
}

function workers() {
  const all = [...state.workers].sort((a, b) => (a.state === "idle") - (b.state === "idle") || a.worker - b.worker);
  if (!all.length) return section("Workers of this node", null, empty("No aggregator runs", "None is needed now. The next update starts one within milliseconds."));
  return section(
    "Workers of this node",
    f.plural(all.length, "worker"),
    table(
      "Workers",
      [["Worker"], ["State"], ["Task"], ["Job"], ["Inputs", "num"], ["Tasks done", "num"], ["PID", "num"]],
      all.slice(0, 64).map((each) => ({
        key: each.worker,
        cells: [
          `worker ${each.worker}`,
          badge(each.state, each.state === "idle" ? "mute" : "run"),
          each.state === "idle" ? f.NONE : each.role || f.NONE,
          each.job && each.state !== "idle" ? `${each.job}, round ${each.round}` : f.NONE,
          each.expect && each.state !== "idle" ? `${each.inputs}/${each.expect}` : f.NONE,
          f.count(each.tasks_done),
          String(each.pid || f.NONE),
        ],
      })),
    ),
  );
}

/** The view of the nodes. */
export function nodesView() {
  if (state.nodes.length) return [h("div", { class: "top" }, h("h1", {}, "Nodes")), nodes(), workers()];
  const { node } = state;
  return [
    h("div", { class: "top" }, h("h1", {}, "Nodes")),
    node && section("This node", null, facts(node)),
    empty("This node is in no cluster", "Another one joins it when both were started with ", h("code", {}, "--control"), " and ", h("code", {}, "--join"), "."),
    workers(),
  ];
}

function facts(node) {
  const pairs = [
    ["Node", node.node],
    ["Listens on", (node.listen ?? []).join(", ")],
    ["HTTP", node.http ?? f.NONE],
    ["Identity", node.identity || "none: loopback, by this account's cookie"],
    ["Redirector", node.redirector?.kind === "sockmap" ? "sockmap (eBPF)" : "AF_UNIX"],
    ["Arena", `${f.size(node.arena.bytes)}, at most ${f.size(node.arena.peak_bytes)} were in use`],
    ["State", node.state_dir],
    ["Up", f.seconds(node.uptime_s)],
  ];
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { class: "mono" }, value))));
}
