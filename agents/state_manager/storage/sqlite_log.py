"""The log and the instances' rows in SQLite."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from agents.state_manager.errors import StoreDamaged
from agents.state_manager.fencing import (
    OPEN_STATUSES,
    Position,
    check_batches,
    check_number,
    judge_append,
    refused,
    stored_row,
)
from agents.state_manager.storage.base import MAX_PAGE_BYTES, MAX_SCANNED_EVENTS, NO_ROOM
from agents.state_manager.storage.event_rows import record_of, values_of
from agents.state_manager.storage.listing import check_listing, read_cursor, write_cursor
from agents.state_manager.storage.sqlite_core import Row, SqliteCore
from agents.state_manager.store_clock import (
    from_microseconds,
    optional_microseconds,
    optional_time,
    to_microseconds,
)
from orchestration.contracts import (
    AppendBatch,
    AppendOutcome,
    EventRecord,
    InstanceListReply,
    InstanceListRequest,
    InstanceRow,
    LogReadReply,
    LogReadRequest,
    NewEvent,
)
from orchestration.status import InstanceStatus

_READ_INSTANCE = """
SELECT instance_id, workflow_id, workflow_version, workflow_name, definition_hash, status, created_at, started_at,
    completed_at, updated_at, wake_at, wake_reason, task_counts, current_tasks, error_code, error_message, started_by,
    owner, epoch, seq
FROM instances WHERE instance_id = ?"""
_INSERT_INSTANCE = """
INSERT INTO instances (
    instance_id, workflow_id, workflow_version, workflow_name, definition_hash, status, created_at, started_at,
    completed_at, updated_at, wake_at, wake_reason, task_counts, current_tasks, error_code, error_message, started_by,
    owner, epoch, seq)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_UPDATE_INSTANCE = """
UPDATE instances SET workflow_version = ?, workflow_name = ?, definition_hash = ?, status = ?, started_at = ?,
    completed_at = ?, updated_at = ?, wake_at = ?, wake_reason = ?, task_counts = ?, current_tasks = ?, error_code = ?,
    error_message = ?, started_by = ?, seq = ?
WHERE instance_id = ? AND owner = ? AND epoch = ? AND seq = ?"""
_READ_POSITION = "SELECT owner, epoch, seq FROM instances WHERE instance_id = ?"
_INSERT_EVENT = (
    "INSERT INTO events (offset, instance_id, seq, type, at, data, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_READ_STORED = (
    "SELECT type, data, offset FROM events WHERE instance_id = ? AND seq > ? AND seq <= ? ORDER BY seq"
)
_READ_LOG = """
SELECT offset, instance_id, seq, type, at, CAST(data AS BLOB), checksum FROM events
WHERE offset > :after AND offset <= :until ORDER BY offset LIMIT :limit"""
_READ_LOG_TYPES = """
SELECT offset, instance_id, seq, type, at, CAST(data AS BLOB), checksum FROM events
WHERE offset > :after AND offset <= :until AND type IN (SELECT value FROM json_each(:types))
ORDER BY offset LIMIT :limit"""
_READ_INSTANCE_LOG = """
SELECT offset, instance_id, seq, type, at, CAST(data AS BLOB), checksum FROM events
WHERE instance_id = :instance_id AND seq > :after AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
ORDER BY seq LIMIT :limit"""

