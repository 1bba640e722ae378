// What the page knows: what the node told last, what was seen since the page is open, and what was asked for.

import { ask, Refusal } from "./visit.js";

const SEEN_MAX = 300;
const ROUNDS_PIECE = 100;
const ROUNDS_MAX = 1000;
const ATTEMPTS_MORE = 5;
const CLIENTS_AGAIN_MS = 10_000;

export const state = {
  connected: false,
  trouble: "",
  node: null,
  nodes: [],
  workers: [],
  jobs: null,
  round: null,
  seen: [], // samples: { t, rate, aggregators, in, out, arena, cpu: {name: share} }
  books: new Map(), // by job: { rounds: Map, config, models, more, loading, fault, clients, clientsAt, clientsLoading }
  log: null,
  audit: null,
  access: null,
  filter: { client: "", certificate: "", log: "", audit: "", level: "", sort: "client", down: false, page: 0 },
  width: 800,
};

let before = null;

/** Take a part in that the node told. */
export function take(part, value) {
  if (part === "trouble") state.trouble = value?.text ?? "";
  else if (part in state) state[part] = value;
  if (part === "node") sample(value);
}

function sample(node) {
  const t = performance.now() / 1000;
  const gateway = node.gateway ?? {};
  const now = { t, received: gateway.received_bytes ?? 0, sent: gateway.sent_bytes ?? 0, cpu: node.cpu_s ?? {} };
  if (before && t - before.t > 0.2 && t - before.t < 10) {
    const over = t - before.t;
    const share = (name) => Math.max(0, ((now.cpu[name] ?? 0) - (before.cpu[name] ?? 0)) / over);
    state.seen.push({
      t: Date.now() / 1000,
      rate: node.load?.rate_per_s ?? 0,
      aggregators: (state.workers ?? []).filter((worker) => worker.state !== "idle").length,
      in: Math.max(0, (now.received - before.received) / over),
      out: Math.max(0, (now.sent - before.sent) / over),
      arena: node.arena.used_bytes,
      cpu: Object.fromEntries(Object.keys(now.cpu).map((name) => [name, share(name)])),
    });
    if (state.seen.length > SEEN_MAX) state.seen.shift();
  }
  before = now;
}

/** What is known of a job beside its line. */
export function book(job) {
  let found = state.books.get(job);
  if (!found) {
    found = { rounds: new Map(), config: null, models: null, more: null, loading: false, fault: "", clients: null, clientsAt: 0 };
    state.books.set(job, found);
  }
  return found;
}

function keyOf(row) {
  return `${row.round}/${row.attempt}`;
}

/** The rounds of a job, the newest first. */
export function roundsOf(job) {
  return [...book(job).rounds.values()].sort((a, b) => b.round - a.round || b.attempt - a.attempt);
}

/** Load what is not here of a job's rounds: the last ones, or those before the first that is here. */
export async function loadRounds(job, changed, older = false, committed = 0) {
  const known = book(job);
  if (known.loading) return;
  known.loading = true;
  try {
    const first = !known.config;
    const newest = Math.max(0, ...[...known.rounds.values()].map((row) => row.round ?? 0));
    const missed = Math.min(ROUNDS_MAX, Math.max(0, committed - newest) + ATTEMPTS_MORE);
    const fields = { job, last: first || older ? ROUNDS_PIECE : missed, trees: false };
    if (older && known.more) fields.before = known.more;
    const answer = await ask("JobStatus", fields);
    for (const row of answer.rounds) known.rounds.set(keyOf(row), row);
    known.config = answer.config;
    known.models = answer.models;
    if (first || older) known.more = known.rounds.size < ROUNDS_MAX ? answer.more ?? nextOf(answer.rounds, fields.last) : null;
    known.fault = "";
  } catch (error) {
    known.fault = error instanceof Refusal ? error.message : String(error);
  } finally {
    known.loading = false;
    changed();
  }
}

/** Where the next piece of rounds begins, if there may be more than came. */
export function nextOf(rows, asked) {
  return rows.length >= asked && rows[0]?.round ? [rows[0].round, rows[0].attempt] : null;
}

/** Load a job's clients, unless they were loaded a moment ago. */
export async function loadClients(job, changed, now = false) {
  const known = book(job);
  if (known.clientsLoading || (!now && Date.now() - known.clientsAt < CLIENTS_AGAIN_MS)) return;
  known.clientsLoading = true;
  try {
    const found = [];
    for (let after = ""; after !== null; ) {
      const answer = await ask("JobClients", { job, after });
      found.push(...answer.clients);
      after = answer.more;
    }
    known.clients = found;
    known.clientsFault = "";
  } catch (error) {
    known.clientsFault = error instanceof Refusal ? error.message : String(error);
  } finally {
    known.clientsAt = Date.now();
    known.clientsLoading = false;
    changed();
  }
}

/** Load the end of the node's log. */
export async function loadLog(changed) {
  try {
    state.log = { lines: (await ask("ReadLog")).lines, fault: "" };
  } catch (error) {
    state.log = { lines: null, fault: error instanceof Refusal ? error.message : String(error) };
  }
  changed();
}
