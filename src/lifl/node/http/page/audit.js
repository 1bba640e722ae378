// The audit log: who did what, and whether it is as it was written.

import { h } from "./dom.js";
import * as f from "./figures.js";
import { button, empty, notice, section } from "./parts.js";
import { state } from "./state.js";
import { ask, Refusal } from "./visit.js";

const FIRST = ["seq", "at", "event", "who", "text", "torn"];

/** Load the newest lines and look at the chain; or (`before`) those before a line. */
export async function loadAudit(changed, before = null) {
  const known = state.audit;
  try {
    const answer = await ask("ReadAudit", before ? { before } : { verify: true });
    state.audit = { ...answer, chain: answer.chain ?? known?.chain, newest: !before, fault: "" };
  } catch (error) {
    state.audit = { lines: null, fault: error instanceof Refusal ? error.message : String(error) };
  }
  changed();
}

function aboutOf(line) {
  const about = Object.entries(line).filter(([name]) => !FIRST.includes(name)).map(([name, value]) => `${name}=${value}`);
  return [...about, line.text ?? "", line.torn ?? ""].filter(Boolean).join(" ");
}

function chainNotice(chain) {
  if (!chain) return null;
  const lines = chain.last ? `Lines ${f.count(chain.first)} to ${f.count(chain.last)} are whole` : "It has no line yet";
  if (chain.broken) return notice(`${lines}; the chain is broken at ${chain.broken}`, "bad", "chain");
  const torn = chain.torn ? ` ${f.plural(chain.torn, "line")} of them were not written to their end, and are marked.` : "";
  return h("div", { class: "notice good", "data-key": "n-chain" }, h("p", {}, `${lines}: each carries the digest of the one before.${torn}`), chain.last ? h("p", { class: "digest" }, "The last one's digest, to be kept elsewhere: ", h("span", { class: "mono" }, chain.digest)) : "");
}

/** The view of the audit log. */
export function auditView() {
  const head = h("div", { class: "top" }, h("h1", {}, "Audit log"));
  const { audit } = state;
  if (!audit) return [head, h("p", { class: "quiet" }, "Loading …")];
  if (audit.fault) return [head, notice(audit.fault, "bad")];
  const wanted = state.filter.audit.toLowerCase();
  const lines = audit.lines.map((line) => ({ ...line, about: aboutOf(line) })).filter((line) => `${line.event} ${line.who} ${line.about}`.toLowerCase().includes(wanted)).reverse();
  const ends = audit.lines.length ? `lines ${f.count(audit.lines[0].seq)} to ${f.count(audit.lines.at(-1).seq)}` : "";
  return [
    head,
    chainNotice(audit.chain),
    section(
      "Who did what",
      ends,
      h(
        "div",
        { class: "tools" },
        h("label", { class: "search" }, h("span", { class: "unseen" }, "Find in these lines"), h("input", { type: "search", placeholder: "Find in these lines", "data-filter": "audit", value: state.filter.audit })),
        button(audit.newest ? "Reload" : "Newest lines", "audit", {}, "small"),
        audit.more ? button("Earlier lines", "audit", { before: audit.more }, "small") : null,
      ),
      lines.length
        ? h("ol", { class: "log audit", tabindex: "0", "aria-label": "Lines of the audit log" }, lines.map((line) => h("li", { "data-key": line.seq, class: /refused|torn|lost|revoked/.test(line.event ?? "audit.torn") ? "warning" : "" }, h("time", {}, String(line.at ?? "").slice(0, 19).replace("T", " ")), h("span", { class: "level" }, line.event ?? "not whole"), h("span", { class: "who-did" }, line.who ?? ""), h("span", { class: "text" }, line.about))))
        : empty("No such line", "Nothing of these lines is like that."),
    ),
  ];
}
