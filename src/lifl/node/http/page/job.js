// One job: its running round with the tree, its curves, its rounds, its clients, its config.

import { chart, spanBar, spanLegend, spansOf } from "./charts.js";
import { h } from "./dom.js";
import * as f from "./figures.js";
import { badge, button, empty, figure, figures, meter, notice, pager, section, table } from "./parts.js";
import { book, roundsOf, state } from "./state.js";
import { tree, treeRows, TREE_COLUMNS } from "./tree.js";
import { current, mayAct } from "./visit.js";

const TABS = [["", "Overview"], ["rounds", "Rounds"], ["clients", "Clients"], ["config", "Config"]];
const ENDED = ["finished", "failed", "cancelled"];
const PER_PAGE = 50;
const BARS_SHOWN = 12;

/** The view of a job. */
export function jobView(name, tab) {
  const job = (state.jobs ?? []).find((each) => each.name === name);
  if (!state.jobs) return [h("h1", {}, name), h("p", { class: "quiet" }, "Waiting for the node …")];
  const known = book(name);
  const head = [
    h("p", { class: "crumb" }, h("a", { href: "#/" }, "Jobs"), " / "),
    h("div", { class: "top" }, h("h1", {}, name), job ? badge(job.status) : null, h("div", { class: "actions" }, job && actions(job))),
    job && h("p", { class: "quiet" }, `rule ${job.rule}, submitted ${f.moment(job.submitted_unix_s)}`),
    job?.reason ? notice(job.reason, ENDED.includes(job.status) && job.status !== "failed" ? "mute" : "warn") : null,
    known.fault ? notice(known.fault, "bad") : null,
    tabs(name, tab),
  ];
  const views = { rounds: roundsTab, clients: clientsTab, config: configTab };
  return [...head, (views[tab] ?? overviewTab)(name, job)];
}

function actions(job) {
  if (!mayAct()) return null;
  const about = { job: job.name };
  const model = button("Model", "model", { ...about });
  const resume = button("Resume", "resume", about);
  if (ENDED.includes(job.status)) return [model, resume, button("Remove", "remove", about, "danger")];
  const held = job.status === "paused" || job.status === "pausing";
  return [model, held ? resume : job.status === "unreadable" ? null : button("Pause", "pause", about), button("Cancel job", "cancel", about, "danger")];
}

function tabs(name, tab) {
  return h(
    "nav",
    { class: "tabs", "aria-label": "Of this job" },
    TABS.map(([key, title]) => h("a", { href: `#/jobs/${encodeURIComponent(name)}${key && `/${key}`}`, "aria-current": key === tab ? "page" : null }, title)),
  );
}

// ---- overview --------------------------------------------------------------------------------------------------------

function overviewTab(name, job) {
  const rows = roundsOf(name);
  const committed = rows.filter((row) => row.status === "committed");
  return h("div", { class: "stack" }, running(job), curves(committed), timeline(name, rows), activity(committed));
}

function running(job) {
  const now = state.round;
  if (!job) return null;
  if (!now) {
    const text = ENDED.includes(job.status)
      ? `The job is ${job.status}: ${f.count(job.committed)} of ${f.count(job.rounds)} rounds are committed.`
      : "It waits for clients, or for room: the next round begins by itself.";
    return section("Running round", null, empty("No round runs", text));
  }
  const left = Number.isFinite(now.time_left_s) ? f.seconds(now.time_left_s) : "no deadline";
  return section(
    "Running round",
    h("span", {}, `round ${f.count(now.round)} of ${f.count(job.rounds)}`, now.attempt > 1 ? `, attempt ${now.attempt}` : "", ", ", now.phase),
    now.reason ? notice(now.reason, "warn", "round") : null,
    figures(
      figure("Selected", f.count(now.selected), f.plural(now.nodes, "node")),
      figure("On their way", f.count(now.uploading)),
      figure("Accepted", f.count(now.accepted), `of ${f.count(now.goal)}`, meter(now.accepted / now.goal, `${now.accepted} of ${now.goal} updates are accepted`, now.accepted >= now.goal ? "good" : "run")),
      figure("Folded", f.count(now.counted), `of ${f.count(now.accepted)}`, meter(now.accepted ? now.counted / now.accepted : 0, `${now.counted} of ${now.accepted} are folded`, "good")),
      figure("Time left", left, `quorum ${f.count(now.quorum)}`),
    ),
    now.tree?.length ? tree(now, state.width) : empty("The tree is not planned yet", "It grows when the first updates are on their way."),
    now.tree?.length && now.tree.length <= 256
      ? h("details", { class: "details", "data-key": "tree-table" }, h("summary", {}, "The tree as a table"), table("Tasks of the running round", TREE_COLUMNS, treeRows(now.tree)))
      : null,
  );
}

