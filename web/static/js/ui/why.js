// Why something does not move, as the engine says it: fetched when the page opens and when something happened, never
// on a timer. At most one request is on its way; what happens meanwhile asks once more.

import { html, useEffect, useRef, useState } from "../../vendor/ui.js";
import { get } from "../core/api.js";
import { clock, full, relative } from "../core/time.js";
import { Icon } from "./kit.js";

const MIN_GAP_MS = 400;
const TIMES = /\b(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d) UTC\b/g;

const address = (instanceId, taskId) =>
  `api/instances/${encodeURIComponent(instanceId)}${taskId ? `/tasks/${encodeURIComponent(taskId)}` : ""}/why`;

/**
 * @param {string} trigger changes when the answer may have changed
 * @returns {{data: any, error: any}} the newest answer about an instance, or about one task of it
 */
export function useWhy(instanceId, taskId, trigger, wanted = true) {
  const [state, setState] = useState({ data: null, error: null });
  const flight = useRef(null);
  const path = wanted ? address(instanceId, taskId) : "";
  useEffect(() => {
    const own = { again: false, busy: false, ended: false, timer: 0 };
    flight.current = own;
    setState({ data: null, error: null });
    return () => {
      own.ended = true;
      clearTimeout(own.timer);
    };
  }, [path]);
  useEffect(() => {
    if (path) ask(flight.current, path, setState);
  }, [path, trigger]);
  return state;
}

async function ask(flight, path, setState) {
  if (flight.busy) {
    flight.again = true;
    return;
  }
  flight.busy = true;
  let state;
  try {
    state = { data: await get(path), error: null };
  } catch (error) {
    state = { data: null, error };
  }
  if (flight.ended) return;
  setState((before) => (state.error ? { data: before.data, error: state.error } : state));
  flight.timer = setTimeout(() => {
    flight.busy = false;
    if (!flight.again) return;
    flight.again = false;
    ask(flight, path, setState);
  }, MIN_GAP_MS);
}

/** A sentence with its times as this browser's person reads them. */
export const localTimes = (sentence) =>
  sentence.replaceAll(TIMES, (_, day, time) => {
    const iso = `${day}T${time}Z`;
    return new Date(iso).toDateString() === new Date().toDateString() ? clock(iso) : full(iso);
  });

/** The reasons of one task: a sentence each, and when the wait ends by itself. */
export const Reasons = ({ reasons }) => html`<ul class="reasons" aria-label="Why it does not move">
  ${reasons.map(
    (reason, i) => html`<li key=${`${reason.code}-${i}`} data-reason=${reason.code}><${Icon} name="corner-down-right" size=${14} />
      <span>${localTimes(reason.sentence)}${reason.until && !reason.sentence.includes(" UTC") && html` <span class="muted reason-until">Ends by itself ${relative(reason.until)} at the latest.</span>`}</span></li>`,
  )}
</ul>`;
