"""What the router does with a message: values in, deliveries out. Pure: no clock, no socket, no logging.

`Routing` owns every table of the mesh. Its shell hands it envelopes and the time, and performs the actions that come
back, in order. A request goes to the addressed agent, or to the least loaded agent that has the capability and
credit; with none free it waits in a bounded queue. An agent that leaves fails what it had in hand at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any

import msgspec

from amp import directory
from amp.actions import Action, Announce, Close, Fanout, Forward, Tell
from amp.envelope import (
    DEFAULT_PRIORITY,
    MAX_ID_CHARACTERS,
    PROTOCOL,
    ROUTER_ID,
    Destination,
    Envelope,
    ErrorBody,
    EventHead,
    Message,
    MessageType,
    RequestPayload,
)
from amp.errors import (
    AGENT_LOST,
    AgentLost,
    AgentNotFound,
    AmpError,
    CapabilityNotFound,
    InsufficientResources,
    InvalidSchema,
    RateLimitExceeded,
    RequestTimeout,
)
from amp.queues import Deadlines, Pending, RequestQueues
from amp.registry import Registry
from amp.repeats import Ended, EndedRequests
from amp.session import INVOKE, Registration, Session, SessionTerms

HEAD_BYTES = 4096
"""Room for an envelope's head when a payload is measured against a receiver's frame limit."""
REPLY_GRACE_MS = 10_000
"""How long after its timeout a request still counts against its agent's credit, unless the agent answers."""
MAX_EARLY_MS = 250.0
RETRY_AFTER_MS = 250
CLOSE_REPLACED = 4001


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingLimits:
    """The router's bounds."""

    max_queued_requests: int = 10_000
    max_queued_bytes: int = 128 * 1024 * 1024
    max_pending_per_agent: int = 50_000
    max_recent: int = 20_000


@dataclass(slots=True)
class Counters:
    """What happened, counted for the metrics."""

    requests: int = 0
    replies: int = 0
    events: int = 0
    queued: int = 0
    late_replies: int = 0
    agents_lost: int = 0
    duplicates: int = 0
    errors: dict[str, int] = field(default_factory=dict)


_EVENT_HEAD = msgspec.json.Decoder(EventHead)
_REQUEST = msgspec.json.Decoder(RequestPayload)


