// The dialog: what is shown in it, what it asks, and what was refused.

import { h } from "./dom.js";
import { button, flat } from "./parts.js";
import { Refusal } from "./visit.js";

const dialog = document.getElementById("dialog");
let agreed = null;

/** Show something, with buttons below; what only asks is `narrow`. */
export function show(title, children, buttons = [button("Close", "close")], narrow = false) {
  agreed = null;
  dialog.classList.toggle("narrow", narrow);
  dialog.replaceChildren(...flat([h("div", { class: "head" }, h("h2", { id: "dialog-title" }, title)), h("div", { class: "body", tabindex: "0", role: "group", "aria-label": title }, children), h("div", { class: "row end" }, buttons)]));
  if (!dialog.open) dialog.showModal();
}

/** Ask whether something is to be done; it is, when that is agreed to. */
export function sure(title, text, yes, then) {
  show(title, [h("p", {}, text)], [button("Keep", "close"), button(yes, "agree", {}, "danger")], true);
  agreed = () => {
    close();
    return then();
  };
}

/**
 * Ask for values; `then(values, form)` does something with them, and the dialog stays until that is done.  What is
 * refused is said in it; what `then` returns shows what came of it.  `form`: `told(share)` shows how much is done, `signal` says when the dialog was closed.
 */
export function form(title, children, yes, then, kind = "primary") {
  const progress = h("progress", { max: 1, hidden: true, "aria-label": "How much is done" });
  const refusal = h("p", { class: "notice bad", role: "alert", hidden: true });
  show(title, [h("div", { class: "fields" }, children, progress, refusal)], [button("Close", "close"), button(yes, "agree", {}, kind)], true);
  (dialog.querySelector("input, select, textarea") ?? dialog.querySelector("[data-do=agree]"))?.focus();
  agreed = async () => {
    const wrong = [...dialog.querySelectorAll("[name]")].find((each) => !each.closest("[hidden]") && !each.checkValidity());
    if (wrong) {
      wrong.reportValidity(); // the browser says it, where it is
      return;
    }
    const [bar, said, go] = [dialog.querySelector("progress"), dialog.querySelector("[role=alert]"), dialog.querySelector("[data-do=agree]")];
    const end = new AbortController();
    dialog.addEventListener("close", () => end.abort(), { once: true });
    said.hidden = go.disabled = true;
    try {
      const told = (share) => {
        bar.hidden = false;
        bar.value = share;
      };
      const shows = await then(values(), { told, signal: end.signal });
      if (!end.signal.aborted) close();
      shows?.();
    } catch (error) {
      if (end.signal.aborted) return;
      bar.hidden = true;
      said.hidden = go.disabled = false;
      said.textContent = error instanceof Refusal ? textOf(error) : String(error);
      const about = String(error.field ?? "").replace(/\W.*/s, "");
      if (about) dialog.querySelector(`[name="${about}"]`)?.focus();
    }
  };
}

/** Do what was asked for. */
export function agree() {
  return agreed?.();
}

/** Whether a key that ends a line is to agree. */
export function asks() {
  return dialog.open && agreed !== null;
}

export function close() {
  dialog.close();
}

dialog.addEventListener("click", (event) => {
  if (event.target === dialog) close(); // beside it
});

function values() {
  const fields = [...dialog.querySelectorAll("[name]")];
  return Object.fromEntries(fields.map((each) => [each.name, each.type === "checkbox" ? each.checked : each.value.trim()]));
}

/** What was refused, without the name of the field in front. */
export function textOf(refusal) {
  const { field, message } = refusal;
  return field && message.startsWith(`${field}: `) ? message.slice(field.length + 2) : message;
}
