"""The one clock that leases are measured by: the store's, which never goes back.

Wall time alone will not do (it jumps), monotonic time alone neither (it does not survive a restart). Never compare
a time of this clock with one that another machine sent.
"""

from datetime import UTC, datetime, timedelta

from runtime.clock import Clock

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(at: datetime) -> int:
    """Return an aware time as microseconds since 1970."""
    return (at - EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """Return the aware UTC time of microseconds since 1970."""
    return EPOCH + timedelta(microseconds=value)


def optional_microseconds(at: datetime | None) -> int | None:
    """Return `to_microseconds`, or null for null."""
    return None if at is None else to_microseconds(at)


def optional_time(value: int | None) -> datetime | None:
    """Return `from_microseconds`, or null for null."""
    return None if value is None else from_microseconds(value)


class StoreClock:
    """Wall time that only grows, and grows at least as fast as the monotonic clock.

    When the wall clock is set back the store's time goes on by the monotonic clock, so that leases still end.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = to_microseconds(clock.now())
        self._monotonic = clock.monotonic()

    def now_microseconds(self) -> int:
        """Return the store's time in microseconds since 1970; never less than before."""
        monotonic = self._clock.monotonic()
        elapsed = max(0, int((monotonic - self._monotonic) * 1_000_000))
        self._last = max(self._last + elapsed, to_microseconds(self._clock.now()))
        self._monotonic = monotonic
        return self._last

    def now(self) -> datetime:
        """Return the store's time."""
        return from_microseconds(self.now_microseconds())

    def not_before(self, microseconds: int) -> None:
        """Go on from a time that an earlier process has reached."""
        self._last = max(self._last, microseconds)