_LIST_INSTANCES = """
SELECT instance_id, workflow_id, workflow_version, workflow_name, definition_hash, status, created_at, started_at,
    completed_at, updated_at, wake_at, wake_reason, task_counts, current_tasks, error_code, error_message, started_by,
    owner, epoch, seq
FROM instances
WHERE (:workflow_id IS NULL OR workflow_id = :workflow_id)
    AND (:owner IS NULL OR owner = :owner)
    AND (:created_after IS NULL OR created_at > :created_after)
    AND (:created_before IS NULL OR created_at < :created_before)
    AND (:text IS NULL OR instr(lower(instance_id), :text) OR instr(lower(workflow_id), :text)
        OR instr(lower(workflow_name), :text) OR instr(lower(error_message), :text))
    AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)))
    AND (:cursor_at IS NULL OR (created_at, instance_id) < (:cursor_at, :cursor_id))
ORDER BY created_at DESC, instance_id DESC LIMIT :limit"""
_LIST_OPEN_INSTANCES = """
SELECT instance_id, workflow_id, workflow_version, workflow_name, definition_hash, status, created_at, started_at,
    completed_at, updated_at, wake_at, wake_reason, task_counts, current_tasks, error_code, error_message, started_by,
    owner, epoch, seq
FROM instances
WHERE (:workflow_id IS NULL OR workflow_id = :workflow_id)
    AND (:owner IS NULL OR owner = :owner)
    AND (:created_after IS NULL OR created_at > :created_after)
    AND (:created_before IS NULL OR created_at < :created_before)
    AND (:text IS NULL OR instr(lower(instance_id), :text) OR instr(lower(workflow_id), :text)
        OR instr(lower(workflow_name), :text) OR instr(lower(error_message), :text))
    AND status IN ('pending', 'running', 'paused')
    AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)))
    AND (:cursor_at IS NULL OR (created_at, instance_id) < (:cursor_at, :cursor_id))
ORDER BY created_at DESC, instance_id DESC LIMIT :limit"""
_COUNT_INSTANCES = """
SELECT status, COUNT(*)
FROM instances
WHERE (:workflow_id IS NULL OR workflow_id = :workflow_id)
    AND (:owner IS NULL OR owner = :owner)
    AND (:created_after IS NULL OR created_at > :created_after)
    AND (:created_before IS NULL OR created_at < :created_before)
    AND (:text IS NULL OR instr(lower(instance_id), :text) OR instr(lower(workflow_id), :text)
        OR instr(lower(workflow_name), :text) OR instr(lower(error_message), :text))
GROUP BY status"""
_COUNT_ALL_INSTANCES = "SELECT status, COUNT(*) FROM instances GROUP BY status"

_EMPTY_INBOX = "DELETE FROM inbox WHERE instance_id = ?"
_FORGET_KEYS = "DELETE FROM inbox_keys WHERE instance_id = ?"
_DELETE_INBOX = "DELETE FROM inbox WHERE inbox_id = ? AND instance_id = ?"

_encode = msgspec.json.encode


