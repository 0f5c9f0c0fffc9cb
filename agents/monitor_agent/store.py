"""The monitor's own store: tallies, open instances, recent executions, alerts and the cursor, in one SQLite file.

What a batch of events changed is saved together with the offset it was read up to, in one transaction. So whatever
happens in between, a batch counts once. Losing the newest transactions costs nothing: they are read again.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiosqlite
import msgspec

from agents.monitor_agent import statements as sql
from amp import crash
from orchestration.alerts import Alert
from orchestration.reports import WorkflowTally
from orchestration.tallies import BUCKET_SECONDS, Changes, Execution, OpenInstance, Tally

MAX_EXECUTIONS = 50_000
MAX_TASK_ROWS = 5000
MAX_FAILURE_ROWS = 10_000
BUSY_SECONDS = 5.0
_CURSOR = "log_offset"
_VERSION = "schema_version"

_encode = msgspec.json.Encoder().encode
_decode_open = msgspec.json.Decoder(OpenInstance).decode
_decode_execution = msgspec.json.Decoder(Execution).decode
_decode_alert = msgspec.json.Decoder(Alert).decode


class StoreTooNew(Exception):
    """The file was written by a newer release."""


class MonitorStore:
    """One connection, one user at a time.

    Args:
        path: The file, or ":memory:".
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._db: aiosqlite.Connection | None = None

    async def open(self) -> None:
        """Open or create the file. Raises StoreTooNew."""
        if self._path != ":memory:":
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        self._db = await aiosqlite.connect(self._path, isolation_level=None, timeout=BUSY_SECONDS)
        await self._db.execute("PRAGMA journal_mode = WAL")
        await self._db.execute("PRAGMA synchronous = NORMAL")
        await self._db.executescript(sql.SCHEMA)
        version = await self._value(_VERSION)
        if version > sql.SCHEMA_VERSION:
            await self.close()
            raise StoreTooNew(
                f"{self._path} has schema version {version}; this release knows {sql.SCHEMA_VERSION}. "
                "Use the newer release, or move the file away: it is made again from the log"
            )
        await self._db.execute(sql.SET_META, (_VERSION, sql.SCHEMA_VERSION))

    async def open_or_rebuild(self) -> str:
        """Open the file; when it is damaged, put it aside and begin anew from the log.

        Returns: What was wrong with the file, "" when nothing was.
        Raises: StoreTooNew.
        """
        try:
            await self.open()
            await self.open_instances()
            await self.alerts()
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as problem:
            await self.close()
            if self._path == ":memory:" or isinstance(problem, sqlite3.OperationalError):
                raise
            _put_aside(self._path)
            await self.open()
            return str(problem)
        return ""

    async def close(self) -> None:
        """Close the file. Works twice."""
        db, self._db = self._db, None
        if db is not None:
            await db.close()

    # --- writing ---------------------------------------------------------------------------------------

    async def save(
        self,
        changes: Changes | None = None,
        *,
        cursor: int | None = None,
        alerts: Iterable[Alert] = (),
        dropped_alerts: Iterable[Alert] = (),
    ) -> None:
        """Save what changed, all or nothing."""
        async with self._transaction() as db:
            if changes is not None:
                await self._save_changes(db, changes)
            await db.executemany(sql.PUT_ALERT, [(alert.id, _encode(alert)) for alert in alerts])
            await db.executemany(sql.DELETE_ALERT, [(alert.id,) for alert in dropped_alerts])
            if cursor is not None:
                await db.execute(sql.SET_META, (_CURSOR, cursor))
                crash.reach("monitor.page.before_commit")

    async def _save_changes(self, db: aiosqlite.Connection, changes: Changes) -> None:
        await db.executemany(
            sql.ADD_TALLY,
            [
                (place.bucket, place.workflow_id, place.task_id, *_columns(tally))
                for place, tally in changes.tallies.items()
            ],
        )
        await db.executemany(
            sql.ADD_FAILURE,
            [
                (place.bucket, place.workflow_id, place.task_id, place.code, count)
                for place, count in changes.failures.items()
            ],
        )
        opened = [(instance_id, _encode(instance)) for instance_id, instance in changes.opened.items()]
        await db.executemany(sql.PUT_OPEN, opened)
        await db.executemany(sql.DELETE_OPEN, [(execution.instance_id,) for execution in changes.ended])
        await db.executemany(
            sql.PUT_EXECUTION,
            [
                (ended.instance_id, ended.started_at.timestamp(), _ended_at(ended), _encode(ended))
                for ended in changes.ended
            ],
        )

    async def forget(self, *, before: datetime) -> None:
        """Drop what is older than `before`, and executions beyond `MAX_EXECUTIONS`."""
        bucket = int(before.timestamp() // BUCKET_SECONDS)
        async with self._transaction() as db:
            await db.execute(sql.FORGET_TALLIES, (bucket,))
            await db.execute(sql.FORGET_FAILURES, (bucket,))
            await db.execute(sql.FORGET_EXECUTIONS, (before.timestamp(),))
            await db.execute(sql.CUT_EXECUTIONS, (MAX_EXECUTIONS,))

    async def start_over(self) -> None:
        """Forget everything that came from the log; alerts stay."""
        async with self._transaction() as db:
            for statement in sql.FORGET_ALL:
                await db.execute(statement)
            await db.execute(sql.SET_META, (_CURSOR, 0))

    # --- reading ---------------------------------------------------------------------------------------

    async def cursor(self) -> int:
        """Return the offset that was applied last, 0 at first."""
        return await self._value(_CURSOR)

    async def open_instances(self) -> dict[str, OpenInstance]:
        """Return the instances that have not ended, by id."""
        found = [_decode_open(row[0]) for row in await self._rows(sql.ALL_OPEN)]
        return {instance.instance_id: instance for instance in found}

    async def alerts(self) -> dict[str, Alert]:
        """Return every kept alert by id."""
        found = [_decode_alert(row[0]) for row in await self._rows(sql.ALL_ALERTS)]
        return {alert.id: alert for alert in found}

    async def recent_executions(self, limit: int) -> list[Execution]:
        """Return the executions that ended, newest start first."""
        return [_decode_execution(row[0]) for row in await self._rows(sql.RECENT_EXECUTIONS, limit)]

    async def workflows(self, since_bucket: int, workflow_id: str = "") -> dict[str, WorkflowTally]:
        """Return tally and failures of every workflow, or of one, since a bucket."""
        rows = await self._rows(sql.SUM_WORKFLOWS, since_bucket, workflow_id)
        failures = await self._failures(since_bucket, workflow_id, tasks=False)
        return {row[0]: WorkflowTally(_tally(row[2:]), failures.get((row[0], ""), {})) for row in rows}

    async def tasks(
        self, since_bucket: int, workflow_id: str = "", task_id: str = ""
    ) -> dict[tuple[str, str], WorkflowTally]:
        """Return tally and failures by workflow and task since a bucket, `MAX_TASK_ROWS` at most."""
        rows = await self._rows(sql.SUM_TASKS, since_bucket, workflow_id, task_id, MAX_TASK_ROWS)
        failures = await self._failures(since_bucket, workflow_id, tasks=True)
        return {
            (row[0], row[1]): WorkflowTally(_tally(row[2:]), failures.get((row[0], row[1]), {}))
            for row in rows
        }

    async def buckets(
        self, since_bucket: int, workflow_id: str = "", *, tasks: bool = False
    ) -> list[tuple[int, Tally]]:
        """Return tallies by bucket, of workflows or of their tasks."""
        rows = await self._rows(sql.SUM_BUCKETS, since_bucket, int(tasks), workflow_id)
        return [(row[0], _tally(row[1:])) for row in rows]

    async def count_errors(self, since_bucket: int) -> int:
        """Return how many attempts and workflows failed since a bucket, each failure once."""
        return int((await self._rows(sql.COUNT_ERRORS, since_bucket))[0][0])

    async def _failures(
        self, since_bucket: int, workflow_id: str, *, tasks: bool
    ) -> dict[tuple[str, str], Counter[str]]:
        rows = await self._rows(sql.COUNT_FAILURES, since_bucket, workflow_id, int(tasks), MAX_FAILURE_ROWS)
        failures: dict[tuple[str, str], Counter[str]] = {}
        for workflow, task, code, count in rows:
            failures.setdefault((workflow, task), Counter())[code] += count
        return failures

    async def _value(self, key: str) -> int:
        rows = await self._rows(sql.GET_META, key)
        return int(rows[0][0]) if rows else 0

    async def _rows(self, statement: str, *values: Any) -> list[Any]:
        assert self._db is not None, "the store is not open"
        async with self._lock:
            return list(await self._db.execute_fetchall(statement, values))

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        assert self._db is not None, "the store is not open"
        async with self._lock:
            await self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                await self._db.rollback()
                raise
            await self._db.commit()


def _put_aside(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        damaged = Path(path + suffix)
        if damaged.exists():
            damaged.replace(f"{path}.damaged{suffix}")


def _columns(tally: Tally) -> tuple[Any, ...]:
    return (
        tally.started,
        tally.completed,
        tally.failed,
        tally.cancelled,
        tally.skipped,
        tally.retried,
        tally.lost,
        tally.errors,
        tally.timed,
        tally.seconds_sum,
        tally.seconds_min,
        tally.seconds_max,
        tally.last_at.timestamp() if tally.last_at else None,
    )


def _tally(row: tuple[Any, ...]) -> Tally:
    *counts, seconds_sum, seconds_min, seconds_max, last_at = row
    started, completed, failed, cancelled, skipped, retried, lost, errors, timed = counts
    return Tally(
        started=started,
        completed=completed,
        failed=failed,
        cancelled=cancelled,
        skipped=skipped,
        retried=retried,
        lost=lost,
        errors=errors,
        timed=timed,
        seconds_sum=seconds_sum,
        seconds_min=seconds_min,
        seconds_max=seconds_max,
        last_at=datetime.fromtimestamp(last_at, UTC) if last_at is not None else None,
    )


def _ended_at(execution: Execution) -> float:
    return (execution.completed_at or execution.started_at).timestamp()
