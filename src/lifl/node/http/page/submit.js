// A job by its file: pasted, dropped or chosen; checked by the node, and what it refuses is marked where it stands.

import { show, textOf } from "./dialogs.js";
import { h } from "./dom.js";
import * as f from "./figures.js";
import { button, notice, section } from "./parts.js";
import { planView } from "./plan.js";
import { state } from "./state.js";
import { bringModel, mayAct, planJob, Refusal, submitJob } from "./visit.js";

const FILE_BYTES_MAX = 1 << 20; // of a file of a job; the node says so, too
const EXAMPLE = '[job]\nname = "mine"\nrounds = 10\n\n[model]\npath = "model.safetensors"\n\n[selection]\nclients_per_round = 4\n';

const draft = { text: "", overrides: "", replace: false, model: null, version: 0, refusal: null, doing: "", share: NaN, end: null };
let changed = () => {};

/** Know how the page is drawn again. */
export function begin(there) {
  changed = there.changed;
}

// ---- the view --------------------------------------------------------------------------------------------------------

/** The view of a job that is to be submitted. */
export function submitView() {
  const head = [h("p", { class: "crumb" }, h("a", { href: "#/" }, "Jobs"), " / "), h("div", { class: "top" }, h("h1", {}, "Submit a job"))];
  if (!mayAct()) return [head, notice("This visit is a reader's: jobs are submitted by operators.", "warn")];
  const { refusal } = draft;
  const isOfSet = refusal && placeOf(refusal.field, draft.overrides, true);
  const said = refusal && h("p", { class: "notice bad", id: "refusal", role: "alert", "data-key": "refusal" }, refusal.field && h("code", {}, refusal.field), refusal.field ? " " : "", textOf(refusal));
  const about = (is) => (refusal && is ? { "aria-invalid": "true", "aria-describedby": "refusal" } : {});
  return [
    head,
    h(
      "div",
      { class: "submit" },
      section(
        "Job file",
        h("label", { class: "file" }, "Choose a file", h("input", { type: "file", class: "unseen", accept: ".toml,text/plain", "data-file": "job" })),
        h("p", { class: "quiet hint" }, "Paste it, or drop it anywhere on the page."),
        // A new key makes a new element, with another text; otherwise what is typed stays.
        h("textarea", { class: "editor", "aria-label": "The job's file", "data-draft": "text", "data-own": "", "data-key": `text-${draft.version}`, rows: 22, spellcheck: "false", autocapitalize: "off", placeholder: EXAMPLE, ...about(!isOfSet) }, draft.text),
        isOfSet ? null : said,
      ),
      h("div", { class: "stack" }, modelPart(), setPart(about(isOfSet), isOfSet ? said : null), goPart()),
    ),
  ];
}

function modelPart() {
  const { model } = draft;
  return section(
    "Model",
    null,
    h("p", { class: "quiet hint" }, "The safetensors file that round 1 starts from, where it lies on this machine. Leave it out where the job's file names an example, another job (model.from) or a path on the node."),
    h("div", { class: "row middle" }, h("label", { class: "file" }, model ? "Choose another" : "Choose a file", h("input", { type: "file", class: "unseen", accept: ".safetensors", "data-file": "model" })), model && h("span", { class: "chosen" }, h("span", { class: "mono" }, model.name), h("span", { class: "quiet" }, ` ${f.size(model.size)}`)), model && button("Leave out", "submit-no-model", {}, "small")),
  );
}

function setPart(about, said) {
  return section(
    "Changes",
    null,
    h("p", { class: "quiet hint" }, "What is to be other than in the file, a line each, such as job.rounds=5."),
    h("textarea", { class: "editor", "aria-label": "Changes, as section.key=value", "data-draft": "overrides", "data-own": "", "data-key": `set-${draft.version}`, rows: 3, spellcheck: "false", autocapitalize: "off", placeholder: "section.key=value", ...about }, draft.overrides),
    said,
    h("label", { class: "check" }, h("input", { type: "checkbox", "data-draft": "replace", checked: draft.replace }), "End and forget a job that has the name, first; its models stay"),
  );
}

function goPart() {
  if (!draft.doing) return h("div", { class: "row" }, button("Submit job", "submit-go", {}, "primary"), button("Show the plan", "submit-plan"));
  return h("div", { class: "row middle" }, h("span", { role: "status" }, draft.doing), Number.isFinite(draft.share) && h("progress", { max: 1, value: draft.share, "aria-label": "How much of the model is there" }), button("Stop", "submit-stop"));
}

// ---- what was refused ------------------------------------------------------------------------------------------------

/** Where a key stands in a text: the beginning and the end of its line; null: nowhere. */
export function placeOf(field, text, isSet = false) {
  if (!field) return null;
  let [section_, at, found] = ["", 0, null];
  const plain = field.replace(/\[\d+\]/g, "");
  for (const line of text.split("\n")) {
    const header = isSet ? null : /^\s*\[+\s*([^\]]+?)\s*\]+/.exec(line);
    const key = /^\s*([\w.-]+)\s*=/.exec(line);
    const path = header ? (section_ = header[1]) : key ? (section_ ? `${section_}.${key[1]}` : key[1]) : "";
    if (path && (plain === path || plain.startsWith(`${path}.`)) && path.length >= (found?.length ?? 0)) found = { from: at, to: at + line.length, length: path.length };
    at += line.length + 1;
  }
  return found;
}

