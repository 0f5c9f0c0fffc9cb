"""An agent's place on the mesh: requests, replies, events, over any transport, across broken connections.

It connects, registers, and does so again with jittered backoff whenever the connection breaks. It never repeats a
request by itself unless the caller declared it idempotent (`resend`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random, SystemRandom
from typing import Any, cast

import msgspec

from amp.capability import Offer, Reply
from amp.codec import Refusal, decode, encode
from amp.connector import Connector
from amp.envelope import (
    DEFAULT_PRIORITY,
    MAX_TIMEOUT_MS,
    PROTOCOL,
    PROTOCOL_VERSION,
    REGISTRY_ID,
    ROUTER_ID,
    Destination,
    Envelope,
    EventHead,
    Headers,
    Message,
    MessageType,
    Outgoing,
    OutgoingEnvelope,
    Source,
    error_payload,
)
from amp.errors import (
    AgentLost,
    AgentNotFound,
    AmpError,
    AuthenticationFailed,
    CapabilityNotFound,
    Disconnected,
    ExecutionError,
    InsufficientResources,
    LocalProtocolError,
    NetworkError,
    RequestTimeout,
)
from amp.link import Link
from amp.replies import Answer, T, answer_of, error_of, may_retry
from amp.responder import Responder
from amp.subscriptions import Event, EventHandler, Subscription
from amp.transports.base import ConnectFailed, Transport
from amp.waiting import RE_ASK_SECONDS, WaitingRequests

logger = logging.getLogger(__name__)

DEFAULT_MAX_FRAME_BYTES = 8 * 1024 * 1024
EVENT_AGENT_JOINED = "agent.joined"
FLUSH_SECONDS = 2.0
REGISTRY_TIMEOUT_SECONDS = 5.0
MAX_REGISTRY_ATTEMPTS = 4
REGISTER_AGAIN_SECONDS = 2.0
"""How long a registration stays unanswered before it is sent again."""

_EVENT_TYPE = msgspec.json.Decoder(EventHead)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentIdentity:
    """Who an agent is on the mesh."""

    id: str
    name: str = ""
    version: str = "1.0"
    framework: str = ""
    session_id: str | None = None


def utc_now() -> datetime:
    """Return the wall time, aware, in UTC."""
    return datetime.now(UTC)


class MeshClient:
    """A member of the mesh.

    Args:
        offers: What this agent can do.
        max_in_flight: Requests the router may have under way at this agent; the rest wait in the router.
        exclusive: Refuse to start when a live agent holds the id, and keep the id while alive.
        api_key: Named as the registration's `authentication`; the WebSocket transport proves it with a header too.
        random: Makes message ids and jitter. Ids must not be guessable: the default is the system's.
        re_ask_seconds: How long a request stays unanswered before it is asked again under its id.
    """

    def __init__(
        self,
        identity: AgentIdentity,
        transport: Transport,
        *,
        offers: Sequence[Offer] = (),
        max_in_flight: int = 64,
        api_key: str | None = None,
        now: Callable[[], datetime] = utc_now,
        random: Random | None = None,
        heartbeat_interval_seconds: float = 30,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        exclusive: bool = True,
        re_ask_seconds: float = RE_ASK_SECONDS,
    ) -> None:
        self.identity = identity
        self.on_connected: list[Callable[[], Awaitable[None]]] = []
        self.on_disconnected: list[Callable[[], Awaitable[None]]] = []
        self.events_dropped = 0
        self._api_key = api_key
        self._now = now
        self._random = random or SystemRandom()
        self._max_in_flight = max_in_flight
        self._max_frame_bytes = max_frame_bytes
        self._exclusive = exclusive
        self._source = Source(identity.id, identity.session_id)
        self._resume_token = f"{self._random.getrandbits(128):032x}"
        self._responder = Responder(
            offers, max_in_flight=max_in_flight, send=self._send_reply, resend=self._push_if_connected
        )
        self._connector = Connector(
            transport,
            random=self._random,
            now=now,
            heartbeat_interval_seconds=heartbeat_interval_seconds,
            on_open=self._opened,
            on_frame=self._receive,
            on_lost=self._lost,
            on_refused=self._refused,
        )
        self._subscriptions: list[Subscription] = []
        self._re_ask_seconds = re_ask_seconds
        self._waiting = WaitingRequests(
            self._registered_link, lambda: self._router_knows_repeats, re_ask_seconds=re_ask_seconds
        )
        self._registration_id = ""
        self._registration_timer: asyncio.TimerHandle | None = None
        self._registered = False
        self._router_knows_repeats = False
        self._changes = 0
        self._change_waiters: dict[asyncio.Future[None], None] = {}
        self._started: asyncio.Future[None] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._callbacks: set[asyncio.Task[None]] = set()
        self._draining = False

    # --- life -----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether this agent is registered at a router right now."""
        return self._registered

    async def start(self, *, wait_seconds: float | None = None) -> None:
        """Return once registered.

        Args:
            wait_seconds: How long to look for a router; None means for ever.

        Raises: NetworkError when there was none in time, AgentIdInUse, AuthenticationFailed.
        """
        if self._runner is not None:
            raise LocalProtocolError("the client was started before")
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        self._runner = loop.create_task(self._connector.run(), name=f"mesh-{self.identity.id}")
        try:
            async with asyncio.timeout(wait_seconds):
                await asyncio.shield(self._started)
        except asyncio.CancelledError:
            if self._started.cancelled():
                raise Disconnected("the client was stopped before it was let in", {"sent": False}) from None
            raise
        except TimeoutError:
            await self._abandon()
            raise NetworkError(f"no router let {self.identity.id!r} in within {wait_seconds} s") from None
        except AmpError:
            await self._abandon()
            raise

    async def stop(self, *, drain_seconds: float = 10) -> None:
        """Take no more requests, wait for the handlers, close. Works twice, and before `start`."""
        if self._runner is None or self._draining:
            return
        self._draining = True
        if self._registered:
            try:
                await self._registry("deregistration", {}, timeout_seconds=FLUSH_SECONDS, attempts=1)
            except AmpError as error:
                logger.info("deregistration_failed", extra={"agent_id": self.identity.id, "code": error.code})
        await self._responder.drain(drain_seconds)
        if self._connector.link is not None:
            await self._connector.link.flush(FLUSH_SECONDS)
        await self._abandon()

    async def _abandon(self) -> None:
        """End every task and every waiting request."""
        runner = self._runner
        if runner is not None:
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)
        await self._responder.drain(0)
        for subscription in self._subscriptions:
            await subscription.stop()
        for task in self._callbacks:
            task.cancel()
        await asyncio.gather(*self._callbacks, return_exceptions=True)
        self._waiting.stop()
        if self._started is not None and not self._started.done():
            self._started.cancel()

    # --- asking ---------------------------------------------------------------------------------------------

    async def request(
        self,
        capability: str,
        parameters: object,
        *,
        reply_type: type[T] = object,  # type: ignore[assignment]
        agent_id: str | None = None,
        prefer_agent_id: str | None = None,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 0.0,
        resend: bool = False,
        survive_loss: bool = True,
        priority: int = DEFAULT_PRIORITY,
        context: object = None,
        message_id: str | None = None,
        tracing: Mapping[str, Any] | None = None,
    ) -> T:
        """Return the result of a capability. The arguments are those of `request_full`.

        Raises: ExecutionError when the agent answered with status `failed`, and whatever `request_full` raises.
        """
        answer = await self.request_full(
            capability,
            parameters,
            reply_type=reply_type,
            agent_id=agent_id,
            prefer_agent_id=prefer_agent_id,
            timeout_seconds=timeout_seconds,
            patience_seconds=patience_seconds,
            resend=resend,
            survive_loss=survive_loss,
            priority=priority,
            context=context,
            message_id=message_id,
            tracing=tracing,
        )
        if answer.status == "failed":
            raise ExecutionError(f"{answer.agent_id} answered {capability!r} with status 'failed'")
        return answer.result

    async def request_full(
        self,
        capability: str,
        parameters: object,
        *,
        reply_type: type[T] = object,  # type: ignore[assignment]
        agent_id: str | None = None,
        prefer_agent_id: str | None = None,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 0.0,
        resend: bool = False,
        survive_loss: bool = True,
        queue_seconds: float | None = None,
        priority: int = DEFAULT_PRIORITY,
        context: object = None,
        message_id: str | None = None,
        tracing: Mapping[str, Any] | None = None,
    ) -> Answer[T]:
        """Return the answer to a request, with its status, metadata and the agent that gave it.

        Args:
            reply_type: What the result is decoded into; `object` gives plain dicts and lists.
            agent_id: Only this agent may answer.
            prefer_agent_id: This agent when it is there and has credit, else any with the capability.
            timeout_seconds: How long one attempt may take.
            patience_seconds: How long to wait for an agent or a connection that is not there.
            resend: The request is idempotent: it survives broken connections and lost agents, with its message id.
            survive_loss: False: the loss of the agent that has the request is told although `resend` is set.
            queue_seconds: How long the request may wait in the router for an agent with credit; by default as long as
                for an answer. Then it raises RequestTimeout with `details.reason` "queued", and no agent ever has it.
            priority: 10 is the most urgent, 1 the least.

        Raises: AmpError as the other side sent it; AgentNotFound, CapabilityNotFound, AgentLost, Disconnected,
            RequestTimeout, InvalidSchema when the result does not fit `reply_type`.
        """
        loop = asyncio.get_running_loop()
        request_id = message_id or self._new_id()
        payload: dict[str, object] = {"capability": capability, "parameters": parameters}
        if context is not None:
            payload["context"] = context
        hints: dict[str, Any] = {"prefer": prefer_agent_id} if prefer_agent_id else {}
        if queue_seconds is not None:
            hints["queue_ms"] = _milliseconds(queue_seconds)
        destination = Destination(agent_id=agent_id, capability=capability, routing_hints=hints or None)
        headers = Headers(priority=priority, timeout_ms=_milliseconds(timeout_seconds), tracing=tracing)
        frame = self._encode(request_id, MessageType.REQUEST, destination, headers, payload)
        patient_until = loop.time() + patience_seconds
        while True:
            changes = self._changes
            try:
                reply = await self._waiting.ask(request_id, frame, timeout_seconds, resend=resend)
                return answer_of(reply, reply_type)
            except (AgentNotFound, CapabilityNotFound, AgentLost, Disconnected) as error:
                left = patient_until - loop.time()
                lost = isinstance(error, AgentLost)
                retry = may_retry(error, resend=resend and (survive_loss or not lost))
                if left <= 0 or self._draining or not retry:
                    raise
                if lost:  # another agent may be there already, and if none is the router says so at once
                    hints = {"anew": True, **hints}
                    destination = Destination(agent_id=agent_id, capability=capability, routing_hints=hints)
                    frame = self._encode(request_id, MessageType.REQUEST, destination, headers, payload)
                    continue
                if not await self._change(changes, left):
                    raise

    async def _change(self, seen: int, timeout_seconds: float) -> bool:
        """Wait until an agent joined or the connection came back since `seen`, or the word of it may be lost.

        Return whether to ask again.
        """
        if self._changes != seen:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._change_waiters[waiter] = None
        try:
            async with asyncio.timeout(min(timeout_seconds, self._re_ask_seconds)):
                await waiter
        except TimeoutError:
            return timeout_seconds > self._re_ask_seconds
        finally:
            del self._change_waiters[waiter]
        return True

    def _changed(self) -> None:
        self._changes += 1
        for waiter in self._change_waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def discover(
        self, *, capabilities: Sequence[str] = (), pattern: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the agents that offer all `capabilities` and one matching `pattern`, as the registry shows them."""
        query = {"capabilities": list(capabilities), "capability_pattern": pattern}
        reply = await self._registry("discovery", {"query": query})
        result = cast("dict[str, Any]", answer_of(reply, object).result)
        return cast("list[dict[str, Any]]", result["agents"])

    async def traffic(
        self, *, capabilities: Sequence[str] = (), requests: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return who could take requests for these capabilities, and where these requests of ours are.

        The shapes are those of `amp.traffic.traffic`. A request that the router does not know is left out.
        """
        query = {"capabilities": list(capabilities), "requests": list(requests)}
        reply = await self._registry("traffic", query)
        return cast("dict[str, Any]", answer_of(reply, object).result)

    async def _registry(
        self,
        operation: str,
        payload: Mapping[str, Any],
        *,
        timeout_seconds: float = REGISTRY_TIMEOUT_SECONDS,
        attempts: int = MAX_REGISTRY_ATTEMPTS,
    ) -> Message:
        """Ask the router itself, which answers at once: silence means that a frame was lost."""
        request_id = self._new_id()
        frame = self._registry_frame(request_id, operation, payload)
        timeout_seconds = min(timeout_seconds, self._re_ask_seconds)
        for left in reversed(range(attempts)):
            try:
                return await self._waiting.ask(request_id, frame, timeout_seconds, resend=False)
            except RequestTimeout:
                if not left:
                    raise
        raise LocalProtocolError(f"{attempts} attempts are none")

    def _registry_frame(self, request_id: str, operation: str, payload: Mapping[str, Any]) -> bytes:
        destination = Destination(agent_id=REGISTRY_ID, capability=operation)
        return self._encode(request_id, MessageType.REQUEST, destination, Headers(timeout_ms=10_000), payload)

    # --- events ---------------------------------------------------------------------------------------------

    async def publish(
        self, event_type: str, data: object, *, agent_id: str | None = None, subscribers_only: bool = False
    ) -> None:
        """Send an event to everybody, to one agent, or to subscribers only.

        An event is a hint: while there is no connection, or no room, it is dropped and counted in `events_dropped`.
        """
        fields = data if isinstance(data, Mapping) else msgspec.to_builtins(data)
        destination = Destination(
            agent_id=agent_id, routing_hints={"subscribers_only": True} if subscribers_only else None
        )
        payload = {**fields, "event_type": event_type}
        frame = self._encode(self._new_id(), MessageType.EVENT, destination, Headers(), payload)
        self._push_if_connected(frame, is_event=True)

    async def subscribe(self, pattern: str, handler: EventHandler) -> None:
        """Call `handler` for each event whose type matches the glob `pattern`, in order. It survives reconnects."""
        self._subscriptions.append(Subscription(pattern, handler))
        await self._tell_subscriptions()

    async def _tell_subscriptions(self) -> None:
        """Tell the router what is subscribed to; a new connection tells it with its registration."""
        while self._registered:
            try:
                await self._registry("subscription", {"patterns": self._patterns()})
            except Disconnected:
                logger.debug("subscription_deferred", extra={"agent_id": self.identity.id})
            except RequestTimeout:
                continue
            return

    def _patterns(self) -> list[str]:
        return sorted({EVENT_AGENT_JOINED, *(each.pattern for each in self._subscriptions)})

    # --- the connection -------------------------------------------------------------------------------------

    def _opened(self, link: Link) -> None:
        """Register first thing on a new connection."""
        identity = self.identity
        offered = [] if self._draining else [_announced(offer) for offer in self._responder.offers.values()]
        self._registration_id = self._new_id()
        payload: dict[str, Any] = {
            "agent": {
                "id": identity.id,
                "name": identity.name,
                "version": identity.version,
                "framework": identity.framework,
                "protocol_version": PROTOCOL_VERSION,
                "session_id": identity.session_id,
            },
            "capabilities": offered,
            "session": {
                "batching": True,
                "repeats": True,
                "exclusive": self._exclusive,
                "max_in_flight": self._max_in_flight,
                "max_frame_bytes": self._max_frame_bytes,
                "subscriptions": self._patterns(),
                "resume_token": self._resume_token,
            },
        }
        if self._api_key is not None:
            payload["authentication"] = {"type": "api_key", "credentials": {"api_key": self._api_key}}
        self._register(link, self._registry_frame(self._registration_id, "registration", payload))

    def _register(self, link: Link, frame: bytes) -> None:
        """Send the registration, and again while it stays unanswered: the router takes the repeat for one."""
        link.push(frame)
        self._registration_timer = asyncio.get_running_loop().call_later(
            min(REGISTER_AGAIN_SECONDS, self._re_ask_seconds), self._register, link, frame
        )

    def _registration_over(self) -> None:
        if self._registration_timer is not None:
            self._registration_timer.cancel()
            self._registration_timer = None

    def _registered_link(self) -> Link | None:
        return self._connector.link if self._registered else None

    def _refused(self, error: ConnectFailed) -> bool:
        """Return whether to give up: only before the first success, when the router will never let us in."""
        if error.permanent and self._started is not None and not self._started.done():
            self._started.set_exception(AuthenticationFailed(str(error)))
            return True
        return False

    def _lost(self) -> None:
        was_registered, self._registered = self._registered, False
        self._registration_over()
        self._waiting.disconnected()
        if was_registered and not self._draining:
            logger.warning("mesh_disconnected", extra={"agent_id": self.identity.id})
            self._call(self.on_disconnected)

    def _registration_answered(self, message: Message) -> None:
        link = self._connector.link
        self._registration_over()
        if link is None:
            return
        if message.type == MessageType.ERROR:
            self._registration_refused(error_of(message), link)
            return
        terms = answer_of(message, _Registered).result
        link.batching, self._router_knows_repeats = terms.batching, terms.repeats
        self._registered = True
        self._waiting.connected(link)
        if self._started is not None and not self._started.done():
            self._started.set_result(None)
        logger.info("mesh_connected", extra={"agent_id": self.identity.id})
        self._changed()
        self._call(self.on_connected)

    def _registration_refused(self, error: AmpError, link: Link) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(error)
        else:
            logger.warning("registration_refused", extra={"agent_id": self.identity.id, "code": error.code})
        self._spawn(link.connection.close())

    def _call(self, callbacks: Sequence[Callable[[], Awaitable[None]]]) -> None:
        for callback in callbacks:
            self._spawn(callback())

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_guarded(work))
        self._callbacks.add(task)
        task.add_done_callback(self._callbacks.discard)

    # --- frames ---------------------------------------------------------------------------------------------

    def _receive(self, frame: bytes | str) -> None:
        items, _ = decode(frame, max_depth=None)
        for item in items:
            if isinstance(item, Envelope):
                try:
                    self._handle(item.message)
                except (msgspec.DecodeError, RecursionError) as error:
                    logger.warning(
                        "message_refused", extra={"from": item.message.source.agent_id, "reason": str(error)}
                    )
            elif isinstance(item, Refusal):
                logger.warning("frame_refused", extra={"reason": str(item.error)})

    def _handle(self, message: Message) -> None:
        match message.type:
            case MessageType.REQUEST:
                self._responder.receive(message)
            case MessageType.EVENT:
                self._event(message)
            case _:
                self._reply(message)

    def _reply(self, message: Message) -> None:
        correlation_id = message.headers.correlation_id or ""
        if self._waiting.answer(correlation_id, message):
            return
        if correlation_id and correlation_id == self._registration_id:
            self._registration_id = ""
            self._registration_answered(message)
        elif message.type == MessageType.ERROR:
            self._stray_error(error_of(message))

    def _stray_error(self, error: AmpError) -> None:
        if error.details.get("reason") == "slow_subscriber" and self._registered:
            self._spawn(self._subscribe_again())
        else:
            logger.debug("reply_without_request", extra={"code": error.code})

    async def _subscribe_again(self) -> None:
        """Take up the subscriptions that the router dropped; what was missed is for `on_connected` to catch up with."""
        logger.warning("events_missed", extra={"agent_id": self.identity.id})
        await self._tell_subscriptions()
        self._call(self.on_connected)

    def _event(self, message: Message) -> None:
        event_type = _EVENT_TYPE.decode(message.payload).event_type
        if event_type == EVENT_AGENT_JOINED and message.source.agent_id == ROUTER_ID:
            self._changed()
        if self._subscriptions:
            event = Event(event_type, _OBJECT.decode(message.payload), message.source.agent_id)
            for subscription in self._subscriptions:
                subscription.offer(event)

    def _send_reply(self, request: Message, body: Reply | AmpError) -> bytes:
        """Send the answer to a request. Return its frame, to be sent again when the request is repeated."""
        try:
            frame = self._reply_frame(request, body)
        except (TypeError, ValueError, RecursionError) as error:
            failure = ExecutionError(f"the result cannot be encoded as JSON: {str(error)[:200]}")
            frame = self._reply_frame(request, failure)
        if len(frame) > self._max_frame_bytes:
            failure_size = InsufficientResources(
                f"the reply has {len(frame)} bytes; the limit is {self._max_frame_bytes}",
                {"limit_bytes": self._max_frame_bytes},
                retryable=False,
            )
            frame = self._reply_frame(request, failure_size)
        self._push_if_connected(frame)
        return frame

    def _reply_frame(self, request: Message, body: Reply | AmpError) -> bytes:
        headers = Headers(correlation_id=request.id, tracing=request.headers.tracing)
        destination = Destination(agent_id=request.source.agent_id)
        if isinstance(body, AmpError):
            payload: object = error_payload(body.code, body.message, body.details, self._now())
            return self._encode(self._new_id(), MessageType.ERROR, destination, headers, payload)
        payload = {"status": body.status, "result": body.result, "metadata": body.metadata}
        return self._encode(self._new_id(), MessageType.RESPONSE, destination, headers, payload)

    def _push_if_connected(self, frame: bytes, *, is_event: bool = False) -> None:
        link = self._connector.link
        if link is None or not self._registered or not link.push(frame, reserve=1 if is_event else 2):
            self.events_dropped += is_event

    def _encode(
        self, message_id: str, kind: MessageType, destination: Destination, headers: Headers, payload: object
    ) -> bytes:
        message = Outgoing(
            id=message_id,
            type=kind,
            timestamp=self._now(),
            source=self._source,
            destination=destination,
            headers=headers,
            payload=payload,
        )
        return encode(OutgoingEnvelope(PROTOCOL, message))

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"


class _Registered(msgspec.Struct, frozen=True):
    batching: bool = False
    repeats: bool = False


def _announced(offer: Offer) -> dict[str, Any]:
    capability = offer.capability
    return {
        "id": capability.id,
        "version": capability.version,
        "description": capability.description,
        "category": capability.category,
        "input_schema": capability.input_schema,
        "output_schema": capability.output_schema,
        "constraints": capability.constraints,
    }


def _milliseconds(seconds: float) -> int:
    return max(1, min(MAX_TIMEOUT_MS, round(seconds * 1000)))


async def _guarded(work: Awaitable[None]) -> None:
    """Run a callback; its failure is logged and ends nothing else."""
    try:
        await work
    except Exception:  # boundary: a callback of the agent's must not break the connection
        logger.exception("mesh_callback_failed")
