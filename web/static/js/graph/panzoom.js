// Moving and scaling the graph by wheel, drag, pinch and keys. Holds numbers only; the viewer draws them.

const MIN_SCALE = 0.1;
const MAX_SCALE = 2.5;
const CLICK_SLACK_PX = 4;

/**
 * @param {SVGSVGElement} svg
 * @param {(view: {x: number, y: number, scale: number}) => void} onChange
 */
export function panZoom(svg, onChange) {
  let view = { x: 0, y: 0, scale: 1 };
  const pointers = new Map();
  let moved = 0;

  const set = (next) => {
    view = next;
    onChange(view);
  };
  const zoomAt = (factor, cx, cy) => {
    const scale = Math.min(MAX_SCALE, Math.max(MIN_SCALE, view.scale * factor));
    const ratio = scale / view.scale;
    set({ scale, x: cx - (cx - view.x) * ratio, y: cy - (cy - view.y) * ratio });
  };
  const local = (event) => {
    const box = svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return { distance: Math.hypot(a[0] - b[0], a[1] - b[1]), cx: (a[0] + b[0]) / 2, cy: (a[1] + b[1]) / 2 };
  };

  const onWheel = (event) => {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey || Math.abs(event.deltaY) >= 40) {
      zoomAt(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), ...local(event));
    } else set({ ...view, x: view.x - event.deltaX, y: view.y - event.deltaY });
  };
  const onDown = (event) => {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, local(event));
    moved = 0;
  };
  const onMove = (event) => {
    if (!pointers.has(event.pointerId)) return;
    const before = pointers.size === 2 ? spread() : null;
    const [px, py] = pointers.get(event.pointerId);
    const [x, y] = local(event);
    moved += Math.abs(x - px) + Math.abs(y - py);
    if (moved > CLICK_SLACK_PX && !svg.hasPointerCapture(event.pointerId)) svg.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [x, y]);
    if (pointers.size === 1) set({ ...view, x: view.x + x - px, y: view.y + y - py });
    else if (before) {
      const after = spread();
      zoomAt(after.distance / Math.max(1, before.distance), after.cx, after.cy);
    }
  };
  const onUp = (event) => pointers.delete(event.pointerId);
  const onClick = (event) => {
    if (moved > CLICK_SLACK_PX) event.stopPropagation();
    moved = 0;
  };

  svg.addEventListener("wheel", onWheel, { passive: false });
  svg.addEventListener("pointerdown", onDown);
  svg.addEventListener("pointermove", onMove);
  svg.addEventListener("pointerup", onUp);
  svg.addEventListener("pointercancel", onUp);
  svg.addEventListener("click", onClick, true);

  return {
    set,
    get: () => view,
    zoom: (factor) => zoomAt(factor, svg.clientWidth / 2, svg.clientHeight / 2),
    pan: (dx, dy) => set({ ...view, x: view.x + dx, y: view.y + dy }),
    stop: () => {
      svg.removeEventListener("wheel", onWheel);
      svg.removeEventListener("pointerdown", onDown);
      svg.removeEventListener("pointermove", onMove);
      svg.removeEventListener("pointerup", onUp);
      svg.removeEventListener("pointercancel", onUp);
      svg.removeEventListener("click", onClick, true);
    },
  };
}
