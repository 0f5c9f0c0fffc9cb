// JSON values as a tree that stays fast and readable; values the server cut say so and can be fetched whole.

import { html, useState } from "../../vendor/ui.js";
import { Copy, Icon } from "./kit.js";

const OPEN_DEPTH = 2;
const PAGE = 100;
const LONG_TEXT = 300;

const isCut = (value) => value !== null && typeof value === "object" && "$truncated" in value;

const size = (bytes) => (bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} kB` : `${(bytes / 1048576).toFixed(1)} MB`);

/** @returns {boolean} whether any part of a value was cut */
export const hasCut = (value) =>
  isCut(value) || (value !== null && typeof value === "object" && Object.values(value).some(hasCut));

const Cut = ({ value }) => html`<span class="json-cut"><code>${value.$truncated.preview}…</code>
  <span class="muted">${size(value.$truncated.bytes)}, beginning only</span></span>`;

const Text = ({ text }) => {
  const [whole, setWhole] = useState(text.length <= LONG_TEXT);
  return html`<span class="json-string">${JSON.stringify(whole ? text : text.slice(0, LONG_TEXT))}</span>${!whole &&
  html` <button type="button" class="link" onClick=${() => setWhole(true)}>show ${text.length - LONG_TEXT} more characters</button>`}`;
};

const Scalar = ({ value }) => {
  if (typeof value === "string") return html`<${Text} text=${value} />`;
  const kind = value === null ? "null" : typeof value;
  return html`<span class=${`json-${kind}`}>${String(value)}</span>`;
};

const Branch = ({ name, value, depth }) => {
  const list = Array.isArray(value);
  const entries = Object.entries(value);
  const [open, setOpen] = useState(depth < OPEN_DEPTH && entries.length <= PAGE);
  const [shown, setShown] = useState(PAGE);
  if (entries.length === 0) return html`<div class="json-line">${name}<span class="muted">${list ? "[ ]" : "{ }"}</span></div>`;
  const summary = list ? `${entries.length} ${entries.length === 1 ? "item" : "items"}` : `${entries.length} ${entries.length === 1 ? "field" : "fields"}`;
  return html`<div>
    <button type="button" class="json-line json-toggle" aria-expanded=${open} onClick=${() => setOpen(!open)}>
      <${Icon} name=${open ? "chevron-down" : "chevron-right"} size=${12} />${name}<span class="muted">${summary}</span>
    </button>
    ${open &&
    html`<div class="json-children">
      ${entries.slice(0, shown).map(([key, item]) => html`<${Node} key=${key} name=${key} value=${item} depth=${depth + 1} />`)}
      ${entries.length > shown && html`<button type="button" class="link" onClick=${() => setShown(shown + PAGE)}>show ${Math.min(PAGE, entries.length - shown)} more of ${entries.length}</button>`}
    </div>`}
  </div>`;
};

const Node = ({ name, value, depth }) => {
  const label = name === undefined ? "" : html`<span class="json-key">${name}</span>`;
  if (isCut(value)) return html`<div class="json-line">${label}<${Cut} value=${value} /></div>`;
  if (value !== null && typeof value === "object") return html`<${Branch} name=${label} value=${value} depth=${depth} />`;
  return html`<div class="json-line">${label}<${Scalar} value=${value} /></div>`;
};

/** A value with a heading and a copy button. `nothing` is said when there is no value, `heading` is h2 or h3. */
export const Json = ({ title, value, nothing = "Nothing", heading = "h3" }) => {
  const empty = value === null || value === undefined || (typeof value === "object" && Object.keys(value).length === 0);
  const plain = !empty && typeof value === "object" && !isCut(value) && !Array.isArray(value);
  return html`<section class="json">
    ${title && html`<header class="json-head"><${heading}>${title}<//>${!empty && html`<${Copy} text=${() => JSON.stringify(value, null, 2)} label=${`Copy ${title}`} />`}</header>`}
    ${empty
      ? html`<p class="muted">${nothing}</p>`
      : html`<div class="json-tree">${plain ? Object.entries(value).map(([key, item]) => html`<${Node} key=${key} name=${key} value=${item} depth=${1} />`) : html`<${Node} value=${value} depth=${0} />`}</div>`}
  </section>`;
};