/** Where a text is no TOML. */
function lineNamed(message, text) {
  const found = /\(at line (\d+), column \d+\)/.exec(message);
  if (!found) return null;
  const lines = text.split("\n");
  const from = lines.slice(0, Number(found[1]) - 1).reduce((sum, line) => sum + line.length + 1, 0);
  return { from, to: from + (lines[Number(found[1]) - 1] ?? "").length };
}

function mark(refusal) {
  const isOfSet = placeOf(refusal.field, draft.overrides, true);
  const place = isOfSet ?? placeOf(refusal.field, draft.text) ?? lineNamed(refusal.message, draft.text);
  const editor = document.querySelector(`[data-draft=${isOfSet ? "overrides" : "text"}]`);
  if (!editor) return;
  editor.focus();
  if (place) {
    editor.setSelectionRange(place.from, place.to);
    const high = parseFloat(getComputedStyle(editor).lineHeight) || 18;
    editor.scrollTop = Math.max(0, (editor.value.slice(0, place.from).split("\n").length - 4) * high);
  }
}

// ---- what is done ----------------------------------------------------------------------------------------------------

/** Check the file and bring its model; then `done(file, job, doing, signal)` does something with it. */
async function go(done) {
  const end = (draft.end = new AbortController());
  const doing = (text, share = NaN) => {
    Object.assign(draft, { doing: text, share });
    changed();
  };
  draft.refusal = null;
  doing("It is checked …");
  try {
    const { model, replace } = draft;
    const file = { text: draft.text, overrides: draft.overrides.split("\n").map((line) => line.trim()).filter(Boolean), replace };
    const { job, wants_model: wants } = await submitJob({ ...file, model: model?.name ?? "", check: true }, end.signal);
    if (wants) throw new Refusal("bad-config", "names a file of your machine: choose it as the model, or give an absolute path on the node", "model.path");
    const placed = model ? await bringModel(model, (share) => doing("The model goes to the node …", share), end.signal) : "";
    await done({ ...file, model: placed }, job, doing, end.signal);
  } catch (error) {
    if (!end.signal.aborted) draft.refusal = error instanceof Refusal ? error : new Refusal("failed", String(error));
  } finally {
    doing("");
  }
  if (draft.refusal) requestAnimationFrame(() => draft.refusal && mark(draft.refusal));
}

async function submitted(file, job, doing, signal) {
  doing("It is submitted …");
  const answer = await submitJob(file, signal);
  Object.assign(draft, { text: "", overrides: "", replace: false, model: null, version: draft.version + 1 });
  location.hash = `#/jobs/${encodeURIComponent(job)}`;
  document.getElementById("said").textContent = `Job ${job} is submitted.`;
  tellResult(job, answer);
}

async function planned({ text, overrides, model }, job, doing, signal) {
  doing("It is planned …");
  const found = await planJob({ text, overrides, model }, signal);
  show(`Plan of ${job}`, [h("p", { class: "quiet" }, "What a round would look like now; nothing is run."), ...planView(found.request, found.plan, found)]);
}

/** Say what somebody who submits a job should know besides. */
function tellResult(job, { queue, disk }) {
  const lines = [];
  if (queue) lines.push(`It waits for room in the arena: it needs ${f.size(queue.needs_bytes)}, ${f.size(queue.free_bytes)} are free; it is ${queue.position} of ${queue.length} in line.`);
  if (disk && disk.bytes > disk.free_bytes) lines.push(`Its models take at most ${f.size(disk.bytes)} on the disk, and ${f.size(disk.free_bytes)} are free: rounds will wait for room.`);
  if (lines.length) show(`Job ${job} is submitted`, lines.map((line) => h("p", {}, line)));
}

/** Take a file: a job's, or a model. */
export async function takeFile(file, kind = /\.safetensors$/i.test(file.name) ? "model" : "job") {
  draft.refusal = null;
  if (kind === "model") draft.model = file;
  else if (file.size > FILE_BYTES_MAX) draft.refusal = new Refusal("bad-config", `${file.name} has ${f.size(file.size)}; is it a job's file?`);
  else {
    draft.text = await file.text();
    draft.version += 1;
  }
  changed();
}

export const SUBMIT_DEEDS = {
  "submit-go": () => go(submitted),
  "submit-plan": () => go(planned),
  "submit-stop": () => draft.end?.abort(),
  "submit-no-model"() {
    draft.model = null;
    changed();
  },
};

document.addEventListener("input", ({ target }) => {
  const name = target?.dataset?.draft;
  if (name) draft[name] = target.type === "checkbox" ? target.checked : target.value;
});

document.addEventListener("change", ({ target }) => {
  const kind = target?.dataset?.file;
  if (!kind || !target.files?.length) return;
  takeFile(target.files[0], kind);
  target.value = ""; // the same file may be chosen again, when it has changed
});

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

document.addEventListener("dragover", (event) => {
  if (hasFiles(event)) event.preventDefault();
});

document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault(); // else the page is left, and the file shown
  if (!mayAct() || state.jobs === null) return;
  for (const file of event.dataTransfer.files) takeFile(file);
  location.hash = "#/submit";
});
