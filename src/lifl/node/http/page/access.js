// Who may come: tokens, which let somebody in, and the certificates of those who came.

import { form, show } from "./dialogs.js";
import { saveAs, tell } from "./deeds.js";
import { field, h } from "./dom.js";
import * as f from "./figures.js";
import { badge, button, empty, notice, pager, section, table } from "./parts.js";
import { state } from "./state.js";
import { ask, current, Refusal } from "./visit.js";

const PER_PAGE = 50;
const SERIAL_DIGITS_MIN = 8;
const UNITS = [["minutes", 60], ["hours", 3600], ["days", 86_400]];
const KINDS = [
  ["client", "a client, with a certificate of its own"],
  ["bearer", "a client, by the token itself (bearer)"],
  ["node", "a node of the cluster"],
  ["operator", "an operator"],
  ["reader", "a reader"],
];
const TONES = { valid: "good", revoked: "bad", expired: "mute", "used up": "mute" };
const NAME = "A name, or one with * for any text, which is left to who joins.";
const BEARER_NAME = "As whom it takes part.";

let changed = () => {};
const said = document.getElementById("said");

/** Know how the page is drawn again. */
export function begin(there) {
  changed = there.changed;
}

/** Load tokens and certificates. */
export async function loadAccess() {
  try {
    const { tokens } = await ask("ListTokens");
    const certificates = [];
    for (let after = 0; after !== null; ) {
      const answer = await ask("ListCertificates", { after });
      certificates.push(...answer.certificates);
      after = answer.more;
    }
    state.access = { tokens: tokens.reverse(), certificates: certificates.reverse(), fault: null };
  } catch (error) {
    state.access = { fault: error instanceof Refusal ? error : new Refusal("failed", String(error)) };
  }
  changed();
}

// ---- the view --------------------------------------------------------------------------------------------------------

/** The view of tokens and certificates. */
export function accessView() {
  const head = h("div", { class: "top" }, h("h1", {}, "Access"));
  const { access } = state;
  if (!access) return [head, h("p", { class: "quiet" }, "Loading …")];
  if (access.fault?.code === "not-secured") {
    return [head, empty("This node has no certificates", "It listens on this machine alone, or with --insecure: nobody is let in by a token. One that others reach (", h("code", {}, "lifl up --listen HOST:PORT"), ") has them.")];
  }
  if (access.fault?.code === "not-the-authority") {
    return [head, section("Certificates", button("Renew the node's own", "cert-renew", {}, "small"), empty("The authority is elsewhere", access.fault.message))];
  }
  if (access.fault) return [head, notice(access.fault.message, "bad")];
  return [head, tokens(access.tokens), certificates(access.certificates)];
}

function jobsOf(each) {
  return each.role === "client" ? each.jobs.join(", ") || "any" : f.NONE;
}

function tokens(all) {
  const columns = [["Token", "mono"], ["Role"], ["Name"], ["Jobs"], ["Used", "num"], ["Valid until", "num"], ["State"], [h("span", { class: "unseen" }, "Revoke")]];
  const rows = all.map((each) => ({
    key: each.number,
    cells: [
      each.number,
      each.role,
      each.pattern,
      jobsOf(each),
      each.bearer ? "bearer" : `${f.count(each.used)} / ${f.count(each.uses)}`,
      f.moment(each.expires_unix_s),
      badge(each.state, TONES[each.state] ?? "warn"),
      each.state === "valid" ? button("Revoke", "token-revoke", { number: each.number, bearer: each.bearer ? "yes" : "", label: `Revoke token ${each.number}` }, "small") : "",
    ],
  }));
  const none = empty("No token", "Who has one gets a certificate, and may come from another machine.");
  return section("Tokens", [all.length ? f.plural(all.length, "token") : "", h("span", { class: "beside" }, button("Make a token", "token-make", {}, "small"))], rows.length ? table("Tokens", columns, rows) : none);
}

/** How many digits of serials tell them apart. */
export function digitsApart(serials) {
  const wanted = new Set(serials).size;
  let digits = SERIAL_DIGITS_MIN;
  while (digits < 40 && new Set(serials.map((each) => each.slice(0, digits))).size < wanted) digits += 1;
  return digits;
}

