"""Clocks for the executor's tests."""

import time
from datetime import UTC, datetime

NOW = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)


class FixedClock:
    """A wall clock that stands still; the monotonic one runs."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return time.monotonic()
