"""States with their history, and AMP contexts, in SQLite."""

import sqlite3
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from agents.state_manager.errors import StoreBusy
from agents.state_manager.state_values import indexed_texts
from agents.state_manager.storage.base import (
    MAX_CONTEXTS,
    MAX_HISTORY_ENTRIES,
    MAX_PAGE_BYTES,
    DecideContext,
    DecideState,
    StateVersion,
    StoredContext,
    StoredState,
)
from agents.state_manager.storage.sqlite_core import Row, SqliteCore
from agents.state_manager.store_clock import (
    from_microseconds,
    optional_microseconds,
    optional_time,
    to_microseconds,
)

_READ_STATE = """
SELECT workflow_instance_id, state_data, version, created_at, updated_at
FROM workflow_states WHERE workflow_instance_id = ?"""
_PUT_STATE = """
INSERT INTO workflow_states (workflow_instance_id, state_data, version, created_at, updated_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (workflow_instance_id) DO UPDATE SET state_data = excluded.state_data, version = excluded.version,
    updated_at = excluded.updated_at"""
_DELETE_STATE = "DELETE FROM workflow_states WHERE workflow_instance_id = ?"
_LIST_STATES = """
SELECT workflow_instance_id, '{}', version, created_at, updated_at FROM workflow_states
WHERE substr(workflow_instance_id, 1, length(:prefix)) = :prefix
ORDER BY updated_at DESC, workflow_instance_id DESC LIMIT :limit"""
_COUNT_STATES = (
    "SELECT COUNT(*) FROM workflow_states WHERE substr(workflow_instance_id, 1, length(:prefix)) = :prefix"
)
_SCAN_STATES = """
SELECT workflow_instance_id, state_data, version, created_at, updated_at
FROM workflow_states ORDER BY updated_at DESC, workflow_instance_id DESC"""
_SCAN_STATES_WITH_TEXT = """
SELECT workflow_instance_id, state_data, version, created_at, updated_at
FROM workflow_states
WHERE workflow_instance_id IN (
    SELECT workflow_instance_id FROM context_data WHERE context_key = ? AND context_value = ?)
ORDER BY updated_at DESC, workflow_instance_id DESC"""

_INSERT_HISTORY = """
INSERT INTO state_history (workflow_instance_id, state_data, version, change_description, timestamp)
VALUES (?, ?, ?, ?, ?)"""
_TRIM_HISTORY = "DELETE FROM state_history WHERE workflow_instance_id = ? AND version <= ?"
_DELETE_HISTORY = "DELETE FROM state_history WHERE workflow_instance_id = ?"
_READ_HISTORY = """
SELECT state_data, version, change_description, timestamp FROM state_history
WHERE workflow_instance_id = ? ORDER BY version DESC LIMIT ?"""

_PUT_TEXT = """
INSERT INTO context_data (workflow_instance_id, context_key, context_value, context_type) VALUES (?, ?, ?, 'str')
ON CONFLICT (workflow_instance_id, context_key) DO UPDATE SET context_value = excluded.context_value"""
_DELETE_TEXT = "DELETE FROM context_data WHERE workflow_instance_id = ? AND context_key = ?"
_DELETE_TEXTS = "DELETE FROM context_data WHERE workflow_instance_id = ?"

_READ_CONTEXT = """
SELECT context_id, session_id, created_at, expires_at, shared_memory, agent_memory, parent_context, root_context
FROM contexts WHERE context_id = ? AND (expires_at IS NULL OR expires_at > ?)"""
_PUT_CONTEXT = """
INSERT INTO contexts (
    context_id, session_id, created_at, expires_at, shared_memory, agent_memory, parent_context, root_context)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (context_id) DO UPDATE SET expires_at = excluded.expires_at, shared_memory = excluded.shared_memory,
    agent_memory = excluded.agent_memory"""
_DROP_EXPIRED = "DELETE FROM contexts WHERE expires_at <= ?"
_COUNT_CONTEXTS = "SELECT COUNT(*) FROM contexts"

_encode = msgspec.json.encode


