// One instance, live: where it stands and why, its graph, its tasks with inputs, outputs, errors and attempts, its events.

import { html, useRef } from "../../vendor/ui.js";
import { isFinal } from "../core/fold.js";
import { route, setQuery, to, workflowPath } from "../core/router.js";
import { between, clock, relative } from "../core/time.js";
import { Graph } from "../graph/viewer.js";
import { useMedia, useTitle, useTopic } from "../ui/hooks.js";
import { Controls } from "../ui/instances.js";
import { Json } from "../ui/json.js";
import { Icon, Id, Problem, Progress, Skeleton, State, StateIcon, Tabs, Time, stateOf } from "../ui/kit.js";
import { Shell } from "../ui/shell.js";
import { localTimes, useWhy } from "../ui/why.js";
import { Events } from "./events.js";
import { NotThere } from "./missing.js";
import { TaskPanel } from "./task.js";

const PHONE = "(max-width: 700px)";

function countsOf(tasks) {
  const counts = {};
  for (const { status } of Object.values(tasks)) counts[status] = (counts[status] ?? 0) + 1;
  return counts;
}

/** One sentence about where the instance stands and why. */
function sentence(instance, tasks, counts) {
  const named = (status) => Object.values(tasks).filter((task) => task.status === status).map((task) => task.name);
  switch (instance.status) {
    case "pending":
      return "Waiting for a free slot at the workflow engine.";
    case "running": {
      const running = named("running");
      if (running.length > 0) return `Running ${running.slice(0, 3).join(", ")}${running.length > 3 ? ` and ${running.length - 3} more` : ""}.`;
      const unknown = named("outcome_unknown");
      if (unknown.length > 0) return `Nobody knows whether ${unknown[0]} did its work.`;
      const [retrying] = Object.values(tasks).filter((task) => task.status === "retrying");
      if (retrying) return `${retrying.name} is tried again ${retrying.due_at ? relative(retrying.due_at) : "soon"}.`;
      return "Deciding what comes next.";
    }
    case "paused":
      return `Paused${instance.reason ? `: ${instance.reason}` : ""}. ${instance.resume_at ? `Goes on ${relative(instance.resume_at)}.` : "Goes on when you resume it."}`;
    case "completed":
      return counts.skipped > 0 ? `All done; ${counts.skipped} of ${Object.keys(tasks).length} tasks were skipped.` : "All tasks are done.";
    case "failed":
      return instance.failed_task ? `${tasks[instance.failed_task]?.name ?? instance.failed_task} failed.` : "It failed.";
    case "cancelled":
      return `Stopped${instance.reason ? `: ${instance.reason}` : " by request"}.`;
    default:
      return "";
  }
}

const Failure = ({ instance, tasks, onOpen }) => {
  if (instance.status !== "failed" || !instance.error) return null;
  const task = tasks[instance.failed_task];
  const consequences = Object.values(tasks).filter((one) => one.skip?.reason === "dependency_failed" || one.skip?.reason === "instance_failed").length;
  return html`<section class="failure" aria-label="Failure">
    <${Icon} name="circle-x" size=${20} />
    <div><p class="failure-title">${task ? html`<button type="button" class="link strong" onClick=${() => onOpen(task.id)}>${task.name}</button>` : "The instance"} failed <code>${instance.error.code}</code></p>
      <p>${instance.error.message}</p>
      <p class="muted">${[task && task.attempt_count > 0 && `attempt ${task.attempt_count}`, task?.recovery && `error handler: ${task.recovery.action}${task.recovery.reason ? ` (${task.recovery.reason})` : ""}`, consequences > 0 && `${consequences} task${consequences === 1 ? "" : "s"} skipped as a consequence`].filter(Boolean).join(" · ")}</p></div>
  </section>`;
};

const TaskList = ({ tasks, selected, onSelect }) => html`<ul class="task-list">
  ${Object.values(tasks).map(
    (task) => html`<li key=${task.id}><button type="button" data-task-row=${task.id} aria-current=${task.id === selected ? "true" : undefined} onClick=${() => onSelect(task.id)}>
      <${StateIcon} status=${task.status} /><span class="task-name">${task.name}</span>
      <span class="task-note">${task.attempt_count > 1 && html`<span class="badge" title="attempts">×${task.attempt_count}</span>`}${task.started_at ? between(task.started_at, task.completed_at) : task.status === "pending" ? "" : stateOf(task.status).word.toLowerCase()}</span>
    </button></li>`,
  )}
</ul>`;

const InputOutput = ({ instance }) => html`<div class="columns even">
  <div class="card"><${Json} heading="h2" title="Inputs" value=${instance.inputs} nothing="Started without inputs" /></div>
  <div class="card"><${Json} heading="h2" title="Outputs" value=${instance.outputs} nothing=${isFinal(instance.status) ? "No outputs" : "Not there yet"} />
    ${instance.warnings.length > 0 && html`<ul class="warnings">${instance.warnings.map((text, i) => html`<li key=${i}><${Icon} name="triangle-alert" size=${14} />${text}</li>`)}</ul>`}</div>
</div>`;

