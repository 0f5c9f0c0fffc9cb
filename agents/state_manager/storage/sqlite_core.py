"""How the SQLite file is opened, locked, checked, written and read. Knows no table but its own facts.

One writing connection (`Writer`), a few read-only ones through aiosqlite. In WAL mode readers see every commit
that was answered, and never wait for the writer.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from agents.state_manager.errors import (
    StateManagerError,
    StoreDamaged,
    StoreFailed,
    StoreFull,
    StoreLost,
    StoreNotReady,
    StoreUnusable,
)
from agents.state_manager.room import Room
from agents.state_manager.storage import start_checks
from agents.state_manager.storage.connections import PRIVATE_FILE, PRIVATE_FOLDER, read_only_uri, take_lock
from agents.state_manager.storage.migrate import SQLITE_MIGRATIONS, migrate, read_migrations
from agents.state_manager.store_clock import StoreClock, from_microseconds
from agents.state_manager.writer import Writer, error_name, store_error

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Row = Sequence[Any]

READERS = 3
CHUNK_ROWS = 32
"""How many rows are fetched at a time, so that large rows never pile up in memory."""
BUSY_TIMEOUT_SECONDS = 5.0
CACHE_KIBIBYTES = 16 * 1024
WAL_KEPT_BYTES = 64 * 1024 * 1024
CLOCK_SAVED_MICROSECONDS = 1_000_000

_SAVE_FACT = """
INSERT INTO store_facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
_READ_FACT = "SELECT value FROM store_facts WHERE name = ?"
_READ_CREATED_AT = "SELECT applied_at FROM schema_versions WHERE version = 1"
_READ_LAST_OFFSET = "SELECT seq FROM sqlite_sequence WHERE name = 'events'"
_CLOCK = "clock_microseconds"
_CLEAN_STOP = "clean_stop"
"""1 from an orderly stop until the next start, else 0."""

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}",
    f"PRAGMA cache_size = -{CACHE_KIBIBYTES}",
    f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}",
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
)


