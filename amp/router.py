"""The router's shell: connections in, `Routing` decides, frames out.

It keeps nothing on disk. Every connection has one reading and one writing task; a slow one fills its own outbox only.
The HTTP side (WebSocket, HTTP binding, registry, health, metrics) is in `amp.http_server`.
"""

if __name__ == "__main__":
    import amp.lean_aiohttp  # noqa: F401 - before the HTTP side imports aiohttp as it is

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from random import Random, SystemRandom

from amp import crash
from amp.actions import Action, Announce, Close, Fanout, Forward, Tell
from amp.codec import Item, Refusal, decode, encode
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
from amp.errors import AmpError, InsufficientResources, InternalError, InvalidSchema
from amp.http_server import HttpServer
from amp.link import Cork, Link, Outbox
from amp.routing import CLOSE_REPLACED, Routing, RoutingLimits
from amp.security import Credentials, check_signature
from amp.session import Registration, Session
from amp.transports.base import ConnectionClosed, DirectConnection, NotText
from amp.transports.memory import MemoryConnection, MemoryNetwork
from amp.transports.websocket import LOST_AFTER_SECONDS

logger = logging.getLogger(__name__)

DEFAULT_MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_CONNECTIONS = 4096
CLOSE_GOING_AWAY = 1001
CLOSE_SLOW = 4002


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLimits:
    """The bounds of the shell; `routing` holds those of the decisions."""

    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
    max_connections: int = MAX_CONNECTIONS
    lost_after_seconds: float = LOST_AFTER_SECONDS
    routing: RoutingLimits = field(default_factory=RoutingLimits)