function certificates(all) {
  const { certificate, page } = state.filter;
  const wanted = all.filter((each) => `${each.role}/${each.name} ${each.serial} ${each.jobs.join(" ")}`.toLowerCase().includes(certificate.toLowerCase()));
  const pages = Math.max(1, Math.ceil(wanted.length / PER_PAGE));
  const at = Math.min(page, pages - 1);
  const digits = digitsApart(all.map((each) => each.serial));
  const columns = [["Serial", "mono"], ["Role / name"], ["Jobs"], ["Token", "mono"], ["Valid until", "num"], ["State"], [h("span", { class: "unseen" }, "Revoke")]];
  const rows = wanted.slice(at * PER_PAGE, (at + 1) * PER_PAGE).map((each) => ({
    key: each.serial,
    cells: [
      h("span", { title: each.serial }, each.serial.slice(0, digits)),
      `${each.role}/${each.name}`,
      jobsOf(each),
      each.token || f.NONE,
      f.moment(each.expires_unix_s),
      badge(each.state, TONES[each.state] ?? "warn"),
      each.state === "valid" ? button("Revoke", "cert-revoke", { serial: each.serial, who: `${each.role}/${each.name}`, label: `Revoke certificate ${each.serial.slice(0, digits)} of ${each.name}` }, "small") : "",
    ],
  }));
  return section(
    "Certificates",
    `${f.count(all.filter((each) => each.state === "valid").length)} of ${f.count(all.length)} valid`,
    h("div", { class: "tools" }, h("label", { class: "search" }, h("span", { class: "unseen" }, "Find a certificate"), h("input", { type: "search", placeholder: "Find a certificate", "data-filter": "certificate", value: certificate })), button("Reload", "access", {}, "small"), button("Renew the node's own", "cert-renew", {}, "small"), button("Rotate the authority", "cert-rotate", {}, "small")),
    rows.length ? table("Certificates", columns, rows) : empty("No such certificate", "Change what is searched for."),
    pager(at, pages),
  );
}

// ---- what the buttons do ---------------------------------------------------------------------------------------------

function makeToken() {
  const { token_uses_max: usesMax, token_ttl_s_max: ttlMax } = current() ?? {};
  const about = { autocomplete: "off", spellcheck: "false", class: "mono" };
  form(
    "Make a token",
    [
      field("For", h("select", { name: "kind" }, KINDS.map(([kind, text]) => h("option", { value: kind }, text)))),
      field("Name", h("input", { name: "pattern", ...about, value: "*", required: true }), h("span", { "data-said": "pattern" }, NAME)),
      h("div", { "data-of": "client bearer" }, field("Jobs", h("input", { name: "jobs", ...about, list: "jobs-there" }), "It may take part in these alone, separated by commas; none named: in any. A bearer's is for one."), h("datalist", { id: "jobs-there" }, (state.jobs ?? []).map((each) => h("option", { value: each.name })))),
      h("div", { "data-of": "client node operator reader" }, field("So many may join by it", h("input", { name: "uses", type: "number", min: 1, max: usesMax, step: 1, value: 1, required: true, inputmode: "numeric" }))),
      h("div", { class: "pair-of" }, field("Valid for", h("input", { name: "ttl", type: "number", min: 1, step: "any", value: 15, required: true, inputmode: "decimal" })), field("Unit", h("select", { name: "unit" }, UNITS.map(([name, size]) => h("option", { value: size }, name))))),
    ],
    "Make",
    async ({ kind, pattern, jobs, uses, ttl, unit }) => {
      const ttl_s = Number(ttl) * Number(unit);
      if (ttlMax && ttl_s > ttlMax) throw new Refusal("bad-time", `a token is valid for at most ${ttlMax / 86_400} days`, "ttl");
      const named = jobs.split(",").map((each) => each.trim()).filter(Boolean);
      if (kind === "bearer" && (named.length !== 1 || pattern.includes("*"))) {
        throw new Refusal("bad-name", "A bearer token is for one client in one job: give a name without *, and one job.", "pattern");
      }
      const made = kind === "bearer" ? await ask("CreateBearer", { role: "client", name: pattern, job: named[0], ttl_s }) : await ask("CreateToken", { role: kind, pattern, jobs: kind === "client" ? named : [], uses: Number(uses), ttl_s });
      said.textContent = `Token ${made.number} is made.`;
      loadAccess();
      return () => showToken(made, kind);
    },
  );
}

