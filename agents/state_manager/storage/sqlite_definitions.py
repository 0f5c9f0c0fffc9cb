"""Workflow definitions in SQLite: every content ever stored, by hash, and which one is in force."""

import sqlite3

import msgspec

from agents.state_manager.fencing import check_definition, encoded, judge_definition
from agents.state_manager.storage.base import MAX_PAGE_BYTES
from agents.state_manager.storage.sqlite_core import Row, SqliteCore
from agents.state_manager.store_clock import from_microseconds
from orchestration.contracts import (
    DefinitionGetRequest,
    DefinitionListReply,
    DefinitionListRequest,
    DefinitionPutReply,
    DefinitionPutRequest,
    DefinitionRecord,
)

_INSERT_DEFINITION = """
INSERT INTO definitions (workflow_id, version, name, hash, content, source, format, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING"""
_PUT_VERSION = """
INSERT INTO definition_versions (workflow_id, version, hash, revision)
VALUES (?, ?, ?, (SELECT COALESCE(MAX(revision), 0) + 1 FROM definition_versions))
ON CONFLICT (workflow_id, version) DO UPDATE SET hash = excluded.hash, revision = excluded.revision"""
_READ_VERSION = "SELECT hash FROM definition_versions WHERE workflow_id = ? AND version = ?"
_COUNT_VERSIONS = "SELECT COUNT(*) FROM definition_versions WHERE workflow_id = ?"
_READ_BY_HASH = """
SELECT definitions.workflow_id, definitions.version, definitions.name, definitions.hash, definitions.content,
    definitions.source, definitions.format, definitions.created_at
FROM definitions WHERE hash = ?"""
_READ_NEWEST = """
SELECT definitions.workflow_id, definitions.version, definitions.name, definitions.hash, definitions.content,
    definitions.source, definitions.format, definitions.created_at
FROM definition_versions JOIN definitions ON definitions.hash = definition_versions.hash
WHERE definition_versions.workflow_id = ? ORDER BY definition_versions.revision DESC LIMIT 1"""
_LIST_NEWEST = """
SELECT definitions.workflow_id, definitions.version, definitions.name, definitions.hash, definitions.content,
    definitions.source, definitions.format, definitions.created_at
FROM definition_versions JOIN definitions ON definitions.hash = definition_versions.hash
WHERE definition_versions.workflow_id > :after AND definition_versions.revision = (
    SELECT MAX(newer.revision) FROM definition_versions AS newer
    WHERE newer.workflow_id = definition_versions.workflow_id)
ORDER BY definition_versions.workflow_id LIMIT :limit"""


class DefinitionTables(SqliteCore):
    """Stored workflow definitions."""

    async def put_definition(self, request: DefinitionPutRequest) -> DefinitionPutReply:
        """Store a definition."""
        definition = request.definition
        content = encoded(definition.content, "definition.content")
        check_definition(definition, content)
        return await self.write(lambda connection: self._put(connection, request, content.decode()))

    def _put(
        self, connection: sqlite3.Connection, request: DefinitionPutRequest, content: str
    ) -> DefinitionPutReply:
        definition = request.definition
        key = (definition.workflow_id, definition.version)
        in_force = connection.execute(_READ_VERSION, key).fetchone()
        (versions,) = connection.execute(_COUNT_VERSIONS, (definition.workflow_id,)).fetchone()
        status = judge_definition(
            definition.hash,
            None if in_force is None else in_force[0],
            known=versions > 0,
            overwrite=request.overwrite,
        )
        if status in ("created", "updated"):
            self.room.refuse_new()
            values = (
                *key, definition.name, definition.hash, content, definition.source, definition.format,
                self.now(connection),
            )  # fmt: skip
            connection.execute(_INSERT_DEFINITION, values)
            connection.execute(_PUT_VERSION, (*key, definition.hash))
        return DefinitionPutReply(status=status)

    async def get_definition(self, request: DefinitionGetRequest) -> DefinitionRecord | None:
        """Return a workflow's newest definition, or the one with a hash."""
        if request.hash:
            rows = await self.read(_READ_BY_HASH, (request.hash,))
        else:
            rows = await self.read(_READ_NEWEST, (request.workflow_id,))
        return definition_of(rows[0]) if rows else None

    async def list_definitions(self, request: DefinitionListRequest) -> DefinitionListReply:
        """Return every workflow's newest definition."""
        values = {"after": request.after, "limit": request.limit + 1}
        rows, was_cut = await self.read_some(_LIST_NEWEST, values, _bytes, MAX_PAGE_BYTES)
        records = [definition_of(row) for row in rows[: request.limit]]
        more = was_cut or len(rows) > request.limit
        return DefinitionListReply(definitions=records, next=records[-1].workflow_id if more else "")


def _bytes(row: Row) -> int:
    return len(row[4]) + len(row[5])


def definition_of(row: Row) -> DefinitionRecord:
    """Return the definition in a row: workflow_id, version, name, hash, content, source, format, created_at."""
    return DefinitionRecord(
        workflow_id=row[0], version=row[1], name=row[2], hash=row[3], content=msgspec.json.decode(row[4]),
        source=row[5], format=row[6], created_at=from_microseconds(row[7]),
    )  # fmt: skip
