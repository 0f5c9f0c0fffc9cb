// Parts about instances that several screens show: rows, and the buttons that control one.

import { html, useState } from "../../vendor/ui.js";
import { post } from "../core/api.js";
import { isFinal } from "../core/fold.js";
import { instancePath, to } from "../core/router.js";
import { between } from "../core/time.js";
import { Dialog, Icon, Id, Problem, Progress, State, Time, toast } from "./kit.js";

const OPEN = ["pending", "ready", "running", "retrying", "outcome_unknown"];
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** What an order does to an instance, in numbers. */
function effect(order, counts) {
  const running = (counts.running ?? 0) + (counts.retrying ?? 0) + (counts.outcome_unknown ?? 0);
  const waiting = (counts.pending ?? 0) + (counts.ready ?? 0);
  if (order === "pause")
    return running > 0
      ? `${plural(running, "running task")} will finish. ${plural(waiting, "waiting task")} will not start until you resume.`
      : `${plural(waiting, "waiting task")} will not start until you resume.`;
  return `Cancels ${plural(running, "running task")} and ${plural(waiting, "waiting task")}. Completed work is kept. This cannot be undone.`;
}

const ORDERS = {
  pause: { verb: "Pause", done: "Pause ordered", icon: "pause", tone: "primary" },
  resume: { verb: "Resume", done: "Resume ordered", icon: "play", tone: "primary" },
  stop: { verb: "Stop instance", done: "Stop ordered", icon: "square", tone: "danger" },
};

async function order(name, id) {
  await post(`api/workflows/${encodeURIComponent(id)}/${name}`, {});
  toast(ORDERS[name].done);
}

const Confirm = ({ name, id, title, counts, onClose }) => {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const { verb, icon, tone } = ORDERS[name];
  const go = async () => {
    setBusy(true);
    try {
      await order(name, id);
      onClose();
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${`${verb.split(" ")[0]} ${title}?`} onClose=${onClose}>
    <p>${effect(name, counts)}</p>
    ${error && html`<${Problem} error=${error} />`}
    <footer class="dialog-foot">
      <button type="button" class="button" onClick=${onClose}>Keep as it is</button>
      <button type="button" class=${`button ${tone}`} disabled=${busy} onClick=${go}><${Icon} name=${icon} />${verb}</button>
    </footer>
  <//>`;
};

/** Pause or resume, and stop; only what is possible now. */
export const Controls = ({ id, title, status, counts, small = false }) => {
  const [asking, setAsking] = useState(null);
  if (isFinal(status)) return null;
  const paused = status === "paused";
  const resume = async () => {
    try {
      await order("resume", id);
    } catch (failure) {
      toast(failure.detail || failure.title, "error");
    }
  };
  const open = (name) => (event) => {
    event.preventDefault();
    event.stopPropagation();
    if (name === "resume") resume();
    else setAsking(name);
  };
  const button = (name, word, icon) =>
    small
      ? html`<button key=${name} type="button" class="icon-button" onClick=${open(name)} title=${word} aria-label=${`${word} ${title}`}><${Icon} name=${icon} /></button>`
      : html`<button key=${name} type="button" class="button" onClick=${open(name)}><${Icon} name=${icon} />${word}</button>`;
  return html`<div class="controls">
    ${paused ? button("resume", "Resume", "play") : button("pause", "Pause", "pause")}
    ${button("stop", "Stop", "square")}
    ${asking && html`<${Confirm} name=${asking} id=${id} title=${title} counts=${counts} onClose=${() => setAsking(null)} />`}
  </div>`;
};

/** An instance under way: name, progress, what it does now, how long already. */
export const ActiveInstance = ({ row }) => {
  const unknown = row.task_counts.outcome_unknown ?? 0;
  const names = row.current_tasks.slice(0, 3).join(", ");
  const more = row.current_tasks.length > 3 ? ` and ${row.current_tasks.length - 3} more` : "";
  const doing = row.status === "paused" ? "Paused" : row.status === "pending" ? "Waiting for a slot" : unknown > 0 ? `${plural(unknown, "task")} of unknown outcome` : names ? names + more : "Between tasks";
  return html`<li class="active-row">
    <a class="active-link" ...${to(instancePath(row.id))}>
      <span class="active-name"><${State} status=${row.status} quiet /><strong>${row.workflow_name || row.workflow_id}</strong></span>
      <span class="active-doing" title=${row.current_tasks.join(", ")}>${doing}</span>
      <${Progress} counts=${row.task_counts} />
      <span class="active-time">${between(row.started_at ?? row.created_at)}</span>
    </a>
    <${Controls} id=${row.id} title=${row.workflow_name || row.workflow_id} status=${row.status} counts=${row.task_counts} small />
  </li>`;
};

const Result = ({ row }) => {
  if (row.status === "failed") return html`<span class="row-error" title=${row.error_message}>${row.error_message || row.error_code}</span>`;
  if (OPEN.some((state) => row.task_counts[state]) && row.current_tasks.length > 0 && !isFinal(row.status))
    return html`<span class="muted row-doing" title=${row.current_tasks.join(", ")}>${row.current_tasks.join(", ")}</span>`;
  const words = { pending: "Waiting for a slot", paused: "Waiting to be resumed" };
  return html`<span class="muted">${words[row.status] ?? ""}</span>`;
};

/** A table of instances; on a phone, cards. */
export const InstanceTable = ({ rows, caption, workflow = true }) => html`<table class="table instance-table">
  <caption class="sr">${caption}</caption>
  <thead><tr><th scope="col">State</th>${workflow && html`<th scope="col">Workflow</th>`}<th scope="col">Instance</th><th scope="col">Tasks</th><th scope="col">Now or result</th><th scope="col" class="num">Duration</th><th scope="col" class="num">Started</th></tr></thead>
  <tbody>
    ${rows.map(
      (row) => html`<tr key=${row.id}>
        <td class="cell-state"><${State} status=${row.status} /></td>
        ${workflow && html`<td class="cell-name"><a ...${to(instancePath(row.id))}>${row.workflow_name || row.workflow_id}</a></td>`}
        <td class="cell-id"><${Id} value=${row.id} link=${to(instancePath(row.id))} /></td>
        <td class="cell-progress"><${Progress} counts=${row.task_counts} /></td>
        <td class="cell-result"><${Result} row=${row} /></td>
        <td class="num">${between(row.started_at, row.completed_at)}</td>
        <td class="num cell-time"><${Time} at=${row.created_at} /></td>
      </tr>`,
    )}
  </tbody>
</table>`;