/** Show a token's line: the node keeps none of its secret, so it is not shown again. */
function showToken(made, kind) {
  const how = { bearer: "The client shows it: Client(token_file=...).", node: "lifl up --join HOST:PORT --token-file FILE", client: "lifl enroll HOST:PORT --token-file FILE" }[kind] ?? "lifl enroll HOST:PORT --token-file FILE";
  show(
    `Token ${made.number}`,
    [
      h("p", {}, "This line lets its holder in until ", h("strong", {}, f.moment(made.expires_unix_s)), ". It is as secret as a password, and not shown again. Bring it as a file that nobody else may read (", h("code", {}, "chmod 600"), "): another one is refused."),
      h("textarea", { class: "editor", id: "token-line", rows: 4, readonly: true, "aria-label": "The token", spellcheck: "false" }, made.token),
      h("p", { class: "quiet" }, kind === "bearer" ? how : h("code", {}, how)),
    ],
    [button("Close", "close"), button("Copy", "token-copy"), button("Save as a file", "token-save", { number: made.number }, "primary")],
    true,
  );
  document.getElementById("token-line").select();
}

async function copyToken() {
  const line = document.getElementById("token-line");
  line.select();
  await navigator.clipboard.writeText(line.value);
  said.textContent = "The token is copied.";
}

function saveToken({ number }) {
  saveAs(new Blob([`${document.getElementById("token-line").value}\n`]), `lifl-${number}.token`);
}

function revokeToken({ number, bearer }) {
  const text = bearer ? "Who takes part by it is out at once." : "Nobody is let in by it any more; who came by it stays, until the certificate is revoked.";
  form(`Revoke token ${number}?`, h("p", {}, text), "Revoke", async () => {
    await ask("RevokeToken", { number });
    said.textContent = `Token ${number} is revoked.`;
    loadAccess();
  }, "danger");
}

function revokeCertificate({ serial, who }) {
  const which = h("select", { name: "which" }, h("option", { value: serial }, `this one, ${serial.slice(0, 16)}…`), h("option", { value: who }, `all that were issued to ${who}`));
  form(`Revoke a certificate of ${who}?`, [field("Which", which, "Nobody is let in by it any more, on any node; the connections of whose it is end. It cannot be taken back.")], "Revoke", async ({ which: chosen }) => {
    const { revoked } = await ask("RevokeCertificate", { which: chosen });
    said.textContent = `Revoked: ${revoked.join(", ")}.`;
    loadAccess();
  }, "danger");
}

function renewCertificate() {
  const text = "It gets a new one with a new key, for its next connections; those that are there stay. Each does so by itself when half of its time is over.";
  form("Renew the certificate of this node?", h("p", {}, text), "Renew", async () => {
    await ask("RenewCertificate");
    said.textContent = "The node renews its certificate.";
    loadAccess();
  });
}

function rotateAuthority() {
  const text = "A new authority certifies from now on. The old one stays trusted until all that it issued has expired. Tokens that are out name the old one: who has one still comes in by it.";
  form("Rotate the authority?", h("p", {}, text), "Rotate", async () => {
    const { digest } = await ask("RotateAuthority");
    said.textContent = "The authority is rotated.";
    loadAccess();
    return () => show("The authority is rotated", [h("p", {}, "Its digest is now"), h("p", { class: "digest" }, h("code", {}, digest))], [button("Close", "close")], true);
  }, "danger");
}

document.addEventListener("change", ({ target }) => {
  const fields = target?.name === "kind" ? target.closest(".fields") : null;
  if (!fields) return;
  const pattern = fields.querySelector("[name=pattern]");
  for (const each of fields.querySelectorAll("[data-of]")) each.hidden = !each.dataset.of.split(" ").includes(target.value);
  fields.querySelector("[data-said=pattern]").textContent = target.value === "bearer" ? BEARER_NAME : NAME;
  if (target.value === "bearer" && pattern.value === "*") pattern.value = "";
  if (target.value !== "bearer" && !pattern.value) pattern.value = "*";
});

export const ACCESS_DEEDS = {
  access: loadAccess,
  "token-make": makeToken,
  "token-copy": () => copyToken().catch(tell),
  "token-save": saveToken,
  "token-revoke": revokeToken,
  "cert-renew": renewCertificate,
  "cert-revoke": revokeCertificate,
  "cert-rotate": rotateAuthority,
};