class SqliteCore:
    """The connections of one SQLite store.

    Args:
        path: The database file; its folder is created.
        clock: The store's clock; it goes on from what an earlier process has reached.
        on_lost: Called once when an fsync failed or the file is damaged; the process must then end.
        room: Whether there is room for new work.
    """

    def __init__(
        self, path: Path, clock: StoreClock, on_lost: Callable[[StoreLost], None], room: Room | None = None
    ) -> None:
        self.path = path.absolute()
        self.clock = clock
        self.room = room or Room()
        self.was_stopped_in_order = True
        """Whether the process before closed the store."""
        self._is_checked = True
        self._background_check: start_checks.BackgroundCheck | None = None
        self._lost: StoreLost | None = None
        self._offset = 0
        """The last offset handed out, in the writer's thread."""
        self._saved_clock = 0
        self._created_at = clock.now()
        self._on_lost = on_lost
        self._committed_offset = 0
        self._writer = Writer(self._open_writer, Path(f"{self.path}-wal"), self._note_lost, self.room.give)
        self._readers: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue(READERS)
        self._connections: list[aiosqlite.Connection] = []
        self._lock_file: int | None = None

    @property
    def last_offset(self) -> int:
        """The newest committed offset of the log."""
        return self._committed_offset

    @property
    def trouble(self) -> str:
        """Why writing does not work now; empty when it does."""
        return self._writer.trouble

    @property
    def queued_writes(self) -> int:
        """How many writes wait or run."""
        return self._writer.waiting

    @property
    def created_at(self) -> datetime:
        """When the store was made."""
        return self._created_at

    async def start(self) -> None:
        """Lock, check, migrate and open the store."""
        self._lock()
        try:
            start_checks.refuse_marked(self.path)
            await self._writer.start()
            for _ in range(READERS):
                self._connections.append(await self._open_reader())
                self._readers.put_nowait(self._connections[-1])
        except BaseException:
            await self.stop()
            raise
        self._committed_offset = self._offset

    async def stop(self) -> None:
        """Close the readers, then the writer, which moves the log into the file. Works twice.

        A store that was lost is left as it is: the readers close last then, and cannot move anything.
        """
        if self._background_check is not None:
            self._background_check.stop()
        connections, self._connections = self._connections, []
        if self._lost is not None:
            await self._writer.stop()
        elif connections:
            with contextlib.suppress(StateManagerError):
                await self.write(lambda connection: connection.execute(_SAVE_FACT, (_CLEAN_STOP, 1)).rowcount)
        for connection in connections:
            await connection.close()
        self._readers = asyncio.Queue(READERS)
        await self._writer.stop()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    async def check(self) -> None:
        """Check, behind the work, what was not checked at the start. A finding ends the process through `on_lost`."""
        if self._is_checked:
            return
        check = start_checks.BackgroundCheck(self.path, full=not self.was_stopped_in_order)
        self._background_check = check
        found = await asyncio.to_thread(check.run)
        if found is not None:
            self._note_lost(found)
            return
        self._is_checked = True
        logger.info("store_checked", extra={"path": str(self.path)})

    def _note_lost(self, lost: StoreLost) -> None:
        if self._lost is None:
            self._lost = lost
            if isinstance(lost, StoreDamaged):
                start_checks.mark_damaged(self.path, lost.message)
            self._on_lost(lost)

    # --- writing -------------------------------------------------------------------------------------------

    async def probe(self) -> None:
        """Write a little. Raises StoreFull while there is no room."""
        await self.write(lambda connection: connection.execute(_SAVE_FACT, (_CLEAN_STOP, 0)).rowcount)

    async def write(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Return what `work` returned once it is durable. See `Writer.submit`."""
        return await self._writer.submit(work)

    async def write_log(
        self, work: Callable[[sqlite3.Connection], Result], offset_of: Callable[[Result], int]
    ) -> Result:
        """Like `write`, for work that appends events; `offset_of` its result is the newest offset it wrote."""
        result = await self._writer.submit(work)
        self._committed_offset = max(self._committed_offset, offset_of(result))
        return result

    def now(self, connection: sqlite3.Connection) -> int:
        """Return the store's time, in the writer's thread, and save now and then how far it has come."""
        now = self.clock.now_microseconds()
        if now - self._saved_clock >= CLOCK_SAVED_MICROSECONDS:
            connection.execute(_SAVE_FACT, (_CLOCK, now))
            self._saved_clock = now
        return now

    def _open_writer(self) -> sqlite3.Connection:
        """Open the writing connection, in the writer's thread. On a full disk the reserve is given up for it."""
        try:
            return self._open_once()
        except StoreNotReady:
            if not self.room.give():
                raise
            return self._open_once()

    def _open_once(self) -> sqlite3.Connection:
        probe: sqlite3.Connection | None = None
        connection: sqlite3.Connection | None = None
        try:
            probe = start_checks.open_probe(self.path)
            connection = sqlite3.connect(
                self.path, isolation_level=None, timeout=BUSY_TIMEOUT_SECONDS, cached_statements=256
            )
            self._prepare(connection)
            self.room.open()
        except sqlite3.Error as error:
            _close(connection)
            if isinstance(store_error(error), StoreFull):
                raise StoreNotReady(f"{self.path} cannot be opened: the disk is full") from error
            raise StoreUnusable(
                f"{self.path} is not a usable store ({error_name(error)}): {error}"
            ) from error
        except BaseException:
            _close(connection)
            raise
        finally:
            _close(probe)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for pragma in _PRAGMAS:
            connection.execute(pragma).fetchall()
        checked_now = start_checks.check_at_once(connection, self.path)
        count = migrate(connection, read_migrations(SQLITE_MIGRATIONS), self.clock.now_microseconds())
        if count:
            logger.info("store_migrated", extra={"path": str(self.path), "migrations": count})
        (created_at,) = connection.execute(_READ_CREATED_AT).fetchone()
        self._created_at = from_microseconds(created_at)
        row = connection.execute(_READ_LAST_OFFSET).fetchone()
        self._offset = int(row[0]) if row else 0
        row = connection.execute(_READ_FACT, (_CLOCK,)).fetchone()
        self.clock.not_before(int(row[0]) if row else 0)
        row = connection.execute(_READ_FACT, (_CLEAN_STOP,)).fetchone()
        self.was_stopped_in_order = row is None or row[0] == 1
        self._is_checked = checked_now and self.was_stopped_in_order
        connection.execute(_SAVE_FACT, (_CLEAN_STOP, 0))
        if not self.was_stopped_in_order:
            logger.warning("store_was_not_closed", extra={"path": str(self.path)})

    def _lock(self) -> None:
        """Take the store for this process alone, by a lock that the system lets go when the process ends."""
        try:
            self.path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
        except OSError as error:
            raise StoreUnusable(f"{self.path} cannot be opened: {error.strerror}") from error
        self._lock_file = take_lock(self.path)

    # --- reading -------------------------------------------------------------------------------------------

    async def _open_reader(self) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(read_only_uri(self.path), uri=True, isolation_level=None)
        await connection.execute_fetchall(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
        return connection

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[aiosqlite.Connection]:
        """Lend a read-only connection."""
        if not self._connections:
            raise StoreFailed("the store is not open")
        connection = await self._readers.get()
        try:
            yield connection
        except sqlite3.Error as error:
            refusal = store_error(error)
            if isinstance(refusal, StoreLost):
                self._note_lost(refusal)
            raise refusal from error
        finally:
            self._readers.put_nowait(connection)

    async def read(self, statement: str, values: Mapping[str, Any] | tuple[Any, ...] = ()) -> list[Row]:
        """Return all rows of a statement that gives few and small ones, in one hop."""
        async with self.reader() as connection:
            return list(await connection.execute_fetchall(statement, values))

    async def read_some(
        self,
        statement: str,
        values: Mapping[str, Any] | tuple[Any, ...],
        size_of: Callable[[Row], int],
        max_bytes: int,
    ) -> tuple[list[Row], bool]:
        """Return rows until their sizes pass `max_bytes`, one at least; and whether that cut them short."""
        rows: list[Row] = []
        size = 0
        async with self.reader() as connection, connection.execute(statement, values) as cursor:
            while chunk := list(await cursor.fetchmany(CHUNK_ROWS)):
                for row in chunk:
                    size += size_of(row)
                    if rows and size > max_bytes:
                        return rows, True
                    rows.append(row)
        return rows, False

    async def scan(self, statement: str, values: Mapping[str, Any] | tuple[Any, ...]) -> AsyncGenerator[Row]:
        """Return the rows of a long read one by one, holding few at a time."""
        async with self.reader() as connection, connection.execute(statement, values) as cursor:
            while chunk := list(await cursor.fetchmany(CHUNK_ROWS)):
                for row in chunk:
                    yield row


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