class LogTables(SqliteCore):
    """Appends, and reads of the log and of instances."""

    async def append(self, batches: Sequence[AppendBatch]) -> list[AppendOutcome]:
        """Store the batches in one transaction; each succeeds or conflicts by itself. Repeats are known as such."""
        refusals = check_batches(batches)

        def work(connection: sqlite3.Connection) -> list[AppendOutcome]:
            now = self.now(connection)
            return [
                refused(batch, refusal) if refusal else self._append(connection, batch, now)
                for batch, refusal in zip(batches, refusals, strict=True)
            ]

        return await self.write_log(work, _newest_offset)

    def _append(self, connection: sqlite3.Connection, batch: AppendBatch, now: int) -> AppendOutcome:
        row = stored_row(batch, None, from_microseconds(now))
        # The common case first: one statement both checks the fence and writes the row.
        if batch.expected_seq > 0:
            values = (*_changing(row), batch.instance_id, batch.owner, batch.epoch, batch.expected_seq)
            if connection.execute(_UPDATE_INSTANCE, values).rowcount == 1:
                return self._appended(connection, batch, row)
        found = connection.execute(_READ_POSITION, (batch.instance_id,)).fetchone()
        stored = None if found is None else Position(*found)
        verdict = judge_append(stored, batch)
        if verdict == "create" and self.room.is_full:
            return AppendOutcome(instance_id=batch.instance_id, status="full", seq=0, reason=NO_ROOM)
        if verdict == "create":
            connection.execute(_INSERT_INSTANCE, row_values(row))
            return self._appended(connection, batch, row)
        seq = stored.seq if stored is not None else 0
        if verdict == "extend":
            # A seq of 0 belongs to no stored row, so the fence above must have matched.
            raise AssertionError(f"the fence of {batch.instance_id!r} at seq {seq} did not match itself")
        if verdict == "repeat?":
            offset = _offset_of_repeat(connection, batch)
            if offset is not None:
                last = batch.expected_seq + len(batch.events)
                return AppendOutcome(instance_id=batch.instance_id, status="ok", seq=last, offset=offset)
            verdict = "conflict"
        return AppendOutcome(instance_id=batch.instance_id, status=verdict, seq=seq)

    def _appended(
        self, connection: sqlite3.Connection, batch: AppendBatch, row: InstanceRow
    ) -> AppendOutcome:
        """Write what goes with a row that is in: its events, and what they consumed."""
        rows = []
        for seq, event in enumerate(batch.events, batch.expected_seq + 1):
            self._offset += 1
            rows.append(values_of(self._offset, batch.instance_id, seq, event))
        if len(rows) == 1:
            connection.execute(_INSERT_EVENT, rows[0])
        elif rows:
            connection.executemany(_INSERT_EVENT, rows)
        for inbox_id in batch.consumed_inbox_ids:
            connection.execute(_DELETE_INBOX, (inbox_id, batch.instance_id))
        if row.status.is_final:
            connection.execute(_EMPTY_INBOX, (batch.instance_id,))
            connection.execute(_FORGET_KEYS, (batch.instance_id,))
        offset = self._offset if rows else 0
        return AppendOutcome(instance_id=batch.instance_id, status="ok", seq=row.seq, offset=offset)

    async def read_log(self, request: LogReadRequest) -> LogReadReply:
        """Return events after an offset, or of one instance after a seq."""
        check_number(request.after, "after")
        if request.instance_id is not None:
            return await self._read_instance_log(request)
        newest = self.last_offset
        until = min(newest, request.after + MAX_SCANNED_EVENTS) if request.types else newest
        values = {
            "after": request.after,
            "until": until,
            "types": json.dumps(request.types),
            "limit": request.limit,
        }
        statement = _READ_LOG_TYPES if request.types else _READ_LOG
        rows, was_cut = await self.read_some(statement, values, _event_bytes, MAX_PAGE_BYTES)
        events = self._records(rows)
        if was_cut or len(rows) == request.limit:
            return LogReadReply(events=events, next=rows[-1][0], end=rows[-1][0] >= newest)
        reached = max(request.after, until)
        return LogReadReply(events=events, next=reached, end=reached >= newest)

    def _records(self, rows: list[Row]) -> list[EventRecord]:
        """Return the events in rows. Damage ends the process: nothing more of this store is served."""
        try:
            return [record_of(row) for row in rows]
        except StoreDamaged as damaged:
            self._note_lost(damaged)
            raise

    async def _read_instance_log(self, request: LogReadRequest) -> LogReadReply:
        values = {
            "instance_id": request.instance_id,
            "after": request.after,
            "types": json.dumps(request.types) if request.types else None,
            "limit": request.limit,
        }
        rows, was_cut = await self.read_some(_READ_INSTANCE_LOG, values, _event_bytes, MAX_PAGE_BYTES)
        more = was_cut or len(rows) == request.limit
        reached = rows[-1][2] if rows else request.after
        events = self._records(rows)
        if not request.types and [event.seq for event in events] != [
            *range(request.after + 1, request.after + 1 + len(events))
        ]:
            damaged = StoreDamaged(f"events of {request.instance_id!r} are missing after {request.after}")
            self._note_lost(damaged)
            raise damaged
        return LogReadReply(events=events, next=reached, end=not more)

    # --- instances -----------------------------------------------------------------------------------------

    async def get_instance(self, instance_id: str) -> InstanceRow | None:
        """Return an instance's row."""
        rows = await self.read(_READ_INSTANCE, (instance_id,))
        return instance_row(rows[0]) if rows else None

    async def list_instances(self, request: InstanceListRequest) -> InstanceListReply:
        """Return matching rows, newest first, and how many match by status."""
        values = list_values(request)
        only_open = bool(request.statuses) and all(status in OPEN_STATUSES for status in request.statuses)
        statement = _LIST_OPEN_INSTANCES if only_open else _LIST_INSTANCES
        rows, was_cut = await self.read_some(statement, values, _row_bytes, MAX_PAGE_BYTES)
        more = was_cut or len(rows) > request.limit
        found = [instance_row(row) for row in rows[: request.limit]]
        filtered = any(
            values[name] is not None
            for name in ("workflow_id", "owner", "created_after", "created_before", "text")
        )
        counted = await self.read(
            _COUNT_INSTANCES if filtered else _COUNT_ALL_INSTANCES, values if filtered else ()
        )
        counts = {str(status): int(count) for status, count in counted}
        wanted = [str(status) for status in request.statuses] or list(counts)
        return InstanceListReply(
            rows=found,
            next_cursor=write_cursor(found[-1]) if more else None,
            total=sum(counts.get(status, 0) for status in wanted),
            counts=counts,
        )


