"""The injected clock: the only place that reads the time. Waiting is left to the running loop.

Never read `time` or `datetime.now` anywhere else: a simulation replaces this clock by a virtual one.
"""

import time
from datetime import UTC, datetime
from typing import Protocol

SLEW = 0.1
"""How fast a slewed clock follows a wall clock that was set, in seconds a second."""
_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""The machine's clock that goes on while the machine sleeps."""


class Clock(Protocol):
    """A source of wall time and of a time that only grows."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start that never goes back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return the time since the machine started, in seconds, sleep included."""
        return time.clock_gettime(_ELAPSED)


class SlewedClock:
    """Wall time that never jumps: after the wall clock was set it is a tenth faster or slower until it agrees.

    What is due then comes when it would have come, and no running task is taken for one that is out of time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now = clock.now().timestamp()
        self._at = clock.monotonic()

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC; never less than before."""
        wall, at = self._clock.now().timestamp(), self._clock.monotonic()
        elapsed = max(0.0, at - self._at)
        steady = self._now + elapsed
        limit = elapsed * SLEW
        self._now, self._at = max(steady - limit, min(steady + limit, wall)), at
        return datetime.fromtimestamp(self._now, UTC)

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start that never goes back."""
        return self._clock.monotonic()
