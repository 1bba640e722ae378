// What the buttons of jobs and nodes do, each as a command line does it.

import { agree, close, form, show, sure } from "./dialogs.js";
import { field, h } from "./dom.js";
import * as f from "./figures.js";
import { receiptView } from "./job.js";
import { badge, button, empty } from "./parts.js";
import { planView } from "./plan.js";
import { book, loadRounds, state } from "./state.js";
import { traceView } from "./trace.js";
import { ask, askTrace, current, fetchModel, Refusal } from "./visit.js";

const MODELS_LISTED = 60;
const MORE_ROUNDS = 10;

let page = null;
const said = document.getElementById("said");

/** Know the page that is drawn: `changed()` draws it again, `over()` says that the visit is over. */
export function begin(there) {
  page = there;
}

async function act(type, fields, text) {
  let done = false;
  try {
    await ask(type, fields);
    said.textContent = text;
    done = true;
  } catch (error) {
    tell(error);
  }
  page.changed();
  return done;
}

/** Show what was refused. */
export function tell(error) {
  if (!current()) page.over();
  else show("That was refused", [h("p", {}, error instanceof Refusal ? error.message : String(error))]);
}

function lineOf(job) {
  return (state.jobs ?? []).find((each) => each.name === job);
}

/** Load what has changed. */
function again(job) {
  const known = book(job);
  known.mark = null;
  loadRounds(job, page.changed, false, lineOf(job)?.committed ?? 0);
}

// ---- models ----------------------------------------------------------------------------------------------------------

/** The rounds whose models are there, the newest first, with what is special about them. */
function modelsOf(job) {
  const { models } = book(job);
  const last = lineOf(job)?.committed ?? 0;
  const found = [];
  for (const [from, to] of [...(models?.rounds ?? [])].reverse()) {
    for (let at = to; at >= from && found.length < MODELS_LISTED; at--) found.push(at);
  }
  const best = models?.best;
  if (best && !found.includes(best.round)) found.push(best.round);
  return found.map((round) => [round, `round ${f.count(round)}${round === last ? ", the last" : ""}${round === best?.round ? `, the best: ${best.metric} ${f.real(best.value)}` : ""}`]);
}

