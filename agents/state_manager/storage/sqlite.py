"""The storage for one machine: a SQLite file in WAL mode, every commit synced."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import aiosqlite

from agents.state_manager.errors import BackupNotFound, InvalidRequest, StoreFailed
from agents.state_manager.storage.base import UNFINISHED_SUFFIX, StoredState
from agents.state_manager.storage.connections import PRIVATE_FILE, PRIVATE_FOLDER, read_only_uri, sync
from agents.state_manager.storage.sqlite_core import CHUNK_ROWS
from agents.state_manager.storage.sqlite_definitions import DefinitionTables
from agents.state_manager.storage.sqlite_inbox import InboxTables
from agents.state_manager.storage.sqlite_log import LogTables
from agents.state_manager.storage.sqlite_ownership import OwnershipTables
from agents.state_manager.storage.sqlite_states import ContextTables, StateTables, state_of
from agents.state_manager.storage.sqlite_upkeep import UpkeepTables
from agents.state_manager.writer import store_error
from amp import crash

_SCAN_BACKUP = """
SELECT workflow_instance_id, state_data, version, created_at, updated_at
FROM workflow_states ORDER BY updated_at, workflow_instance_id"""


class SqliteStorage(
    LogTables, InboxTables, OwnershipTables, UpkeepTables, DefinitionTables, StateTables, ContextTables
):
    """Everything durable in one SQLite file. See `storage.base.Storage`."""

    async def start(self) -> None:
        """Open the store. Raises StoreUnusable and leaves it untouched when it cannot be served."""
        await super().start()
        await self.extend_leases()

    async def back_up(self, target: Path) -> int:
        """Write a consistent copy to a new file while the store is in use; return its bytes."""
        return await asyncio.to_thread(copy_store, self.path, target)

    async def scan_backup(self, source: Path) -> AsyncGenerator[StoredState]:
        """Return the states in a copy, oldest change first. Raises BackupNotFound when the file is none."""
        if not await asyncio.to_thread(source.is_file):
            raise BackupNotFound(f"there is no backup {source.name!r}")
        try:
            async with (
                aiosqlite.connect(read_only_uri(source, immutable=True), uri=True) as connection,
                connection.execute(_SCAN_BACKUP) as cursor,
            ):
                while chunk := list(await cursor.fetchmany(CHUNK_ROWS)):
                    for row in chunk:
                        yield state_of(tuple(row))
        except sqlite3.Error as error:
            raise BackupNotFound(f"{source.name!r} is not a backup of a store: {error}") from error


def copy_store(source: Path, target: Path) -> int:
    """Copy a database in use in one step, so that the copy is of one moment. The target appears when it is whole."""
    target.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    if target.exists():
        raise InvalidRequest(f"a backup {target.name!r} exists already; choose another name")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}{UNFINISHED_SUFFIX}")
    try:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
        with (
            contextlib.closing(sqlite3.connect(read_only_uri(source), uri=True)) as reader,
            contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as writer,
        ):
            reader.backup(writer)
            writer.execute("PRAGMA journal_mode = DELETE").fetchall()
            (finding,) = writer.execute("PRAGMA quick_check(1)").fetchone()
            if finding != "ok":
                raise StoreFailed(f"the copy is damaged ({finding})")
        sync(unfinished)
        size = unfinished.stat().st_size
        crash.reach("store.backup.copied")
        unfinished.replace(target)
        sync(target.parent)
        return size
    except sqlite3.Error as error:
        raise store_error(error) from error
    except OSError as error:
        raise StoreFailed(f"the backup could not be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
