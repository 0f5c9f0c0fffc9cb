"""What is looked after in SQLite: instances that nobody wakes, inboxes that nobody reads, what ended long ago."""

import sqlite3
from datetime import datetime

from agents.state_manager.orphans import Suspect
from agents.state_manager.storage.base import MAX_PURGED_EVENTS, MAX_PURGED_INSTANCES, Purged
from agents.state_manager.storage.sqlite_core import SqliteCore
from agents.state_manager.store_clock import optional_time, to_microseconds
from amp import crash
from orchestration.status import InstanceStatus

_READ_SUSPECTS = """
SELECT instance_id, workflow_id, status, owner, wake_at, wake_reason, EXISTS (
    SELECT 1 FROM leases WHERE leases.owner = instances.owner AND leases.expires_at > :now) AS owner_lives
FROM instances
WHERE status IN ('pending', 'running', 'paused')
    AND (NOT owner_lives OR wake_at IS NULL OR wake_at <= :due_before OR wake_reason = '')
LIMIT :limit"""
_READ_UNREAD_INBOXES = """
SELECT DISTINCT inbox.instance_id, instances.owner
FROM inbox JOIN instances ON instances.instance_id = inbox.instance_id
WHERE inbox.at <= :put_before LIMIT :limit"""

_READ_ENDED = """
SELECT instance_id, seq FROM instances
WHERE completed_at IS NOT NULL AND completed_at < ? AND status NOT IN ('pending', 'running', 'paused')
ORDER BY completed_at LIMIT ?"""
_COUNT_ENDED = """
SELECT COUNT(*), COALESCE(SUM(seq), 0) FROM instances
WHERE completed_at IS NOT NULL AND completed_at < ? AND status NOT IN ('pending', 'running', 'paused')"""
_PURGE = (
    "DELETE FROM events WHERE instance_id = ?",
    "DELETE FROM inbox WHERE instance_id = ?",
    "DELETE FROM inbox_keys WHERE instance_id = ?",
    "DELETE FROM workflow_states WHERE workflow_instance_id = ?",
    "DELETE FROM state_history WHERE workflow_instance_id = ?",
    "DELETE FROM context_data WHERE workflow_instance_id = ?",
    "DELETE FROM instances WHERE instance_id = ?",
)


class UpkeepTables(SqliteCore):
    """Suspects for the sweeper, and the removal of what is old."""

    async def suspects(self, due_before: datetime, limit: int) -> list[Suspect]:
        """Return unfinished instances without a live owner, without a wake reason, or due before that time."""
        values = {
            "now": self.clock.now_microseconds(),
            "due_before": to_microseconds(due_before),
            "limit": limit,
        }
        return [
            Suspect(
                instance_id=row[0],
                workflow_id=row[1],
                status=InstanceStatus(row[2]),
                owner=row[3],
                wake_at=optional_time(row[4]),
                wake_reason=row[5],
                owner_lives=bool(row[6]),
            )
            for row in await self.read(_READ_SUSPECTS, values)
        ]

    async def unread_inboxes(self, put_before: datetime, limit: int) -> list[tuple[str, str]]:
        """Return instances with an entry in their inbox that is older than that, each with its owner."""
        values = {"put_before": to_microseconds(put_before), "limit": limit}
        return [(row[0], row[1]) for row in await self.read(_READ_UNREAD_INBOXES, values)]

    async def count_ended(self, ended_before: datetime) -> Purged:
        """Return what `purge` would remove in all, without the ids."""
        ((instances, events),) = await self.read(_COUNT_ENDED, (to_microseconds(ended_before),))
        return Purged(instances=instances, events=events)

    async def purge(self, ended_before: datetime) -> Purged:
        """Remove some instances that ended before that time with all that is theirs; nothing when none is left."""
        before = to_microseconds(ended_before)

        def work(connection: sqlite3.Connection) -> Purged:
            found = connection.execute(_READ_ENDED, (before, MAX_PURGED_INSTANCES)).fetchall()
            ids: list[str] = []
            events = 0
            for instance_id, seq in found:
                if ids and events + seq > MAX_PURGED_EVENTS:
                    break
                ids.append(instance_id)
                events += seq
            for statement in _PURGE:
                connection.executemany(statement, [(instance_id,) for instance_id in ids])
            crash.reach("store.purge.before_commit")
            return Purged(instances=len(ids), events=events, instance_ids=tuple(ids))

        return await self.write(work)