/** Have the browser keep a file. */
export function saveAs(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function model({ job }) {
  const rounds = modelsOf(job);
  if (!rounds.length) {
    show(`Model of ${job}`, [empty("No model is there yet", "The first one comes with the first round that is committed.")]);
    return;
  }
  const options = rounds.map(([round, text]) => h("option", { value: round }, text));
  form(`Model of ${job}`, field("Which", h("select", { name: "round" }, options), "A safetensors file, as lifl model writes it."), "Download", async ({ round }, { told, signal }) => {
    saveAs(await fetchModel(job, Number(round), told, signal), `${job}-round-${round}.safetensors`);
    said.textContent = `The model of ${job} after round ${round} is downloaded.`;
  });
}

// ---- config ----------------------------------------------------------------------------------------------------------

function edit({ job, key = "", value = "" }) {
  const names = current()?.editable ?? [];
  const keyField = key
    ? h("input", { name: "key", type: "hidden", value: key })
    : field("Key", h("input", { name: "key", class: "mono", list: "editable", autocomplete: "off", spellcheck: "false" }), h("datalist", { id: "editable" }, names.map((each) => h("option", { value: each }))));
  const text = "As in a job's file: 0.01, true, \"text\", [1, 2].  It holds from the next round on.";
  const valueField = field(key || "Value", h("input", { name: "value", class: "mono", value, autocomplete: "off", spellcheck: "false" }), text);
  form(`Change ${job}`, [keyField, valueField], "Change", async (given) => {
    const answer = await ask("EditJob", { job, overrides: [`${given.key}=${given.value}`] });
    const when = answer.from_round === null ? "when it is resumed" : `from round ${answer.from_round} on`;
    said.textContent = `${Object.keys(answer.changes).join(", ")} of ${job} is changed, ${when}.`;
    again(job);
  });
}

// ---- lives -----------------------------------------------------------------------------------------------------------

function resume({ job }) {
  const line = lineOf(job);
  if (!line || line.status === "paused" || line.status === "pausing") return act("ResumeJob", { job }, `Job ${job} goes on.`);
  const least = line.committed >= line.rounds ? 1 : 0;
  const input = h("input", { name: "more", type: "number", min: least, value: least ? MORE_ROUNDS : 0, inputmode: "numeric" });
  const text = `${f.count(line.committed)} of ${f.count(line.rounds)} are committed; it goes on from its last model.`;
  return form(`Resume ${job}`, field("More rounds", input, text), "Resume", async ({ more }) => {
    await ask("ResumeJob", Number(more) ? { job, more: Number(more) } : { job });
    said.textContent = `Job ${job} goes on.`;
    again(job);
  });
}

function remove({ job }) {
  const box = h("label", { class: "check" }, h("input", { type: "checkbox", name: "models" }), "Remove the files of its models, too");
  form(`Remove ${job}?`, [h("p", {}, "The job, its rounds and its receipts are forgotten."), box], "Remove", async ({ models }) => {
    await ask("RemoveJob", { job, models });
    said.textContent = `Job ${job} is removed.`;
    state.books.delete(job);
    location.hash = "#/";
  }, "danger");
}

async function receipt({ job, round }) {
  const answer = await ask("JobStatus", { job, round: Number(round) });
  const rows = answer.rounds;
  const width = Math.min(860, innerWidth - 80);
  const parts = rows.flatMap((row) => [
    rows.length > 1 ? h("h3", {}, `Attempt ${row.attempt} `, badge(row.status)) : null,
    receiptView(row, width),
    h("div", { class: "row gap" }, row.receipt?.timeline ? button("Trace", "trace", { job, round, attempt: row.attempt }, "small") : null),
  ]);
  const buttons = [button("Close", "close"), rows.length ? button("How it was planned", "planned", { job, round }) : null];
  show(`Round ${round} of ${job}`, rows.length ? parts : [empty("No receipt", "This round is not over, or its row is gone.")], buttons);
}

// ---- traces and plans ------------------------------------------------------------------------------------------------

let traced = null; // the trace that is shown

async function trace({ job, round, attempt }) {
  traced = { text: await askTrace(job, round, attempt), name: `${job}-round-${round}.trace.json` };
  show(`Trace of round ${round} of ${job}`, traceView(JSON.parse(traced.text)), [button("Close", "close"), button("Download", "trace-save", {}, "primary")]);
}

async function planned({ job, round }) {
  const rows = [];
  for (let after = 0; after !== null; ) {
    const answer = await ask("PlansOfRound", { job, round: Number(round), after });
    rows.push(...answer.decisions);
    after = answer.more;
  }
  show(`Plan of round ${round} of ${job}`, rows.flatMap((row) => [rows.length > 1 && row.attempt ? h("h3", {}, `Attempt ${row.attempt}`) : null, row.fault ? empty("It cannot be read", row.fault) : planView(row.request, row.plan)]));
}

export const DEEDS = {
  agree,
  close,
  edit,
  model,
  planned,
  receipt,
  remove,
  resume,
  trace,
  "trace-save": () => saveAs(new Blob([traced.text]), traced.name),
  cancel: ({ job }) => sure(`Cancel ${job}?`, "Its running round is dropped. Models that are committed stay.", "Cancel job", () => act("CancelJob", { job }, `Job ${job} is cancelled.`)),
  pause: ({ job }) => act("PauseJob", { job }, `No further round of ${job} begins.`),
  drain: ({ node }) => sure(`Drain node ${f.nodeName(node)}?`, "It gets nothing new and finishes what it has.", "Drain", () => act("DrainNode", { node }, `Node ${f.nodeName(node)} gets nothing new.`)),
  undrain: ({ node }) => act("DrainNode", { node, undo: true }, `Node ${f.nodeName(node)} takes part again.`),
};