/** What was measured in a round, by name: by its clients, and of its model by clients (their mean) and by the server. */
function measured(row) {
  const found = { ...row.metrics };
  for (const [name, each] of Object.entries(row.evaluation?.metrics ?? {})) found[`evaluation.${name}`] = each.mean;
  for (const [name, value] of Object.entries(row.evaluation?.server?.metrics ?? {})) found[`evaluation.${name}`] = value;
  return found;
}

function curves(committed) {
  const rows = [...committed].reverse().map((row) => [row.round, measured(row)]);
  const names = [...new Set(rows.flatMap(([, found]) => Object.keys(found)))].sort();
  if (!names.length) return section("Metrics", null, empty("No metrics yet", "Trainers send them with their updates; the mean of each round, by weight, is drawn here."));
  const columns = state.width > 760 && names.length > 1 ? 2 : 1;
  const width = Math.floor((state.width - (columns - 1) * 16) / columns) - 34;
  return section(
    "Metrics",
    names.some((name) => name.startsWith("evaluation.")) ? "mean over the round's clients, by weight; evaluation.NAME: of its model" : "mean over the round's clients, by weight",
    h(
      "div",
      { class: columns === 2 ? "grid two" : "grid" },
      names.map((name) => {
        const points = rows.filter(([, found]) => name in found).map(([round, found]) => [round, found[name]]);
        return h("figure", { class: "panel", "data-key": name }, h("figcaption", {}, h("span", {}, name), h("span", { class: "value" }, f.real(points.at(-1)?.[1]))), chart(points, { width, height: 150, label: name, x: (value) => `round ${f.count(value)}` }));
      }),
    ),
  );
}

function timeline(name, rows) {
  const shown = rows.filter((row) => spansOf(row.receipt)).slice(0, BARS_SHOWN);
  if (!shown.length) return null;
  const longest = Math.max(...shown.map((row) => row.receipt.duration_s));
  return section(
    "Rounds",
    h("a", { href: `#/jobs/${encodeURIComponent(name)}/rounds` }, "all rounds"),
    spanLegend(),
    h(
      "ol",
      { class: "timeline", "aria-label": "The last rounds, the newest first" },
      shown.map((row) =>
        h("li", { "data-key": `${row.round}/${row.attempt}` }, h("button", { type: "button", class: "round", "data-do": "receipt", "data-round": row.round, "data-job": name, "aria-label": `Receipt of round ${row.round}` }, String(row.round)), spanBar(row.receipt, longest), h("span", { class: "num" }, f.seconds(row.receipt.duration_s))),
      ),
    ),
  );
}

/** The figures of the paper's Figure 10, of each round: what arrives, how many aggregators, what CPU. */
export function activityOf(row) {
  const receipt = row.receipt ?? {};
  const spans = spansOf(receipt);
  if (!spans || !row.committed_unix_s) return null;
  const cpu = Object.values(receipt.cpu_s ?? {}).reduce((sum, value) => sum + value, 0);
  return { at: row.committed_unix_s, rate: spans[0] > 0 ? receipt.accepted / spans[0] : NaN, aggregators: receipt.workers_cold + receipt.workers_warm, cold: receipt.workers_cold, cpu };
}

function activity(committed) {
  const rows = committed.map(activityOf).filter(Boolean).reverse();
  if (rows.length < 2) return null;
  const domain = [rows[0].at, rows.at(-1).at];
  const panels = [
    ["Arrival rate", "updates per second", "rate", f.real, "step"],
    ["Active aggregators", "workers started or warm", "aggregators", f.count, "step"],
    ["CPU per round", "seconds, of all processes", "cpu", (value) => f.seconds(value), "bar"],
  ];
  return section(
    "Activity",
    "of each round, over time",
    h(
      "div",
      { class: "grid" },
      panels.map(([title, unit, key, y, kind], at) =>
        h("figure", { class: "panel", "data-key": key }, h("figcaption", {}, h("span", {}, title, h("span", { class: "quiet" }, ` ${unit}`)), h("span", { class: "value" }, y(rows.at(-1)[key]))), chart(rows.map((row) => [row.at, row[key]]), { width: state.width - 34, height: 104, label: title, kind, domain, x: f.moment, y, tick: f.real, fromZero: true, tone: ["one", "two", "three"][at] })),
      ),
    ),
  );
}

