"""The one writing connection, in a thread of its own, and how requests become commits.

Everything that has arrived is one transaction and one fsync; while it runs the next group gathers. Each request is
a savepoint, so one that fails does not spoil the others. Never open a second writing connection: SQLite before
3.51.3 can damage a WAL database when two connections write or checkpoint at the same moment.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from agents.state_manager.errors import StoreBusy, StoreDamaged, StoreFailed, StoreFull, StoreLost
from amp import crash

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Any]

MAX_QUEUED_REQUESTS = 20_000
MAX_GROUP_REQUESTS = 512
CHECKPOINT_COMMITS = 1000
CHECKPOINT_WAL_BYTES = 4 * 1024 * 1024
RETRY_AFTER_MILLISECONDS = 1000

_FSYNC_FAILED = frozenset({"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC"})
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_FULL = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"})
"""What a full file system says, and what a limit on the size of files says."""
_ENVIRONMENT = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_BUSY",
                "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_INTERRUPT")  # fmt: skip
"""Errors that are nobody's request's fault: they end the whole transaction."""


def error_name(error: sqlite3.Error) -> str:
    """Return SQLite's extended name of an error, such as `SQLITE_IOERR_WRITE`; empty when it has none."""
    return getattr(error, "sqlite_errorname", None) or ""


def store_error(error: sqlite3.Error) -> StoreFull | StoreFailed | StoreLost:
    """Return what an error of the database means for the callers of a transaction."""
    name = error_name(error)
    if name in _FSYNC_FAILED:
        return StoreLost(f"the store is lost ({name}): the state manager must be restarted", sqlite=name)
    if name.startswith(_DAMAGED):
        return StoreDamaged(f"the store is damaged ({name}: {error})", sqlite=name)
    if name in _FULL:
        return StoreFull(
            f"the disk of the store is full ({name}); nothing was stored, reading still works",
            sqlite=name,
            retry_after_ms=RETRY_AFTER_MILLISECONDS,
        )
    return StoreFailed(
        f"the store refused the transaction ({name or error}); nothing was stored", sqlite=name
    )


class _Request:
    """One piece of work and who waits for it."""

    __slots__ = ("error", "future", "result", "work")

    def __init__(self, work: Work, future: "asyncio.Future[Any]") -> None:
        self.work = work
        self.future = future
        self.result: Any = None
        self.error: Exception | None = None


