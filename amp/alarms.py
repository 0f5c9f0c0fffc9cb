"""Many time limits on one timer of the loop: most are met, so setting one and taking it back costs next to nothing."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from amp.queues import BUCKET_MS, Deadlines

K = TypeVar("K", bound=Hashable)


class Alarms(Generic[K]):
    """Calls `on_due` with each key whose time is up.

    An alarm rings up to 50 ms late, one of more than a minute up to 1 s.
    """

    def __init__(self, on_due: Callable[[K], None]) -> None:
        self._on_due = on_due
        self._deadlines: Deadlines[K] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_bucket = 0

    def set(self, key: K, seconds: float) -> int:
        """Set an alarm; return what `cancel` wants back."""
        loop = asyncio.get_running_loop()
        bucket = self._deadlines.add(key, loop.time() * 1000, seconds * 1000)
        if self._timer is None or bucket < self._timer_bucket:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_bucket = bucket
            self._timer = loop.call_at(bucket * BUCKET_MS / 1000, self._ring)
        return bucket

    def cancel(self, key: K, bucket: int) -> None:
        """Take an alarm back."""
        self._deadlines.discard(key, bucket)

    def stop(self) -> None:
        """Ring no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        due = self._deadlines.pop_due(loop.time() * 1000 + 1)
        next_ms = self._deadlines.next_ms()
        if next_ms is not None:
            self._timer_bucket = round(next_ms / BUCKET_MS)
            self._timer = loop.call_at(next_ms / 1000, self._ring)
        for key in due:
            self._on_due(key)
