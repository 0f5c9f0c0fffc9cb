"""The clocks of the simulated machines: the same virtual time, each with its own idea of what the wall clock says."""

from datetime import UTC, datetime, timedelta

from simulation.loop import VirtualLoop

EPOCH = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)
"""What a true wall clock says when a simulation begins."""


class MachineClock:
    """A `runtime.clock.Clock` of one machine.

    Args:
        skew_seconds: How far its wall clock is ahead at first; negative when it is behind.
    """

    def __init__(self, loop: VirtualLoop, skew_seconds: float = 0.0) -> None:
        self._loop = loop
        self._ahead = skew_seconds

    def now(self) -> datetime:
        """Return what this machine takes for the wall time."""
        return EPOCH + timedelta(seconds=self._loop.time() + self._ahead)

    def monotonic(self) -> float:
        """Return the virtual time, in seconds; no jump of the wall clock touches it."""
        return self._loop.time()

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward, or back when `seconds` is negative."""
        self._ahead += seconds
