// All instances, by state and text. Filters live in the address; the first page is live, older ones are loaded.

import { html, useEffect, useState } from "../../vendor/ui.js";
import { get } from "../core/api.js";
import { route, setQuery, to } from "../core/router.js";
import { InstanceTable } from "../ui/instances.js";
import { useTitle, useTopic } from "../ui/hooks.js";
import { Copy, Empty, Icon, Problem, STATES, Skeleton } from "../ui/kit.js";
import { Shell } from "../ui/shell.js";

const STATUSES = ["running", "pending", "paused", "completed", "failed", "cancelled"];
const PAGE = 50;
const RUN_COMMAND = "amp run workflows/simple_example.yaml";

function filterText({ status, workflow_id: workflowId, text }) {
  const query = new URLSearchParams();
  if (status) query.set("status", status);
  if (workflowId) query.set("workflow_id", workflowId);
  if (text) query.set("text", text);
  query.set("limit", PAGE);
  return query.toString();
}

const Filters = ({ query, counts }) => {
  const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
  const chip = (status, word, icon, count) => html`<button key=${word} type="button" class=${`chip ${status ? `state-${status}` : ""}`} aria-pressed=${(query.status ?? "") === status} onClick=${() => setQuery({ status: query.status === status ? null : status })}>
    ${icon && html`<${Icon} name=${icon} size=${14} />`}${word}<span class="chip-count">${count.toLocaleString()}</span></button>`;
  return html`<div class="filters">
    <div class="chips" role="group" aria-label="State">
      ${chip("", "All", null, total)}
      ${STATUSES.map((status) => chip(status, STATES[status].word, STATES[status].icon, counts[status] ?? 0))}
    </div>
    ${query.workflow_id && html`<button type="button" class="chip" aria-pressed="true" onClick=${() => setQuery({ workflow_id: null })} title="Remove this filter">workflow: ${query.workflow_id}<${Icon} name="x" size=${12} /></button>`}
  </div>`;
};

/** Pages after the first, loaded on demand; forgotten when the filter changes. */
function useOlder(filter) {
  const [state, setState] = useState({ filter, rows: [], cursor: undefined, busy: false, error: null });
  useEffect(() => setState({ filter, rows: [], cursor: undefined, busy: false, error: null }), [filter]);
  const more = async (cursor) => {
    setState((before) => ({ ...before, busy: true, error: null }));
    try {
      const page = await get(`api/instances?${filter}&cursor=${encodeURIComponent(cursor)}`);
      setState((before) => (before.filter === filter ? { ...before, rows: [...before.rows, ...page.items], cursor: page.next_cursor, busy: false } : before));
    } catch (error) {
      setState((before) => ({ ...before, busy: false, error }));
    }
  };
  return { ...state, more };
}

const None = ({ filtered }) =>
  filtered
    ? html`<${Empty} icon="search" title="No instances match."><button type="button" class="button" onClick=${() => setQuery({ status: null, text: null, workflow_id: null })}>Clear filters</button><//>`
    : html`<${Empty} icon="layers" title="No instances yet."><a class="button primary" ...${to("/workflows/hello-world-workflow?start=1")}>Start hello-world</a><p class="command"><code>${RUN_COMMAND}</code><${Copy} text=${RUN_COMMAND} label="Copy command" /></p><//>`;

export const Instances = () => {
  useTitle("Instances");
  const { query } = route.value;
  const filter = filterText(query);
  const { data, problem } = useTopic(`instances?${filter}`);
  const [counts, setCounts] = useState({});
  useEffect(() => {
    if (data) setCounts(data.counts);
  }, [data]);
  const older = useOlder(filter);
  const first = data ? data.order.map((id) => data.items[id]).filter(Boolean) : [];
  const seen = new Set(first.map((row) => row.id));
  const rows = [...first, ...older.rows.filter((row) => !seen.has(row.id))];
  const cursor = older.cursor === undefined ? data?.next_cursor : older.cursor;
  return html`<${Shell} trail=${[{ word: "Instances" }]}>
    <header class="screen-head"><h1 tabindex="-1">Instances</h1>
      <div class="head-actions"><label class="search"><${Icon} name="search" /><span class="sr">Find instances</span><input type="search" placeholder="Id, workflow or error" value=${query.text ?? ""} onInput=${(e) => setQuery({ text: e.target.value }, { replace: true })} /></label></div></header>
    <${Filters} query=${query} counts=${counts} />
    ${problem && html`<${Problem} error=${{ title: "The list cannot be loaded", ...problem }} />`}
    ${!data && !problem && html`<${Skeleton} rows=${8} />`}
    ${data && (rows.length === 0 ? html`<div class="card"><${None} filtered=${Boolean(query.status || query.text || query.workflow_id)} /></div>` : html`<div class="card flush"><${InstanceTable} rows=${rows} caption="Instances, newest first" /></div>`)}
    ${older.error && html`<${Problem} error=${older.error} />`}
    ${data && cursor && html`<p class="more"><button type="button" class="button" disabled=${older.busy} onClick=${() => older.more(cursor)}>${older.busy ? "Loading…" : "Load more"}</button></p>`}
  <//>`;
};
