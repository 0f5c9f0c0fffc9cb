// Computes where tasks and edges of a graph go, beside the page. Once for each definition and direction.

import { graphlib, layout } from "../../vendor/dagre.js";

onmessage = ({ data: { id, nodes, edges, direction, width, height } }) => {
  const graph = new graphlib.Graph();
  graph.setGraph({ rankdir: direction, ranker: "tight-tree", nodesep: 20, ranksep: direction === "LR" ? 48 : 36, marginx: 16, marginy: 16 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const node of nodes) graph.setNode(node, { width, height });
  for (const [from, to] of edges) graph.setEdge(from, to);
  layout(graph);
  const { width: wide, height: high } = graph.graph();
  postMessage({
    id,
    width: wide || 0,
    height: high || 0,
    nodes: Object.fromEntries(nodes.map((node) => [node, { x: graph.node(node).x, y: graph.node(node).y }])),
    edges: edges.map(([from, to]) => ({ from, to, points: graph.edge(from, to).points.map(({ x, y }) => [x, y]) })),
  });
};
