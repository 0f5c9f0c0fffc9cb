// Everything about one task of an instance: state and why, inputs, outputs, errors, attempts, condition.

import { html, useEffect, useRef, useState } from "../../vendor/ui.js";
import { get } from "../core/api.js";
import { isFinal } from "../core/fold.js";
import { between, clock, relative } from "../core/time.js";
import { Json, hasCut } from "../ui/json.js";
import { Icon, Problem, State, StateIcon } from "../ui/kit.js";
import { Reasons, useWhy } from "../ui/why.js";
import { Orders } from "./orders.js";

const PANEL_TOO_LOW = 0.7;
const OVER = new Set(["completed", "failed", "skipped", "cancelled"]);

const SKIP_WORDS = {
  condition_false: "Its condition is false.",
  required_output_missing: "An output that it needs is missing.",
  dependencies_skipped: "Everything before it was skipped.",
  dependency_failed: "A task before it failed.",
  recovery: "The error handler chose to skip it.",
  operator: "Somebody skipped it.",
  instance_failed: "The instance failed before its turn.",
  fallback_not_needed: "It is a fallback that was not needed.",
};

/** What the page itself can tell, until the engine has said more. */
function note(task, tasks) {
  switch (task.status) {
    case "skipped":
      return task.skip?.detail || SKIP_WORDS[task.skip?.reason] || "";
    case "retrying":
      return `Attempt ${task.attempt_count + 1} starts ${task.due_at ? relative(task.due_at) : "soon"}.`;
    case "pending": {
      const open = task.depends_on.filter((id) => tasks[id] && !["completed", "skipped"].includes(tasks[id].status));
      return open.length > 0 ? `Waits for ${open.map((id) => tasks[id].name).join(", ")}.` : "Its turn comes next.";
    }
    case "ready":
      return "Its turn comes next.";
    case "running":
      return task.attempts.at(-1)?.outcome === "lost" ? "The executor was lost; the task is dispatched again." : "";
    case "outcome_unknown":
      return "Nobody knows whether its work was done.";
    default:
      return "";
  }
}

const ErrorBox = ({ error }) => html`<section class="error-box"><h3>Error</h3>
  <p><code>${error.code}</code> ${error.message}</p>
  ${error.details && Object.keys(error.details).length > 0 && html`<${Json} title="Details" value=${error.details} />`}
</section>`;

const OUTCOMES = { completed: "completed", failed: "failed", lost: "outcome_unknown", cancelled: "cancelled" };

const Attempts = ({ attempts }) => html`<section><h3>Attempts</h3>
  <ol class="attempts">
    ${attempts.map(
      (one, i) => html`<li key=${i}><${StateIcon} status=${one.outcome ? OUTCOMES[one.outcome] : "running"} />
        <span class="attempt-text"><strong>Attempt ${one.attempt}</strong> ${one.outcome === "lost" ? "lost, outcome unknown" : (one.outcome ?? "running")}
          ${one.error && html`<span class="attempt-error">${one.error.code}: ${one.error.message}</span>`}
          ${one.agent_id && html`<span class="muted">on <code>${one.agent_id}</code></span>`}</span>
        <span class="muted attempt-time">${clock(one.started_at)} · ${between(one.started_at, one.ended_at)}</span></li>`,
    )}
  </ol>
</section>`;

const Condition = ({ task }) => {
  const { condition, condition_result: answer } = task;
  if (!condition && !answer) return null;
  return html`<section><h3>Condition</h3>
    <p><code class="expression">${answer?.expression || condition?.expression || ""}</code>${answer && html` <span class="muted">is</span> <strong>${String(answer.result)}</strong>`}</p>
    ${condition?.required_outputs?.length > 0 && html`<p class="muted">needs ${condition.required_outputs.join(", ")}</p>`}
  </section>`;
};

