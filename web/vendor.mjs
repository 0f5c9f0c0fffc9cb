// Bundles the libraries of package-lock.json into static/vendor and notes what they are in vendor.json.
// It must never touch our own code, which runs as written, and never fetch anything: `npm ci` has done that.
import { createHash } from "node:crypto";
import { cp, mkdir, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = path.dirname(fileURLToPath(import.meta.url));
const modules = path.join(here, "node_modules");
const target = path.join(here, "static", "vendor");
const staging = `${target}.new-${process.pid}`;

const BUNDLES = {
  "ui.js": `
    export { h, render, Fragment, createRef, Component } from "preact";
    export { useEffect, useLayoutEffect, useRef, useState, useMemo, useCallback, useErrorBoundary } from "preact/hooks";
    export { signal, computed, effect, batch, untracked, useSignal, useComputed, useSignalEffect } from "@preact/signals";
    import { h as element } from "preact";
    import htm from "htm";
    export const html = htm.bind(element);`,
  "dagre.js": `export { graphlib, layout } from "@dagrejs/dagre";`,
};

const ICONS = [
  "activity", "alert-triangle", "arrow-right", "ban", "boxes", "check", "chevron-down", "chevron-left", "chevron-right",
  "circle", "circle-alert", "circle-check", "circle-dashed", "circle-dot", "circle-pause", "circle-question-mark",
  "circle-x", "clock", "code",
  "copy", "corner-down-right", "external-link", "file-code", "git-branch", "globe", "hourglass", "inbox", "info",
  "layers", "layout-dashboard", "list", "loader-circle", "maximize", "minus", "monitor", "moon", "network", "octagon-x",
  "pause", "play", "plus", "refresh-cw", "rotate-cw", "search", "shuffle", "skip-forward", "square", "sun", "tag",
  "terminal", "timer", "triangle-alert", "upload", "workflow", "x", "zap", "file-text", "shield-check", "puzzle",
];

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

async function bundle(name, contents) {
  await build({
    stdin: { contents, resolveDir: here, loader: "js" },
    outfile: path.join(staging, name),
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    legalComments: "none",
    logLevel: "warning",
  });
}

async function sprite() {
  const symbols = [];
  for (const name of ICONS) {
    const file = path.join(modules, "lucide-static", "icons", `${name}.svg`);
    const text = await readFile(file, "utf8");
    const inner = text.slice(text.indexOf(">", text.indexOf("<svg")) + 1, text.lastIndexOf("</svg>"));
    symbols.push(`<symbol id="${name}" viewBox="0 0 24 24">${inner.replace(/\s+/g, " ").trim()}</symbol>`);
  }
  const text = `<svg xmlns="http://www.w3.org/2000/svg">${symbols.join("")}</svg>\n`;
  await writeFile(path.join(staging, "icons.svg"), text);
}

async function licences(names) {
  const folder = path.join(staging, "licences");
  await mkdir(folder, { recursive: true });
  const found = [];
  for (const name of names) {
    const root = path.join(modules, name);
    const about = JSON.parse(await readFile(path.join(root, "package.json"), "utf8"));
    const file = (await readdir(root)).find((entry) => /^licen[cs]e/i.test(entry));
    if (file) await cp(path.join(root, file), path.join(folder, `${name.replace("/", "-")}.txt`));
    found.push({ name, version: about.version, licence: about.license });
  }
  return found;
}

const lock = await readFile(path.join(here, "package-lock.json"));
const about = JSON.parse(await readFile(path.join(here, "package.json"), "utf8"));
await rm(staging, { recursive: true, force: true });
await mkdir(staging, { recursive: true });
await Promise.all(Object.entries(BUNDLES).map(([name, contents]) => bundle(name, contents)));
await sprite();
const bundled = [...Object.keys(about.dependencies), "@dagrejs/graphlib", "@preact/signals-core"];
const libraries = await licences(bundled.sort());
const files = {};
for (const name of [...Object.keys(BUNDLES), "icons.svg"]) {
  files[name] = sha256(await readFile(path.join(staging, name)));
}
const script = await readFile(path.join(here, "vendor.mjs"));
const manifest = { lock: sha256(lock), script: sha256(script), libraries, files };
await writeFile(path.join(staging, "vendor.json"), `${JSON.stringify(manifest, null, 2)}\n`);
await rm(target, { recursive: true, force: true });
await rename(staging, target);