def _newest_offset(outcomes: list[AppendOutcome]) -> int:
    return max((outcome.offset for outcome in outcomes), default=0)


def _text(event: NewEvent) -> str:
    return str(event.data, "utf-8")


def _offset_of_repeat(connection: sqlite3.Connection, batch: AppendBatch) -> int | None:
    """Return the offset of the batch's last event when the store holds these very events, else None."""
    last = batch.expected_seq + len(batch.events)
    stored = connection.execute(_READ_STORED, (batch.instance_id, batch.expected_seq, last)).fetchall()
    same = [(row[0], row[1]) for row in stored] == [(event.type, _text(event)) for event in batch.events]
    return int(stored[-1][2]) if same else None


def _event_bytes(row: Row) -> int:
    return len(row[5])


def _changing(row: InstanceRow) -> tuple[Any, ...]:
    """Return the values of `_UPDATE_INSTANCE`: all that may change after the first append."""
    return (
        row.workflow_version, row.workflow_name, row.definition_hash, row.status.value,
        optional_microseconds(row.started_at), optional_microseconds(row.completed_at),
        optional_microseconds(row.updated_at), optional_microseconds(row.wake_at), row.wake_reason,
        _encode(row.task_counts).decode(), _encode(row.current_tasks).decode(),
        row.error_code, row.error_message, row.trigger, row.seq,
    )  # fmt: skip


def row_values(row: InstanceRow) -> tuple[Any, ...]:
    """Return a row's values in the order of `_INSERT_INSTANCE`."""
    return (
        row.instance_id, row.workflow_id, row.workflow_version, row.workflow_name, row.definition_hash,
        row.status.value, to_microseconds(row.created_at), optional_microseconds(row.started_at),
        optional_microseconds(row.completed_at), optional_microseconds(row.updated_at),
        optional_microseconds(row.wake_at), row.wake_reason, _encode(row.task_counts).decode(),
        _encode(row.current_tasks).decode(), row.error_code, row.error_message, row.trigger,
        row.owner, row.epoch, row.seq,
    )  # fmt: skip


def instance_row(row: Row) -> InstanceRow:
    """Return the row of an instance from its columns."""
    return InstanceRow(
        instance_id=row[0], workflow_id=row[1], workflow_version=row[2], workflow_name=row[3], definition_hash=row[4],
        status=InstanceStatus(row[5]), created_at=from_microseconds(row[6]), started_at=optional_time(row[7]),
        completed_at=optional_time(row[8]), updated_at=optional_time(row[9]), wake_at=optional_time(row[10]),
        wake_reason=row[11], task_counts=msgspec.json.decode(row[12]), current_tasks=msgspec.json.decode(row[13]),
        error_code=row[14], error_message=row[15], trigger=row[16], owner=row[17], epoch=row[18], seq=row[19],
    )  # fmt: skip


def _row_bytes(row: Row) -> int:
    return sum(len(value) for value in row if isinstance(value, str))


def list_values(request: InstanceListRequest) -> dict[str, Any]:
    """Return the bound values of a listing, with one row more than asked for, which tells whether more follow."""
    check_listing(request)
    cursor_at, cursor_id = read_cursor(request.cursor) if request.cursor else (None, None)
    return {
        "workflow_id": request.workflow_id or None,
        "owner": request.owner or None,
        "created_after": optional_microseconds(request.created_after),
        "created_before": optional_microseconds(request.created_before),
        "text": request.text.lower() if request.text else None,
        "statuses": json.dumps([status.value for status in request.statuses]) if request.statuses else None,
        "cursor_at": cursor_at,
        "cursor_id": cursor_id,
        "limit": request.limit + 1,
    }
