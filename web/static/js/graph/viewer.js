// A graph of tasks as SVG: layered, with states. Positions come from the layout once; state changes only recolour.

import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../../vendor/ui.js";
import { between, duration } from "../core/time.js";
import { Icon, stateOf } from "../ui/kit.js";
import { NODE_HEIGHT, NODE_WIDTH, layoutGraph } from "./layout.js";
import { panZoom } from "./panzoom.js";

const SPRITE = new URL("../../vendor/icons.svg", import.meta.url).href;
const MIN_FIT = 0.55;
const PAN_STEP = 60;
const DOWN_BONUS = 1.1;
const TEXT_WIDTH = NODE_WIDTH - 43 - 12;
const NAME_FONT = "600 13px";
const NOTE_FONT = "400 11.5px";

const TYPE_ICONS = {
  api_call: "globe",
  data_transform: "shuffle",
  validation: "shield-check",
  subprocess: "terminal",
  file_operation: "file-text",
  conditional: "git-branch",
  decision: "git-branch",
  custom: "puzzle",
  parallel: "layers",
};

const ruler = document.createElement("canvas").getContext("2d");
const fitted = new Map();
const MAX_FITTED = 5000;

/** The text, cut so that it fits into a node. */
function fit(text, font) {
  const key = font + text;
  const known = fitted.get(key);
  if (known !== undefined) return known;
  ruler.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
  let shown = text;
  while (shown.length > 1 && ruler.measureText(shown).width > TEXT_WIDTH) {
    const ratio = TEXT_WIDTH / ruler.measureText(shown).width;
    shown = `${shown.slice(0, Math.min(shown.length - 2, Math.floor(shown.length * ratio))).trimEnd()}…`;
  }
  if (fitted.size > MAX_FITTED) fitted.clear();
  fitted.set(key, shown);
  return shown;
}

/** A rounded path through the layout's points. */
function curve(points) {
  const [first, ...rest] = points;
  let path = `M${first[0]},${first[1]}`;
  for (let i = 0; i < rest.length - 1; i += 1) {
    const [x, y] = rest[i];
    const [nx, ny] = rest[i + 1];
    path += i === rest.length - 2 ? `Q${x},${y} ${nx},${ny}` : `Q${x},${y} ${(x + nx) / 2},${(y + ny) / 2}`;
  }
  if (rest.length === 1) path += `L${rest[0][0]},${rest[0][1]}`;
  return path;
}

function note(task) {
  if (!task.status) return task.type ?? "";
  const count = task.attempt_count > 1 ? `attempt ${task.attempt_count} · ` : "";
  if (task.status === "running") return `${count}${between(task.attempts?.at(-1)?.started_at ?? task.started_at)}`;
  if (task.status === "outcome_unknown") return `${count}outcome unknown`;
  if (task.status === "retrying") return `${count}retry ${task.due_at ? "scheduled" : "follows"}`;
  if (task.status === "skipped") return (task.skip?.reason ?? "").replaceAll("_", " ") || "skipped";
  if (task.status === "failed") return task.last_error?.code ?? "failed";
  if (task.status === "completed" && task.started_at)
    return `${count}${duration(Date.parse(task.completed_at) - Date.parse(task.started_at))}`;
  return task.type ?? "";
}

function edgeKind(from, to) {
  if (!from.status) return "";
  if (to.status === "skipped" || from.status === "skipped") return "not-taken";
  if (from.status === "failed") return "broken";
  if (from.status === "completed") return ["running", "retrying", "outcome_unknown"].includes(to.status) ? "active" : to.status === "pending" ? "" : "taken";
  return "";
}

const Edge = ({ edge, tasks }) => {
  const from = tasks[edge.from];
  const to = tasks[edge.to];
  const [x, y] = edge.points.at(-1);
  const answer = to.condition_result;
  return html`<g class=${`edge ${edgeKind(from, to)} ${to.condition ? "conditional" : ""}`}>
    <path d=${curve(edge.points)} marker-end="url(#arrow)" />
    ${answer && html`<text x=${x - 10} y=${y - 9} text-anchor="end">${String(answer.result)}</text>`}
  </g>`;
};

