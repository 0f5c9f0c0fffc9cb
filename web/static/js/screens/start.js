// The dialog that starts an instance: a form made from the workflow's input schema, and the same as JSON.

import { html, useState } from "../../vendor/ui.js";
import { post } from "../core/api.js";
import { SchemaForm, fieldsFrom, initialValues, readFields } from "../ui/form.js";
import { Copy, Dialog, Icon, Problem, Tabs, toast } from "../ui/kit.js";

/** Pointers of the server start at the inputs or at the body. */
const ownPointer = (error) => ({ ...error, pointer: error.pointer.replace(/^\/inputs(?=\/|$)/, "") });

const pretty = (value) => JSON.stringify(value, null, 2);

function command(workflow, inputs) {
  const body = JSON.stringify({ inputs }).replaceAll("'", "'\\''");
  const address = new URL(`api/workflows/${encodeURIComponent(workflow.id)}/start`, document.baseURI).href;
  return `curl -X POST ${address} -H 'Content-Type: application/json' -d '${body}'`;
}

export const StartDialog = ({ workflow, onClose, onStarted }) => {
  const schema = workflow.input_schema ?? {};
  const hasFields = Object.keys(schema.properties ?? {}).length > 0;
  const [tab, setTab] = useState(hasFields ? "form" : "json");
  const [values, setValues] = useState(() => initialValues(schema));
  const [text, setText] = useState(() => pretty(readFields(schema, initialValues(schema)).inputs));
  const [errors, setErrors] = useState([]);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);

  const read = () => {
    if (tab === "form") return readFields(schema, values);
    try {
      const inputs = JSON.parse(text || "{}");
      const isObject = inputs !== null && typeof inputs === "object" && !Array.isArray(inputs);
      return isObject ? { inputs, errors: [] } : { inputs: {}, errors: [{ pointer: "", detail: "The inputs must be an object: { … }" }] };
    } catch (error) {
      return { inputs: {}, errors: [{ pointer: "", detail: error.message }] };
    }
  };
  const show = (next) => {
    const { inputs, errors: found } = read();
    if (next === tab) return;
    if (found.length > 0) {
      setErrors(found);
      return;
    }
    if (next === "json") setText(pretty(inputs));
    else setValues(fieldsFrom(schema, inputs));
    setErrors([]);
    setTab(next);
  };
  const start = async (event) => {
    event?.preventDefault();
    if (busy) return;
    const { inputs, errors: found } = read();
    setErrors(found);
    setProblem(null);
    if (found.length > 0) return;
    setBusy(true);
    try {
      const made = await post(`api/workflows/${encodeURIComponent(workflow.id)}/start`, { inputs });
      toast(`${workflow.name} started`);
      onStarted(made.instance_id);
    } catch (error) {
      const placed = error.errors.map(ownPointer);
      const known = placed.filter((entry) => tab === "form" && Object.hasOwn(schema.properties ?? {}, entry.pointer.split("/")[1] ?? ""));
      setErrors(placed);
      setProblem(known.length === placed.length && placed.length > 0 ? { title: error.title } : { ...error, title: error.title, detail: error.detail, errors: placed.filter((entry) => !known.includes(entry)) });
      setBusy(false);
    }
  };
  const onKey = (event) => {
    if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) start(event);
  };
  const extra = tab === "json" ? errors : errors.filter((entry) => entry.pointer === "");

  return html`<${Dialog} title=${`Start ${workflow.name}`} onClose=${onClose} wide>
    ${workflow.description && html`<p class="muted">${workflow.description}</p>`}
    ${hasFields && html`<${Tabs} label="How to give the inputs" tabs=${[{ id: "form", word: "Form" }, { id: "json", word: "JSON" }]} current=${tab} onSelect=${show} />`}
    <form novalidate onSubmit=${start} onKeyDown=${onKey}>
      <div class="fields" id=${`panel-${tab}`} role=${hasFields ? "tabpanel" : undefined} aria-labelledby=${hasFields ? `tab-${tab}` : undefined}>${tab === "form"
        ? html`<${SchemaForm} schema=${schema} values=${values} errors=${errors} onChange=${setValues} />`
        : html`<div class=${`field ${extra.length > 0 ? "invalid" : ""}`}><label for="inputs-json">Inputs<span class="kind">JSON object</span></label>
            <textarea id="inputs-json" class="code" rows="10" spellcheck=${false} value=${text} onInput=${(e) => setText(e.target.value)} aria-describedby=${extra.length > 0 ? "inputs-error" : undefined}></textarea></div>`}</div>
      ${extra.length > 0 && html`<p class="field-error" id="inputs-error"><${Icon} name="circle-alert" size=${14} />${extra.map((entry) => `${entry.pointer ? `${entry.pointer}: ` : ""}${entry.detail}`).join(" · ")}</p>`}
      ${problem && html`<${Problem} error=${problem} />`}
      <footer class="dialog-foot">
        <span class="as-curl"><${Copy} text=${() => command(workflow, read().inputs)} label="Copy as curl" /><span class="muted">curl</span></span>
        <button type="button" class="button" onClick=${onClose}>Cancel</button>
        <button type="submit" class="button primary" disabled=${busy} title="Ctrl+Enter"><${Icon} name="play" />${busy ? "Starting…" : "Start"}</button>
      </footer>
    </form>
  <//>`;
};