class StateTables(SqliteCore):
    """The general key-value store, versioned."""

    async def get_state(self, state_id: str) -> StoredState | None:
        """Return a state."""
        rows = await self.read(_READ_STATE, (state_id,))
        return state_of(rows[0]) if rows else None

    async def change_state(self, state_id: str, decide: DecideState) -> StoredState | None:
        """Replace a state by what `decide` makes of it, as the next version; None deletes it with its history."""
        return await self.write(lambda connection: self._change_state(connection, state_id, decide))

    def _change_state(
        self, connection: sqlite3.Connection, state_id: str, decide: DecideState
    ) -> StoredState | None:
        row = connection.execute(_READ_STATE, (state_id,)).fetchone()
        stored = None if row is None else state_of(row)
        change = decide(stored)
        if change is None:
            for statement in (_DELETE_STATE, _DELETE_HISTORY, _DELETE_TEXTS):
                connection.execute(statement, (state_id,))
            return None
        self.room.refuse_new()
        now = self.now(connection)
        version = 1 if stored is None else stored.version + 1
        created_at = now if stored is None else to_microseconds(stored.created_at)
        text = _encode(change.state).decode()
        connection.execute(_PUT_STATE, (state_id, text, version, created_at, now))
        connection.execute(_INSERT_HISTORY, (state_id, text, version, change.description, now))
        connection.execute(_TRIM_HISTORY, (state_id, version - MAX_HISTORY_ENTRIES))
        _index(connection, state_id, {} if stored is None else stored.state, change.state)
        return StoredState(
            workflow_instance_id=state_id,
            state=change.state,
            version=version,
            created_at=from_microseconds(created_at),
            updated_at=from_microseconds(now),
        )

    async def list_states(self, prefix: str, limit: int) -> tuple[list[StoredState], int]:
        """Return states whose id begins with `prefix`, newest change first, without values; and how many there are."""
        rows = await self.read(_LIST_STATES, {"prefix": prefix, "limit": limit})
        ((total,),) = await self.read(_COUNT_STATES, {"prefix": prefix})
        return [state_of(row) for row in rows], int(total)

    async def state_history(self, state_id: str) -> list[StateVersion]:
        """Return a state's versions, newest first, `MAX_HISTORY_ENTRIES` and `MAX_PAGE_BYTES` at most."""
        values = (state_id, MAX_HISTORY_ENTRIES)
        rows, _ = await self.read_some(_READ_HISTORY, values, lambda row: len(row[0]), MAX_PAGE_BYTES)
        return [
            StateVersion(
                state=msgspec.json.decode(row[0]),
                version=row[1],
                description=row[2],
                at=from_microseconds(row[3]),
            )
            for row in rows
        ]

    async def scan_states(self, equal_texts: Mapping[str, str]) -> AsyncGenerator[StoredState]:
        """Return at least all states that hold these texts at top level; all states when none is given."""
        first = next(iter(equal_texts.items()), None)
        statement = _SCAN_STATES if first is None else _SCAN_STATES_WITH_TEXT
        async with aclosing(self.scan(statement, first or ())) as rows:
            async for row in rows:
                yield state_of(row)


class ContextTables(SqliteCore):
    """AMP context objects."""

    async def get_context(self, context_id: str) -> StoredContext | None:
        """Return a context that has not expired."""
        rows = await self.read(_READ_CONTEXT, (context_id, self.clock.now_microseconds()))
        return _context_of(rows[0]) if rows else None

    async def change_context(self, context_id: str, decide: DecideContext) -> StoredContext:
        """Replace a context by what `decide` makes of it. Expired contexts count as absent and are removed."""

        def work(connection: sqlite3.Connection) -> StoredContext:
            now = self.now(connection)
            connection.execute(_DROP_EXPIRED, (now,))
            row = connection.execute(_READ_CONTEXT, (context_id, now)).fetchone()
            context = decide(None if row is None else _context_of(row))
            self.room.refuse_new()
            if row is None and connection.execute(_COUNT_CONTEXTS).fetchone()[0] >= MAX_CONTEXTS:
                raise StoreBusy(f"{MAX_CONTEXTS} contexts are stored already; give them a time to live")
            connection.execute(_PUT_CONTEXT, _context_values(context))
            return context

        return await self.write(work)


def _index(
    connection: sqlite3.Connection, state_id: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """Keep the index of top-level texts in step with a change."""
    old, new = indexed_texts(before), indexed_texts(after)
    gone = [(state_id, key) for key in old if key not in new]
    if gone:
        connection.executemany(_DELETE_TEXT, gone)
    changed = [(state_id, key, value) for key, value in new.items() if old.get(key) != value]
    if changed:
        connection.executemany(_PUT_TEXT, changed)


def state_of(row: Row) -> StoredState:
    """Return the state in a row of `_READ_STATE`."""
    return StoredState(
        workflow_instance_id=row[0],
        state=msgspec.json.decode(row[1]),
        version=row[2],
        created_at=from_microseconds(row[3]),
        updated_at=from_microseconds(row[4]),
    )


def _context_of(row: Row) -> StoredContext:
    return StoredContext(
        context_id=row[0],
        session_id=row[1],
        created_at=from_microseconds(row[2]),
        expires_at=optional_time(row[3]),
        shared_memory=msgspec.json.decode(row[4]),
        agent_memory=msgspec.json.decode(row[5]),
        parent_context=row[6],
        root_context=row[7],
    )


def _context_values(context: StoredContext) -> tuple[Any, ...]:
    return (
        context.context_id,
        context.session_id,
        to_microseconds(context.created_at),
        optional_microseconds(context.expires_at),
        _encode(context.shared_memory).decode(),
        _encode(context.agent_memory).decode(),
        context.parent_context,
        context.root_context,
    )