const Node = ({ id, task, at, selected, onSelect }) => {
  const { icon, word } = stateOf(task.status ?? "");
  const status = task.status ?? "plain";
  const text = note(task);
  const name = task.name || id;
  const label = task.status ? `${name}, ${word}, ${text}` : `${name}, ${task.type ?? "task"}`;
  const onKey = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    onSelect(id);
  };
  return html`<g class=${`node state-${status} ${selected ? "selected" : ""}`} transform=${`translate(${at.x - NODE_WIDTH / 2},${at.y - NODE_HEIGHT / 2})`} role="button" tabindex="0" aria-label=${label} aria-pressed=${selected} data-task=${id} onClick=${() => onSelect(id)} onKeyDown=${onKey}>
    <title>${name}</title>
    <rect class="node-box" width=${NODE_WIDTH} height=${NODE_HEIGHT} rx="10" />
    <g class="node-icon"><svg x="13" y="18" width="20" height="20"><use href=${`${SPRITE}#${task.status ? icon : (TYPE_ICONS[task.type] ?? "circle-dot")}`} /></svg></g>
    <text class="node-name" x="43" y="24">${fit(name, NAME_FONT)}</text>
    <text class="node-note" x="43" y="42">${fit(text, NOTE_FONT)}</text>
  </g>`;
};

/**
 * Drawn from left to right, or from top to bottom where that is clearly larger on this screen; chosen once.
 * @param {{layoutKey: string, tasks: Object<string, object>, selected: string, onSelect: (id: string) => void}} props
 *   `layoutKey` names the definition's version.
 */
export const Graph = ({ layoutKey, tasks, selected, onSelect }) => {
  const ids = Object.keys(tasks);
  const edges = useMemo(
    () => ids.flatMap((id) => tasks[id].depends_on.filter((from) => Object.hasOwn(tasks, from)).map((from) => [from, id])),
    [layoutKey],
  );
  const [placed, setPlaced] = useState(null);
  const [problem, setProblem] = useState("");
  const svg = useRef(null);
  const content = useRef(null);
  const control = useRef(null);

  useEffect(() => {
    let current = true;
    Promise.all(["LR", "TB"].map((direction) => layoutGraph(layoutKey, ids, edges, direction))).then(
      ([across, down]) => current && setPlaced({ ...(scaleOf(down) > scaleOf(across) * DOWN_BONUS ? down : across), key: layoutKey }),
      (error) => current && setProblem(error.message),
    );
    return () => {
      current = false;
    };
  }, [layoutKey]);

  useEffect(() => {
    control.current = panZoom(svg.current, ({ x, y, scale }) =>
      content.current.setAttribute("transform", `translate(${x},${y}) scale(${scale})`),
    );
    return () => control.current.stop();
  }, []);

  const scaleOf = ({ width, height }) => Math.min(1, svg.current.clientWidth / width, svg.current.clientHeight / height);
  const fitView = (smallest) => {
    const { clientWidth, clientHeight } = svg.current;
    if (!placed || clientWidth === 0) return;
    const scale = Math.max(smallest, scaleOf(placed));
    const x = placed.width * scale <= clientWidth ? (clientWidth - placed.width * scale) / 2 : 0;
    const y = placed.height * scale <= clientHeight ? (clientHeight - placed.height * scale) / 2 : 0;
    control.current.set({ x, y, scale });
  };
  useLayoutEffect(() => fitView(MIN_FIT), [placed?.key]);

  const onKey = (event) => {
    const step = { ArrowLeft: [PAN_STEP, 0], ArrowRight: [-PAN_STEP, 0], ArrowUp: [0, PAN_STEP], ArrowDown: [0, -PAN_STEP] }[event.key];
    if (step) control.current.pan(...step);
    else if (event.key === "+" || event.key === "=") control.current.zoom(1.25);
    else if (event.key === "-") control.current.zoom(0.8);
    else if (event.key === "0") fitView(0.1);
    else return;
    event.preventDefault();
  };
  const onFocus = (event) => {
    const node = event.target.closest(".node");
    if (!node?.matches(":focus-visible")) return;
    const box = node.getBoundingClientRect();
    const frame = svg.current.getBoundingClientRect();
    const dx = Math.max(0, frame.left + 12 - box.left) - Math.max(0, box.right - frame.right + 12);
    const dy = Math.max(0, frame.top + 12 - box.top) - Math.max(0, box.bottom - frame.bottom + 12);
    if (dx || dy) control.current.pan(dx, dy);
  };

  return html`<div class="graph" onKeyDown=${onKey} onFocusCapture=${onFocus}>
    <svg ref=${svg} role="group" aria-label="Graph of tasks. The task list shows the same." tabindex="0">
      <defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0.8 L7,4 L0,7.2 z" class="arrow-head" /></marker></defs>
      <g ref=${content}>
        ${placed && placed.edges.map((edge) => html`<${Edge} key=${`${edge.from}>${edge.to}`} edge=${edge} tasks=${tasks} />`)}
        ${placed && ids.map((id) => placed.nodes[id] && html`<${Node} key=${id} id=${id} task=${tasks[id]} at=${placed.nodes[id]} selected=${id === selected} onSelect=${onSelect} />`)}
      </g>
    </svg>
    ${problem && html`<p class="graph-problem" role="alert">${problem}</p>`}
    <div class="graph-tools" role="group" aria-label="Zoom">
      <button type="button" class="icon-button" onClick=${() => control.current.zoom(1.25)} aria-label="Zoom in" title="Zoom in (+)"><${Icon} name="plus" /></button>
      <button type="button" class="icon-button" onClick=${() => control.current.zoom(0.8)} aria-label="Zoom out" title="Zoom out (-)"><${Icon} name="minus" /></button>
      <button type="button" class="icon-button" onClick=${() => fitView(0.1)} aria-label="Fit" title="Fit (0)"><${Icon} name="maximize" /></button>
    </div>
  </div>`;
};
