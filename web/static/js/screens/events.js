// The log of one instance, one line an event. Read by pages; what happens now is added from the live channel.

import { html, useEffect, useState } from "../../vendor/ui.js";
import { get } from "../core/api.js";
import { full, precise } from "../core/time.js";
import { Json } from "../ui/json.js";
import { Icon, Problem, Skeleton } from "../ui/kit.js";

const PAGE = 200;
const TONES = [
  [/\.(outcome_unknown|reconciling)$/, "outcome_unknown"],
  [/\.(failed|attempt_failed|attempt_lost)$/, "failed"],
  [/\.completed$/, "completed"],
  [/\.(retrying|reset)$|^error\./, "retrying"],
  [/\.(started|admitted|resumed)$/, "running"],
  [/\.paused$/, "paused"],
];

const tone = (type) => TONES.find(([pattern]) => pattern.test(type))?.[1] ?? "pending";

function summary(event) {
  if (event.error) return `${event.error.code}: ${event.error.message}`;
  if (event.type === "task.retrying") return `attempt ${event.attempt} follows${event.reason ? `, ${event.reason}` : ""}`;
  if (event.type === "task.reconciling") return `${event.reconcile} finds out whether the work was done`;
  if (event.type === "condition.evaluated") return `${event.expression || "condition"} is ${event.result}`;
  if (event.type === "error.handled") return `${event.action}${event.reason ? `: ${event.reason}` : ""}`;
  if (event.detail) return event.detail;
  if (event.reason) return String(event.reason).replaceAll("_", " ");
  return event.attempt > 1 ? `attempt ${event.attempt}` : "";
}

const Line = ({ event, tasks, onSelect }) => {
  const [open, setOpen] = useState(false);
  const { seq, type, at, ...rest } = event;
  return html`<li id=${`event-${seq}`} class=${`event state-${tone(type)}`}>
    <div class="event-line">
      <button type="button" class="event-toggle" aria-expanded=${open} aria-label=${`Event ${seq}, ${type}`} onClick=${() => setOpen(!open)}><${Icon} name=${open ? "chevron-down" : "chevron-right"} size=${12} /><span class="event-seq">${seq}</span></button>
      <time datetime=${at} title=${full(at)}>${precise(at)}</time><span class="event-type">${type}</span>
      ${event.task_id && html`<button type="button" class="link event-task" onClick=${() => onSelect(event.task_id)}>${tasks[event.task_id]?.name ?? event.task_id}</button>`}
      <span class="event-text" title=${summary(event)}>${summary(event)}</span>
    </div>
    ${open && html`<div class="event-data"><${Json} value=${rest} nothing="Nothing more" /></div>`}
  </li>`;
};

/** An event record of the REST API in the shape of the live channel. */
const flat = ({ seq, event_type, timestamp, task_id, data }) => ({
  ...data,
  seq,
  type: event_type,
  at: timestamp,
  ...(task_id === null ? {} : { task_id }),
});

/** @param {{live: {current: object[]}}} props `live` holds the events that came since the page opened */
export const Events = ({ id, seq, live, tasks, onSelect }) => {
  const [page, setPage] = useState({ items: [], end: false, loaded: false });
  const [error, setError] = useState(null);
  const load = async (after) => {
    try {
      const next = await get(`api/instances/${encodeURIComponent(id)}/events?after_seq=${after}&limit=${PAGE}`);
      setError(null);
      const items = next.items.map(flat);
      setPage((before) => ({ items: after === 0 ? items : [...before.items, ...items], end: next.end, loaded: true }));
    } catch (failure) {
      setError(failure);
    }
  };
  useEffect(() => {
    load(0);
  }, [id]);
  const last = page.items.at(-1)?.seq ?? 0;
  const fresh = page.end ? live.current.filter((event) => event.seq > last) : [];
  const joined = fresh.length === 0 || fresh[0].seq === last + 1;
  const items = joined ? [...page.items, ...fresh] : page.items;
  const behind = seq > (items.at(-1)?.seq ?? 0);
  return html`<div class="card flush events">
    ${error && html`<${Problem} error=${error} onRetry=${() => load(last)} />`}
    ${!page.loaded && !error && html`<${Skeleton} rows=${8} />`}
    <ol>${items.map((event) => html`<${Line} key=${event.seq} event=${event} tasks=${tasks} onSelect=${onSelect} />`)}</ol>
    ${page.loaded && (!page.end || (behind && !error)) && html`<p class="more"><button type="button" class="button" onClick=${() => load(last)}>Load more</button></p>`}
  </div>`;
};
