// The picture of one instance, changed by its events. `web/server/fold.py` does the same on the server, rule by rule;
// tests/web/test_pages.py holds both to it. Pure: it never mutates what it was given and never looks at a clock.

/** @typedef {{seq: number, instance: object, tasks: Object<string, object>}} Document */

const FINAL = new Set(["completed", "failed", "cancelled"]);

/** @param {string} status @returns {boolean} whether an instance will never change again */
export const isFinal = (status) => FINAL.has(status);

/** @param {Document} document @param {object[]} events @returns {Document} */
export function fold(document, events) {
  let { seq, instance, tasks } = document;
  let ownTasks = false;
  for (const event of events) {
    if (event.seq <= seq) continue;
    seq = event.seq;
    instance = { ...instance, updated_at: event.at };
    if (event.type.startsWith("workflow.")) {
      Object.assign(instance, instanceChange(instance, event));
    } else if (Object.hasOwn(tasks, event.task_id ?? "")) {
      if (!ownTasks) tasks = { ...tasks };
      ownTasks = true;
      const task = tasks[event.task_id];
      if (event.type === "task.reset") reset(tasks, event.task_id);
      else if (event.type === "task.reconciling") beginAnew(tasks, event.reconcile ?? "");
      else tasks[event.task_id] = { ...task, ...taskChange(task, event) };
    }
  }
  return { ...document, seq, instance, tasks };
}

function instanceChange(instance, event) {
  switch (event.type) {
    case "workflow.started":
      return { created_at: event.at, inputs: event.inputs ?? {}, trigger: event.trigger ?? "api" };
    case "workflow.admitted":
      return { status: "running", started_at: event.at };
    case "workflow.paused":
      return { status: "paused", reason: event.reason || null, resume_at: event.resume_at ?? null };
    case "workflow.resumed":
      return { status: instance.started_at ? "running" : "pending", reason: null, resume_at: null };
    case "workflow.completed":
      return { ...ended("completed", event), outputs: event.outputs ?? {} };
    case "workflow.failed":
      return {
        ...ended("failed", event),
        error: event.error ?? null,
        error_message: event.error?.message ?? null,
        failed_task: event.task_id || null,
      };
    case "workflow.cancelled":
      return { ...ended("cancelled", event), reason: event.reason || null };
    case "workflow.output_mismatched":
      return { warnings: [...instance.warnings, ...(event.problems ?? [])] };
    default:
      return {}; // a newer engine's event: kept in the list of events, no part of the picture
  }
}

const ended = (status, event) => ({ status, completed_at: event.at, resume_at: null });

function taskChange(task, event) {
  switch (event.type) {
    case "task.started": {
      const attempt = { attempt: event.attempt, started_at: event.at, ended_at: null, outcome: null };
      return {
        attempts: [...task.attempts, { ...attempt, error: null, agent_id: null }],
        status: "running",
        started_at: task.started_at ?? event.at,
        attempt_count: event.attempt,
        due_at: null,
      };
    }
    case "task.completed": {
      const outputs = event.outputs ?? {};
      const result = event.primary_output ? (outputs[event.primary_output] ?? null) : (event.primary ?? null);
      const agent = event.metadata?.executor_id ?? null;
      return { ...closed(task, "completed", event, null, agent), ...finished("completed", event), outputs, result };
    }
    case "task.attempt_failed":
      return { ...closed(task, "failed", event, event.error ?? null), last_error: event.error ?? null };
    case "task.attempt_lost": {
      const error = { code: "OUTCOME_UNKNOWN", message: event.reason || "the executor was lost" };
      return { ...closed(task, "lost", event, error, event.agent_id || null), last_error: error };
    }
    case "task.outcome_unknown":
      return { status: "outcome_unknown" };
    case "task.retrying":
      return { status: "retrying", due_at: event.due_at ?? null };
    case "task.failed":
      return { ...finished("failed", event), last_error: event.error ?? null };
    case "task.skipped":
      return { ...finished("skipped", event), skip: { reason: event.reason ?? "", detail: event.detail ?? "" } };
    case "task.cancelled":
      return { ...closed(task, "cancelled", event), ...finished("cancelled", event) };
    case "condition.evaluated": {
      const { result = null, expression = "", details = {} } = event;
      return { condition_result: { result, expression, details } };
    }
    case "error.handled": {
      const recovery = {};
      for (const key of ["action", "severity", "reason", "escalated", "delay_seconds"]) {
        if (key in event) recovery[key] = event[key];
      }
      return { recovery };
    }
    default:
      return {}; // late results and what newer engines write
  }
}

const BLANK = {
  status: "pending",
  started_at: null,
  completed_at: null,
  attempt_count: 0,
  outputs: {},
  result: null,
  last_error: null,
  due_at: null,
  condition_result: null,
  skip: null,
  recovery: null,
};
const CONSEQUENCES = new Set(["dependency_failed", "dependencies_skipped"]);

/** Begin a new round of a task; what was skipped because of it waits again. `tasks` is our own copy. */
function reset(tasks, taskId) {
  tasks[taskId] = { ...tasks[taskId], ...BLANK, status: "ready" };
  const frontier = [taskId];
  while (frontier.length > 0) {
    const source = frontier.pop();
    for (const [id, dependent] of Object.entries(tasks)) {
      if (dependent.depends_on.includes(source) && CONSEQUENCES.has(dependent.skip?.reason)) {
        tasks[id] = { ...dependent, ...BLANK };
        frontier.push(id);
      }
    }
  }
}

/** Begin a new round of a task that was called for; what it did before stays with its attempts. */
function beginAnew(tasks, taskId) {
  if (Object.hasOwn(tasks, taskId)) tasks[taskId] = { ...tasks[taskId], ...BLANK };
}

const finished = (status, event) => ({ status, completed_at: event.at, due_at: null });

/** End the open attempt; without one (it was ended before) nothing happens. */
function closed(task, outcome, event, error = null, agent = null) {
  const last = task.attempts.at(-1);
  if (!last || last.ended_at !== null) return {};
  return { attempts: [...task.attempts.slice(0, -1), { ...last, ended_at: event.at, outcome, error, agent_id: agent }] };
}