// ---- rounds ----------------------------------------------------------------------------------------------------------

function roundsTab(name) {
  const rows = roundsOf(name);
  const known = book(name);
  if (!rows.length) return known.loading ? h("p", { class: "quiet" }, "Loading …") : empty("No round is over yet", "Each gets a receipt here: what it took and what it cost.");
  const longest = Math.max(0, ...rows.map((row) => row.receipt?.duration_s ?? 0));
  return h(
    "div",
    { class: "stack" },
    section(
      "Rounds",
      [f.plural(rows.length, "attempt"), h("span", { class: "beside" }, button("Download as CSV", "history", { job: name }, "small"))],
      spanLegend(),
      table(
        "Rounds, the newest first",
        [["Round", "num"], ["State"], ["Ended", "num"], ["Took", "num"], ["Timeline", "wide"], ["Counted", "num"], ["Received", "num"], ["CPU", "num"], ["Aggregators", "num"], [h("span", { class: "unseen" }, "Receipt")]],
        rows.map((row) => {
          const receipt = row.receipt ?? {};
          const cpu = receipt.cpu_s ? Object.values(receipt.cpu_s).reduce((sum, value) => sum + value, 0) : NaN;
          return {
            key: `${row.round}/${row.attempt}`,
            cells: [
              row.round === null ? f.NONE : f.count(row.round) + (row.attempt > 1 ? ` (${row.attempt})` : ""),
              h("span", { title: row.reason || null }, badge(row.status)),
              f.moment(row.committed_unix_s),
              f.seconds(receipt.duration_s),
              spanBar(receipt, longest) ?? h("span", { class: "quiet" }, row.reason || f.NONE),
              receipt.selected !== undefined ? `${f.count(receipt.counted)} / ${f.count(receipt.selected)}` : f.NONE,
              f.size(receipt.bytes_in),
              f.seconds(cpu),
              receipt.workers_cold !== undefined ? f.count(receipt.workers_cold + receipt.workers_warm) : f.NONE,
              row.round === null ? "" : button("Receipt", "receipt", { job: name, round: row.round }, "small"),
            ],
          };
        }),
      ),
      known.more ? button(known.loading ? "Loading …" : "Earlier rounds", "older", { job: name }) : null,
    ),
  );
}

