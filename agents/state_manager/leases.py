"""Notices leases that end by time. It sleeps until the next one can end; nothing is polled."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from agents.state_manager.errors import StateManagerError
from agents.state_manager.storage.base import Storage
from agents.state_manager.store_clock import StoreClock
from amp import crash

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Wait after the store refused a sweep."""
SLACK_SECONDS = 0.01


class LeaseWatch:
    """Ends leases whose time is over, and tells when that leaves instances without an owner.

    Args:
        announce: Called when something may be claimed; it must not raise.
    """

    def __init__(self, storage: Storage, clock: StoreClock, announce: Callable[[], Awaitable[None]]) -> None:
        self._storage = storage
        self._clock = clock
        self._announce = announce
        self._next: datetime | None = None
        self._wake = asyncio.Event()

    def kept(self, lease_seconds: float) -> None:
        """Note that a lease was begun or renewed for that long."""
        expiry = self._clock.now() + timedelta(seconds=lease_seconds)
        if self._next is None or expiry < self._next:
            self._wake.set()

    async def run(self) -> None:
        """Sweep for ever, each time when the next lease may end."""
        while True:
            self._wake.clear()
            delay = await self._sweep()
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _sweep(self) -> float | None:
        """Sweep once; return the seconds until the next time, None for not before a lease is begun."""
        try:
            sweep = await self._storage.sweep_leases()
        except StateManagerError as error:
            logger.warning("lease_sweep_failed", extra={"code": error.code, "reason": error.message})
            return RETRY_SECONDS
        if sweep.ended:
            logger.warning(
                "leases_expired", extra={"owners": list(sweep.ended), "claimable": sweep.claimable}
            )
            crash.reach("store.lease.swept")
        if sweep.ended and sweep.claimable:
            await self._announce()
        self._next = sweep.next_expiry
        if sweep.next_expiry is None:
            return None
        return max(0.0, (sweep.next_expiry - self._clock.now()).total_seconds()) + SLACK_SECONDS
