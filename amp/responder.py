"""Requests in, replies out: runs an agent's offers, each request once.

A repeated request (same requester, same message id) attaches to the run under way or gets the kept reply again.
Exceptions of a handler become AMP errors without internals.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from amp.alarms import Alarms
from amp.capability import Incoming, Offer, Reply
from amp.envelope import Message, RequestPayload
from amp.errors import (
    AmpError,
    CapabilityNotFound,
    ExecutionError,
    InsufficientResources,
    InvalidParameters,
    LocalProtocolError,
    RequestTimeout,
)

logger = logging.getLogger(__name__)

MAX_KEPT_REPLIES = 4096
MAX_KEPT_BYTES = 32 * 1024 * 1024
HANDLER_GRACE_SECONDS = 5.0
"""A handler is stopped this long after its requester gave up waiting."""
OVERCOMMIT = 4
"""Requests beyond `max_in_flight` times this are refused: free ones and those of routers that count no credit."""

Key = tuple[str, str]
SendReply = Callable[[Message, Reply | AmpError], bytes]

_PAYLOAD = msgspec.json.Decoder(RequestPayload)
_NO_PARAMETERS = b"{}"


class Responder:
    """The offers of one agent and the requests it has in hand.

    Args:
        send: Sends a response or error to a request and returns its frame.
        resend: Sends a kept frame again.
    """

    def __init__(
        self, offers: Sequence[Offer], *, max_in_flight: int, send: SendReply, resend: Callable[[bytes], None]
    ) -> None:
        self.offers = {offer.capability.id: offer for offer in offers}
        if len(self.offers) != len(offers):
            raise LocalProtocolError("two offers have the same capability id")
        self._max_running = max_in_flight * OVERCOMMIT
        self._send = send
        self._resend = resend
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._limits: Alarms[Key] = Alarms(self._expire)
        self._expired: set[Key] = set()
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._kept_bytes = 0

    @property
    def running(self) -> int:
        """How many requests are being handled."""
        return len(self._running)

    def receive(self, message: Message) -> None:
        """Start the handler of a request, or answer why not."""
        key = (message.source.agent_id, message.id)
        if key in self._running:
            return
        kept = self._kept.get(key)
        if kept is not None:
            self._resend(kept)
            return
        if len(self._running) >= self._max_running:
            error = InsufficientResources(
                f"{len(self._running)} requests are under way", {"retry_after_ms": 250}
            )
            self._send(message, error)
            return
        self._running[key] = asyncio.get_running_loop().create_task(self._run(key, message))

    async def drain(self, timeout_seconds: float) -> None:
        """Wait for the handlers, at most `timeout_seconds`, then stop the rest."""
        if not timeout_seconds:
            self._limits.stop()
        tasks = list(self._running.values())
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _expire(self, key: Key) -> None:
        self._expired.add(key)
        self._running[key].cancel()

    async def _run(self, key: Key, message: Message) -> None:
        timeout_seconds = message.headers.effective_timeout_ms / 1000
        limit = self._limits.set(key, timeout_seconds + HANDLER_GRACE_SECONDS)
        body: Reply | AmpError
        try:
            offer, incoming = self._accept(message, timeout_seconds)
            result = await offer.handler(incoming)
            body = result if isinstance(result, Reply) else Reply(result)
        except AmpError as error:
            body = error
        except asyncio.CancelledError:
            if key not in self._expired:
                raise
            body = RequestTimeout(f"no result within {timeout_seconds} s")
        except Exception as error:  # boundary: a handler's failure becomes an AMP error
            logger.exception(
                "handler_failed", extra={"message_id": message.id, "from": message.source.agent_id}
            )
            body = ExecutionError(f"the handler failed with {type(error).__name__}")
        finally:
            self._limits.cancel(key, limit)
            self._expired.discard(key)
            self._running.pop(key, None)
        self._keep(key, self._send(message, body))

    def _accept(self, message: Message, timeout_seconds: float) -> tuple[Offer, Incoming]:
        try:
            payload = _PAYLOAD.decode(message.payload)
        except msgspec.DecodeError as error:
            raise InvalidParameters(f"the request's payload is not valid: {str(error)[:300]}") from None
        wanted = message.destination.capability or payload.capability
        offer = self.offers.get(wanted or "")
        if offer is None:
            raise CapabilityNotFound(
                f"this agent does not offer {wanted!r}",
                {"capability": wanted, "available_capabilities": sorted(self.offers)},
            )
        raw = payload.parameters
        parameters = offer.parse(_NO_PARAMETERS if isinstance(raw, msgspec.UnsetType) else raw)
        context = None if isinstance(payload.context, msgspec.UnsetType) else bytes(payload.context)
        return offer, Incoming(
            parameters=parameters,
            context_raw=context if context is not None and context[:1] == b"{" else None,
            message=message,
            timeout_seconds=timeout_seconds,
        )

    def _keep(self, key: Key, frame: bytes) -> None:
        self._kept[key] = frame
        self._kept_bytes += len(frame)
        while len(self._kept) > MAX_KEPT_REPLIES or self._kept_bytes > MAX_KEPT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped)