class Writer:
    """Runs functions over the writing connection, in order, grouped into transactions.

    Args:
        connect: Opens the connection; called once, in the writer's thread.
        wal_path: The write-ahead log, whose size decides about checkpoints.
        on_lost: Called on the event loop when the store is lost; no later request is accepted.
        make_room: Called in the writer's thread when the disk is full; true when the group is worth another try.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        wal_path: Path,
        on_lost: Callable[[StoreLost], None],
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self.trouble = ""
        """Why the last transaction failed; empty when it did not."""
        self._connect = connect
        self._wal_path = wal_path
        self._on_lost = on_lost
        self._make_room = make_room
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._waiting = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost: StoreLost | None = None
        self._commits = 0
        self._wal_bytes = 0

    @property
    def waiting(self) -> int:
        """How many requests are queued or being written."""
        return self._waiting

    async def start(self) -> None:
        """Open the connection and begin to write. Raises whatever opening raised."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="store-writer", daemon=True)
        self._thread.start()
        await opened

    async def stop(self) -> None:
        """Write what is queued, close the connection, end the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, thread.join)

    async def submit(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Return what `work` returned, once its transaction is on the disk.

        `work` runs in the writer's thread and may run twice; it must only touch the connection.

        Raises: StoreBusy, StoreFull, StoreFailed, StoreLost, or what `work` raised (its changes are then undone).
        """
        if self._lost is not None:
            raise self._lost
        if self._thread is None or self._loop is None:
            raise StoreFailed("the store is not open")
        if self._waiting >= MAX_QUEUED_REQUESTS:
            raise StoreBusy(
                f"{self._waiting} requests wait for the writer already; try again later",
                retry_after_ms=RETRY_AFTER_MILLISECONDS,
            )
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting += 1
        self._queue.put(_Request(work, future))
        crash.reach("store.request.queued")
        return cast(Result, await future)

    # --- the writer's thread -------------------------------------------------------------------------------

    def _run(self, opened: "asyncio.Future[None]") -> None:
        assert self._loop is not None
        try:
            connection = self._connect()
        except Exception as error:  # boundary: whatever opening raised is raised where start() waits
            self._loop.call_soon_threadsafe(_fail, opened, error)
            return
        self._loop.call_soon_threadsafe(_succeed, opened)
        try:
            self._serve(connection)
        finally:
            connection.close()

    def _serve(self, connection: sqlite3.Connection) -> None:
        assert self._loop is not None
        while (first := self._queue.get()) is not None:
            group = [first]
            last = False
            while len(group) < MAX_GROUP_REQUESTS:
                try:
                    request = self._queue.get_nowait()
                except queue.Empty:
                    break
                if request is None:
                    last = True
                    break
                group.append(request)
            lost = self._commit(connection, group)
            self._loop.call_soon_threadsafe(self._answer, group, lost)
            if lost is not None or last:
                break
            if (lost := self._checkpoint(connection)) is not None:
                self._loop.call_soon_threadsafe(self._answer, [], lost)
                break
        # On the loop, after the news of a loss: from then on nobody adds to the queue.
        self._loop.call_soon_threadsafe(self._drop_rest)

    def _commit(self, connection: sqlite3.Connection, group: list[_Request]) -> StoreLost | None:
        """Write a group in one transaction; each request has its result or its error afterwards."""
        refusal = self._try(connection, group)
        if isinstance(refusal, StoreFull) and self._make_room():
            for request in group:
                request.result = request.error = None
            refusal = self._try(connection, group)
        if refusal is None:
            return None
        self.trouble = refusal.message
        for request in group:
            request.error = refusal
        return refusal if isinstance(refusal, StoreLost) else None

    def _try(
        self, connection: sqlite3.Connection, group: list[_Request]
    ) -> StoreFull | StoreFailed | StoreLost | None:
        """Write a group once; return what hindered the transaction as a whole."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            crash.reach("store.group.begun")
            if len(group) == 1:
                group[0].result = group[0].work(connection)
            else:
                for request in group:
                    _perform(connection, request)
                    crash.reach("store.group.between")
            crash.reach("store.commit.before")
            connection.execute("COMMIT")
            crash.reach("store.commit.after")
        except sqlite3.Error as error:
            _roll_back(connection)
            return store_error(error)
        except Exception as error:  # boundary: a request's own refusal; it is raised where submit() waits
            _roll_back(connection)
            for request in group:
                request.error = error
            return None
        self.trouble = ""
        self._commits += 1
        return None

    def _checkpoint(self, connection: sqlite3.Connection) -> StoreLost | None:
        """Move the write-ahead log into the database now and then, preferably when nothing waits."""
        try:
            size = self._wal_path.stat().st_size
        except FileNotFoundError:
            size = 0
        urgency = max(self._commits / CHECKPOINT_COMMITS, (size - self._wal_bytes) / CHECKPOINT_WAL_BYTES)
        if urgency < (1 if self._queue.empty() else 4):
            return None
        try:
            crash.reach("store.checkpoint.before")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            crash.reach("store.checkpoint.after")
        except sqlite3.Error as error:
            refusal = store_error(error)
            self.trouble = refusal.message
            return refusal if isinstance(refusal, StoreLost) else None
        self._commits, self._wal_bytes = 0, size
        return None

    # --- back on the event loop ----------------------------------------------------------------------------

    def _answer(self, group: list[_Request], lost: StoreLost | None) -> None:
        self._waiting -= len(group)
        for request in group:
            if request.future.done():
                continue
            if request.error is not None:
                request.future.set_exception(request.error)
            else:
                request.future.set_result(request.result)
        if lost is not None and self._lost is None:
            self._lost = lost
            logger.error("store_lost", extra={"reason": lost.message})
            self._on_lost(lost)

    def _drop_rest(self) -> None:
        """Refuse what is queued after the end, so that nobody waits for ever."""
        rest: list[_Request] = []
        while True:
            try:
                request = self._queue.get_nowait()
            except queue.Empty:
                break
            if request is not None:
                request.error = StoreFailed("the store is closed")
                rest.append(request)
        self._answer(rest, None)


def _perform(connection: sqlite3.Connection, request: _Request) -> None:
    """Do one request of a group inside its own savepoint."""
    connection.execute("SAVEPOINT request")
    try:
        request.result = request.work(connection)
    except Exception as error:  # boundary: one request's own refusal; it is raised where submit() waits
        if isinstance(error, sqlite3.Error) and error_name(error).startswith(_ENVIRONMENT):
            raise
        connection.execute("ROLLBACK TO request")
        request.error = store_error(error) if isinstance(error, sqlite3.Error) else error
    connection.execute("RELEASE request")


def _roll_back(connection: sqlite3.Connection) -> None:
    """Undo the transaction, if the database has not done so itself."""
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            logger.error("rollback_failed", extra={"sqlite": error_name(error)})


def _succeed(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: "asyncio.Future[None]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
