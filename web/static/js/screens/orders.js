// What a person may order about one task: run it again, skip it, or say that it did its work. What is not possible now
// is shown with the reason, as the engine gives it.

import { html, useState } from "../../vendor/ui.js";
import { post } from "../core/api.js";
import { Dialog, Icon, Problem, toast } from "../ui/kit.js";

const ORDERS = {
  complete: { word: "Complete", icon: "check", verb: "Complete task", done: "Completion ordered" },
  retry: { word: "Retry", icon: "rotate-cw", verb: "Retry task", done: "Retry ordered" },
  skip: { word: "Skip", icon: "skip-forward", verb: "Skip task", done: "Skip ordered" },
};
const OVER = new Set(["completed", "cancelled"]);

/** How many tasks come after this one, directly or not, and have not begun. */
function behind(task, tasks) {
  const found = new Set();
  const frontier = [task.id];
  while (frontier.length > 0) {
    const source = frontier.pop();
    for (const next of Object.values(tasks)) {
      if (!next.depends_on.includes(source) || found.has(next.id)) continue;
      found.add(next.id);
      frontier.push(next.id);
    }
  }
  return [...found].filter((id) => ["pending", "ready", "skipped"].includes(tasks[id].status)).length;
}

/** What the order does, in numbers. */
function effect(order, task, tasks) {
  const after = behind(task, tasks);
  const waits = after === 0 ? "No task waits for it." : `${after} task${after === 1 ? " waits" : "s wait"} for it.`;
  if (order === "complete") return `Says that the work of ${task.name} was done. Its outputs are taken as given here. ${waits}`;
  if (order === "skip") return `${task.name} ${task.status === "running" ? "is cancelled and " : ""}gets no outputs. ${waits} This cannot be undone.`;
  if (task.status === "outcome_unknown")
    return `Says that attempt ${task.attempt_count} of ${task.name} did not do its work. Attempt ${task.attempt_count + 1} begins at once, under the same idempotency key. If the work was done after all, it is done twice.`;
  return `Attempt ${task.attempt_count + 1} of ${task.name} begins at once. ${waits}`;
}

const template = (task) => JSON.stringify(Object.fromEntries(task.output_names.map((name) => [name, null])), null, 2);

function readOutputs(text) {
  let outputs;
  try {
    outputs = JSON.parse(text || "{}");
  } catch (error) {
    return { error: error.message };
  }
  const isObject = outputs !== null && typeof outputs === "object" && !Array.isArray(outputs);
  return isObject ? { outputs } : { error: "The outputs must be an object: { … }" };
}

const Confirm = ({ order, instanceId, task, tasks, onClose }) => {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const [reason, setReason] = useState("");
  const [text, setText] = useState(() => template(task));
  const [wrong, setWrong] = useState("");
  const { verb, icon, done } = ORDERS[order];
  const go = async (event) => {
    event.preventDefault();
    const read = order === "complete" ? readOutputs(text) : {};
    setWrong(read.error ?? "");
    if (busy || read.error) return;
    setBusy(true);
    try {
      await post(`api/instances/${encodeURIComponent(instanceId)}/tasks/${encodeURIComponent(task.id)}/${order}`, { reason, ...(order === "complete" ? { outputs: read.outputs } : {}) });
      toast(done);
      onClose();
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${`${ORDERS[order].word} ${task.name}?`} onClose=${onClose}>
    <p>${effect(order, task, tasks)}</p>
    <form novalidate onSubmit=${go}>
      ${order === "complete" && html`<div class=${`field ${wrong ? "invalid" : ""}`}><label for="order-outputs">Outputs<span class="kind">JSON object</span></label>
        <textarea id="order-outputs" class="code" rows="5" spellcheck=${false} value=${text} onInput=${(e) => setText(e.target.value)} aria-invalid=${wrong ? "true" : undefined} aria-describedby=${wrong ? "order-outputs-error" : undefined}></textarea>
        ${wrong && html`<p class="field-error" id="order-outputs-error"><${Icon} name="circle-alert" size=${14} />${wrong}</p>`}</div>`}
      <div class="field"><label for="order-reason">Reason<span class="kind">kept with the events</span></label>
        <input id="order-reason" maxlength="500" value=${reason} onInput=${(e) => setReason(e.target.value)} /></div>
      ${error && html`<${Problem} error=${error} />`}
      <footer class="dialog-foot">
        <button type="button" class="button" onClick=${onClose}>Keep as it is</button>
        <button type="submit" class=${`button ${order === "skip" ? "danger" : "primary"}`} disabled=${busy}><${Icon} name=${icon} />${verb}</button>
      </footer>
    </form>
  <//>`;
};

/** @param {{refusals: Object<string, string>}} props why each order would be refused now; empty when it would be obeyed */
export const Orders = ({ instanceId, task, tasks, refusals }) => {
  const [asking, setAsking] = useState(null);
  if (OVER.has(task.status)) return null;
  const shown = Object.keys(ORDERS).filter((order) => order in refusals && (order !== "complete" || task.status === "outcome_unknown"));
  if (task.status === "skipped" && shown.every((order) => refusals[order])) return null;
  const refused = shown.filter((order) => refusals[order]);
  return html`<section class="orders" aria-label="Orders">
    <div class="controls">
      ${shown.map((order) => html`<button key=${order} type="button" class="button" disabled=${Boolean(refusals[order])} title=${refusals[order] || undefined} aria-describedby=${refusals[order] ? `refusal-${order}` : undefined} onClick=${() => setAsking(order)}><${Icon} name=${ORDERS[order].icon} />${ORDERS[order].word}</button>`)}
    </div>
    ${refused.map((order) => html`<p key=${order} class="order-refusal" id=${`refusal-${order}`}>${ORDERS[order].word} is not possible: ${refusals[order]}.</p>`)}
    ${asking && html`<${Confirm} order=${asking} instanceId=${instanceId} task=${task} tasks=${tasks} onClose=${() => setAsking(null)} />`}
  </section>`;
};