@dataclass(slots=True, eq=False)
class Member:
    """A connection being served."""

    session: Session
    outbox: Outbox
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
        credentials: Credentials | None = None,
    ) -> None:
        self.limits = limits or RouterLimits()
        self.credentials = credentials or Credentials()
        self._server: HttpServer | None = None
        self.routing = Routing(self.limits.routing)
        self.now = now
        self.cork = Cork()
        self._random = random or SystemRandom()
        self._members: dict[int, Member] = {}
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

    async def start_http(self, host: str, port: int) -> None:
        """Listen for WebSockets and HTTP. Port 0 takes a free one, which `port` then tells.

        Raises: OSError when the address is taken, LocalProtocolError when it is open to the network without a key.
        """
        server = HttpServer(self)
        await server.start(host, port)
        self._server = server

    @property
    def port(self) -> int:
        """The port of the HTTP side, 0 when there is none."""
        return self._server.port if self._server is not None else 0

    @property
    def connections(self) -> int:
        """How many connections and pollers are served."""
        return len(self._members)

    def _accept_memory(self, connection: MemoryConnection) -> None:
        link = Link(connection)
        member = self.admit(link, "memory")
        reader = asyncio.get_running_loop().create_task(self.read(member, link), name="router-read")
        member.tasks = (*member.tasks, reader)

    def admit(self, link: Link, kind: str, *, pinned_agent_id: str | None = None) -> Member:
        """Take up a connection and start its writing task. The caller runs `read`."""
        member = self.admit_session(
            Session(key=self.new_key(), kind=kind, pinned_agent_id=pinned_agent_id), link
        )
        member.tasks = (asyncio.get_running_loop().create_task(link.write(), name="router-write"),)
        return member

    def admit_session(self, session: Session, outbox: Outbox) -> Member:
        """Take up somebody to whom frames can be given."""
        member = self._members[session.key] = Member(session, outbox)
        self.routing.attach(session)
        return member

    def new_key(self) -> int:
        """Return the key of a new session."""
        return next(self._keys)

    def new_token(self) -> str:
        """Return a text that nobody can guess."""
        return f"{self._random.getrandbits(128):032x}"

    async def read(self, member: Member, link: Link) -> None:
        """Handle a connection's frames until it ends, then tell the mesh that its agent is lost."""
        session, connection = member.session, link.connection
        try:
            if isinstance(connection, DirectConnection):
                await connection.listen(partial(self.receive, session))
            while True:
                try:
                    self.receive(session, await connection.receive())
                except NotText:
                    self.refuse_binary(session)
        except ConnectionClosed:
            return
        finally:
            self.dismiss(member)
            await link.close()

    def dismiss(self, member: Member) -> None:
        """Forget a connection."""
        if self._members.pop(member.session.key, None) is None:
            return
        member.outbox.end()
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
        closing = [member.outbox.close(CLOSE_GOING_AWAY, "the router stops") for member in members]
        await asyncio.gather(*closing, return_exceptions=True)
        for member in members:
            for task in member.tasks:
                task.cancel()
        tasks = [task for member in members for task in member.tasks]
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    # --- frames in ------------------------------------------------------------------------------------------

    @staticmethod
    def now_ms() -> float:
        """Return the running loop's time, in milliseconds."""
        return asyncio.get_running_loop().time() * 1000

    def receive(self, session: Session, data: bytes | str) -> None:
        """Handle one frame. Whatever is wrong with it is answered with an error; the connection stays."""
        self.frames_in += 1
        crash.reach("router.frame.read")
        limit = self.limits.max_frame_bytes
        if len(data) > limit:
            details = {"limit_bytes": limit}
            text = f"the frame has {len(data)} bytes; the limit is {limit}"
            self._refuse(session, InsufficientResources(text, details, retryable=False))
            return
        items, batched = decode(data)
        if batched and not session.terms.batching:
            self._refuse(
                session, InvalidSchema("arrays of envelopes need 'session.batching' at registration")
            )
            return
        for index, item in enumerate(items):
            try:
                self.accept(session, item, data, index if batched else None)
            except Exception:  # boundary: a bug that one message meets must not end its connection
                logger.exception("message_failed", extra={"agent_id": session.agent_id})
                message_id = item.message.id if isinstance(item, Envelope) else None
                self._refuse(session, InternalError("the router could not handle the message"), message_id)

    def accept(self, session: Session, item: Item, data: bytes | str, index: int | None = None) -> None:
        """Handle one part of a frame. `data` is the frame, `index` the part's place in a batch."""
        if isinstance(item, Envelope):
            if item.message.headers.signature:
                try:
                    self._check_signature(data, index)
                except AmpError as error:
                    self._refuse(session, error, item.message.id)
                    return
            known = session.agent_id
            actions = self.routing.handle(session, item, self.now_ms(), self.now())
            if session.agent_id != known:
                crash.reach("router.registration.before_answer")
                logger.info("agent_connected", extra={"agent_id": session.agent_id, "kind": session.kind})
            self.perform(actions)
            self._arm()
        elif isinstance(item, Refusal):
            self._refuse(session, item.error, item.message_id)

    def _check_signature(self, data: bytes | str, index: int | None) -> None:
        frame = json.loads(data)
        envelope = frame if index is None else frame[index]
        check_signature(envelope["message"], self.credentials.signing_keys, self.now())

    def refuse_binary(self, session: Session) -> None:
        """Answer a frame that was not text."""
        self._refuse(session, InvalidSchema("frames must be text"))

    def _refuse(self, session: Session, error: AmpError, message_id: str | None = None) -> None:
        self._tell(self.routing.refuse(session, message_id, error))

    def claim(self, session: Session, agent_id: str) -> None:
        """Bind a session to an agent before its first message."""
        self.perform(self.routing.claim(session, agent_id, self.now_ms(), self.now()))

    def update(self, session: Session, registration: Registration) -> None:
        """Replace what a live agent registered."""
        terms = session.terms
        self.perform(self.routing.register(session, registration, self.now_ms(), self.now()))
        session.terms = terms

    def withdraw(self, session: Session) -> None:
        """Stop sending requests to a live agent."""
        self.perform(self.routing.deregister(session))

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
        if not is_request:
            crash.reach("router.reply.before")
        if member.outbox.push(encode(envelope), reserve=1 if is_request else 2):
            self.frames_out += 1
        elif is_request:
            self.perform(self.routing.undeliverable(session, envelope, self.now_ms()))
        else:
            self._close(session, CLOSE_SLOW, "the client does not read its replies")

    def _fan_out(self, sessions: Iterable[Session], frame: bytes) -> None:
        for number, session in enumerate(sessions):
            if number:
                crash.reach("router.forward.between")
            member = self._members.get(session.key)
            if member is None:
                continue
            if member.outbox.push(frame):
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
        limit = session.terms.max_frame_bytes
        if len(frame) > limit:
            details = {"limit_bytes": limit}
            error = InsufficientResources(
                "the answer is larger than this client reads", details, retryable=False
            )
            frame = self.error_frame(session, action.correlation_id, error)
        member.outbox.batching = session.terms.batching
        if member.outbox.push(frame, reserve=2):
            self.frames_out += 1
        else:
            self._close(session, CLOSE_SLOW, "the client does not read its replies")

    def error_frame(self, session: Session, correlation_id: str | None, error: AmpError) -> bytes:
        """Return an error message for a session as a frame."""
        tell = self.routing.refuse(session, correlation_id, error)
        return self._own_frame(session, tell.type, error, correlation_id, tell.source_id)

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
        if code == CLOSE_REPLACED:
            crash.reach("router.takeover.before")
        logger.warning(
            "connection_closed", extra={"agent_id": session.agent_id, "code": code, "reason": reason}
        )
        self.dismiss(member)
        task = asyncio.get_running_loop().create_task(member.outbox.close(code, reason), name="router-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


if __name__ == "__main__":
    from amp.router_main import main

    main()
