// A job's rounds as a table in a file, with the columns of `lifl history --csv`.

import { form } from "./dialogs.js";
import { saveAs } from "./deeds.js";
import { h } from "./dom.js";
import { nextOf, state } from "./state.js";
import { ask } from "./visit.js";

const PIECE = 1000;
const OF_RECEIPT = ["duration_s", "last_accepted_to_commit_s", "selected", "accepted", "counted", "weight", "bytes_in", "bytes_out", "bytes_between", "arena_peak_bytes"];
const SPREAD = ["mean", "min", "max", "std"];
const said = document.getElementById("said");

/** A line of JobStatus by flat columns; what is not known is not there. */
function flat(line) {
  const { round, attempt, status, reason, committed_unix_s, receipt, metrics, evaluation } = line;
  const cpu = receipt?.cpu_s ? Object.values(receipt.cpu_s).reduce((sum, each) => sum + each, 0) : null;
  const found = { round, attempt, status, reason, committed_unix_s };
  for (const name of OF_RECEIPT) found[name] = receipt?.[name];
  found.cpu_s = cpu;
  for (const [name, value] of Object.entries(metrics ?? {})) found[`metrics.${name}`] = value;
  for (const [name, figures] of Object.entries(evaluation?.metrics ?? {})) {
    for (const which of SPREAD) if (which in figures) found[`evaluation.${name}.${which}`] = figures[which];
  }
  for (const [name, value] of Object.entries(evaluation?.server?.metrics ?? {})) found[`evaluation.${name}.server`] = value;
  return found;
}

function cell(value) {
  const text = String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Lines of JobStatus as CSV: a column for each figure, and for each metric of any of them. */
export function csvOf(lines) {
  const rows = lines.map(flat);
  const columns = [...new Set(rows.flatMap(Object.keys))];
  return [columns, ...rows.map((row) => columns.map((name) => row[name]))].map((row) => `${row.map(cell).join(",")}\n`).join("");
}

/** Have the browser keep all rounds of a job: they come in pieces, the newest first. */
function download({ job }) {
  const committed = (state.jobs ?? []).find((each) => each.name === job)?.committed ?? 0;
  form(`Rounds of ${job}`, h("p", {}, "All that are kept, each attempt in a line, as ", h("code", {}, "lifl history --csv"), " prints them."), "Download", async (_values, { told, signal }) => {
    let lines = [];
    for (let before = null, more = true; more && !signal.aborted; more = before !== null) {
      const answer = await ask("JobStatus", { job, last: PIECE, trees: false, ...(before ? { before } : {}) });
      lines = [...answer.rounds, ...lines];
      before = answer.more ?? nextOf(answer.rounds, PIECE);
      told(Math.min(1, lines.length / Math.max(1, committed)));
    }
    if (signal.aborted) return;
    saveAs(new Blob([csvOf(lines)], { type: "text/csv" }), `${job}.csv`);
    said.textContent = `The rounds of ${job} are downloaded.`;
  });
}

export const HISTORY_DEEDS = { history: download };
