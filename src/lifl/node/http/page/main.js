// The page: where it is (the address behind #), what is drawn, and what a click does.

import * as access from "./access.js";
import { auditView, loadAudit } from "./audit.js";
import { jobsInOrder, nodesView, overview } from "./cluster.js";
import * as deeds from "./deeds.js";
import { agree, asks } from "./dialogs.js";
import { h, morph } from "./dom.js";
import * as history from "./history.js";
import { jobView } from "./job.js";
import { logView } from "./log.js";
import { button, empty, flat, TONES } from "./parts.js";
import { book, loadClients, loadLog, loadRounds, state, take } from "./state.js";
import * as submit from "./submit.js";
import { current, follow, leave, mayAct, openLink, Refusal } from "./visit.js";

const side = document.getElementById("side");
const main = document.getElementById("main");
const HIDDEN_MS = 5000;

let refused = "";
let drawing = false;

// ---- where -----------------------------------------------------------------------------------------------------------

function place() {
  const [view = "", name = "", tab = ""] = location.hash.replace(/^#\/?/, "").split("/").map(readable);
  return { view, name, tab };
}

/** What a part of the address says; what was not written by the page, and says nothing, as it is. */
function readable(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function isAt(view, name = "") {
  const here = place();
  return here.view === view && here.name === name;
}

// ---- what is drawn ---------------------------------------------------------------------------------------------------

function view() {
  if (!current()) return gate();
  const { view: at, name, tab } = place();
  switch (at) {
    case "jobs":
      return jobView(name, tab);
    case "nodes":
      return nodesView();
    case "submit":
      return submit.submitView();
    case "log":
      return logView();
    case "audit":
      return auditView();
    case "access":
      return access.accessView();
    default:
      return overview();
  }
}

function gate() {
  return [
    h("h1", {}, "LIFL"),
    empty(
      "This page needs a link",
      refused ? `${refused} ` : "",
      "On the node's machine run ",
      h("code", {}, "lifl web"),
      " and open what it prints. A link is good once, within two minutes.",
    ),
  ];
}

function link(href, text, isHere, mark) {
  return h("a", { href, "aria-current": isHere ? "page" : null, "data-key": href }, mark, h("span", { class: "text" }, text));
}

function sidebar() {
  const visit = current();
  const jobs = visit ? jobsInOrder() : [];
  return [
    h("a", { class: "brand", href: "#/" }, h("img", { src: "/page/icon.svg", alt: "", width: 24, height: 24 }), h("span", {}, "LIFL")),
    visit &&
      h(
        "nav",
        { class: "nav", "aria-label": "Views" },
        link("#/", "Overview", isAt("")),
        link("#/nodes", "Nodes", isAt("nodes")),
        mayAct() && link("#/submit", "Submit a job", isAt("submit")),
        mayAct() && link("#/access", "Access", isAt("access")),
        mayAct() && link("#/log", "Log", isAt("log")),
        mayAct() && link("#/audit", "Audit", isAt("audit")),
        jobs.length ? h("p", { class: "group" }, "Jobs") : null,
        jobs.slice(0, 30).map((job) => link(`#/jobs/${encodeURIComponent(job.name)}`, job.name, isAt("jobs", job.name), h("span", { class: `lamp ${TONES[job.status] ?? "mute"}`, title: job.status }))),
      ),
    h(
      "div",
      { class: "foot" },
      visit && h("p", { class: "who" }, h("span", { class: `lamp ${state.connected ? "good" : "bad"}` }), state.connected ? "live" : "not connected", h("span", { class: "quiet" }, ` · ${visit.role}`)),
      h("div", { class: "row" }, button(themeText(), "theme", {}, "small"), visit && button("Leave", "leave", {}, "small")),
    ),
  ];
}

function themeText() {
  return isDark() ? "Light" : "Dark";
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function changed() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(draw);
}

function draw() {
  drawing = false;
  const shell = getComputedStyle(main);
  state.width = Math.max(240, main.clientWidth - parseFloat(shell.paddingLeft) - parseFloat(shell.paddingRight));
  const trouble = current() && (state.trouble || (!state.connected && state.node)) ? h("p", { class: "notice bad", role: "alert", "data-key": "trouble" }, state.trouble || "The node does not answer; what is shown is from before.") : null;
  morph(side, flat(sidebar()));
  morph(main, flat([trouble, view()]));
  const { view: at, name } = place();
  document.title = at === "jobs" ? `${name} · LIFL` : "LIFL";
  document.documentElement.dataset.ready = String(Boolean(!current() || state.jobs));
}

// ---- what is told ----------------------------------------------------------------------------------------------------

let following = null;

function listen() {
  const { view: at, name } = place();
  const job = at === "jobs" ? name : "";
  if (!current() || document.hidden) return;
  if (following && following.job === job) return;
  following?.end.abort();
  following = { job, end: new AbortController() };
  state.round = null;
  const on = (connected, text) => {
    state.connected = connected;
    if (text) state.trouble = text;
    changed();
  };
  follow(job, heard, on, following.end.signal);
}

function stop() {
  following?.end.abort();
  following = null;
}

function heard(part, value) {
  if (part === "over") {
    refused = "The visit is over.";
    stop();
  } else if (part !== "all") take(part, value);
  else load();
  changed();
}

/** Ask for what the view shows beside what is told. */
function load() {
  const { view: at, name, tab } = place();
  if (!current()) return;
  if (at === "jobs" && name) {
    const job = (state.jobs ?? []).find((each) => each.name === name);
    const known = book(name);
    const mark = job ? `${job.committed}/${job.status}/${job.submitted_unix_s}` : "";
    if (known.submitted !== undefined && job && known.submitted !== job.submitted_unix_s) {
      known.rounds.clear(); // another job of the same name
      known.config = known.mark = null;
    }
    if (job) known.submitted = job.submitted_unix_s;
    if (job && known.mark !== mark && !known.loading) {
      known.mark = mark;
      loadRounds(name, changed, false, job.committed);
      if (tab === "clients") loadClients(name, changed);
    }
    if (tab === "clients" && !known.clients && !known.clientsFault) loadClients(name, changed);
  }
  if (at === "log" && !state.log) loadLog(changed);
  if (at === "audit" && !state.audit) loadAudit(changed);
  if (at === "access" && !state.access) access.loadAccess();
}

// ---- what is done ----------------------------------------------------------------------------------------------------

const DOES = {
  ...deeds.DEEDS,
  ...submit.SUBMIT_DEEDS,
  ...access.ACCESS_DEEDS,
  ...history.HISTORY_DEEDS,
  theme() {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("lifl-theme", next);
    } catch { /* until the page is left */ }
    changed();
  },
  async leave() {
    stop();
    await leave();
    refused = "You have left.";
    changed();
  },
  older: ({ job }) => loadRounds(job, changed, true),
  clients: ({ job }) => loadClients(job, changed, true),
  log: () => loadLog(changed),
  audit: ({ before }) => loadAudit(changed, Number(before) || null),
  page({ to }) {
    state.filter.page = Math.max(0, Number(to));
    changed();
  },
  sort({ by }) {
    const { filter } = state;
    filter.down = filter.sort === by ? !filter.down : by !== "client";
    filter.sort = by;
    filter.page = 0;
    changed();
  },
};

document.addEventListener("click", (event) => {
  const found = event.target instanceof Element ? event.target.closest("[data-do]") : null;
  if (found) Promise.resolve(DOES[found.dataset.do]?.({ ...found.dataset })).catch(deeds.tell);
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !asks() || event.target.nodeName !== "INPUT") return;
  event.preventDefault();
  agree();
});

document.addEventListener("input", (event) => {
  const name = event.target?.dataset?.filter;
  if (!name) return;
  state.filter[name] = event.target.value;
  state.filter.page = 0;
  changed();
});

addEventListener("hashchange", () => {
  if (location.hash.startsWith("#link=")) {
    begin();
    return;
  }
  state.filter.page = 0;
  if (place().view === "log") state.log = null;
  if (place().view === "audit") state.audit = null;
  if (place().view === "access") state.access = null;
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
  listen();
  load();
  draw();
  side.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
});

let away = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(away);
  if (document.hidden) away = setTimeout(stop, HIDDEN_MS);
  else listen();
});

addEventListener("pagehide", stop); // it may be kept, to be shown again: meanwhile nobody looks
addEventListener("pageshow", (event) => {
  if (event.persisted) listen();
});

const there = {
  changed,
  over() {
    refused = "The visit is over.";
    changed();
  },
};
deeds.begin(there);
submit.begin(there);
access.begin(there);
new ResizeObserver(changed).observe(main);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);

async function begin() {
  refused = "";
  try {
    await openLink();
  } catch (error) {
    refused = error instanceof Refusal ? error.message : String(error);
  }
  stop();
  listen();
  changed();
}

begin();