class Routing:
    """The mesh's state and every decision about it."""

    def __init__(self, limits: RoutingLimits | None = None) -> None:
        self.limits = limits or RoutingLimits()
        self.registry = Registry()
        self.queues = RequestQueues(
            max_requests=self.limits.max_queued_requests, max_bytes=self.limits.max_queued_bytes
        )
        self.counters = Counters()
        self.pending: dict[tuple[str, str], Pending] = {}
        self._ended = EndedRequests(self.limits.max_recent)
        self._deadlines: Deadlines[tuple[str, str]] = Deadlines()
        self._order = count()

    # --- what the shell calls -----------------------------------------------------------------------------

    def attach(self, session: Session) -> None:
        """Take up a connection."""
        self.registry.add(session)

    def detach(self, session: Session, now_ms: float, reason: str = "disconnected") -> list[Action]:
        """Forget a connection. Requests its agent had in hand fail with NETWORK_ERROR, reason `agent_lost`."""
        carried = self.registry.remove(session)
        actions: list[Action] = self._drop_queued_of(session)
        if not carried:
            return actions
        for key in list(session.assigned):
            pending = self._finish(key)
            if pending is not None:
                self._ended.note(key, pending.digest, session, pending.origin.key, lost=True)
                actions += self._answer(pending, _agent_lost(session.agent_id))
                self.counters.agents_lost += 1
        if not session.draining:
            actions += self._left(session, reason)
        actions += self._fail_unservable()
        return actions

    def handle(self, session: Session, envelope: Envelope, now_ms: float, at: datetime) -> list[Action]:
        """Return what follows from a message. Whatever is wrong with it becomes an error to its sender."""
        message = envelope.message
        actions: list[Action] = []
        try:
            for_registry = message.type == MessageType.REQUEST and directory.is_for_registry(
                message.destination
            )
            operation, body = directory.operation_of(message) if for_registry else ("", b"")
            if operation != directory.REGISTRATION:
                actions += self.identify(session, message, now_ms, at)
            if for_registry:
                actions += directory.answer(self, session, message, operation, body, now_ms, at)
            elif message.type == MessageType.REQUEST:
                actions += self._request(session, envelope, now_ms, at)
            elif message.type == MessageType.EVENT:
                actions += self._event(session, envelope)
            else:
                actions += self._reply(session, envelope, now_ms)
        except AmpError as error:
            actions.append(self.refuse(session, message.id, error))
        return actions

    def refuse(
        self, session: Session, message_id: str | None, error: AmpError, source_id: str = ROUTER_ID
    ) -> Tell:
        """Return the error message to a sender."""
        self.counters.errors[error.code] = self.counters.errors.get(error.code, 0) + 1
        return Tell(
            session=session,
            type=MessageType.ERROR,
            payload=error,
            correlation_id=message_id,
            source_id=source_id,
        )

    def undeliverable(self, session: Session, envelope: Envelope, now_ms: float) -> list[Action]:
        """Return what follows when a session's outbox had no room for an envelope."""
        message = envelope.message
        if message.type != MessageType.REQUEST:
            return []
        pending = self._finish((message.source.agent_id, message.id))
        if pending is None:
            return []
        error = InsufficientResources(
            f"agent {session.agent_id!r} does not keep up with what it is sent",
            {"retry_after_ms": RETRY_AFTER_MS},
        )
        return self._answer(pending, error)

    def next_deadline_ms(self) -> float | None:
        """Return when `expire` has something to do, or None."""
        return self._deadlines.next_ms()

    def expire(self, now_ms: float) -> list[Action]:
        """Return the timeouts of requests still queued, and release what agents never answered."""
        actions: list[Action] = []
        for key in self._deadlines.pop_due(now_ms):
            pending = self.pending.get(key)
            if pending is None:
                continue
            queued, responder = pending.queue is not None, pending.responder
            self._finish(pending.key)
            if queued:
                target = pending.capability or "the agent"
                error = RequestTimeout(f"no agent for {target} was free in time", {"reason": "queued"})
                actions += self._answer(pending, error)
            elif responder is not None:
                actions += self.release(responder, now_ms)
        return actions

    # --- identity -------------------------------------------------------------------------------------------

    def identify(self, session: Session, message: Message, now_ms: float, at: datetime) -> list[Action]:
        """Bind a connection to the agent that its first message names, and hold it to that."""
        agent_id = message.source.agent_id
        if session.agent_id == agent_id:
            return []
        if session.kind == INVOKE:
            self.registry.check_borrowed(session, agent_id)
            return []
        return self.claim(session, agent_id, now_ms, at)

    def claim(self, session: Session, agent_id: str, now_ms: float, at: datetime) -> list[Action]:
        """Bind a session to an agent that has not registered on it; what it registered before holds again."""
        actions = self.take_identity(session, agent_id, None, now_ms)
        restored = self.registry.bind(session, agent_id)
        session.joined_at = at.isoformat()
        actions += self.joined(session, "connected")
        return actions + (self.release(session, now_ms) if restored else [])

    def take_identity(
        self, session: Session, agent_id: str, terms: SessionTerms | None, now_ms: float
    ) -> list[Action]:
        """Make room for `session` as the carrier of `agent_id`: an older socket of the same agent is replaced."""
        holder = self.registry.holder_to_replace(
            session,
            agent_id,
            exclusive=terms is not None and terms.exclusive,
            resume_token=terms.resume_token if terms else None,
        )
        if holder is None:
            return []
        for key in holder.assigned:
            self.pending[key].responder = session
        session.assigned.update(holder.assigned)
        session.in_flight, holder.in_flight = session.in_flight + holder.in_flight, 0
        holder.assigned.clear()
        actions = self._drop_queued_of(holder)
        self.registry.remove(holder)
        return [*actions, Close(holder, CLOSE_REPLACED, "replaced by a newer connection of the same agent")]

    def register(
        self, session: Session, registration: Registration, now_ms: float, at: datetime
    ) -> list[Action]:
        """Bind a session to the agent it registers, replace what it offered, and give it what waits for it."""
        agent_id = registration.record.id
        actions: list[Action] = []
        if session.agent_id != agent_id or self.registry.agents.get(agent_id) is not session:
            actions = self.take_identity(session, agent_id, registration.session, now_ms)
            self.registry.bind(session, agent_id)
        before = set(session.capabilities) if session.registered else None
        self.registry.apply(session, registration)
        session.joined_at = at.isoformat()
        if not registration.session.exclusive:
            self.registry.remember(registration)
        if before is None or before != set(session.capabilities):
            actions += self.joined(session, "registered")
        return actions

    def deregister(self, session: Session) -> list[Action]:
        """Stop sending requests to a session's agent. What it has in hand it may still answer."""
        if session.draining:
            return []
        self.registry.withdraw(session)
        session.draining = True
        if session.agent_id is not None:
            self.registry.forget(session.agent_id)
        return self._left(session, "deregistered") + self._fail_unservable()

    def joined(self, session: Session, reason: str) -> list[Action]:
        """Return the event that an agent is there."""
        return self._lifecycle("agent.joined", session, reason)

    def _left(self, session: Session, reason: str) -> list[Action]:
        return self._lifecycle("agent.left", session, reason)

    def _lifecycle(self, event_type: str, session: Session, reason: str) -> list[Action]:
        sessions = self.registry.listeners(event_type, subscribers_only=True)
        if not sessions:
            return []
        payload = {
            "event_type": event_type,
            "agent_id": session.agent_id,
            "session_id": session.record.session_id if session.record else None,
            "capabilities": sorted(session.capabilities),
            "reason": reason,
        }
        return [Announce(sessions, payload)]

    # --- requests -------------------------------------------------------------------------------------------

    def _request(self, session: Session, envelope: Envelope, now_ms: float, at: datetime) -> list[Action]:
        translated = directory.translate(self.registry, session, envelope, at)
        if not isinstance(translated, Envelope):
            return [translated]
        envelope = translated
        message = envelope.message
        self.counters.requests += 1
        key = (message.source.agent_id, message.id)
        payload = bytes(message.payload)
        digest = hash(payload)
        known = self.pending.get(key)
        if known is not None:
            return self._again(session, known, digest, envelope)
        agent_id, capability = self._target(message, payload)
        if session.requested >= self.limits.max_pending_per_agent:
            raise RateLimitExceeded(
                f"{session.requested} requests of this connection are under way",
                {"retry_after_ms": RETRY_AFTER_MS},
            )
        pending = Pending(
            key=key,
            origin=session,
            capability=capability,
            digest=digest,
            size=len(payload),
            priority=message.headers.priority or DEFAULT_PRIORITY,
            order=next(self._order),
        )
        hints = message.destination.routing_hints or message.headers.routing_hints or {}
        prefer = hints.get("prefer")
        queue_ms = hints.get("queue_ms")
        if isinstance(queue_ms, int | float) and queue_ms > 0:
            pending.queue_ms = float(queue_ms)
        ended = self._ended.get(key)
        if ended is not None and hints.get("anew") is not True:
            _check_digest(
                ended.digest, digest, same=session.key == ended.asked_on or not session.terms.repeats
            )
            if session.terms.repeats:
                holder = self._who_had(ended)
                if holder.terms.repeats:
                    timeout_ms = message.headers.effective_timeout_ms
                    self._track(pending, now_ms, timeout_ms + REPLY_GRACE_MS)
                    return self._assign(pending, holder, _clean(envelope))
                if session.key == ended.asked_on:  # its answer left on this very connection
                    return []
            prefer = ended.agent_id
        cleaned = _clean(envelope)
        candidates = self._candidates(agent_id, capability, hints)
        return self._place(
            pending, cleaned, candidates, agent_id, prefer if isinstance(prefer, str) else None, now_ms
        )

    def _who_had(self, ended: Ended) -> Session:
        """Return the connection of the very process that had a request. Raises AgentLost when it is gone."""
        holder = self.registry.agents.get(ended.agent_id)
        if ended.lost or holder is None or holder.terms.resume_token != ended.process:
            raise _agent_lost(ended.agent_id)
        return holder

    def _again(self, session: Session, known: Pending, digest: int, envelope: Envelope) -> list[Action]:
        """Send a repeated request to the agent that has it, when that agent knows a repeat: its copy may be lost."""
        _check_digest(known.digest, digest, same=known.origin is session or not session.terms.repeats)
        self.counters.duplicates += 1
        if known.origin is not session:
            known.origin.requested -= 1
            session.requested += 1
            known.origin = session
        responder = known.responder
        if responder is None or not responder.terms.repeats:
            return []
        return [Forward(responder, _clean(envelope))]

    def _target(self, message: Message, payload: bytes) -> tuple[str | None, str | None]:
        destination = message.destination
        capability = destination.capability
        if not capability:
            try:
                capability = _REQUEST.decode(payload).capability
            except msgspec.DecodeError:
                raise InvalidSchema("payload.capability must be a text", {"path": "$.capability"}) from None
        if capability and len(capability) > MAX_ID_CHARACTERS:
            raise InvalidSchema(
                f"a capability id has at most {MAX_ID_CHARACTERS} characters", {"path": "$.capability"}
            )
        if not capability and not destination.agent_id:
            raise InvalidSchema(
                "the request names neither an agent nor a capability", {"path": "$.destination"}
            )
        return destination.agent_id or None, capability or None

    def _candidates(
        self, agent_id: str | None, capability: str | None, hints: Mapping[str, Any]
    ) -> Mapping[str, Session]:
        """Return who may serve the request. Raises AgentNotFound or CapabilityNotFound when nobody may."""
        if agent_id is not None:
            session = self.registry.agents.get(agent_id)
            if session is None or session.draining:
                raise AgentNotFound(f"agent {agent_id!r} is not on the mesh", {"agent_id": agent_id})
            if capability and session.capabilities and capability not in session.capabilities:
                raise CapabilityNotFound(
                    f"agent {agent_id!r} does not offer {capability!r}",
                    {"capability": capability, "available_capabilities": sorted(session.capabilities)},
                )
            return {agent_id: session}
        holders = self.registry.offers.get(capability or "", {})
        constraint = hints.get("version_constraint")
        if holders and isinstance(constraint, str):
            preferred = hints.get("preferred_version")
            holders = directory.with_version(
                holders, capability or "", constraint, preferred if isinstance(preferred, str) else None
            )
            if not holders:
                raise directory.no_version(
                    self.registry.offers[capability or ""], capability or "", constraint
                )
        if not holders:
            raise CapabilityNotFound(
                f"no agent on the mesh offers {capability!r}",
                {"capability": capability, "available_capabilities": self.registry.capability_ids()},
            )
        return holders

    def _place(
        self,
        pending: Pending,
        envelope: Envelope,
        candidates: Mapping[str, Session],
        agent_id: str | None,
        prefer: str | None,
        now_ms: float,
    ) -> list[Action]:
        """Give the request to a candidate, or queue it when all of them are busy."""
        fitting = [
            each for each in candidates.values() if pending.size + HEAD_BYTES <= each.terms.max_frame_bytes
        ]
        if not fitting:
            limit = max(each.terms.max_frame_bytes for each in candidates.values())
            raise InsufficientResources(
                f"the request has {pending.size} bytes; its receiver takes frames up to {limit}",
                {"limit_bytes": limit},
                retryable=False,
            )
        chosen = self._choose(fitting, pending.capability, prefer)
        timeout_ms = envelope.message.headers.effective_timeout_ms
        if chosen is not None:
            self._track(pending, now_ms, timeout_ms + REPLY_GRACE_MS)
            return self._assign(pending, chosen, envelope)
        queue = ("agent", agent_id) if agent_id is not None else ("capability", pending.capability or "")
        if not self.queues.put(pending, queue):
            raise InsufficientResources(
                f"too many requests wait for {queue[1]!r}",
                {"retry_after_ms": RETRY_AFTER_MS, "queued": self.queues.depth(queue)},
            )
        pending.envelope = envelope
        wait_ms = min(pending.queue_ms, timeout_ms - min(timeout_ms / 10, MAX_EARLY_MS))
        self._track(pending, now_ms, wait_ms)
        self.counters.queued += 1
        return []

    @staticmethod
    def _choose(candidates: list[Session], capability: str | None, prefer: str | None) -> Session | None:
        """Return the preferred agent when it has credit, else the least loaded that has, else None."""
        best: Session | None = None
        for session in candidates:
            if not (session.has_credit or _is_free(session, capability)):
                continue
            if session.agent_id == prefer:
                return session
            if best is None or (session.load, session.last_used) < (best.load, best.last_used):
                best = session
        return best

    def _track(self, pending: Pending, now_ms: float, wait_ms: float) -> None:
        self.pending[pending.key] = pending
        pending.origin.requested += 1
        pending.bucket = self._deadlines.add(pending.key, now_ms, wait_ms)

    def _assign(self, pending: Pending, session: Session, envelope: Envelope) -> list[Action]:
        pending.responder = session
        pending.free = _is_free(session, pending.capability)
        session.in_flight += 0 if pending.free else 1
        session.assigned[pending.key] = None
        session.last_used = pending.order
        return [Forward(session, envelope)]

    def _finish(self, key: tuple[str, str]) -> Pending | None:
        """Take a request out of every table, and return it."""
        pending = self.pending.pop(key, None)
        if pending is None:
            return None
        self._deadlines.discard(key, pending.bucket)
        pending.origin.requested -= 1
        self.queues.take(pending)
        responder = pending.responder
        if responder is not None:
            responder.assigned.pop(key, None)
            responder.in_flight -= 0 if pending.free else 1
        return pending

    def release(self, session: Session, now_ms: float) -> list[Action]:
        """Give an agent that has credit again what waits for it, most urgent first."""
        actions: list[Action] = []
        while (
            self.queues.count and not session.draining and session.agent_id is not None and session.has_credit
        ):
            pending = self._next_for(session)
            if pending is None:
                break
            envelope = pending.envelope
            assert envelope is not None
            self.queues.take(pending)
            self._deadlines.discard(pending.key, pending.bucket)
            pending.envelope = None
            wait_ms = envelope.message.headers.effective_timeout_ms + REPLY_GRACE_MS
            pending.bucket = self._deadlines.add(pending.key, now_ms, wait_ms)
            actions += self._assign(pending, session, envelope)
        return actions

    def _next_for(self, session: Session) -> Pending | None:
        names = [("agent", session.agent_id or "")]
        names += [("capability", capability_id) for capability_id in session.capabilities]
        heads = [head for name in names if (head := self.queues.head(name)) is not None]
        fitting = [each for each in heads if each.size + HEAD_BYTES <= session.terms.max_frame_bytes]
        return min(fitting, key=lambda each: (-each.priority, each.order), default=None)

    def _drop_queued_of(self, session: Session) -> list[Action]:
        """Forget what a gone requester still had waiting; nobody is there to hear the answer."""
        if session.requested:
            waiting = [
                each.key
                for each in self.pending.values()
                if each.origin is session and each.queue is not None
            ]
            for key in waiting:
                self._finish(key)
        return []

    def _fail_unservable(self) -> list[Action]:
        """Answer queued requests that no agent can serve any more."""
        actions: list[Action] = []
        for queue in self.queues.names():
            kind, name = queue
            if kind == "agent":
                agent = self.registry.agents.get(name)
                if agent is not None and not agent.draining:
                    continue
                error: AmpError = AgentNotFound(f"agent {name!r} has left the mesh", {"agent_id": name})
            elif name in self.registry.offers:
                continue
            else:
                error = CapabilityNotFound(
                    f"no agent on the mesh offers {name!r} any more",
                    {"capability": name, "available_capabilities": self.registry.capability_ids()},
                )
            for pending in list(self.queues.waiting(queue)):
                self._finish(pending.key)
                actions += self._answer(pending, error)
        return actions

    # --- replies and events ---------------------------------------------------------------------------------

    def _reply(self, session: Session, envelope: Envelope, now_ms: float) -> list[Action]:
        message = envelope.message
        self.counters.replies += 1
        correlation_id = message.headers.correlation_id
        if not correlation_id:
            raise InvalidSchema(
                f"a {message.type} needs headers.correlation_id", {"path": "$.headers.correlation_id"}
            )
        if message.type == MessageType.ERROR:
            _check_error(message.payload)
        key = self._answered(session, message.destination.agent_id, correlation_id)
        pending = self.pending.get(key) if key is not None else None
        if pending is None or key is None:
            return self._late(session, envelope)
        if pending.responder is not session:
            self.counters.late_replies += 1
            return []
        self._finish(key)
        self._ended.note(key, pending.digest, session, pending.origin.key)
        origin = self._origin_of(pending)
        actions = [] if origin is None else self._deliver_reply(origin, envelope)
        if self.queues.count:
            actions += self.release(session, now_ms)
        return actions

    def _answered(
        self, session: Session, agent_id: str | None, correlation_id: str
    ) -> tuple[str, str] | None:
        """Return the key of the request that a reply belongs to; a reply may leave out who asked."""
        if agent_id:
            return (agent_id, correlation_id)
        matching = [key for key in session.assigned if key[1] == correlation_id]
        return matching[0] if len(matching) == 1 else None

    def _late(self, session: Session, envelope: Envelope) -> list[Action]:
        """Pass on a reply to a request that this router does not know: it may be younger than the request."""
        self.counters.late_replies += 1
        requester = self.registry.agents.get(envelope.message.destination.agent_id or "")
        if requester is None or requester is session:
            return []
        return self._deliver_reply(requester, envelope)

    def _origin_of(self, pending: Pending) -> Session | None:
        """Return where the requester is now: its connection may be a newer one."""
        if pending.origin.key in self.registry.sessions:
            return pending.origin
        return self.registry.agents.get(pending.key[0])

    def _answer(self, pending: Pending, error: AmpError) -> list[Action]:
        origin = self._origin_of(pending)
        return [] if origin is None else [self.refuse(origin, pending.key[1], error)]

    def _deliver_reply(self, origin: Session, envelope: Envelope) -> list[Action]:
        size = memoryview(envelope.message.payload).nbytes
        if size + HEAD_BYTES > origin.terms.max_frame_bytes:
            error = InsufficientResources(
                f"the reply has {size} bytes; this client takes frames up to {origin.terms.max_frame_bytes}",
                {"limit_bytes": origin.terms.max_frame_bytes},
                retryable=False,
            )
            return [self.refuse(origin, envelope.message.headers.correlation_id, error)]
        return [Forward(origin, _clean(envelope))]

    def _event(self, session: Session, envelope: Envelope) -> list[Action]:
        message = envelope.message
        self.counters.events += 1
        try:
            event_type = _EVENT_HEAD.decode(message.payload).event_type
        except msgspec.DecodeError:
            raise InvalidSchema(
                "payload.event_type must be a text", {"path": "$.payload.event_type"}
            ) from None
        if not 0 < len(event_type) <= MAX_ID_CHARACTERS:
            raise InvalidSchema(
                f"an event needs payload.event_type, 1 to {MAX_ID_CHARACTERS} characters",
                {"path": "$.payload.event_type"},
            )
        destination = message.destination
        size = memoryview(message.payload).nbytes + HEAD_BYTES
        if destination.agent_id:
            target = self.registry.agents.get(destination.agent_id)
            if target is None:
                raise AgentNotFound(
                    f"agent {destination.agent_id!r} is not on the mesh", {"agent_id": destination.agent_id}
                )
            if size > target.terms.max_frame_bytes:
                raise InsufficientResources(
                    f"the event is too large for agent {destination.agent_id!r}",
                    {"limit_bytes": target.terms.max_frame_bytes},
                    retryable=False,
                )
            return [Fanout((target,), _clean(envelope))]
        hints = destination.routing_hints or message.headers.routing_hints or {}
        if destination.capability:
            found: Iterable[Session] = self.registry.offers.get(destination.capability, {}).values()
        else:
            found = self.registry.listeners(
                event_type, subscribers_only=hints.get("subscribers_only") is True
            )
        targets = [each for each in found if each is not session and size <= each.terms.max_frame_bytes]
        return [Fanout(targets, _clean(envelope))] if targets else []


