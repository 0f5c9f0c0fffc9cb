"""The router's shell: connections in, `Routing` decides, frames out.

It keeps nothing on disk. Every connection has one reading and one writing task; a slow one fills its own outbox only.
The HTTP side (WebSocket, HTTP binding, registry, health, metrics) is in `amp.http_server`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from random import Random, SystemRandom

from amp.actions import Action, Announce, Close, Fanout, Forward, Tell
from amp.codec import Control, Refusal, decode, encode
from amp.envelope import (
    PROTOCOL,
    ROUTER_ID,
    Destination,
    Envelope,
    Headers,
    MessageType,
    Outgoing,
    OutgoingEnvelope,
    Source,
    error_payload,
)
from amp.errors import AmpError, InsufficientResources, InvalidSchema
from amp.link import Link
from amp.routing import Routing, RoutingLimits
from amp.session import Session
from amp.transports.base import Connection, ConnectionClosed
from amp.transports.memory import MemoryConnection, MemoryNetwork

logger = logging.getLogger(__name__)

DEFAULT_MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_CONNECTIONS = 4096
CLOSE_TRY_LATER = 1013
CLOSE_SLOW = 4002
FLUSH_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLimits:
    """The bounds of the shell; `routing` holds those of the decisions."""

    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
    max_connections: int = MAX_CONNECTIONS
    routing: RoutingLimits = field(default_factory=RoutingLimits)


@dataclass(slots=True, eq=False)
class _Member:
    """A connection being served."""

    session: Session
    link: Link
    tasks: tuple[asyncio.Task[None], ...] = ()


def utc_now() -> datetime:
    """Return the wall time, aware, in UTC."""
    return datetime.now(UTC)


class Router:
    """A mesh's switchboard. `serve_memory` and `start_http` open its doors; `stop` closes them all."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = utc_now,
        random: Random | None = None,
        limits: RouterLimits | None = None,
    ) -> None:
        self.limits = limits or RouterLimits()
        self.routing = Routing(self.limits.routing)
        self.now = now
        self._random = random or SystemRandom()
        self._members: dict[int, _Member] = {}
        self._networks: list[MemoryNetwork] = []
        self._keys = count(1)
        self._ids = count(1)
        self._id_prefix = f"router-{self._random.getrandbits(64):016x}"
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ms = 0.0
        self._closing: set[asyncio.Task[None]] = set()
        self.frames_in = 0
        self.frames_out = 0

    # --- doors ----------------------------------------------------------------------------------------------

    def serve_memory(self, network: MemoryNetwork) -> None:
        """Serve the clients of a network inside this process."""
        network.serve(self._accept_memory)
        self._networks.append(network)

    def _accept_memory(self, connection: MemoryConnection) -> None:
        member = self.admit(connection, "memory")
        reader = asyncio.get_running_loop().create_task(self.read(member), name="router-read")
        member.tasks = (*member.tasks, reader)

    def admit(self, connection: Connection, kind: str, *, pinned_agent_id: str | None = None) -> _Member:
        """Take up a connection and start its writing task. The caller runs `read`."""
        session = Session(key=next(self._keys), kind=kind, pinned_agent_id=pinned_agent_id)
        member = _Member(session, Link(connection))
        member.tasks = (asyncio.get_running_loop().create_task(member.link.write(), name="router-write"),)
        self._members[session.key] = member
        self.routing.attach(session)
        return member

    async def read(self, member: _Member) -> None:
        """Handle a connection's frames until it ends, then tell the mesh that its agent is lost."""
        try:
            while True:
                self.receive(member.session, await member.link.connection.receive())
        except ConnectionClosed:
            return
        finally:
            self.dismiss(member)
            await member.link.connection.close()

    def dismiss(self, member: _Member) -> None:
        """Forget a connection."""
        if self._members.pop(member.session.key, None) is None:
            return
        member.link.end()
        agent_id = member.session.agent_id
        if agent_id is not None:
            logger.info("agent_disconnected", extra={"agent_id": agent_id})
        self.perform(self.routing.detach(member.session, self.now_ms()))

    async def stop(self) -> None:
        """Close every connection and door. Works twice."""
        for network in self._networks:
            network.serve(None)
        self._networks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        members = list(self._members.values())
        self._members.clear()
        for member in members:
            member.link.end()
            await member.link.connection.close()
            for task in member.tasks:
                task.cancel()
        tasks = [task for member in members for task in member.tasks]
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)

    # --- frames in ------------------------------------------------------------------------------------------

    @staticmethod
    def now_ms() -> float:
        """Return the running loop's time, in milliseconds."""
        return asyncio.get_running_loop().time() * 1000

    def receive(self, session: Session, data: bytes | str) -> None:
        """Handle one frame. Whatever is wrong with it is answered with an error; the connection stays."""
        self.frames_in += 1
        if len(data) > self.limits.max_frame_bytes:
            limit = self.limits.max_frame_bytes
            error = InsufficientResources(
                f"the frame has {len(data)} bytes; the limit is {limit}",
                {"limit_bytes": limit},
                retryable=False,
            )
            self.perform((self.routing.refuse(session, None, error),))
            return
        items, batched = decode(data)
        if batched and not session.terms.batching:
            undeclared = InvalidSchema("arrays of envelopes need 'session.batching' at registration")
            self.perform((self.routing.refuse(session, None, undeclared),))
            return
        now_ms, at = self.now_ms(), self.now()
        for item in items:
            if isinstance(item, Envelope):
                self.perform(self.routing.handle(session, item, now_ms, at))
            elif isinstance(item, Refusal):
                self.perform((self.routing.refuse(session, item.message_id, item.error),))
            else:
                assert isinstance(item, Control)
        self._arm()

    def _arm(self) -> None:
        """Set the timer to the next deadline, when it is earlier than the one that is set."""
        due_ms = self.routing.next_deadline_ms()
        if due_ms is None or (self._timer is not None and self._timer_due_ms <= due_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_ms = due_ms
        self._timer = asyncio.get_running_loop().call_at(due_ms / 1000, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.perform(self.routing.expire(self.now_ms() + 1))
        self._arm()

    # --- actions --------------------------------------------------------------------------------------------

    def perform(self, actions: Iterable[Action]) -> None:
        """Perform what the routing decided, in order."""
        for action in actions:
            match action:
                case Forward(session, envelope):
                    self._forward(session, envelope)
                case Fanout(sessions, envelope):
                    self._fan_out(sessions, encode(envelope))
                case Tell():
                    self._tell(action)
                case Announce(sessions, payload):
                    for session in sessions:
                        frame = self._own_frame(session, MessageType.EVENT, payload, None, ROUTER_ID)
                        self._fan_out((session,), frame)
                case Close(session, code, reason):
                    self._close(session, code, reason)

    def _forward(self, session: Session, envelope: Envelope) -> None:
        member = self._members.get(session.key)
        if member is None:
            return
        is_request = envelope.message.type == MessageType.REQUEST
        if member.link.push(encode(envelope), reserve=1 if is_request else 2):
            self.frames_out += 1
        elif is_request:
            self.perform(self.routing.undeliverable(session, envelope, self.now_ms()))
        else:
            self._close(session, CLOSE_SLOW, "the client does not read its replies")

    def _fan_out(self, sessions: Iterable[Session], frame: bytes) -> None:
        for session in sessions:
            member = self._members.get(session.key)
            if member is None:
                continue
            if member.link.push(frame):
                self.frames_out += 1
            elif not session.lagging:
                self.routing.registry.mute(session)
                error = InsufficientResources(
                    "events came faster than this client read them; subscribe again",
                    {"reason": "slow_subscriber"},
                )
                self._tell(self.routing.refuse(session, None, error))

    def _tell(self, action: Tell) -> None:
        session = action.session
        frame = self._own_frame(session, action.type, action.payload, action.correlation_id, action.source_id)
        member = self._members.get(session.key)
        if member is None:
            return
        member.link.batching = session.terms.batching
        if member.link.push(frame, reserve=2):
            self.frames_out += 1
        else:
            self._close(session, CLOSE_SLOW, "the client does not read its replies")

    def _own_frame(
        self, session: Session, kind: MessageType, payload: object, correlation_id: str | None, source_id: str
    ) -> bytes:
        at = self.now()
        if isinstance(payload, AmpError):
            payload = error_payload(payload.code, payload.message, payload.details, at)
        message = Outgoing(
            id=f"{self._id_prefix}-{next(self._ids)}",
            type=kind,
            timestamp=at,
            source=Source(source_id),
            destination=Destination(agent_id=session.agent_id),
            headers=Headers(correlation_id=correlation_id),
            payload=payload,
        )
        return encode(OutgoingEnvelope(PROTOCOL, message))

    def _close(self, session: Session, code: int, reason: str) -> None:
        member = self._members.get(session.key)
        if member is None:
            return
        logger.warning(
            "connection_closed", extra={"agent_id": session.agent_id, "code": code, "reason": reason}
        )
        self.dismiss(member)
        task = asyncio.get_running_loop().create_task(
            self._hang_up(member, code, reason), name="router-close"
        )
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    @staticmethod
    async def _hang_up(member: _Member, code: int, reason: str) -> None:
        await member.link.flush(FLUSH_SECONDS)
        await member.link.connection.close()
