// How figures are written for people: aligned, with units, and never "NaN".

export const NONE = "–";
const THIN = "\u202f";

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** 12,345 */
export function count(value) {
  return Number.isFinite(value) ? whole.format(value) : NONE;
}

/** Three digits that count: 0.0123, 1.23, 12.3, 1,234. */
export function real(value) {
  if (!Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e7 || size < 1e-4) return value.toExponential(2);
  if (size >= 1000) return whole.format(value);
  return String(Number(value.toPrecision(3)));
}

/** A part of 1, as 12 %. */
export function percent(part) {
  return Number.isFinite(part) ? `${part > 0 && part < 0.1 ? (part * 100).toFixed(1) : Math.round(part * 100)}${THIN}%` : NONE;
}

/** 1.5 MiB */
export function size(bytes) {
  if (!Number.isFinite(bytes)) return NONE;
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(value) < 1024) return `${unit === "B" ? Math.round(value) : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

/** 3.2 ms, 4.1 s, 2 min 5 s, 3 h 12 min, 4 d 2 h */
export function seconds(value) {
  if (!Number.isFinite(value)) return NONE;
  if (value === 0) return "0 s";
  if (Math.abs(value) < 1) return `${(value * 1000).toFixed(Math.abs(value) < 0.01 ? 1 : 0)} ms`;
  if (Math.abs(value) < 120) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 120) return `${minutes} min ${Math.floor(value % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Updates per second, or per minute where those are few. */
export function rate(perSecond) {
  if (!Number.isFinite(perSecond)) return NONE;
  return perSecond > 0 && perSecond < 1 ? `${real(perSecond * 60)} /min` : `${real(perSecond)} /s`;
}

const clockTime = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const yearTime = new Intl.DateTimeFormat("en-GB", { year: "numeric", day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit" });
const dayTime = new Intl.DateTimeFormat("en-GB", { day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit" });

/** A moment: its time of day, with the day where that is another one, and the year where that is. */
export function moment(unixS) {
  if (!Number.isFinite(unixS) || unixS <= 0) return NONE;
  const [date, now] = [new Date(unixS * 1000), new Date()];
  if (date.toDateString() === now.toDateString()) return clockTime.format(date);
  return (date.getFullYear() === now.getFullYear() ? dayTime : yearTime).format(date);
}

/** The beginning of a node's number. */
export function nodeName(node) {
  return String(node ?? NONE).slice(0, 8);
}

/** One of these, as it is said of so many. */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** A value as TOML has it. */
export function toml(value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return `[${value.map(toml).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, each]) => `${/^[\w-]+$/.test(key) ? key : JSON.stringify(key)} = ${toml(each)}`).join(", ")}}`;
  return JSON.stringify(value);
}
