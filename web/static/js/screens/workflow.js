// One workflow: its graph, its instances, its source, and Start.

import { html } from "../../vendor/ui.js";
import { get } from "../core/api.js";
import { instancePath, navigate, route, setQuery } from "../core/router.js";
import { Graph } from "../graph/viewer.js";
import { InstanceTable } from "../ui/instances.js";
import { useLoad, useTitle, useTopic } from "../ui/hooks.js";
import { Copy, Empty, Icon, Id, Problem, Skeleton, Tabs } from "../ui/kit.js";
import { Json } from "../ui/json.js";
import { Shell } from "../ui/shell.js";
import { NotThere } from "./missing.js";
import { StartDialog } from "./start.js";

const tasksOf = (definition) =>
  Object.fromEntries((definition.tasks ?? []).map((task) => [task.id, { ...task, name: task.name || task.id, depends_on: task.depends_on ?? [] }]));

const FACTS = [
  ["type", "Type"],
  ["capability", "Capability"],
  ["agent_id", "Agent"],
  ["timeout_seconds", "Timeout"],
];

const TaskFacts = ({ task }) => html`<div class="panel-body">
  <h2>${task.name}</h2><p class="muted"><code>${task.id}</code></p>
  <dl class="facts">
    ${FACTS.filter(([key]) => task[key]).map(([key, word]) => html`<div key=${key}><dt>${word}</dt><dd>${key === "timeout_seconds" ? `${task[key]} s` : task[key]}</dd></div>`)}
    ${task.depends_on.length > 0 && html`<div><dt>After</dt><dd>${task.depends_on.join(", ")}</dd></div>`}
    ${(task.outputs ?? []).length > 0 && html`<div><dt>Outputs</dt><dd>${task.outputs.join(", ")}</dd></div>`}
    ${task.condition?.expression && html`<div><dt>Condition</dt><dd><code>${task.condition.expression}</code></dd></div>`}
  </dl>
  <${Json} title="Parameters" value=${task.parameters} nothing="No parameters" />
  <${Json} title="Retry" value=${task.retry_config} nothing="The workflow's own rule" />
</div>`;

const TaskNames = ({ tasks, onSelect }) => html`<div class="panel-body"><h2>Tasks<span class="count">${Object.keys(tasks).length}</span></h2>
  <ul class="task-list">${Object.values(tasks).map((task) => html`<li key=${task.id}><button type="button" onClick=${() => onSelect(task.id)}><${Icon} name="circle-dot" class="muted" /><span class="task-name">${task.name}</span><span class="muted">${task.type}</span></button></li>`)}</ul></div>`;

const Design = ({ workflow }) => {
  const tasks = tasksOf(workflow.definition);
  const chosen = route.value.query.task;
  const select = (id) => setQuery({ task: id === chosen ? null : id }, { replace: true });
  const task = Object.hasOwn(tasks, chosen ?? "") ? tasks[chosen] : null;
  return html`<div class="split">
    <div class="card flush graph-card"><${Graph} layoutKey=${workflow.hash} tasks=${tasks} selected=${chosen} onSelect=${select} /></div>
    <aside class="card panel" aria-label="Task">${task ? html`<button type="button" class="link back" onClick=${() => setQuery({ task: null }, { replace: true })}><${Icon} name="chevron-left" size=${14} />All tasks</button><${TaskFacts} task=${task} />` : html`<${TaskNames} tasks=${tasks} onSelect=${select} />`}</aside>
  </div>`;
};

const Source = ({ workflow }) => {
  const text = workflow.source || JSON.stringify(workflow.definition, null, 2);
  return html`<div class="card flush source"><header class="source-head"><span class="muted">${workflow.source ? workflow.format.toUpperCase() : "JSON, as it is stored"}</span><${Copy} text=${text} label="Copy source" /></header><pre tabindex="0" aria-label="Source"><code>${text}</code></pre></div>`;
};

const Runs = ({ id }) => {
  const { data } = useTopic(`instances?workflow_id=${encodeURIComponent(id)}&limit=100`);
  if (!data) return html`<${Skeleton} rows=${5} />`;
  const rows = data.order.map((one) => data.items[one]).filter(Boolean);
  if (rows.length === 0) return html`<div class="card"><${Empty} icon="layers" title="It never ran."><button type="button" class="button primary" onClick=${() => setQuery({ start: "1" })}><${Icon} name="play" />Start</button><//></div>`;
  return html`<div class="card flush"><${InstanceTable} rows=${rows} caption="Instances of this workflow" workflow=${false} /></div>`;
};

const TABS = [
  { id: "graph", word: "Graph" },
  { id: "instances", word: "Instances" },
  { id: "source", word: "Source" },
];

export const Workflow = ({ id }) => {
  const { data, error, reload } = useLoad((signal) => get(`api/workflows/${encodeURIComponent(id)}`, { signal }), id);
  useTitle(data?.name ?? id);
  const { tab = "graph", start } = route.value.query;
  const current = TABS.some((one) => one.id === tab) ? tab : "graph";
  return html`<${Shell} trail=${[{ word: "Workflows", address: "/workflows" }, { word: data?.name ?? id }]}>
    ${error && (error.status === 404 ? html`<h1 class="sr" tabindex="-1">Not found</h1><${NotThere} what="workflow" id=${id} back="/workflows" backWord="All workflows" />` : html`<h1 class="sr" tabindex="-1">${id}</h1><${Problem} error=${error} onRetry=${reload} />`)}
    ${!data && !error && html`<h1 class="sr" tabindex="-1">${id}</h1><${Skeleton} rows=${6} />`}
    ${data &&
    html`<header class="screen-head"><div><h1 tabindex="-1">${data.name}</h1>
        <p class="subline"><${Id} value=${data.id} short=${false} /><span>version <code>${data.version}</code></span><span>${data.task_count} tasks</span>${(data.tags ?? []).map((tag) => html`<span key=${tag} class="tag">${tag}</span>`)}</p></div>
        <div class="head-actions"><button type="button" class="button primary" onClick=${() => setQuery({ start: "1" })}><${Icon} name="play" />Start</button></div></header>
      ${data.description && html`<p class="lead">${data.description}</p>`}
      <${Tabs} label="About the workflow" tabs=${TABS} current=${current} onSelect=${(next) => setQuery({ tab: next === "graph" ? null : next })} />
      <div role="tabpanel" id=${`panel-${current}`} aria-labelledby=${`tab-${current}`}>
        ${current === "graph" && html`<${Design} workflow=${data} />`}
        ${current === "instances" && html`<${Runs} id=${id} />`}
        ${current === "source" && html`<${Source} workflow=${data} />`}
      </div>
      ${start && html`<${StartDialog} workflow=${data} onClose=${() => setQuery({ start: null }, { replace: true })} onStarted=${(instance) => navigate(instancePath(instance))} />`}`}
  <//>`;
};
