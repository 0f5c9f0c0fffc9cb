// The frame around every screen: rail (bottom bar on phones), top bar, connection, theme.

import { html } from "../../vendor/ui.js";
import { connection, retryNow } from "../core/live.js";
import { nextTheme, theme } from "../core/prefs.js";
import { route, to } from "../core/router.js";
import { clock, duration, now } from "../core/time.js";
import { Icon, Toasts } from "./kit.js";

const RAIL = [
  { word: "Overview", icon: "layout-dashboard", address: "/", names: ["overview"] },
  { word: "Workflows", icon: "workflow", address: "/workflows", names: ["workflows", "workflow"] },
  { word: "Instances", icon: "layers", address: "/instances", names: ["instances", "instance"] },
];
const BANNER_AFTER_MS = 10_000;

const Rail = () => html`<nav class="rail" aria-label="Main">
  <a class="brand" ...${to("/")} aria-label="AMP Workflows, overview">
    <svg width="26" height="26" viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8" class="brand-back" /><g class="brand-lines"><path d="M9 16h4.5M18 11.2 14.8 14M18 20.8 14.8 18" /></g><g class="brand-dots"><circle cx="8.5" cy="16" r="2.8" /><circle cx="20.5" cy="10" r="2.8" /><circle cx="20.5" cy="22" r="2.8" /></g></svg>
    <span>AMP Workflows</span>
  </a>
  <ul>
    ${RAIL.map(
      (entry) => html`<li key=${entry.address}><a ...${to(entry.address)} aria-current=${entry.names.includes(route.value.name) ? "page" : undefined}><${Icon} name=${entry.icon} size=${18} /><span>${entry.word}</span></a></li>`,
    )}
  </ul>
  <p class="rail-note" title="The dashboard listens on this machine only and has no login."><${Icon} name="monitor" size=${14} /><span>Local, no authentication</span></p>
</nav>`;

const PILL = {
  connecting: { word: "Connecting", tone: "wait" },
  live: { word: "Live", tone: "good" },
  waiting: { word: "Waiting for the mesh", tone: "warn" },
  reconnecting: { word: "Reconnecting", tone: "warn" },
  offline: { word: "Offline", tone: "bad" },
};

const Pill = () => {
  const { state, lastContact } = connection.value;
  const { word, tone } = PILL[state];
  const age = state === "reconnecting" ? `, data from ${duration(now.value - lastContact, { whole: true })} ago` : "";
  return html`<span class=${`pill ${tone}`} role="status"><span class="dot"></span>${word}<span class="pill-age">${age}</span></span>`;
};

const Banner = () => {
  const { state, since } = connection.value;
  if (["live", "connecting"].includes(state) || now.value - since < BANNER_AFTER_MS) return null;
  if (state === "waiting")
    return html`<div class="banner warn" role="status"><${Icon} name="triangle-alert" /><p>The log cannot be read since ${clock(new Date(since).toISOString())}. Is a state manager running? <code>python -m agents.state_manager</code></p></div>`;
  return html`<div class="banner bad" role="status"><${Icon} name="triangle-alert" /><p>The server is not reachable since ${clock(new Date(since).toISOString())}. What you see may be old.</p><button type="button" class="button" onClick=${retryNow}>Retry</button></div>`;
};

const THEME_ICONS = { system: "monitor", light: "sun", dark: "moon" };

const ThemeButton = () => html`<button type="button" class="icon-button" onClick=${nextTheme} title=${`Theme: ${theme.value}`} aria-label=${`Theme: ${theme.value}. Change`}>
  <${Icon} name=${THEME_ICONS[theme.value]} />
</button>`;

const Crumbs = ({ trail }) => html`<nav class="crumbs" aria-label="Breadcrumb"><ol>
  ${trail.map(({ word, address }, i) => html`<li key=${i}>${address ? html`<a ...${to(address)}>${word}</a>` : html`<span aria-current="page">${word}</span>`}</li>`)}
</ol></nav>`;

/** @param {{trail: Array<{word: string, address?: string}>}} props the way from the top to this screen */
export const Shell = ({ trail, children }) => html`
  <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.getElementById("main").focus())}>Skip to content</a>
  <div class="frame">
    <${Rail} />
    <div class="page">
      <header class="topbar"><${Crumbs} trail=${trail} /><div class="topbar-end"><${Pill} /><${ThemeButton} /></div></header>
      <${Banner} />
      <main id="main" tabindex="-1">${children}</main>
    </div>
  </div>
  <${Toasts} />
`;
