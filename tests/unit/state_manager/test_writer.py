"""The writer: grouping, isolation of failing requests, and what errors of the disk do to it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agents.state_manager import writer as writer_module
from agents.state_manager.errors import (
    InvalidRequest,
    StateManagerError,
    StoreBusy,
    StoreDamaged,
    StoreFailed,
    StoreFull,
    StoreLost,
)
from agents.state_manager.writer import Writer

INSERT = "INSERT INTO facts (value) VALUES (?)"


class Disk:
    """A connection whose statements can be made to fail, and which notes what it was told."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA wal_autocheckpoint = 0")
        self.connection.execute("CREATE TABLE IF NOT EXISTS facts (value INTEGER UNIQUE)")
        self.statements: list[str] = []
        self.failing: dict[str, str] = {}

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        self.statements.append(statement)
        name = self.failing.get(statement.split(" ")[0])
        if name is not None:
            error = sqlite3.OperationalError(name)
            error.sqlite_errorname = name
            raise error
        return self.connection.execute(statement, values)

    @property
    def in_transaction(self) -> bool:
        return self.connection.in_transaction

    def close(self) -> None:
        self.connection.close()


class Bench:
    """A writer over a disk of ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost: list[StoreLost] = []
        self.disks: list[Disk] = []
        self.writer = Writer(self._connect, Path(f"{path}-wal"), self.lost.append)

    def _connect(self) -> Any:
        self.disks.append(Disk(self.path))
        return self.disks[-1]

    @property
    def disk(self) -> Disk:
        return self.disks[-1]

    async def insert(self, value: int) -> None:
        await self.writer.submit(lambda connection: connection.execute(INSERT, (value,)).rowcount)

    def stored(self) -> list[int]:
        with sqlite3.connect(self.path) as connection:
            rows = connection.execute("SELECT value FROM facts ORDER BY value").fetchall()
        connection.close()
        return [value for (value,) in rows]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "store.db")
    await made.writer.start()
    yield made
    await made.writer.stop()


def refused(value: int) -> Callable[[sqlite3.Connection], None]:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, (value,))
        raise InvalidRequest("no")

    return work


async def test_what_arrives_together_is_one_transaction(bench: Bench) -> None:
    await asyncio.gather(*(bench.insert(value) for value in range(50)))
    assert bench.stored() == list(range(50))
    commits = bench.disk.statements.count("COMMIT")
    assert commits < 50
    assert bench.writer.waiting == 0


async def test_failing_request_does_not_spoil_the_others(bench: Bench) -> None:
    await bench.insert(5)
    results = await asyncio.gather(
        *(bench.insert(value) for value in range(10)),
        bench.writer.submit(refused(77)),
        return_exceptions=True,
    )
    failed = {index: type(result) for index, result in enumerate(results) if result is not None}
    assert failed == {5: StoreFailed, 10: InvalidRequest}
    assert bench.stored() == list(range(10))


async def test_single_failing_request_is_undone(bench: Bench) -> None:
    with pytest.raises(InvalidRequest):
        await bench.writer.submit(refused(1))
    await bench.insert(2)
    assert bench.stored() == [2]


@pytest.mark.parametrize(
    ("statement", "name", "expected", "is_lost"),
    [
        ("COMMIT", "SQLITE_FULL", StoreFull, False),
        ("INSERT", "SQLITE_FULL", StoreFull, False),
        ("COMMIT", "SQLITE_IOERR_WRITE", StoreFull, False),
        ("BEGIN", "SQLITE_BUSY", StoreFailed, False),
        ("COMMIT", "SQLITE_IOERR", StoreFailed, False),
        ("COMMIT", "SQLITE_IOERR_FSYNC", StoreLost, True),
        ("COMMIT", "SQLITE_IOERR_DIR_FSYNC", StoreLost, True),
        ("COMMIT", "SQLITE_IOERR_SHMSIZE", StoreFull, False),
        ("INSERT", "SQLITE_CORRUPT", StoreDamaged, True),
    ],
)
@pytest.mark.parametrize("together", [1, 5])
async def test_error_of_the_disk_stores_nothing_and_answers_all(
    bench: Bench, statement: str, name: str, expected: type[StateManagerError], is_lost: bool, together: int
) -> None:
    await bench.insert(100)
    bench.disk.failing = {statement: name}
    results = await asyncio.gather(
        *(bench.insert(value) for value in range(together)), return_exceptions=True
    )
    assert {type(result) for result in results} == {expected}
    assert all(name in str(result) for result in results)
    assert name in bench.writer.trouble
    bench.disk.failing = {}
    assert [type(lost) for lost in bench.lost] == ([expected] if is_lost else [])
    if is_lost:
        with pytest.raises(expected):
            await bench.insert(7)
        assert bench.stored() == [100]
    else:
        await bench.insert(7)
        assert bench.stored() == [7, 100]
        assert bench.writer.trouble == ""


async def test_full_disk_is_told_with_a_time_to_come_back(bench: Bench) -> None:
    bench.disk.failing = {"COMMIT": "SQLITE_FULL"}
    with pytest.raises(StoreFull) as caught:
        await bench.insert(1)
    assert (caught.value.code, caught.value.retryable) == ("INSUFFICIENT_RESOURCES", True)
    assert caught.value.details["retry_after_ms"] > 0


async def test_real_full_database_recovers_when_there_is_room(bench: Bench) -> None:
    await bench.insert(1)

    def limit(pages: int) -> Callable[[sqlite3.Connection], Any]:
        return lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()

    await bench.writer.submit(limit(3))
    results = await asyncio.gather(*(bench.insert(value) for value in range(2, 4000)), return_exceptions=True)
    assert StoreFull in {type(result) for result in results}
    await bench.writer.submit(limit(10_000))
    await bench.insert(9999)
    assert 9999 in bench.stored()
    acked = [value for value, result in zip(range(2, 4000), results, strict=True) if result is None]
    assert set(acked) <= set(bench.stored())


async def test_queue_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MAX_QUEUED_REQUESTS", 10)
    results = await asyncio.gather(*(bench.insert(value) for value in range(30)), return_exceptions=True)
    assert [type(result) for result in results[10:]] == [StoreBusy] * 20
    assert bench.stored() == list(range(10))


async def test_checkpoint_follows_many_commits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "CHECKPOINT_COMMITS", 5)
    for value in range(40):  # busy: it waits for a quiet moment, but not beyond four times as many commits
        await bench.insert(value)
    await bench.writer.stop()
    assert 2 <= bench.disk.statements.count("PRAGMA wal_checkpoint(PASSIVE)") <= 8


async def test_failed_sync_of_a_checkpoint_loses_the_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "CHECKPOINT_COMMITS", 1)
    bench.disk.failing = {"PRAGMA": "SQLITE_IOERR_FSYNC"}
    told: list[int] = []

    async def insert_until_it_fails() -> None:
        for value in range(10):
            await bench.insert(value)
            told.append(value)

    with pytest.raises((StoreLost, StoreFailed)):
        await insert_until_it_fails()
    await bench.writer.stop()
    await asyncio.sleep(0)
    assert [type(lost) for lost in bench.lost] == [StoreLost]
    assert bench.stored() == told


async def test_who_asks_between_the_loss_and_its_news_does_not_wait_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "CHECKPOINT_COMMITS", 1)
    bench.disk.failing = {"PRAGMA": "SQLITE_IOERR_FSYNC"}
    first = asyncio.ensure_future(bench.insert(0))
    await asyncio.sleep(0)
    thread = bench.writer._thread
    assert thread is not None
    thread.join(10)  # the store is lost, and the loop has not heard of it yet
    late = bench.writer.submit(lambda connection: None)
    future = late.send(None)
    await asyncio.wait([future], timeout=5)
    late.close()
    assert isinstance(future.exception(), StoreFailed | StoreLost)
    await first
    assert bench.writer.waiting == 0


async def test_cancelled_caller_harms_nobody(bench: Bench) -> None:
    tasks = [asyncio.ensure_future(bench.insert(value)) for value in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1::2] == [None] * 10
    await bench.insert(99)
    assert set(range(1, 20, 2)) < set(bench.stored())


async def test_stop_writes_what_is_queued(bench: Bench) -> None:
    tasks = [asyncio.ensure_future(bench.insert(value)) for value in range(30)]
    await asyncio.sleep(0)
    await bench.writer.stop()
    await asyncio.gather(*tasks)
    assert bench.stored() == list(range(30))
    with pytest.raises(StoreFailed, match="not open"):
        await bench.insert(1)


async def test_start_raises_what_opening_raised(tmp_path: Path) -> None:
    def connect() -> sqlite3.Connection:
        raise StoreFailed("no such place")

    writer = Writer(connect, tmp_path / "wal", lambda lost: None)
    with pytest.raises(StoreFailed, match="no such place"):
        await writer.start()
    await writer.stop()
