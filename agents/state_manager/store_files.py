"""What an operator does with the files of a store: how it stands, a copy while nobody serves it, a copy put in place.

Nothing here ever deletes a store: what a restore replaces is kept beside it under a dated name.
"""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from agents.state_manager.errors import StoreInUse, StoreLost, StoreUnusable
from agents.state_manager.storage.connections import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    read_only_uri,
    sync,
    take_lock,
)
from agents.state_manager.storage.sqlite import SqliteStorage
from agents.state_manager.storage.start_checks import mark_path, open_probe
from agents.state_manager.store_clock import StoreClock

COPY_BYTES = 1024 * 1024
_COMPANIONS = ("-wal", "-shm", "-journal", ".damaged")
_COUNT_INSTANCES = "SELECT status, COUNT(*) FROM instances GROUP BY status ORDER BY status"
_READ_SCHEMA = "SELECT MAX(version) FROM schema_versions"
_READ_OFFSET = "SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'events'"
_COUNTS = {
    "events": "SELECT COUNT(*) FROM events",
    "inbox_entries": "SELECT COUNT(*) FROM inbox",
    "definitions": "SELECT COUNT(*) FROM definitions",
    "states": "SELECT COUNT(*) FROM workflow_states",
}


class StoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a store stands. `damaged` is what was found wrong with it, empty when nothing was."""

    path: str
    in_use: bool
    size_bytes: int
    wal_bytes: int
    schema: int
    last_offset: int
    counts: dict[str, int]
    instances: dict[str, int]
    damaged: str = ""


def is_in_use(database: Path) -> bool:
    """Return whether a state manager serves the store."""
    if not database.exists():
        return False
    try:
        os.close(take_lock(database))
    except StoreInUse:
        return True
    return False


def status_of(database: Path) -> StoreStatus:
    """Return how a store stands; a state manager may serve it. Raises StoreUnusable when it cannot be read."""
    if not database.is_file():
        raise StoreUnusable(f"there is no store {database}")
    in_use = is_in_use(database)
    try:
        with contextlib.closing(
            sqlite3.connect(read_only_uri(database), uri=True, isolation_level=None)
        ) as connection:
            instances = {str(status): int(count) for status, count in connection.execute(_COUNT_INSTANCES)}
            counts = {name: int(connection.execute(sql).fetchone()[0]) for name, sql in _COUNTS.items()}
            schema = int(connection.execute(_READ_SCHEMA).fetchone()[0])
            last_offset = int(connection.execute(_READ_OFFSET).fetchone()[0])
    except sqlite3.Error as error:
        raise StoreUnusable(f"{database} cannot be read: {error}") from error
    return StoreStatus(
        path=str(database),
        in_use=in_use,
        size_bytes=database.stat().st_size,
        wal_bytes=_size(Path(f"{database}-wal")),
        schema=schema,
        last_offset=last_offset,
        counts=counts,
        instances=instances,
        damaged=_text(mark_path(database)),
    )


@contextlib.contextmanager
def exclusively(database: Path) -> Iterator[None]:
    """Hold a store so that no state manager can serve it. Raises StoreInUse when one does."""
    database.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    lock = take_lock(database)
    try:
        yield
    finally:
        os.close(lock)


def copy_beside(source: Path, database: Path) -> Path:
    """Copy a file beside the store and return the copy. Raises StoreUnusable when there is nothing to copy."""
    if not source.is_file() or not source.stat().st_size:
        raise StoreUnusable(f"{source} is no file with a store in it")
    prepared = database.with_name(f"{database.name}.restoring")
    discard(prepared)
    try:
        with source.open("rb") as reader, os.fdopen(_new(prepared), "wb") as writer:
            shutil.copyfileobj(reader, writer, COPY_BYTES)
    except OSError as error:
        discard(prepared)
        raise StoreUnusable(f"{source} could not be copied: {error.strerror}") from error
    return prepared


async def bring_up_to_date(prepared: Path, clock: StoreClock) -> None:
    """Check a prepared copy and give it this release's schema.

    Raises: StoreUnusable when it is no store, is damaged or of a newer release.
    """
    storage = SqliteStorage(prepared, clock, _lost)
    await storage.start()
    await storage.stop()


def put_in_place(prepared: Path, database: Path, at: datetime) -> Path | None:
    """Make a prepared file the store, and return where the one before it is kept; None when there was none.

    The caller holds the store. The change is one rename: a crash leaves the one or the other.
    """
    kept: Path | None = None
    if database.exists():
        kept = database.with_name(f"{database.name}.before-{at.strftime('%Y%m%dT%H%M%S')}Z")
        if kept.exists():
            raise StoreUnusable(f"{kept} exists already; try again in a second")
        _empty_log(database)
        for suffix in _COMPANIONS:
            companion = Path(f"{database}{suffix}")
            if companion.exists():
                companion.rename(f"{kept}{suffix}")
        os.link(database, kept)
    sync(prepared)
    prepared.replace(database)
    sync(database.parent)
    discard(prepared)
    return kept


def discard(prepared: Path) -> None:
    """Remove a prepared file that is not wanted, with what SQLite left beside it."""
    for suffix in ("", *_COMPANIONS, ".lock"):
        Path(f"{prepared}{suffix}").unlink(missing_ok=True)


def _empty_log(database: Path) -> None:
    """Move the write-ahead log into a sound store, so that it is one file. One that is damaged keeps its log beside."""
    if mark_path(database).exists():
        return
    with contextlib.suppress(sqlite3.Error, StoreUnusable):
        probe = open_probe(database)
        if probe is not None:
            probe.close()
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""


def _lost(lost: StoreLost) -> None:
    raise StoreUnusable(lost.message)
