// A form made from a JSON Schema: what it cannot show as a field it shows as JSON. The server has the last word; its
// findings are put under the field they belong to.

import { html } from "../../vendor/ui.js";
import { Icon } from "./kit.js";

const typeOf = (schema) => (Array.isArray(schema.type) ? schema.type.find((type) => type !== "null") : schema.type) ?? "";

const isObject = (schema) => typeOf(schema) === "object" && schema.properties && Object.keys(schema.properties).length > 0;

const isSecret = (schema) => schema.writeOnly === true || schema.format === "password";

/** The values a form starts with: the defaults, as text where a field edits text. */
export function initialValues(schema) {
  const values = {};
  for (const [name, property] of Object.entries(schema?.properties ?? {})) {
    if (isObject(property)) values[name] = initialValues({ ...property, properties: property.properties });
    else values[name] = asField(property, property.default);
  }
  return values;
}

/** Field values for data, such as what a person typed on the JSON tab. */
export function fieldsFrom(schema, data) {
  const values = {};
  for (const [name, property] of Object.entries(schema?.properties ?? {})) {
    const given = data?.[name];
    values[name] = isObject(property) ? fieldsFrom(property, given ?? {}) : asField(property, given);
  }
  return values;
}

function asField(schema, value) {
  if (value === undefined || value === null) return typeOf(schema) === "boolean" ? null : "";
  if (schema.enum || ["boolean", "string"].includes(typeOf(schema))) return value;
  return typeof value === "object" || typeOf(schema) === "" ? JSON.stringify(value, null, 2) : String(value);
}

/**
 * The inputs that field values mean. Empty fields are left out, so that the server's defaults apply.
 * @returns {{inputs: object, errors: Array<{pointer: string, detail: string}>}}
 */
export function readFields(schema, values, at = "") {
  const inputs = {};
  const errors = [];
  for (const [name, property] of Object.entries(schema?.properties ?? {})) {
    const value = values[name];
    const pointer = `${at}/${name}`;
    if (isObject(property)) {
      const below = readFields(property, value ?? {}, pointer);
      errors.push(...below.errors);
      if (Object.keys(below.inputs).length > 0) inputs[name] = below.inputs;
    } else if (value !== "" && value !== null && value !== undefined) {
      const read = readField(property, value);
      if (read.error) errors.push({ pointer, detail: read.error });
      else inputs[name] = read.value;
    }
  }
  return { inputs, errors };
}

function readField(schema, value) {
  const type = typeOf(schema);
  if (schema.enum || type === "string" || type === "boolean") return { value };
  if (type === "number" || type === "integer") {
    const number = Number(value);
    return Number.isFinite(number) ? { value: number } : { error: "This must be a number." };
  }
  try {
    return { value: JSON.parse(value) };
  } catch (error) {
    if (type === "") return { value };
    return { error: `This must be JSON: ${error.message}` };
  }
}

const fieldId = (pointer) => `field${pointer.replaceAll("/", "-")}`;

const Control = ({ schema, value, id, describedBy, invalid, required, onChange }) => {
  const common = { id, "aria-describedby": describedBy, "aria-invalid": invalid || undefined, required };
  const type = typeOf(schema);
  if (schema.enum)
    return html`<select ...${common} value=${schema.enum.indexOf(value)} onChange=${(e) => onChange(e.target.value === "-1" ? "" : schema.enum[Number(e.target.value)])}>
      <option value="-1">–</option>
      ${schema.enum.map((option, i) => html`<option key=${i} value=${i}>${typeof option === "string" ? option : JSON.stringify(option)}</option>`)}
    </select>`;
  if (type === "boolean")
    return html`<select ...${common} value=${value === null ? "" : String(value)} onChange=${(e) => onChange(e.target.value === "" ? null : e.target.value === "true")}>
      <option value="">–</option><option value="true">true</option><option value="false">false</option>
    </select>`;
  if (type === "string" && (schema.maxLength ?? 0) <= 500 && schema.format !== "textarea")
    return html`<input ...${common} type=${isSecret(schema) ? "password" : "text"} autocomplete="off" spellcheck=${false} value=${value} placeholder=${schema.format && !isSecret(schema) ? schema.format : ""} onInput=${(e) => onChange(e.target.value)} />`;
  if (type === "number" || type === "integer")
    return html`<input ...${common} type="text" inputmode=${type === "integer" ? "numeric" : "decimal"} autocomplete="off" value=${value} onInput=${(e) => onChange(e.target.value)} />`;
  return html`<textarea ...${common} class="code" rows="4" spellcheck=${false} value=${value} placeholder=${type === "array" ? "[ ]" : type === "object" ? "{ }" : ""} onInput=${(e) => onChange(e.target.value)}></textarea>`;
};

const kind = (schema) => {
  const type = schema.enum ? "one of" : typeOf(schema);
  const bounds = [];
  if (schema.minimum !== undefined) bounds.push(`from ${schema.minimum}`);
  if (schema.maximum !== undefined) bounds.push(`to ${schema.maximum}`);
  return [type, ...bounds].filter(Boolean).join(" ");
};

/** The fields of a schema. `errors` are {pointer, detail}. */
export const SchemaForm = ({ schema, values, errors, onChange, at = "" }) => {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, property]) => {
    const pointer = `${at}/${name}`;
    const set = (value) => onChange({ ...values, [name]: value });
    if (isObject(property))
      return html`<fieldset key=${name}><legend>${property.title ?? name}</legend>
        ${property.description && html`<p class="hint">${property.description}</p>`}
        <${SchemaForm} schema=${property} values=${values[name] ?? {}} errors=${errors} onChange=${set} at=${pointer} />
      </fieldset>`;
    const id = fieldId(pointer);
    const own = errors.filter((error) => error.pointer === pointer || error.pointer.startsWith(`${pointer}/`));
    const describedBy = [property.description && `${id}-hint`, own.length > 0 && `${id}-error`].filter(Boolean).join(" ");
    return html`<div key=${name} class=${`field ${own.length > 0 ? "invalid" : ""}`}>
      <label for=${id}>${property.title ?? name}${required.has(name) && html`<span class="required" title="required"> *</span>`}<span class="kind">${kind(property)}</span></label>
      <${Control} schema=${property} value=${values[name]} id=${id} describedBy=${describedBy || undefined} invalid=${own.length > 0} required=${required.has(name)} onChange=${set} />
      ${property.description && html`<p class="hint" id=${`${id}-hint`}>${property.description}</p>`}
      ${own.length > 0 && html`<p class="field-error" id=${`${id}-error`}><${Icon} name="circle-alert" size=${14} />${own.map((error) => error.detail).join(" ")}</p>`}
    </div>`;
  });
};
