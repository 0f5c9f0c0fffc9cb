"""A client's event subscriptions: patterns, handlers, one bounded queue and one task each, so order is kept."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

logger = logging.getLogger(__name__)

MAX_QUEUED_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class Event:
    """An event as a subscriber sees it. `data` is the whole payload, `event_type` included."""

    event_type: str
    data: dict[str, Any]
    source_agent_id: str


EventHandler = Callable[[Event], Awaitable[None] | None]


class Subscription:
    """One pattern with its handler. When events come faster than it handles them the oldest are dropped, and logged."""

    def __init__(self, pattern: str, handler: EventHandler) -> None:
        self.pattern = pattern
        self.dropped = 0
        self._handler = handler
        self._events: deque[Event] = deque(maxlen=MAX_QUEUED_EVENTS)
        self._wake: asyncio.Future[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._work(), name=f"events-{pattern}")

    def offer(self, event: Event) -> None:
        """Queue an event when the pattern matches it."""
        if not fnmatchcase(event.event_type, self.pattern):
            return
        if len(self._events) == MAX_QUEUED_EVENTS:
            self.dropped += 1
            if self.dropped == 1:
                logger.warning("events_dropped", extra={"pattern": self.pattern, "limit": MAX_QUEUED_EVENTS})
        self._events.append(event)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._events:
                event = self._events.popleft()
                try:
                    result = self._handler(event)
                    if result is not None:
                        await result
                except Exception:  # boundary: a subscriber's failure must not end its subscription
                    logger.exception("event_handler_failed", extra={"event_type": event.event_type})
            self.dropped = 0
            self._wake = loop.create_future()
            await self._wake
            self._wake = None

    async def stop(self) -> None:
        """End the subscription's task."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
