// Addresses: which screen a path means, and links that change it without loading the page again.

import { signal } from "../../vendor/ui.js";

const ROUTES = [
  ["overview", /^\/$/],
  ["workflows", /^\/workflows$/],
  ["workflow", /^\/workflows\/([^/]+)$/],
  ["instances", /^\/instances$/],
  ["instance", /^\/instances\/([^/]+)$/],
];

const basePath = () => new URL(document.baseURI).pathname.replace(/\/$/, "");

function read() {
  const path = location.pathname.slice(basePath().length) || "/";
  const query = Object.fromEntries(new URLSearchParams(location.search));
  for (const [name, pattern] of ROUTES) {
    const match = pattern.exec(path);
    if (match) return { name, path, query, id: match[1] === undefined ? "" : decodeURIComponent(match[1]) };
  }
  return { name: "missing", path, query, id: "" };
}

/** Where the person is: {name, path, query, id}. */
export const route = signal(read());

addEventListener("popstate", () => {
  route.value = read();
});

/** Go to an address of ours, such as `/instances/ins_1?tab=events`. */
export function navigate(address, { replace = false } = {}) {
  const target = basePath() + address;
  if (target === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", target);
  const before = route.value;
  route.value = read();
  if (route.value.path !== before.path) {
    scrollTo(0, 0);
    requestAnimationFrame(() => document.querySelector("h1")?.focus({ preventScroll: true }));
  }
}

/** Change the query of the present address; a null value removes a name. */
export function setQuery(changes, options) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  navigate(route.value.path + (text ? `?${text}` : ""), options);
}

/** Properties of a link to one of our addresses. */
export const to = (address) => ({
  href: basePath() + address,
  onClick: (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    navigate(address);
  },
});

export const instancePath = (id) => `/instances/${encodeURIComponent(id)}`;
export const workflowPath = (id) => `/workflows/${encodeURIComponent(id)}`;
