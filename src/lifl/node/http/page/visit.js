// The visit: a link becomes one, requests are made as it, and the node tells what happens.
//
// The cookie is out of reach here.  The key, which goes with it in a header, is kept for this origin alone.

const KEPT = "lifl-visit";

/** What the node says "no" with. */
export class Refusal extends Error {
  constructor(code, text, field) {
    super(text);
    this.code = code;
    this.field = field;
  }
}

let visit = null;
try {
  visit = JSON.parse(localStorage.getItem(KEPT) ?? "null");
} catch { /* none */ }

/** The visit, or null: its key, role, name and end. */
export function current() {
  return visit && visit.expires_unix_s * 1000 > Date.now() ? visit : null;
}

/** Whether who looks may change something. */
export function mayAct() {
  return current()?.role === "operator";
}

function keep(next) {
  visit = next;
  try {
    if (next) localStorage.setItem(KEPT, JSON.stringify(next));
    else localStorage.removeItem(KEPT);
  } catch { /* it lasts as long as the page is open */ }
}

async function sent(method, path, body, signal) {
  const isFile = body instanceof Blob;
  const kind = isFile ? "application/octet-stream" : "application/json";
  try {
    return await fetch(path, {
      method,
      headers: { "LIFL-Page": visit?.key ?? "", ...(body ? { "Content-Type": kind } : {}) },
      body: isFile ? body : body && JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal,
    });
  } catch {
    throw new Refusal("away", "The node does not answer.");
  }
}

async function asked(method, path, body, signal) {
  const response = await sent(method, path, body, signal);
  if (response.status === 204) return null;
  let answer = null;
  try {
    answer = await response.json();
  } catch { /* told below */ }
  if (response.ok && answer) return answer;
  throw refusalOf(response, answer);
}

function refusalOf(response, answer) {
  if (answer?.code === "visit-over") keep(null);
  return new Refusal(answer?.code ?? "failed", answer?.text ?? `The node answered ${response.status}.`, answer?.field);
}

/** Open the link in the address, if there is one. */
export async function openLink() {
  const link = new URLSearchParams(location.hash.slice(1)).get("link");
  if (!link) return;
  history.replaceState(null, "", "/");
  keep(await asked("POST", "/page/v1/visit", { link }));
}

/** Ask what a command line asks; `fields` are those of the message. */
export function ask(type, fields = {}) {
  return asked("POST", "/page/v1/ask", { type, ...fields });
}

/** Submit a job by its file, or check that: `fields` are text, overrides, model, replace, check. */
export function submitJob(fields, signal) {
  return asked("POST", "/page/v1/submit", fields, signal);
}

/** Ask how a round of a job would be planned, by its file: `fields` are text, overrides, model. */
export function planJob(fields, signal) {
  return asked("POST", "/page/v1/plan", fields, signal);
}

/** Return what happened in a round as the text of a trace. */
export async function askTrace(job, round, attempt) {
  const response = await sent("GET", `/page/v1/trace?job=${encodeURIComponent(job)}&round=${round}&attempt=${attempt}`);
  if (!response.ok) throw refusalOf(response, await response.json().catch(() => null));
  return response.text();
}

/** Bring a file of a model to the node; return where it is there.  `told(share)` is told how much has come. */
export async function bringModel(file, told, signal) {
  let data;
  try {
    data = await file.arrayBuffer();
  } catch {
    throw new Refusal("failed", `${file.name} cannot be read by this browser, or is too large for it: lifl submit takes any`, "model.path");
  }
  const digest = [...new Uint8Array(await crypto.subtle.digest("SHA-256", data))].map((each) => each.toString(16).padStart(2, "0")).join("");
  data = null;
  for (let offset = 0; ; ) {
    const piece = file.slice(offset, offset + current().piece_bytes);
    const found = await asked("PUT", `/page/v1/model?digest=${digest}&offset=${offset}&total_bytes=${file.size}`, piece, signal);
    if (found.path) return found.path;
    if (found.received <= offset) throw new Refusal("failed", "The node takes no more of the model.", "model.path");
    offset = found.received;
    told(offset / file.size);
  }
}

const KEPT_BYTES = 16 << 20; // what has come is handed to the browser, which may put it on its disk

/** Fetch the model of a round as a file; `told(share)` is told how much has come. */
export async function fetchModel(job, round, told, signal) {
  const response = await sent("GET", `/page/v1/model?job=${encodeURIComponent(job)}&round=${round}`, undefined, signal);
  if (!response.ok) throw refusalOf(response, await response.json().catch(() => null));
  const total = Number(response.headers.get("Content-Length"));
  const reader = response.body.getReader();
  let [pieces, waiting, got, kept] = [[], [], 0, 0];
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      waiting.push(part.value);
      got += part.value.length;
      told(got / total);
      if (got - kept > KEPT_BYTES) {
        pieces.push(new Blob(waiting));
        [waiting, kept] = [[], got];
      }
    }
  } catch {
    throw new Refusal("damaged", "It did not come to its end: the model is damaged or was removed, or the node went away. Try another round, or lifl model.");
  }
  return new Blob([...pieces, ...waiting]);
}

/** End the visit. */
export async function leave() {
  await asked("DELETE", "/page/v1/visit").catch(() => {});
  keep(null);
}

const PAUSES_MS = [500, 1000, 2000, 5000];

/** Tell what happens (`heard(part, value)`), until it is aborted; `on(connected)` says whether it is told. */
export async function follow(job, heard, on, signal) {
  for (let failures = 0; !signal.aborted && current(); ) {
    try {
      const path = `/page/v1/stream?job=${encodeURIComponent(job)}`;
      const headers = { "LIFL-Page": visit.key };
      const response = await fetch(path, { headers, credentials: "same-origin", cache: "no-store", signal });
      if (response.status === 401) keep(null);
      if (!response.ok) throw new Refusal("away", (await response.json().catch(() => ({}))).text ?? "");
      failures = 0;
      on(true);
      await read(response.body, heard);
    } catch (error) {
      if (signal.aborted) return;
      on(false, error instanceof Refusal ? error.message : "");
    }
    if (signal.aborted) return;
    if (!current()) break;
    on(false);
    await new Promise((go) => setTimeout(go, PAUSES_MS[Math.min(failures++, PAUSES_MS.length - 1)]));
  }
  if (!signal.aborted) heard("over", {});
}

async function read(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const part = /^event: (.*)$/m.exec(event);
      const data = /^data: (.*)$/m.exec(event);
      if (part && data) {
        if (part[1] === "over") keep(null);
        heard(part[1], JSON.parse(data[1]));
      }
    }
    heard("all", null);
  }
}
