"""Numbered migrations: `NNNN_name.sql`, applied in order, each once, all that is missing in one transaction.

A store that a newer release wrote, or whose applied migrations differ from ours, is refused and left as it is.
"""

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.state_manager.errors import StoreUnusable
from amp import crash

SQLITE_MIGRATIONS = Path(__file__).parent / "migrations" / "sqlite"

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")

_CREATE_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_versions (
    version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at INTEGER NOT NULL
)"""
_READ_VERSIONS = "SELECT version, name, checksum FROM schema_versions ORDER BY version"
_INSERT_VERSION = "INSERT INTO schema_versions (version, name, checksum, applied_at) VALUES (?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """The SHA-256 of the statements: an applied migration must never be edited."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(folder: Path) -> list[Migration]:
    """Return the migrations of a folder, by version, which must be 1, 2, 3 ... without a gap."""
    migrations = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise StoreUnusable(f"{path}: a migration is named like 0001_name.sql")
        migrations.append(Migration(int(match[1]), match[2], path.read_text("utf-8")))
    if [migration.version for migration in migrations] != list(range(1, len(migrations) + 1)):
        raise StoreUnusable(f"{folder}: migrations must be numbered 1, 2, 3 ... without a gap")
    return migrations


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration], now_microseconds: int) -> int:
    """Bring a store to the newest schema; return how many migrations were applied.

    The write lock is held throughout, so two processes cannot migrate at once.

    Raises: StoreUnusable, with the store unchanged.
    """
    connection.execute("BEGIN EXCLUSIVE")
    try:
        connection.execute(_CREATE_VERSIONS)
        applied = connection.execute(_READ_VERSIONS).fetchall()
        _check_applied(applied, migrations)
        missing = migrations[len(applied) :]
        for migration in missing:
            for statement in statements(migration.sql):
                connection.execute(statement)
            connection.execute(
                _INSERT_VERSION, (migration.version, migration.name, migration.checksum, now_microseconds)
            )
        if missing:
            crash.reach("store.migration.before_commit")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise StoreUnusable(f"the store could not be migrated: {error}") from error
    except StoreUnusable:
        connection.execute("ROLLBACK")
        raise
    return len(missing)


def _check_applied(applied: Sequence[tuple[int, str, str]], migrations: Sequence[Migration]) -> None:
    if len(applied) > len(migrations):
        newest = applied[-1]
        raise StoreUnusable(
            f"the store was written by a newer release (schema {newest[0]}, {newest[1]}); "
            f"this one knows schema {len(migrations)}: use the newer release, or another data_dir"
        )
    for (version, name, checksum), migration in zip(applied, migrations, strict=False):
        if (version, checksum) != (migration.version, migration.checksum):
            raise StoreUnusable(
                f"schema {version} ({name}) of the store is not {migration.version} ({migration.name}) of this "
                "release: the store belongs to another program or release"
            )


def statements(script: str) -> Iterator[str]:
    """Return the statements of a script one by one (`executescript` would commit the transaction)."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending.strip()
            pending = ""
    if any(line.strip() and not line.strip().startswith("--") for line in pending.splitlines()):
        raise StoreUnusable(f"a migration ends within a statement: {pending.strip()[:80]!r}")
