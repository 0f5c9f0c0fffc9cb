// The live channel: one WebSocket for the page, topics that resume by sequence, changes applied once a frame.
// Everything on screen that changes by itself comes through here; nothing polls.

import { batch, signal } from "../../vendor/ui.js";
import { fold } from "./fold.js";

const PROTOCOL = "amp.ui.v1";
const STALE_MS = 30_000;
const BACKOFF_MS = [300, 10_000];
const RETRY_TOPIC_MS = 3000;

/** connecting, live, waiting (connected, but the log cannot be read), reconnecting, offline */
export const connection = signal({ state: "connecting", since: Date.now(), lastContact: Date.now() });

let socket = null;
let failures = 0;
let nextId = 1;
let lastContact = Date.now();
let reconnectTimer = 0;
const byId = new Map();
const byTopic = new Map();

function setConnection(state) {
  const before = connection.value;
  if (before.state !== state) connection.value = { state, since: Date.now(), lastContact };
}

function connect() {
  clearTimeout(reconnectTimer);
  const address = new URL("api/ws", document.baseURI);
  address.protocol = address.protocol.replace("http", "ws");
  const own = new WebSocket(address, PROTOCOL);
  socket = own;
  own.addEventListener("open", () => {
    failures = 0;
    lastContact = Date.now();
    setConnection("live");
    for (const watch of byId.values()) ask(watch);
  });
  own.addEventListener("message", (message) => {
    lastContact = Date.now();
    take(JSON.parse(message.data));
  });
  own.addEventListener("close", () => {
    if (socket !== own) return;
    socket = null;
    failures += 1;
    setConnection(failures > 3 ? "offline" : "reconnecting");
    const [first, longest] = BACKOFF_MS;
    const wait = Math.min(longest, first * 2 ** Math.min(failures - 1, 8)) * (0.5 + Math.random() / 2);
    reconnectTimer = setTimeout(connect, wait);
  });
}

/** Try again now, because a person asked for it. */
export function retryNow() {
  if (socket === null) connect();
}

setInterval(() => {
  if (socket?.readyState === WebSocket.OPEN && Date.now() - lastContact > STALE_MS) socket.close();
}, 5000);
addEventListener("online", retryNow);

function send(frame) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(frame));
}

function ask(watch) {
  send({ op: "sub", id: watch.id, topic: watch.topic, after: watch.state.peek().data?.seq ?? null });
}

function take(frame) {
  if (frame.op === "ping") send({ op: "pong", t: frame.t });
  else if (frame.op === "status") setConnection(frame.source === "ok" ? "live" : "waiting");
  else {
    const watch = byId.get(frame.id);
    if (watch) {
      watch.inbox.push(frame);
      scheduleApply();
    }
  }
}

let applyScheduled = false;
function scheduleApply() {
  if (applyScheduled) return;
  applyScheduled = true;
  const run = () => {
    if (!applyScheduled) return;
    applyScheduled = false;
    batch(() => byId.forEach(apply));
  };
  if (document.hidden) setTimeout(run, 250);
  else requestAnimationFrame(run);
}

function apply(watch) {
  const frames = watch.inbox;
  if (frames.length === 0) return;
  watch.inbox = [];
  let { data, problem } = watch.state.peek();
  for (const frame of frames) {
    if (frame.op === "error") {
      problem = { status: frame.status, code: frame.code, detail: frame.detail };
      if (frame.status >= 500) setTimeout(() => byId.has(watch.id) && ask(watch), RETRY_TOPIC_MS);
    } else if (frame.op === "resync") ask(watch);
    else {
      data = watch.reduce(data, frame);
      problem = null;
      watch.onEvents?.(frame);
    }
  }
  watch.state.value = { data, problem };
}

/** A list's document: {items, ...}. Items that did not change keep their identity. */
function reduceList(data, frame) {
  if (frame.op === "snapshot" || data === null) return { ...frame.data };
  const items = { ...data.items };
  for (const [key, value] of Object.entries(frame.data.items ?? {})) {
    if (value === null) delete items[key];
    else items[key] = value;
  }
  return { ...data, ...frame.data, items };
}

function reduceInstance(data, frame) {
  if (frame.op === "snapshot") return frame.data;
  return data === null ? null : fold(data, frame.events);
}

/**
 * Watch a topic. The same topic is subscribed once, however many parts of the page look at it.
 * @returns {{state: import("../../vendor/ui.js").Signal, release: () => void}} state.value is {data, problem}
 */
export function watch(topic, onEvents = null) {
  let found = byTopic.get(topic);
  if (!found) {
    const reduce = topic.startsWith("instance:") ? reduceInstance : reduceList;
    found = { id: nextId++, topic, reduce, inbox: [], users: 0, onEvents: null, state: signal({ data: null, problem: null }) };
    byTopic.set(topic, found);
    byId.set(found.id, found);
    ask(found);
  }
  found.users += 1;
  if (onEvents) found.onEvents = onEvents;
  let released = false;
  const release = () => {
    if (released) return;
    released = true;
    found.users -= 1;
    if (found.users > 0) return;
    byTopic.delete(topic);
    byId.delete(found.id);
    send({ op: "unsub", id: found.id });
  };
  return { state: found.state, release };
}

/** Open the channel; called once by main. */
export const openChannel = connect;
