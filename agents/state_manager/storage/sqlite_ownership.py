"""Leases and claims in SQLite: who drives which instance."""

import sqlite3

from agents.state_manager.fencing import MAX_CLAIMED_ROWS, check_id, check_lease_seconds
from agents.state_manager.storage.base import LeaseStanding, LeaseSweep
from agents.state_manager.storage.sqlite_core import SqliteCore
from agents.state_manager.storage.sqlite_log import instance_row
from agents.state_manager.store_clock import from_microseconds
from orchestration.contracts import InstanceRow

_PUT_LEASE = """
INSERT INTO leases (owner, agent_id, expires_at, lease_microseconds) VALUES (?, ?, ?, ?)
ON CONFLICT (owner) DO UPDATE SET agent_id = excluded.agent_id, expires_at = excluded.expires_at,
    lease_microseconds = excluded.lease_microseconds"""
_END_OLDER_LEASES = "DELETE FROM leases WHERE agent_id = ? AND owner <> ?"
_END_LEASE = "DELETE FROM leases WHERE owner = ?"
_END_EXPIRED = "DELETE FROM leases WHERE expires_at <= ? RETURNING owner"
_NEXT_EXPIRY = "SELECT MIN(expires_at) FROM leases"
_EXTEND_LEASES = "UPDATE leases SET expires_at = MAX(expires_at, ? + lease_microseconds)"
_LIVE_OWNERS = "SELECT owner FROM leases WHERE expires_at > ?"
_COUNT_OPEN = """
SELECT owner, COUNT(*) FROM instances WHERE status IN ('pending', 'running', 'paused') GROUP BY owner"""
_CLAIM = """
UPDATE instances SET owner = :owner, epoch = epoch + 1
WHERE instance_id IN (
    SELECT instance_id FROM instances
    WHERE status IN ('pending', 'running', 'paused') AND owner <> :owner AND NOT EXISTS (
        SELECT 1 FROM leases WHERE leases.owner = instances.owner AND leases.expires_at > :now)
    ORDER BY created_at, instance_id LIMIT :limit)
RETURNING instance_id, workflow_id, workflow_version, workflow_name, definition_hash, status, created_at, started_at,
    completed_at, updated_at, wake_at, wake_reason, task_counts, current_tasks, error_code, error_message, started_by,
    owner, epoch, seq"""


class OwnershipTables(SqliteCore):
    """Leases of engines and claims of instances."""

    async def extend_leases(self) -> None:
        """Give every lease its full time from now: while the store was away nobody could renew one."""
        await self.write(
            lambda connection: connection.execute(_EXTEND_LEASES, (self.now(connection),)).rowcount
        )

    async def keep_lease(self, owner: str, agent_id: str, lease_seconds: float) -> LeaseStanding:
        """Begin or renew a lease; an older one of the same agent ends. Return how the engine stands then."""
        check_id(owner, "owner")
        check_id(agent_id, "agent_id")
        check_lease_seconds(lease_seconds)
        length = int(lease_seconds * 1_000_000)

        def work(connection: sqlite3.Connection) -> LeaseStanding:
            now = self.now(connection)
            had_one = owner in _live_owners(connection, now)
            connection.execute(_PUT_LEASE, (owner, agent_id, now + length, length))
            connection.execute(_END_OLDER_LEASES, (agent_id, owner))
            live, held = _live_owners(connection, now), _open_by_owner(connection)
            return LeaseStanding(
                claimable=sum(count for holder, count in held.items() if holder not in live),
                held=held.get(owner, 0),
                open=sum(held.values()),
                engines=len(live),
                begun=not had_one,
            )

        return await self.write(work)

    async def end_lease(self, owner: str) -> int:
        """End a lease now. Return how many instances may be claimed."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(_END_LEASE, (owner,))
            return _claimable(connection, self.now(connection))

        return await self.write(work)

    async def sweep_leases(self) -> LeaseSweep:
        """End the leases whose time is over."""

        def work(connection: sqlite3.Connection) -> LeaseSweep:
            now = self.now(connection)
            ended = tuple(
                sorted(str(owner) for (owner,) in connection.execute(_END_EXPIRED, (now,)).fetchall())
            )
            (expiry,) = connection.execute(_NEXT_EXPIRY).fetchone()
            next_expiry = None if expiry is None else from_microseconds(expiry)
            return LeaseSweep(ended=ended, claimable=_claimable(connection, now), next_expiry=next_expiry)

        return await self.write(work)

    async def claim(self, owner: str, limit: int) -> list[InstanceRow]:
        """Give unfinished instances without a live owner to this one, oldest first, each with its next epoch."""
        check_id(owner, "owner")

        def work(connection: sqlite3.Connection) -> list[InstanceRow]:
            values = {"owner": owner, "now": self.now(connection), "limit": min(limit, MAX_CLAIMED_ROWS)}
            rows = [instance_row(row) for row in connection.execute(_CLAIM, values).fetchall()]
            return sorted(rows, key=lambda row: (row.created_at, row.instance_id))

        return await self.write(work)


def _claimable(connection: sqlite3.Connection, now: int) -> int:
    live = _live_owners(connection, now)
    return sum(count for owner, count in _open_by_owner(connection).items() if owner not in live)


def _live_owners(connection: sqlite3.Connection, now: int) -> frozenset[str]:
    return frozenset(str(owner) for (owner,) in connection.execute(_LIVE_OWNERS, (now,)))


def _open_by_owner(connection: sqlite3.Connection) -> dict[str, int]:
    return {str(owner): int(count) for owner, count in connection.execute(_COUNT_OPEN)}
