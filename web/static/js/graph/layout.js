// Asks the worker for layouts and remembers them: a status change never moves anything.

export const NODE_WIDTH = 204;
export const NODE_HEIGHT = 56;
const MAX_REMEMBERED = 20;

let worker = null;
let nextId = 1;
const waiting = new Map();
const remembered = new Map();

function theWorker() {
  if (worker) return worker;
  worker = new Worker(new URL("./layout.worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => {
    waiting.get(data.id)?.resolve(data);
    waiting.delete(data.id);
  };
  worker.onerror = (event) => {
    for (const { reject } of waiting.values()) reject(new Error(`the graph could not be laid out: ${event.message}`));
    waiting.clear();
    worker = null;
  };
  return worker;
}

/**
 * @param {string} key the same key means the same graph
 * @param {"LR"|"TB"} direction
 * @returns {Promise<{width: number, height: number, nodes: object, edges: Array}>}
 */
export function layoutGraph(key, nodes, edges, direction) {
  const name = `${direction}:${key}`;
  if (!remembered.has(name)) {
    const id = nextId++;
    const made = new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
    remembered.set(name, made);
    made.catch(() => remembered.delete(name));
    if (remembered.size > MAX_REMEMBERED) remembered.delete(remembered.keys().next().value);
    theWorker().postMessage({ id, nodes, edges, direction, width: NODE_WIDTH, height: NODE_HEIGHT });
  }
  return remembered.get(name);
}
