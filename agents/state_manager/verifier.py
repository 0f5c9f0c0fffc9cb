"""Reads a whole store, over a connection that can only read, and tells what is wrong with it.

It works while a state manager serves the store: each page of instances is read in one moment, and nobody waits.
"""

import contextlib
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agents.state_manager.errors import StoreDamaged
from agents.state_manager.storage.connections import read_only_uri
from agents.state_manager.storage.event_rows import record_of
from agents.state_manager.storage.migrate import SQLITE_MIGRATIONS, read_migrations
from agents.state_manager.storage.sqlite_core import Row
from agents.state_manager.storage.sqlite_definitions import definition_of
from agents.state_manager.storage.sqlite_log import instance_row
from agents.state_manager.verification import MAX_FINDINGS, Finding, check_definition, check_instance
from orchestration.contracts import DefinitionRecord, InstanceRow
from orchestration.definition.errors import DefinitionError
from orchestration.definition.plan import Plan

PAGE_INSTANCES = 50
"""Instances that are read in one moment: as long as that takes, the write-ahead log is kept for it."""
MAX_PLANS = 200
MAX_INTEGRITY_FINDINGS = 20
BUSY_TIMEOUT_SECONDS = 5.0

_READ_INSTANCES = """
SELECT instance_id, workflow_id, workflow_version, workflow_name, definition_hash, status, created_at, started_at,
    completed_at, updated_at, wake_at, wake_reason, task_counts, current_tasks, error_code, error_message, started_by,
    owner, epoch, seq
FROM instances WHERE instance_id > ? ORDER BY instance_id LIMIT ?"""
_READ_EVENTS = """
SELECT offset, instance_id, seq, type, at, CAST(data AS BLOB), checksum FROM events
WHERE instance_id = ? ORDER BY seq"""
_READ_DEFINITIONS = (
    "SELECT workflow_id, version, name, hash, content, source, format, created_at FROM definitions"
)
_READ_DEFINITION = """
SELECT workflow_id, version, name, hash, content, source, format, created_at FROM definitions WHERE hash = ?"""
_STRAY_EVENTS = """
SELECT instance_id, COUNT(*) FROM events
WHERE NOT EXISTS (SELECT 1 FROM instances WHERE instances.instance_id = events.instance_id)
GROUP BY instance_id LIMIT ?"""
_STRAY_INBOX = """
SELECT inbox.instance_id, COUNT(*), MAX(instances.status) FROM inbox
LEFT JOIN instances ON instances.instance_id = inbox.instance_id
WHERE instances.instance_id IS NULL OR instances.status NOT IN ('pending', 'running', 'paused')
GROUP BY inbox.instance_id LIMIT ?"""
_READ_SCHEMA = "SELECT MAX(version) FROM schema_versions"
_OFFSETS = "SELECT COALESCE(MAX(offset), 0) FROM events"
_SEQUENCE = "SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'events'"

Compile = Callable[[DefinitionRecord], Plan]


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and what was found; `findings` are cut at `MAX_FINDINGS`."""

    instances: int
    events: int
    findings: list[Finding]


class Verifier:
    """Verifies one store.

    Args:
        compile_plan: Compiles a stored definition as the engine does. It may raise DefinitionError.
        tell: Called with the number of instances that were looked at so far.
    """

    def __init__(
        self, path: Path, compile_plan: Compile, tell: Callable[[int], None] = lambda count: None
    ) -> None:
        self._path = path
        self._compile = compile_plan
        self._tell = tell
        self._plans: OrderedDict[str, Plan | None] = OrderedDict()
        self._instances = 0
        self._events = 0

    def run(self) -> Verified:
        """Return what was found. Raises sqlite3.Error when the store cannot be read at all."""
        findings: list[Finding] = []
        uri = read_only_uri(self._path)
        with contextlib.closing(
            sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_SECONDS)
        ) as connection:
            for finding in self._look(connection):
                findings.append(finding)
                if len(findings) >= MAX_FINDINGS:
                    break
        return Verified(instances=self._instances, events=self._events, findings=findings)

    def _look(self, connection: sqlite3.Connection) -> Iterator[Finding]:
        integrity = connection.execute(f"PRAGMA integrity_check({MAX_INTEGRITY_FINDINGS})").fetchall()
        yield from (Finding(field="database", problem=str(text)) for (text,) in integrity if text != "ok")
        if any(text != "ok" for (text,) in integrity):
            return
        newest = len(read_migrations(SQLITE_MIGRATIONS))
        if (schema := connection.execute(_READ_SCHEMA).fetchone()[0]) != newest:
            yield Finding(field="schema", problem=f"it is {schema}; this release reads schema {newest}")
            return
        for row in connection.execute(_READ_DEFINITIONS):
            yield from check_definition(definition_of(row))
        last = ""
        while page := self._page(connection, last):
            for instance_id, findings in page:
                yield from findings
                last = instance_id
            self._tell(self._instances)
        yield from self._look_for_strays(connection)

    def _page(self, connection: sqlite3.Connection, after: str) -> list[tuple[str, list[Finding]]]:
        """Return the ids of the next instances with what is wrong with each, all of one moment."""
        connection.execute("BEGIN")
        try:
            rows = connection.execute(_READ_INSTANCES, (after, PAGE_INSTANCES)).fetchall()
            return [(str(values[0]), self._check_row(connection, values)) for values in rows]
        finally:
            connection.execute("COMMIT")

    def _check_row(self, connection: sqlite3.Connection, values: Row) -> list[Finding]:
        try:
            row = instance_row(values)
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            self._instances += 1
            return [Finding(instance_id=str(values[0]), field="row", problem=f"it cannot be read: {error}")]
        return self._check(connection, row)

    def _check(self, connection: sqlite3.Connection, row: InstanceRow) -> list[Finding]:
        self._instances += 1
        values = connection.execute(_READ_EVENTS, (row.instance_id,)).fetchall()
        self._events += len(values)
        try:
            events = [record_of(value) for value in values]
        except StoreDamaged as damaged:
            return [Finding(instance_id=row.instance_id, field="events", problem=damaged.message)]
        return check_instance(row, events, self._plan(connection, row.definition_hash))

    def _plan(self, connection: sqlite3.Connection, content_hash: str) -> Plan | None:
        if content_hash not in self._plans:
            found = connection.execute(_READ_DEFINITION, (content_hash,)).fetchone()
            try:
                self._plans[content_hash] = None if found is None else self._compile(definition_of(found))
            except DefinitionError:
                self._plans[content_hash] = None
            while len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        return self._plans[content_hash]

    def _look_for_strays(self, connection: sqlite3.Connection) -> Iterator[Finding]:
        """Return what belongs to no instance, and offsets that would be handed out twice."""
        for instance_id, count in connection.execute(_STRAY_EVENTS, (MAX_FINDINGS,)):
            problem = f"{count} events belong to no instance"
            yield Finding(instance_id=instance_id, field="events", problem=problem)
        for instance_id, count, status in connection.execute(_STRAY_INBOX, (MAX_FINDINGS,)):
            whose = "no instance" if status is None else f"an instance that is {status}"
            problem = f"{count} entries in the inbox of {whose}"
            yield Finding(instance_id=instance_id, field="inbox", problem=problem)
        connection.execute("BEGIN")
        ((newest,), (handed_out,)) = (
            connection.execute(_OFFSETS).fetchone(),
            connection.execute(_SEQUENCE).fetchone(),
        )
        connection.execute("COMMIT")
        if newest > handed_out:
            yield Finding(
                field="offset", problem=f"the log ends at offset {newest}, and {handed_out} were handed out"
            )