const Head = ({ id, instance, tasks, counts, told }) => html`<header class="screen-head instance-head">
  <div><h1 tabindex="-1">${instance.workflow_name || instance.workflow_id}</h1>
    <p class="subline"><${State} status=${instance.status} /><span class="reason" aria-live="polite">${told?.status === instance.status ? localTimes(told.summary) : sentence(instance, tasks, counts)}</span></p></div>
  <div class="head-actions"><${Controls} id=${id} title=${instance.workflow_name || id} status=${instance.status} counts=${counts} /></div>
</header>
<dl class="figures">
  <div><dt>Duration</dt><dd>${between(instance.started_at ?? instance.created_at, instance.completed_at)}</dd></div>
  <div><dt>Tasks</dt><dd><${Progress} counts=${counts} /></dd></div>
  <div><dt>Started</dt><dd><${Time} at=${instance.started_at ?? instance.created_at} /><span class="muted only-wide"> ${clock(instance.started_at ?? instance.created_at)}</span></dd></div>
  <div><dt>Workflow</dt><dd><a ...${to(workflowPath(instance.workflow_id))}>${instance.workflow_id}</a> <span class="muted">${instance.workflow_version}</span></dd></div>
  <div><dt>Instance</dt><dd><${Id} value=${id} /></dd></div>
</dl>`;

/** The title says how an instance ended while the tab was in the background. */
function useEndInTitle(instance) {
  const mark = { completed: "✓ ", failed: "✕ ", cancelled: "■ ", paused: "⏸ " }[instance?.status] ?? "";
  useTitle(instance ? `${mark}${instance.workflow_name || instance.workflow_id}` : "Instance");
}

const Body = ({ id, data, live }) => {
  const { instance, tasks } = data;
  const mesh = useTopic("agents").data;
  const joins = useRef({ mesh, count: 0 });
  if (joins.current.mesh !== mesh) joins.current = { mesh, count: joins.current.count + 1 };
  const trigger = `${data.seq}:${joins.current.count}`;
  const { data: told } = useWhy(id, "", trigger, !isFinal(instance.status));
  const phone = useMedia(PHONE);
  const counts = countsOf(tasks);
  const { tab, task: chosen } = route.value.query;
  const tabs = [
    ...(phone ? [{ id: "tasks", word: "Tasks", count: Object.keys(tasks).length }] : []),
    { id: "graph", word: "Graph" },
    { id: "events", word: "Events", count: data.seq },
    { id: "io", word: "Inputs & outputs" },
  ];
  const current = tabs.some((one) => one.id === tab) ? tab : tabs[0].id;
  const task = Object.hasOwn(tasks, chosen ?? "") ? tasks[chosen] : null;
  const select = (next) => setQuery({ task: next === chosen ? null : next }, { replace: true });
  const close = () => setQuery({ task: null }, { replace: true });
  const panel = html`<aside class="card panel" aria-label="Tasks">
    ${task ? html`<${TaskPanel} instanceId=${id} instanceStatus=${instance.status} task=${task} tasks=${tasks} trigger=${trigger} onBack=${close} onSelect=${select} />` : html`<div class="panel-body"><h2>Tasks<span class="count">${Object.keys(tasks).length}</span></h2><${TaskList} tasks=${tasks} selected=${chosen} onSelect=${select} /></div>`}
  </aside>`;
  return html`<${Head} id=${id} instance=${instance} tasks=${tasks} counts=${counts} told=${told} />
    <${Failure} instance=${instance} tasks=${tasks} onOpen=${select} />
    <${Tabs} label="About the instance" tabs=${tabs} current=${current} onSelect=${(next) => setQuery({ tab: next === tabs[0].id ? null : next, ...(phone ? { task: null } : {}) })} />
    <div class=${current === "tasks" || (phone && task) ? "" : "split"}>
      ${phone && task
        ? html`<div role="tabpanel" id=${`panel-${current}`} aria-labelledby=${`tab-${current}`}>${panel}</div>`
        : html`<div role="tabpanel" id=${`panel-${current}`} aria-labelledby=${`tab-${current}`} class="split-main">
            ${current === "graph" && html`<div class="card flush graph-card"><${Graph} layoutKey=${`${instance.workflow_id}:${instance.definition_hash ?? ""}:${Object.keys(tasks).length}`} tasks=${tasks} selected=${chosen} onSelect=${select} /></div>`}
            ${current === "tasks" && html`<div class="card panel"><${TaskList} tasks=${tasks} selected=${chosen} onSelect=${select} /></div>`}
            ${current === "events" && html`<${Events} id=${id} seq=${data.seq} live=${live} tasks=${tasks} onSelect=${select} />`}
            ${current === "io" && html`<${InputOutput} instance=${instance} />`}
          </div>`}
      ${!phone && panel}
    </div>`;
};

const MAX_KEPT_EVENTS = 5000;

export const Instance = ({ id }) => {
  const live = useRef([]);
  const keep = (frame) => {
    if (frame.op === "events") live.current = [...live.current, ...frame.events].slice(-MAX_KEPT_EVENTS);
  };
  const { data, problem } = useTopic(`instance:${id}`, keep);
  useEndInTitle(data?.instance);
  const name = data?.instance.workflow_name || data?.instance.workflow_id;
  return html`<${Shell} trail=${[{ word: "Instances", address: "/instances" }, { word: name ?? id }]}>
    ${!data && html`<h1 class="sr" tabindex="-1">Instance ${id}</h1>`}
    ${problem && (problem.status === 404 ? html`<${NotThere} what="instance" id=${id} back="/instances" backWord="All instances" />` : html`<${Problem} error=${{ title: "The instance cannot be shown", ...problem }} />`)}
    ${!data && !problem && html`<${Skeleton} rows=${7} />`}
    ${data && html`<${Body} id=${id} data=${data} live=${live} />`}
  <//>`;
};