def _check_digest(known: int, digest: int, *, same: bool) -> None:
    """Raise unless a message id is used for one request. `same`: the content tells; else the requester vouches for
    it from a new connection, where what it asks may carry a later time."""
    if same and known != digest:
        raise InvalidSchema("the message id was used for another request", {"reason": "message_id_reused"})


def _agent_lost(agent_id: str | None) -> AgentLost:
    return AgentLost(
        f"agent {agent_id!r} disappeared before it answered; whether it did the work is unknown",
        {"reason": AGENT_LOST, "agent_id": agent_id},
        retryable=True,
    )


def _is_free(session: Session, capability: str | None) -> bool:
    return capability in session.free_capabilities


def _clean(envelope: Envelope) -> Envelope:
    """Return the envelope as receivers get it: without credentials, with a signature they cannot misread.

    The router has verified the signature; reference clients reject each other's, so it is set to null.
    """
    message = envelope.message
    headers, destination = message.headers, message.destination
    if (
        headers.authentication is not None
        or headers.signature is not None
        or headers.routing_hints is not None
    ):
        headers = msgspec.structs.replace(headers, authentication=None, signature=None, routing_hints=None)
    if destination.routing_hints is not None:
        destination = Destination(agent_id=destination.agent_id, capability=destination.capability)
    if headers is message.headers and destination is message.destination:
        return envelope
    return Envelope(PROTOCOL, msgspec.structs.replace(message, headers=headers, destination=destination))


class _ErrorShape(msgspec.Struct, frozen=True):
    error: ErrorBody


_ERROR_SHAPE = msgspec.json.Decoder(_ErrorShape)


def _check_error(payload: msgspec.Raw) -> None:
    try:
        _ERROR_SHAPE.decode(payload)
    except msgspec.DecodeError as error:
        raise InvalidSchema(
            f"an error needs payload.error with code and message: {str(error)[:200]}"
        ) from None
