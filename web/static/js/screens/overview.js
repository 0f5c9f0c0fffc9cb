// "Is anything wrong, what is happening": the health sentence, what needs attention, what runs, what ran, who is here.

import { html } from "../../vendor/ui.js";
import { instancePath, to } from "../core/router.js";
import { ActiveInstance, InstanceTable } from "../ui/instances.js";
import { useTitle, useTopic } from "../ui/hooks.js";
import { Copy, Empty, Icon, Problem, Skeleton, Time } from "../ui/kit.js";
import { Shell } from "../ui/shell.js";

const MAX_ATTENTION = 8;
const RUN_COMMAND = "amp run workflows/simple_example.yaml";

const count = (number, word) => `${number.toLocaleString()} ${word}${number === 1 ? "" : "s"}`;

/** The six kinds first, then everybody else. */
const agentList = (data) =>
  Object.values(data.agents ?? {}).sort(
    (a, b) => Number(!a.role) - Number(!b.role) || a.role.localeCompare(b.role) || a.id.localeCompare(b.id),
  );

const Sentence = ({ data }) => {
  const missing = data.missing.length;
  const ill = agentList(data).filter((agent) => !agent.is_well).length;
  const paused = data.counts.paused ?? 0;
  const tone = missing > 0 || ill > 0 ? "bad" : data.failed_total > 0 ? "warn" : "good";
  const agents = missing === 0 ? (ill === 0 ? "All agents are healthy." : `${count(ill, "agent")} not healthy.`) : `${count(missing, "agent")} missing.`;
  return html`<p class=${`sentence ${tone}`}><span class="sentence-dot" aria-hidden="true"></span>
    <span><a href="#agents">${agents}</a> <a ...${to("/instances?status=running")}>${count(data.active_total, "instance")} active</a>${paused > 0 && html`, <a ...${to("/instances?status=paused")}>${paused} paused</a>`},
    ${" "}<a ...${to("/instances?status=failed")}>${data.failed_total} failed</a> in the last 24 hours.</span>
  </p>`;
};

/** Failures by workflow, open alerts, absent agents: most urgent first. */
function attention(data) {
  const list = data.missing.map((role) => ({ key: `m:${role}`, icon: "network", tone: "bad", title: `${role} is missing`, detail: "No agent of this kind is on the mesh." }));
  for (const row of data.active.map((id) => data.items[id]).filter((one) => one?.task_counts.outcome_unknown)) {
    list.push({ key: `u:${row.id}`, icon: "circle-question-mark", tone: "unknown", title: `${row.workflow_name || row.workflow_id}: did a task do its work?`, detail: "Its agent was lost, and the work must not be repeated blindly.", at: row.updated_at, address: instancePath(row.id) });
  }
  const byWorkflow = new Map();
  for (const id of data.failed) {
    const row = data.items[id];
    if (row) byWorkflow.set(row.workflow_id, [...(byWorkflow.get(row.workflow_id) ?? []), row]);
  }
  for (const [workflowId, rows] of byWorkflow) {
    const [last] = rows;
    const times = rows.length > 1 ? `${rows.length} times` : "once";
    list.push({ key: `f:${workflowId}`, icon: "circle-x", tone: "bad", title: `${last.workflow_name || workflowId} failed ${times}`, detail: last.error_message || last.error_code || "", at: last.completed_at, address: rows.length > 1 ? `/instances?status=failed&workflow_id=${encodeURIComponent(workflowId)}` : instancePath(last.id) });
  }
  for (const alert of data.alerts) {
    list.push({ key: `a:${alert.id}`, icon: "circle-alert", tone: alert.severity === "info" ? "info" : "warn", title: alert.title, detail: alert.description ?? "", at: alert.created_at });
  }
  return list;
}

const Attention = ({ data }) => {
  const list = attention(data);
  if (list.length === 0) return null;
  return html`<section class="card attention" aria-labelledby="attention-title">
    <h2 id="attention-title">Needs attention</h2>
    <ul>
      ${list.slice(0, MAX_ATTENTION).map((entry) => {
        const body = html`<${Icon} name=${entry.icon} size=${18} class=${entry.tone} /><span class="attention-text"><strong>${entry.title}</strong><span class="muted">${entry.detail}</span></span>${entry.at && html`<span class="muted attention-time"><${Time} at=${entry.at} /></span>`}`;
        return html`<li key=${entry.key}>${entry.address ? html`<a ...${to(entry.address)}>${body}</a>` : html`<div>${body}</div>`}</li>`;
      })}
    </ul>
    ${list.length > MAX_ATTENTION && html`<p class="muted card-foot">and ${list.length - MAX_ATTENTION} more</p>`}
  </section>`;
};

