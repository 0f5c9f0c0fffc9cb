"""Removes what ended long ago, in small transactions between which everybody else gets his turn.

It never touches an instance that has not ended, and nothing younger than a day.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from agents.state_manager.errors import InvalidRequest, StateManagerError
from agents.state_manager.storage.base import Purged, Storage
from agents.state_manager.store_clock import StoreClock

logger = logging.getLogger(__name__)

PURGE_INTERVAL_SECONDS = 3600.0
PAUSE_SECONDS = 0.05
"""Between two transactions."""
MIN_DAYS = 1.0


class Retention:
    """Keeps ended instances for so many days.

    Args:
        days: 0 to keep them for ever.
        forget: Called with the ids of instances that are gone.
    """

    def __init__(
        self, storage: Storage, clock: StoreClock, *, days: float, forget: Callable[[tuple[str, ...]], None]
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._days = days
        self._forget = forget
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Purge now and then, for ever."""
        while self._days:
            try:
                await self.purge(self._days)
            except StateManagerError as error:
                logger.warning("purge_failed", extra={"code": error.code, "reason": error.message})
            await asyncio.sleep(PURGE_INTERVAL_SECONDS)

    def ended_before(self, days: float) -> datetime:
        """Return the time that is so many days ago. Raises InvalidRequest below a day."""
        if days < MIN_DAYS:
            raise InvalidRequest(f"{days:g} days are too few: what ended within {MIN_DAYS:g} day is kept")
        return self._clock.now() - timedelta(days=days)

    async def count(self, days: float) -> Purged:
        """Return what `purge` would remove."""
        return await self._storage.count_ended(self.ended_before(days))

    async def purge(self, days: float) -> Purged:
        """Remove what ended longer ago than that; return how much it was."""
        before = self.ended_before(days)
        instances = events = 0
        async with self._turn:
            while True:
                purged = await self._storage.purge(before)
                if not purged.instances:
                    break
                self._forget(purged.instance_ids)
                instances, events = instances + purged.instances, events + purged.events
                await asyncio.sleep(PAUSE_SECONDS)
        if instances:
            logger.info("instances_purged", extra={"instances": instances, "events": events})
        return Purged(instances=instances, events=events)
