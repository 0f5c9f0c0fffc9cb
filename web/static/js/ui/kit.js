// Small parts that every screen is made of.

import { html, signal, useEffect, useRef, useState } from "../../vendor/ui.js";
import { full, relative } from "../core/time.js";

const SPRITE = new URL("../../vendor/icons.svg", import.meta.url).href;

/** An icon of the sprite. Decorative: the text beside it says the same. */
export const Icon = ({ name, size = 16, class: extra = "" }) =>
  html`<svg class=${`icon ${extra}`} width=${size} height=${size} aria-hidden="true"><use href=${`${SPRITE}#${name}`} /></svg>`;

export const STATES = {
  pending: { icon: "circle", word: "Pending" },
  ready: { icon: "circle-dot", word: "Ready" },
  running: { icon: "loader-circle", word: "Running" },
  retrying: { icon: "rotate-cw", word: "Retrying" },
  outcome_unknown: { icon: "circle-question-mark", word: "Outcome unknown" },
  paused: { icon: "circle-pause", word: "Paused" },
  completed: { icon: "circle-check", word: "Completed" },
  failed: { icon: "circle-x", word: "Failed" },
  skipped: { icon: "skip-forward", word: "Skipped" },
  cancelled: { icon: "octagon-x", word: "Cancelled" },
};

export const stateOf = (status) => STATES[status] ?? { icon: "circle-dashed", word: status };

/** State as icon and word, always both. */
export const State = ({ status, quiet = false }) => {
  const { icon, word } = stateOf(status);
  return html`<span class=${`state state-${status} ${quiet ? "quiet" : ""}`}><${Icon} name=${icon} /><span>${word}</span></span>`;
};

/** State as an icon alone, for dense rows; the word is there for screen readers and on hover. */
export const StateIcon = ({ status, size = 16 }) => {
  const { icon, word } = stateOf(status);
  return html`<span class=${`state-icon state-${status}`} title=${word}><${Icon} name=${icon} size=${size} /><span class="sr">${word}</span></span>`;
};

/** How the tasks of an instance stand, as one bar. */
const BAR_ORDER = ["completed", "skipped", "failed", "cancelled", "outcome_unknown", "running", "retrying", "ready", "pending"];
export const Progress = ({ counts }) => {
  const total = Object.values(counts ?? {}).reduce((sum, count) => sum + count, 0);
  const done = ["completed", "skipped", "failed", "cancelled"].reduce((sum, state) => sum + (counts?.[state] ?? 0), 0);
  const words = BAR_ORDER.filter((state) => counts?.[state]).map((state) => `${counts[state]} ${stateOf(state).word.toLowerCase()}`);
  return html`<div class="progress" title=${words.join(", ")}>
    <div class="progress-bar" role="img" aria-label=${words.join(", ") || "no tasks"}>
      ${BAR_ORDER.filter((state) => counts?.[state]).map(
        (state) => html`<span key=${state} class=${`fill state-${state}`} style=${{ flexGrow: counts[state] }}></span>`,
      )}
    </div>
    <span class="progress-count">${done}/${total}</span>
  </div>`;
};

export const Time = ({ at }) =>
  at ? html`<time datetime=${at} title=${full(at)}>${relative(at)}</time>` : html`<span class="muted">–</span>`;

/** An id: shortened to its end, whole on hover, copied by the button. */
export const Id = ({ value, short = true, link = null }) => {
  const code = html`<code title=${value}>${short && value.length > 16 ? `…${value.slice(-10)}` : value}</code>`;
  return html`<span class="id">${link ? html`<a class="plain" ...${link} aria-label=${`Instance ${value}`}>${code}</a>` : code}<${Copy} text=${value} label="Copy id" /></span>`;
};

export const Copy = ({ text, label = "Copy" }) => {
  const [done, setDone] = useState(false);
  useEffect(() => {
    if (!done) return undefined;
    const timer = setTimeout(() => setDone(false), 1500);
    return () => clearTimeout(timer);
  }, [done]);
  const copy = async (event) => {
    event.preventDefault();
    event.stopPropagation();
    await navigator.clipboard.writeText(typeof text === "function" ? text() : text);
    setDone(true);
  };
  return html`<button type="button" class="icon-button small" onClick=${copy} title=${label} aria-label=${done ? "Copied" : label}>
    <${Icon} name=${done ? "check" : "copy"} size=${14} />
  </button>`;
};

