"""The requests of one client that have no answer yet: their time limits, and the asking again.

A frame can get lost, on its way there or on its way back. So what stays unanswered is asked again under its own id;
the router and our agents know a repeat for what it is. One sweep serves all requests; none has a timer for it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from amp.alarms import Alarms
from amp.envelope import Message
from amp.errors import (
    CONNECTION_LOST,
    AmpError,
    Disconnected,
    InsufficientResources,
    LocalProtocolError,
    RequestTimeout,
)
from amp.link import Link

MAX_WAITING_REQUESTS = 100_000
RE_ASK_SECONDS = 15.0
"""How long an unanswered request waits before it is asked again."""
SWEEPS = 3
"""How often, in that time, it is looked who waits too long."""
MAX_RE_ASKED = 500
MAX_RE_ASKED_BYTES = 8 * 1024 * 1024
"""What one sweep asks again at most, the longest waiting first."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A request without an answer. `link` is the connection it was last sent on, None when it was not sent at all."""

    future: asyncio.Future[Message]
    frame: bytes
    resend: bool
    asked_at: float
    timeout_seconds: float
    link: Link | None = None


class WaitingRequests:
    """The table of a client's unanswered requests.

    Args:
        link: Returns the connection that requests leave by, None while the client is not registered.
        repeats: Returns whether the router knows a repeat from a first.
    """

    def __init__(
        self,
        link: Callable[[], Link | None],
        repeats: Callable[[], bool],
        *,
        re_ask_seconds: float = RE_ASK_SECONDS,
    ) -> None:
        self._re_ask_seconds = re_ask_seconds
        self._link = link
        self._repeats = repeats
        self._by_id: dict[str, Waiting] = {}
        self._limits: Alarms[str] = Alarms(self._time_out)
        self._sweep: asyncio.TimerHandle | None = None

    async def ask(self, request_id: str, frame: bytes, timeout_seconds: float, *, resend: bool) -> Message:
        """Send a request and return the reply's message. Raises RequestTimeout, Disconnected, InsufficientResources."""
        if request_id in self._by_id:
            raise LocalProtocolError(f"a request with the id {request_id!r} is under way")
        if len(self._by_id) >= MAX_WAITING_REQUESTS:
            raise InsufficientResources(f"{len(self._by_id)} requests are under way", {"retry_after_ms": 250})
        link = self._link()
        if link is None and not resend:
            raise Disconnected("not connected to a router", {"sent": False})
        loop = asyncio.get_running_loop()
        waiting = Waiting(loop.create_future(), frame, resend, loop.time(), timeout_seconds)
        limit = self._limits.set(request_id, timeout_seconds)
        self._by_id[request_id] = waiting
        if self._sweep is None:
            self._sweep = loop.call_later(self._re_ask_seconds / SWEEPS, self._ask_again)
        try:
            if link is not None:
                if not link.push(frame):
                    raise InsufficientResources(
                        "the connection to the router is congested", {"retry_after_ms": 250}
                    )
                waiting.link = link
            return await waiting.future
        finally:
            self._limits.cancel(request_id, limit)
            del self._by_id[request_id]

    def answer(self, request_id: str, message: Message) -> bool:
        """Give a reply to who waits for it. Return whether somebody does."""
        waiting = self._by_id.get(request_id)
        if waiting is None:
            return False
        if not waiting.future.done():
            waiting.future.set_result(message)
        return True

    def connected(self, link: Link) -> None:
        """Send what survived the loss of the connection before."""
        now = asyncio.get_running_loop().time()
        for waiting in self._by_id.values():
            if waiting.resend:
                waiting.asked_at = now
                waiting.link = link if link.push(waiting.frame) else None

    def disconnected(self) -> None:
        """Fail what must not be sent again on another connection."""
        for waiting in self._by_id.values():
            if not waiting.resend:
                error = Disconnected(
                    "the connection to the router broke", {"reason": CONNECTION_LOST, "sent": True}
                )
                _fail(waiting.future, error)

    def stop(self) -> None:
        """Fail everything."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._limits.stop()
        for waiting in self._by_id.values():
            sent = waiting.link is not None
            _fail(waiting.future, Disconnected("the client was stopped", {"sent": sent}))

    def _time_out(self, request_id: str) -> None:
        waiting = self._by_id[request_id]
        _fail(waiting.future, RequestTimeout(f"no answer within {waiting.timeout_seconds} s"))

    def _ask_again(self) -> None:
        self._sweep = None
        if not self._by_id:
            return
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._re_ask_seconds / SWEEPS, self._ask_again)
        link = self._link()
        if link is not None and self._repeats():
            self._push_again(link, loop.time())

    def _push_again(self, link: Link, now: float) -> None:
        """Send again what waits too long. What was not declared safe to resend stays with the connection it was
        sent on: there the router remembers it, so that it is not done twice."""
        due = [
            each
            for each in self._by_id.values()
            if now - each.asked_at >= self._re_ask_seconds
            and (each.resend or each.link is link)
            and not each.future.done()
        ]
        due.sort(key=lambda each: each.asked_at)
        size = 0
        for waiting in due[:MAX_RE_ASKED]:
            size += len(waiting.frame)
            if (size > MAX_RE_ASKED_BYTES and size > len(waiting.frame)) or not link.push(waiting.frame):
                return
            waiting.asked_at, waiting.link = now, link


def _fail(future: asyncio.Future[Message], error: AmpError) -> None:
    if not future.done():
        future.set_exception(error)