/** Outputs as the log has them; what was cut for the list is fetched whole when asked for. */
const Outputs = ({ instanceId, task }) => {
  const [whole, setWhole] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    setWhole(null);
    setError(null);
  }, [task.id, task.completed_at]);
  const load = async () => {
    try {
      setWhole(await get(`api/instances/${encodeURIComponent(instanceId)}/tasks/${encodeURIComponent(task.id)}`));
    } catch (failure) {
      setError(failure);
    }
  };
  const { outputs, result } = whole ?? task;
  const done = task.status === "completed";
  const over = done || OVER.has(task.status);
  const named = Object.keys(outputs).length > 0;
  return html`<${Json} title="Outputs" value=${named ? outputs : done ? { result } : {}} nothing=${over ? "No outputs" : "Not there yet"} />
    ${!whole && (hasCut(outputs) || hasCut(result)) && html`<button type="button" class="button" onClick=${load}>Load whole values</button>`}
    ${error && html`<${Problem} error=${error} />`}`;
};

const Facts = ({ task, tasks, onSelect }) => html`<dl class="facts">
  ${task.type && html`<div><dt>Type</dt><dd>${task.type}</dd></div>`}
  ${task.capability && html`<div><dt>Capability</dt><dd>${task.capability}</dd></div>`}
  ${task.agent_id && html`<div><dt>Agent</dt><dd>${task.agent_id}</dd></div>`}
  ${task.started_at && html`<div><dt>Duration</dt><dd>${between(task.started_at, task.completed_at)}</dd></div>`}
  ${task.timeout_seconds && html`<div><dt>Timeout</dt><dd>${task.timeout_seconds} s</dd></div>`}
  ${task.effects && html`<div><dt>Effects</dt><dd>${task.effects}</dd></div>`}
  ${task.reconcile && html`<div><dt>Reconcile</dt><dd><button type="button" class="link" onClick=${() => onSelect(task.reconcile)}>${tasks[task.reconcile]?.name ?? task.reconcile}</button></dd></div>`}
  ${task.depends_on.length > 0 && html`<div><dt>After</dt><dd>${task.depends_on.map((id, i) => html`<span key=${id}>${i > 0 ? ", " : ""}<button type="button" class="link" onClick=${() => onSelect(id)}>${tasks[id]?.name ?? id}</button></span>`)}</dd></div>`}
</dl>`;

export const TaskPanel = ({ instanceId, instanceStatus, task, tasks, trigger, onBack, onSelect }) => {
  const top = useRef(null);
  const { data: told } = useWhy(instanceId, task.id, trigger, !isFinal(instanceStatus));
  const waits = told !== null && !OVER.has(task.status) && told.reasons.some((reason) => reason.code !== "ended");
  useEffect(() => {
    // On a phone the panel is below the fold: bring its top into view. Elsewhere it is in view already.
    if (top.current.getBoundingClientRect().top > innerHeight * PANEL_TOO_LOW) top.current.scrollIntoView();
  }, [task.id]);
  return html`<div class="panel-body" data-task-panel=${task.id} ref=${top}>
  <button type="button" class="link back" onClick=${onBack}><${Icon} name="chevron-left" size=${14} />All tasks</button>
  <h2>${task.name}</h2>
  <p class="subline"><${State} status=${task.status} />${task.name !== task.id && html`<code class="muted">${task.id}</code>`}</p>
  ${waits ? html`<${Reasons} reasons=${told.reasons} />` : note(task, tasks) && html`<p class="why">${note(task, tasks)}</p>`}
  ${told && html`<${Orders} instanceId=${instanceId} task=${task} tasks=${tasks} refusals=${told.refusals ?? {}} />`}
  ${task.last_error && task.status !== "completed" && html`<${ErrorBox} error=${task.last_error} />`}
  ${task.recovery && html`<p class="recovery"><${Icon} name="rotate-cw" size=${14} />The error handler chose <strong>${task.recovery.action}</strong>${task.recovery.severity && html`, severity ${task.recovery.severity}`}${task.recovery.reason && html`: ${task.recovery.reason}`}</p>`}
  <${Outputs} instanceId=${instanceId} task=${task} />
  <${Json} title="Inputs" value=${task.parameters} nothing="No parameters" />
  ${task.attempts.length > 0 && html`<${Attempts} attempts=${task.attempts} />`}
  <${Condition} task=${task} />
  <${Facts} task=${task} tasks=${tasks} onSelect=${onSelect} />
</div>`;
};