export const Empty = ({ icon = "inbox", title, children }) =>
  html`<div class="empty"><${Icon} name=${icon} size=${28} /><p class="empty-title">${title}</p>${children}</div>`;

/** Grey shapes where content will be; shown only when waiting takes noticeably long, by CSS. */
export const Skeleton = ({ rows = 4 }) =>
  html`<div class="skeleton" role="status" aria-label="Loading">${Array.from({ length: rows }, (_, i) => html`<span key=${i}></span>`)}</div>`;

/** An error as the server said it: title, detail, places, trace id. */
export const Problem = ({ error, onRetry }) => html`<div class="problem" role="alert">
  <${Icon} name="triangle-alert" size=${18} />
  <div class="problem-text">
    <p class="problem-title">${error.title || "That did not work"}</p>
    ${error.detail && html`<p>${error.detail}</p>`}
    ${error.errors?.length > 0 &&
    html`<ul>
      ${error.errors.map(
        (entry, i) => html`<li key=${i}>${entry.line ? html`<span class="place">line ${entry.line}:${entry.column}</span> ` : entry.pointer ? html`<code>${entry.pointer}</code> ` : ""}${entry.detail}${entry.hint ? html`<span class="muted"> – ${entry.hint}</span>` : ""}</li>`,
      )}
    </ul>`}
    ${error.traceId && html`<p class="trace">Trace <code>${error.traceId}</code><${Copy} text=${error.traceId} label="Copy trace id" /></p>`}
  </div>
  ${onRetry && html`<button type="button" class="button" onClick=${onRetry}>Retry</button>`}
</div>`;

/** A modal dialog that closes on Escape and gives the focus back. */
export const Dialog = ({ title, onClose, children, wide = false }) => {
  const ref = useRef(null);
  useEffect(() => {
    const dialog = ref.current;
    const before = document.activeElement;
    dialog.showModal();
    dialog.querySelector("form :is(input, select, textarea), .dialog-foot .button")?.focus();
    return () => {
      dialog.close();
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  const onCancel = (event) => {
    event.preventDefault();
    onClose();
  };
  const onBackdrop = (event) => {
    if (event.target === ref.current) onClose();
  };
  return html`<dialog ref=${ref} class=${wide ? "wide" : ""} aria-labelledby="dialog-title" onCancel=${onCancel} onMouseDown=${onBackdrop}>
    <div class="dialog-body">
      <header class="dialog-head"><h2 id="dialog-title">${title}</h2>
        <button type="button" class="icon-button" onClick=${onClose} aria-label="Close"><${Icon} name="x" /></button></header>
      ${children}
    </div>
  </dialog>`;
};

/** Tabs whose state lives in the address. */
export const Tabs = ({ tabs, current, onSelect, label }) => {
  const onKey = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const index = tabs.findIndex((tab) => tab.id === current);
    const next = tabs[(index + step + tabs.length) % tabs.length];
    onSelect(next.id);
    event.currentTarget.querySelector(`[data-tab="${next.id}"]`)?.focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${onKey}>
    ${tabs.map(
      (tab) => html`<button key=${tab.id} type="button" role="tab" id=${`tab-${tab.id}`} data-tab=${tab.id} aria-selected=${tab.id === current} aria-controls=${tab.id === current ? `panel-${tab.id}` : undefined} tabindex=${tab.id === current ? 0 : -1} onClick=${() => onSelect(tab.id)}>
        ${tab.word}${tab.count === undefined ? "" : html`<span class="tab-count">${tab.count}</span>`}
      </button>`,
    )}
  </div>`;
};

const toasts = signal([]);
let toastId = 0;

/** Say something for a few seconds, at the edge of the screen. */
export function toast(text, kind = "info") {
  const entry = { id: (toastId += 1), text, kind };
  toasts.value = [...toasts.value.slice(-2), entry];
  setTimeout(() => {
    toasts.value = toasts.value.filter((other) => other !== entry);
  }, 5000);
}

export const Toasts = () => html`<div class="toasts" role="status" aria-live="polite">
  ${toasts.value.map((entry) => html`<div key=${entry.id} class=${`toast ${entry.kind}`}><${Icon} name=${entry.kind === "error" ? "circle-alert" : "circle-check"} />${entry.text}</div>`)}
</div>`;