/** Unfinished instances that nothing will wake: the one thing that does not mend itself. */
const Orphans = ({ orphans }) => {
  if (!orphans || orphans.count === 0) return null;
  const [verb, whom] = orphans.count === 1 ? ["has", "it"] : ["have", "them"];
  return html`<section class="orphans" role="status" aria-label="Orphaned instances">
    <${Icon} name="triangle-alert" size=${20} />
    <div><p class="orphans-title">${count(orphans.count, "instance")} ${verb} nobody to wake ${whom}</p>
      <ul>${orphans.items.map((one) => html`<li key=${one.instance_id}><a ...${to(instancePath(one.instance_id))}>${one.workflow_id} <code title=${one.instance_id}>…${one.instance_id.slice(-10)}</code></a> <span>${one.reason}${one.since && html` <span class="muted">(<${Time} at=${one.since} />)</span>`}</span></li>`)}</ul>
      ${orphans.count > orphans.items.length && html`<p class="muted">and ${orphans.count - orphans.items.length} more</p>`}
      <p class="muted">A running workflow engine takes instances over by itself; if they stay here, look at its log. <code>amp orphans</code> lists them all.</p></div>
  </section>`;
};

const Active = ({ data }) => html`<section class="card" aria-labelledby="active-title">
  <h2 id="active-title">Active now${data.active_total > 0 && html`<span class="count">${data.active_total}</span>`}</h2>
  ${data.active.length === 0
    ? html`<p class="muted calm">Nothing is running. <a ...${to("/workflows")}>Start a workflow</a></p>`
    : html`<ul class="active-list">${data.active.filter((id) => data.items[id]).map((id) => html`<${ActiveInstance} key=${id} row=${data.items[id]} />`)}</ul>`}
  ${data.active_total > data.active.length && html`<p class="card-foot"><a ...${to("/instances?status=running")}>All ${data.active_total} active instances</a></p>`}
</section>`;

const Recent = ({ data }) => html`<section class="card" aria-labelledby="recent-title">
  <h2 id="recent-title">Recent instances<a class="head-link" ...${to("/instances")}>All instances<${Icon} name="arrow-right" size=${14} /></a></h2>
  <${InstanceTable} rows=${data.recent.map((id) => data.items[id]).filter(Boolean)} caption="The newest instances" />
</section>`;

const Agents = ({ data }) => html`<section class="card" id="agents" aria-labelledby="agents-title">
  <h2 id="agents-title">Agents<span class="count">${agentList(data).length}</span></h2>
  <ul class="agents">
    ${agentList(data).map(
      (agent) => html`<li key=${agent.id}><span class=${`agent-dot ${agent.is_well ? "good" : "warn"}`} aria-hidden="true"></span>
        <span class="agent-text"><strong>${agent.role || agent.name}</strong><code>${agent.id}</code></span>
        <span class="muted agent-note">${agent.is_well ? (agent.capabilities.length > 0 ? count(agent.capabilities.length, "capability").replace("capabilitys", "capabilities") : "") : agent.status}</span></li>`,
    )}
    ${data.missing.map((role) => html`<li key=${role} class="absent"><span class="agent-dot bad" aria-hidden="true"></span><span class="agent-text"><strong>${role}</strong></span><span class="agent-note bad-text">missing</span></li>`)}
  </ul>
</section>`;

const First = () => html`<${Empty} icon="play" title="No instances yet.">
  <p class="muted">Start one of the stored workflows, or run one from the terminal.</p>
  <a class="button primary" ...${to("/workflows/hello-world-workflow?start=1")}>Start hello-world</a>
  <p class="command"><code>${RUN_COMMAND}</code><${Copy} text=${RUN_COMMAND} label="Copy command" /></p>
<//>`;

export const Overview = () => {
  useTitle("");
  const { data, problem } = useTopic("overview");
  return html`<${Shell} trail=${[{ word: "Overview" }]}>
    <h1 class="sr" tabindex="-1">Overview</h1>
    ${problem && html`<${Problem} error=${{ title: "The overview cannot be loaded", ...problem }} />`}
    ${!data
      ? !problem && html`<${Skeleton} rows=${6} />`
      : html`<${Sentence} data=${data} />
          <${Orphans} orphans=${data.orphans} />
          <${Attention} data=${data} />
          ${data.total === 0
            ? html`<div class="columns"><div class="card"><${First} /></div><${Agents} data=${data} /></div>`
            : html`<${Active} data=${data} /><div class="columns"><${Recent} data=${data} /><${Agents} data=${data} /></div>`}`}
  <//>`;
};