/** What a receipt says, for the dialog. */
export function receiptView(row, width) {
  const receipt = row.receipt;
  const pairs = [["State", row.status], ["Ended", f.moment(row.committed_unix_s)], ...(row.reason ? [["Reason", row.reason]] : [])];
  if (receipt) {
    const cpu = Object.entries(receipt.cpu_s ?? {});
    pairs.push(
      ["Clients", ["selected", "accepted", "counted", "expired"].map((each) => `${f.count(receipt[each])} ${each}`).join(", ")],
      ["Weight", f.real(receipt.weight)],
      ["Took", f.seconds(receipt.duration_s)],
      ["Last accepted to commit", f.seconds(receipt.last_accepted_to_commit_s)],
      ["Updates received", f.size(receipt.bytes_in)],
      ["Models served", f.size(receipt.bytes_out)],
      ["Between nodes", f.size(receipt.bytes_between)],
      ["CPU", `${f.seconds(cpu.reduce((sum, [, value]) => sum + value, 0))} (${cpu.map(([name, value]) => `${name} ${f.seconds(value)}`).join(", ")})`],
      ["Arena, at most", f.size(receipt.arena_peak_bytes)],
      ["Workers", ["cold", "warm", "promoted", "shared"].map((each) => `${f.count(receipt[`workers_${each}`])} ${each}`).join(", ")],
      ["Nodes", f.count(receipt.nodes)],
      ["Redirector", receipt.redirector ?? f.NONE],
    );
  }
  for (const [name, value] of Object.entries(row.metrics ?? {})) pairs.push([name, f.real(value)]);
  if (row.path) pairs.push(["Model", row.path], ["Checksum", row.digest || f.NONE]);
  const lines = (receipt?.tree ?? []).map((line) => ({ node: "", ...line }));
  return [
    h("dl", { class: "facts" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    lines.length ? [h("h3", {}, "Tree"), tree({ round: row.round, tree: lines, tasks: lines.length }, width)] : null,
  ];
}

// ---- clients ---------------------------------------------------------------------------------------------------------

const CLIENT_COLUMNS = [
  ["client", "Client"], ["here", "Here"], ["level", "Level", "num"], ["selected", "Selected", "num"], ["delivered", "Delivered", "num"],
  ["late", "Late", "num"], ["left", "Left", "num"], ["declined", "Declined", "num"], ["spoilt", "Spoilt", "num"], ["misses", "Misses", "num"],
];

/** What a client says of itself. */
function saidBy({ labels = {}, ...more } = {}) {
  return Object.entries({ ...labels, ...more }).map(([name, value]) => `${name}=${value}`).join(" ");
}

function clientCell(each, key) {
  if (key === "client") return each.client;
  if (key === "here") return each.here ? badge("here", "good") : badge("away", "mute");
  return each[key] ? f.real(each[key]) : h("span", { class: "quiet" }, "0");
}

function clientsTab(name) {
  const known = book(name);
  if (known.clientsFault) return empty("The clients are not known", known.clientsFault);
  if (!known.clients) return h("p", { class: "quiet" }, "Loading …");
  const { client, sort, down, page } = state.filter;
  const wanted = known.clients.filter((each) => each.client.toLowerCase().includes(client.toLowerCase()));
  const order = (a, b) => (typeof a[sort] === "string" ? a[sort].localeCompare(b[sort]) : Number(a[sort]) - Number(b[sort]));
  wanted.sort((a, b) => (down ? -1 : 1) * order(a, b) || a.client.localeCompare(b.client));
  const pages = Math.max(1, Math.ceil(wanted.length / PER_PAGE));
  const at = Math.min(page, pages - 1);
  const here = known.clients.filter((each) => each.here).length;
  const says = known.clients.some((each) => each.properties);
  return section(
    "Clients",
    `${f.count(here)} of ${f.count(known.clients.length)} are here`,
    h("div", { class: "tools" }, h("label", { class: "search" }, h("span", { class: "unseen" }, "Find a client"), h("input", { type: "search", placeholder: "Find a client", "data-filter": "client", value: client })), button("Reload", "clients", { job: name }, "small")),
    wanted.length
      ? table(
          "Clients and their record",
          [...CLIENT_COLUMNS.map(([key, title, kind]) => [h("button", { type: "button", class: "sort", "data-do": "sort", "data-by": key }, title, sort === key ? (down ? " ↓" : " ↑") : ""), kind]), ...(says ? [["Says"]] : [])],
          wanted.slice(at * PER_PAGE, (at + 1) * PER_PAGE).map((each) => ({
            key: each.client,
            cells: [...CLIENT_COLUMNS.map(([key]) => clientCell(each, key)), ...(says ? [h("span", { class: "quiet" }, saidBy(each.properties))] : [])],
          })),
        )
      : empty("No client is called so", "Change what is searched for."),
    pager(at, pages),
  );
}

// ---- config ----------------------------------------------------------------------------------------------------------

/** The keys of a section with their values, those of tables in it one by one. */
function keysOf(values, path) {
  return Object.entries(values).flatMap(([key, value]) => {
    const isTable = value && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length > 0;
    return isTable ? keysOf(value, `${path}.${key}`) : [[`${path}.${key}`, value]];
  });
}

function isEditable(path) {
  return mayAct() && (current()?.editable ?? []).some((each) => path === each || path.startsWith(`${each}.`));
}

function configTab(name, job) {
  const { config } = book(name);
  if (!config) return h("p", { class: "quiet" }, "Loading …");
  const groups = Object.entries(config).filter(([, value]) => value && typeof value === "object");
  const pending = Object.entries(job?.pending ?? {}).map(([key, value]) => `${key} = ${f.toml(value)}`);
  return h(
    "div",
    { class: "stack" },
    pending.length ? notice(`From the next round on: ${pending.join(", ")}`, "mute", "pending") : null,
    mayAct() && job ? h("div", { class: "row" }, button("Change another key", "edit", { job: name })) : null,
    groups.map(([group, values]) =>
      section(
        group,
        null,
        h(
          "dl",
          { class: "facts" },
          keysOf(values, group).map(([path, value]) =>
            h(
              "div",
              { "data-key": path },
              h("dt", {}, path.slice(group.length + 1)),
              h("dd", { class: "mono" }, value === "" || value === null ? f.NONE : typeof value === "string" ? value : f.toml(value), isEditable(path) && job ? button("Change", "edit", { job: name, key: path, value: f.toml(value) }, "link") : ""),
            ),
          ),
        ),
      ),
    ),
    job && section("folder", null, h("p", { class: "mono" }, job.folder)),
  );
}

