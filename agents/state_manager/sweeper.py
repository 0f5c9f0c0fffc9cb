"""Looks for unfinished instances that nothing will wake, and hints at those whose owner forgot them.

A hint may be lost; the next sweep gives it again. It changes nothing in the store.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from agents.state_manager.errors import StateManagerError
from agents.state_manager.orphans import OVERDUE_SECONDS, Suspect, orphan_of
from agents.state_manager.storage.base import Storage
from agents.state_manager.store_clock import StoreClock
from orchestration.contracts import Orphan, OrphansReply

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 30.0
UNREAD_SECONDS = 30.0
"""How long an entry may lie in an inbox before its owner is told of it again."""
MAX_SUSPECTS = 10_000
"""Most instances that one sweep looks at; the others come when these are woken."""
MAX_HINTS = 500
"""Most hints of each kind that one sweep gives."""

Hint = Callable[[str, str], Awaitable[None]]


class Sweeper:
    """Sweeps now and then, and answers who is an orphan now.

    Args:
        hint_overdue, hint_inbox: Tell an owner of an instance, both by id; they must not raise.
        hint_changed: Tell how many orphans there are, when a sweep found others than the one before; must not raise.
    """

    def __init__(
        self,
        storage: Storage,
        clock: StoreClock,
        *,
        hint_overdue: Hint,
        hint_inbox: Hint,
        hint_changed: Callable[[int], Awaitable[None]],
    ) -> None:
        self.count = 0
        """How many orphans there were when it was looked last."""
        self._storage = storage
        self._clock = clock
        self._hint_overdue = hint_overdue
        self._hint_inbox = hint_inbox
        self._hint_changed = hint_changed
        self._swept = frozenset[str]()
        self._ownerless_since: dict[str, datetime] = {}

    async def run(self) -> None:
        """Sweep for ever, the first time at once."""
        while True:
            try:
                await self.sweep()
            except StateManagerError as error:
                logger.warning("sweep_failed", extra={"code": error.code, "reason": error.message})
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Look once, and hint."""
        orphans = await self._look()
        if orphans:
            first = orphans[0]
            logger.warning(
                "instances_orphaned",
                extra={"count": len(orphans), "first": first.instance_id, "code": first.code},
            )
        swept = frozenset(orphan.instance_id for orphan in orphans)
        if swept != self._swept:
            self._swept = swept
            await self._hint_changed(len(orphans))
        for orphan in [orphan for orphan in orphans if orphan.code == "overdue"][:MAX_HINTS]:
            await self._hint_overdue(orphan.instance_id, orphan.owner)
        put_before = self._clock.now() - timedelta(seconds=UNREAD_SECONDS)
        for instance_id, owner in await self._storage.unread_inboxes(put_before, MAX_HINTS):
            await self._hint_inbox(instance_id, owner)

    async def answer(self, limit: int) -> OrphansReply:
        """Return the orphans of this moment."""
        orphans = await self._look()
        return OrphansReply(count=len(orphans), orphans=orphans[:limit], checked_at=self._clock.now())

    async def _look(self) -> list[Orphan]:
        now = self._clock.now()
        due_before = now - timedelta(seconds=OVERDUE_SECONDS)
        suspects = await self._storage.suspects(due_before, MAX_SUSPECTS)
        self._note_owners(suspects, now)
        found = (orphan_of(suspect, self._ownerless_since.get(suspect.owner), now) for suspect in suspects)
        orphans = [orphan for orphan in found if orphan is not None]
        self.count = len(orphans)
        return orphans

    def _note_owners(self, suspects: list[Suspect], now: datetime) -> None:
        """Remember since when each owner has been gone. A restart of this process counts anew."""
        gone = {suspect.owner for suspect in suspects if not suspect.owner_lives}
        self._ownerless_since = {owner: self._ownerless_since.get(owner, now) for owner in gone}
