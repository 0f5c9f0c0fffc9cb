// Times and durations as people read them, and one clock for all live figures.

import { signal } from "../../vendor/ui.js";

/** The present in milliseconds, renewed each second while the page is visible. */
export const now = signal(Date.now());
setInterval(() => {
  if (!document.hidden) now.value = Date.now();
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) now.value = Date.now();
});

const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const clockFormat = new Intl.DateTimeFormat(undefined, CLOCK);
const preciseFormat = new Intl.DateTimeFormat(undefined, { ...CLOCK, fractionalSecondDigits: 3 });
const dayFormat = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
const fullFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

/** @returns {string} such as `4 ms`, `1.2 s`, `1 m 32 s`, `2 h 05 m`; `whole` leaves out fractions of a second */
export function duration(milliseconds, { whole = false } = {}) {
  if (!Number.isFinite(milliseconds)) return "–";
  const ms = Math.max(0, milliseconds);
  if (ms < 1000) return whole ? "0 s" : `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 10 && !whole) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} m ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} m`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** @returns {string} how long from `start` to `end`, or to now while there is no end */
export function between(start, end) {
  if (!start) return "–";
  const last = end ? Date.parse(end) : now.value;
  const ms = Math.max(0, last - Date.parse(start));
  return duration(ms, { whole: !end });
}

/** @returns {string} such as `just now`, `12 s ago`, `in 5 m` */
export function relative(iso) {
  if (!iso) return "–";
  const ms = now.value - Date.parse(iso);
  const size = Math.abs(ms);
  if (size < 5000) return ms >= 0 ? "just now" : "in a moment";
  let text;
  if (size < 60_000) text = `${Math.floor(size / 1000)} s`;
  else if (size < 3_600_000) text = `${Math.floor(size / 60_000)} m`;
  else if (size < 86_400_000) text = `${Math.floor(size / 3_600_000)} h`;
  else if (size < 30 * 86_400_000) text = `${Math.floor(size / 86_400_000)} d`;
  else return dayFormat.format(new Date(iso));
  return ms >= 0 ? `${text} ago` : `in ${text}`;
}

export const clock = (iso) => (iso ? clockFormat.format(new Date(iso)) : "–");
export const precise = (iso) => (iso ? preciseFormat.format(new Date(iso)) : "–");
export const full = (iso) => (iso ? fullFormat.format(new Date(iso)) : "");
