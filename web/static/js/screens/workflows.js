// The stored workflows, how their last instances went, and the ways to start or add one.

import { html, useRef, useState } from "../../vendor/ui.js";
import { get, post } from "../core/api.js";
import { instancePath, navigate, route, setQuery, to, workflowPath } from "../core/router.js";
import { between } from "../core/time.js";
import { useLoad, useTitle, useTopic } from "../ui/hooks.js";
import { Copy, Empty, Icon, Problem, Skeleton, StateIcon, Time, stateOf, toast } from "../ui/kit.js";
import { Shell } from "../ui/shell.js";
import { StartDialog } from "./start.js";

const LAST = 12;
const LAST_TOPIC = "instances?limit=200";
const LOAD_COMMAND = "curl -F file=@workflows/simple_example.yaml localhost:8090/api/workflows/upload";

/** The last instances of a workflow as small bars, oldest first: colour and shape say the state, height the duration. */
const LastRuns = ({ rows }) => {
  const shown = rows.slice(0, LAST).reverse();
  const lengths = shown.map((row) => (row.started_at && row.completed_at ? Date.parse(row.completed_at) - Date.parse(row.started_at) : 0));
  const longest = Math.max(1, ...lengths);
  return html`<span class="bars">${shown.map((row, i) => {
    const words = `${stateOf(row.status).word}, ${between(row.started_at, row.completed_at)}`;
    return html`<a key=${row.id} class=${`bar state-${row.status}`} ...${to(instancePath(row.id))} title=${words} aria-label=${`Instance ${row.id}: ${words}`}><span style=${{ height: `${Math.round(30 + 70 * (lengths[i] / longest))}%` }}></span></a>`;
  })}</span>`;
};

const Upload = ({ onDone }) => {
  const input = useRef(null);
  const [error, setError] = useState(null);
  const send = async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    const form = new FormData();
    form.append("file", file);
    try {
      const made = await post("api/workflows/upload", form);
      setError(null);
      toast(`${made.workflow_id} ${made.status}`);
      onDone();
    } catch (failure) {
      setError(failure);
    }
  };
  return html`<input ref=${input} type="file" class="sr" tabindex="-1" aria-hidden="true" accept=".yaml,.yml,.json" onChange=${send} />
    <button type="button" class="button" onClick=${() => input.current.click()}><${Icon} name="upload" />Upload</button>
    ${error && html`<div class="upload-problem"><${Problem} error=${error} onRetry=${() => input.current.click()} /></div>`}`;
};

const Row = ({ workflow, rows }) => html`<tr>
  <td class="cell-name"><a ...${to(workflowPath(workflow.id))}>${workflow.name}</a>
    ${(workflow.tags ?? []).map((tag) => html`<span key=${tag} class="tag">${tag}</span>`)}
    ${workflow.description && html`<p class="muted clamp">${workflow.description}</p>`}</td>
  <td class="num cell-version"><code>${workflow.version}</code></td>
  <td class="num">${workflow.task_count}</td>
  <td class="cell-bars">${rows.length > 0 ? html`<${LastRuns} rows=${rows} />` : html`<span class="muted">never</span>`}</td>
  <td class="cell-last">${rows.length > 0 && html`<span class="last"><${StateIcon} status=${rows[0].status} /><${Time} at=${rows[0].created_at} /></span>`}</td>
  <td class="cell-action"><button type="button" class="button" onClick=${() => setQuery({ start: workflow.id })} aria-label=${`Start ${workflow.name}`}><${Icon} name="play" />Start</button></td>
</tr>`;

const None = () => html`<${Empty} icon="workflow" title="No workflows yet.">
  <p class="muted">Upload a definition file, YAML or JSON.</p>
  <p class="command"><code>${LOAD_COMMAND}</code><${Copy} text=${LOAD_COMMAND} label="Copy command" /></p>
<//>`;

function grouped(data) {
  const found = {};
  for (const id of data?.order ?? []) {
    const row = data.items[id];
    if (row) (found[row.workflow_id] ??= []).push(row);
  }
  return found;
}

export const Workflows = () => {
  useTitle("Workflows");
  const { data, error, reload } = useLoad((signal) => get("api/workflows?limit=500", { signal }), "workflows");
  const runs = grouped(useTopic(LAST_TOPIC).data);
  const { text = "", start } = route.value.query;
  const wanted = text.toLowerCase();
  const items = (data?.items ?? []).filter((one) => [one.name, one.id, ...(one.tags ?? [])].some((word) => word.toLowerCase().includes(wanted)));
  const starting = start && data?.workflows[start];
  return html`<${Shell} trail=${[{ word: "Workflows" }]}>
    <header class="screen-head"><h1 tabindex="-1">Workflows</h1>
      <div class="head-actions">
        <label class="search"><${Icon} name="search" /><span class="sr">Filter workflows</span><input type="search" placeholder="Filter" value=${text} onInput=${(e) => setQuery({ text: e.target.value }, { replace: true })} /></label>
        <${Upload} onDone=${reload} />
      </div></header>
    ${error && html`<${Problem} error=${error} onRetry=${reload} />`}
    ${!data && !error && html`<${Skeleton} rows=${5} />`}
    ${data && (data.items.length === 0 ? html`<div class="card"><${None} /></div>` : items.length === 0 ? html`<div class="card"><${Empty} icon="search" title="No workflow matches."><button type="button" class="button" onClick=${() => setQuery({ text: null })}>Clear the filter</button><//></div>`
      : html`<div class="card flush"><table class="table workflow-table"><caption class="sr">Stored workflows</caption>
          <thead><tr><th scope="col">Workflow</th><th scope="col" class="num">Version</th><th scope="col" class="num">Tasks</th><th scope="col">Last instances</th><th scope="col">Latest</th><th scope="col"><span class="sr">Actions</span></th></tr></thead>
          <tbody>${items.map((one) => html`<${Row} key=${one.id} workflow=${one} rows=${runs[one.id] ?? []} />`)}</tbody></table></div>`)}
    ${starting && html`<${StartDialog} workflow=${starting} onClose=${() => setQuery({ start: null }, { replace: true })} onStarted=${(id) => navigate(instancePath(id))} />`}
  <//>`;
};
