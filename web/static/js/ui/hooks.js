// Bridges between the live channel or the REST API and a component's life.

import { useCallback, useEffect, useRef, useState, useSignal, useSignalEffect } from "../../vendor/ui.js";
import { watch } from "../core/live.js";

/** @returns {{data: any, problem: any}} the live state of a topic while the component is there */
export function useTopic(topic, onEvents) {
  const current = useSignal({ data: null, problem: null });
  const callback = useRef(onEvents);
  callback.current = onEvents;
  const held = useSignal(null);
  useEffect(() => {
    if (!topic) return undefined;
    const watched = watch(topic, onEvents ? (frame) => callback.current?.(frame) : null);
    held.value = watched;
    return () => {
      watched.release();
      held.value = null;
      current.value = { data: null, problem: null };
    };
  }, [topic]);
  useSignalEffect(() => {
    if (held.value) current.value = held.value.state.value;
  });
  return current.value;
}

/** @returns {{data: any, error: any, loading: boolean, reload: () => void}} what `load` gives, once for each `key` */
export function useLoad(load, key) {
  const [state, setState] = useState({ key: null, data: null, error: null });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const controller = new AbortController();
    load(controller.signal).then(
      (data) => setState({ key, data, error: null }),
      (error) => {
        if (error.name === "AbortError") return;
        setState((before) => ({ key, data: before.key === key ? before.data : null, error }));
      },
    );
    return () => controller.abort();
  }, [key, turn]);
  const reload = useCallback(() => setTurn((n) => n + 1), []);
  const own = state.key === key ? state : { data: null, error: null };
  return { data: own.data, error: own.error, loading: own.data === null && own.error === null, reload };
}

/** Set the title of the page. */
export function useTitle(title) {
  useEffect(() => {
    document.title = title ? `${title} · AMP Workflows` : "AMP Workflows";
  }, [title]);
}

/** @returns {boolean} whether a media query matches now */
export function useMedia(query) {
  const [matches, setMatches] = useState(() => matchMedia(query).matches);
  useEffect(() => {
    const list = matchMedia(query);
    const changed = () => setMatches(list.matches);
    list.addEventListener("change", changed);
    return () => list.removeEventListener("change", changed);
  }, [query]);
  return matches;
}
