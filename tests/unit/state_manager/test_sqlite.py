"""What only a file can show: restarts, locks, migrations, damage, modes, copies under load."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.state_manager.errors import StoreFailed, StoreLost, StoreUnusable
from agents.state_manager.state_values import put_whole
from agents.state_manager.storage.migrate import (
    SQLITE_MIGRATIONS,
    Migration,
    migrate,
    read_migrations,
    statements,
)
from agents.state_manager.storage.sqlite import SqliteStorage
from orchestration.contracts import (
    DefinitionGetRequest,
    InboxPutRequest,
    InboxReadRequest,
    InstanceListRequest,
    LogReadRequest,
)
from orchestration.status import InstanceStatus
from tests.unit.state_manager.conftest import refuse_loss
from tests.unit.state_manager.store_values import (
    ENGINE,
    START,
    ManualClock,
    make_batch,
    make_store_clock,
    put_definition,
)


@asynccontextmanager
async def opened(
    path: Path, clock: ManualClock | None = None, on_lost: Callable[[StoreLost], None] = refuse_loss
) -> AsyncIterator[SqliteStorage]:
    storage = SqliteStorage(path, make_store_clock(clock), on_lost)
    await storage.start()
    try:
        yield storage
    finally:
        await storage.stop()


def execute(path: Path, *statements: str) -> list[Any]:
    connection = sqlite3.connect(path, isolation_level=None)
    rows = [connection.execute(statement).fetchall() for statement in statements]
    connection.close()
    return rows[-1]


async def test_restart_keeps_everything(tmp_path: Path) -> None:
    path, clock = tmp_path / "store.db", ManualClock()
    async with opened(path, clock) as storage:
        await storage.append([make_batch("i1", events=3), make_batch("i2", status=InstanceStatus.COMPLETED)])
        reply, _ = await storage.put_inbox(InboxPutRequest(instance_id="i1", kind="stop", dedupe_key="k"))
        await storage.keep_lease(ENGINE, "engine", 10)
        await storage.put_definition(put_definition())
        await storage.change_state("s", put_whole({"a": 1}, overwrite=True, description="", max_bytes=99))
    async with opened(path, clock) as storage:
        assert storage.last_offset == 4
        assert [event.offset for event in (await storage.read_log(LogReadRequest())).events] == [1, 2, 3, 4]
        row = await storage.get_instance("i1")
        assert row is not None
        assert (row.seq, row.owner) == (3, ENGINE)
        again, _ = await storage.put_inbox(InboxPutRequest(instance_id="i1", kind="stop", dedupe_key="k"))
        assert again.inbox_id == reply.inbox_id
        assert len((await storage.read_inbox(InboxReadRequest(owner=ENGINE))).items) == 1
        assert await storage.claim("other:1", 10) == []
        assert await storage.get_definition(DefinitionGetRequest(workflow_id="wf")) is not None
        state = await storage.get_state("s")
        assert state is not None
        assert state.state == {"a": 1}
        (outcome,) = await storage.append([make_batch("i1", 3)])
        assert (outcome.status, outcome.offset) == ("ok", 5)


async def test_process_killed_with_its_log_unwritten_back_loses_nothing(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy" / "store.db"
    copy.parent.mkdir()
    async with opened(path) as storage:
        for seq in range(20):
            await storage.append([make_batch("i1", seq)])
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    async with opened(copy) as storage:
        assert storage.last_offset == 20
        assert len((await storage.read_log(LogReadRequest())).events) == 20


async def test_offsets_are_never_used_again(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as storage:
        await storage.append([make_batch("i1", events=5)])
    execute(path, "DELETE FROM events WHERE offset > 3")
    async with opened(path) as storage:
        (outcome,) = await storage.append([make_batch("i2")])
        assert outcome.offset == 6


async def test_leases_get_their_full_time_after_an_outage(tmp_path: Path) -> None:
    path, clock = tmp_path / "store.db", ManualClock()
    async with opened(path, clock) as storage:
        await storage.append([make_batch()])
        await storage.keep_lease(ENGINE, "engine", 10)
    clock.advance(60)
    async with opened(path, clock) as storage:
        assert await storage.claim("other:1", 10) == []
        clock.advance(10)
        assert (await storage.sweep_leases()).ended == (ENGINE,)


async def test_store_time_never_goes_back_over_a_restart(tmp_path: Path) -> None:
    path, clock = tmp_path / "store.db", ManualClock()
    async with opened(path, clock) as storage:
        clock.advance(3600)
        await storage.append([make_batch()])
    clock.wall = START
    async with opened(path, clock) as storage:
        assert storage.clock.now() >= START + timedelta(seconds=3600)


async def test_store_serves_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path):
        with pytest.raises(StoreUnusable, match="in use by another"):
            async with opened(path):
                pass
    async with opened(path):
        pass


async def test_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "store.db"
    async with opened(path) as storage:
        await storage.append([make_batch()])
        await storage.back_up(tmp_path / "backups" / "one.db")
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("store.db", "store.db-wal", "store.db-shm", "store.db.lock"), 0o600)
    assert (tmp_path / "backups").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "backups" / "one.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [b"this is not a database" * 100, b"SQLite format 3\x00" + b"\xff" * 5000]
)
async def test_damaged_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    with pytest.raises(StoreUnusable, match=r"store\.db"):
        async with opened(path):
            pass
    assert path.read_bytes() == content


async def test_damage_inside_is_found_at_start(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as storage:
        await storage.append([make_batch(f"i{number}", events=20) for number in range(50)])
    content = bytearray(path.read_bytes())
    for page in range(8, 20):
        content[page * 4096 : page * 4096 + 60] = b"\xa5" * 60
    path.write_bytes(bytes(content))
    with pytest.raises(StoreUnusable):
        async with opened(path):
            pass


async def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreUnusable, match="cannot be opened"):
        async with opened(blocked / "store.db"):
            pass


async def test_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path):
        pass
    execute(path, "INSERT INTO schema_versions VALUES (99, 'future', 'x', 0)")
    with pytest.raises(StoreUnusable, match="newer release"):
        async with opened(path):
            pass


async def test_store_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path):
        pass
    execute(path, "UPDATE schema_versions SET checksum = 'edited'")
    with pytest.raises(StoreUnusable, match="another program or release"):
        async with opened(path):
            pass


def test_migrations_apply_all_or_nothing() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    good = Migration(1, "good", "CREATE TABLE a (x);\nCREATE TABLE b (x);")
    bad = Migration(2, "bad", "CREATE TABLE c (x);\nCREATE TABLE a (x);")
    with pytest.raises(StoreUnusable, match="could not be migrated"):
        migrate(connection, [good, bad], 0)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    assert migrate(connection, [good], 0) == 1
    assert migrate(connection, [good], 0) == 0
    assert migrate(connection, [good, Migration(2, "more", "CREATE TABLE c (x);")], 7) == 1
    assert connection.execute("SELECT version, name, applied_at FROM schema_versions").fetchall() == [
        (1, "good", 0),
        (2, "more", 7),
    ]
    connection.close()


def test_script_is_split_into_statements() -> None:
    script = (
        "-- a; comment\nCREATE TABLE a (x TEXT DEFAULT ';');\n"
        "CREATE TRIGGER t AFTER INSERT ON a BEGIN\n DELETE FROM a;\nEND;\n-- end\n"
    )
    assert [statement.split()[-1] for statement in statements(script)] == ["';');", "END;"]
    with pytest.raises(StoreUnusable, match="within a statement"):
        list(statements("CREATE TABLE a (x)"))


@pytest.mark.parametrize("names", [["first.sql"], ["0001_a.sql", "0003_b.sql"], ["0002_a.sql"]])
def test_misnumbered_migrations_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(StoreUnusable):
        read_migrations(tmp_path)


def test_shipped_migrations_are_found() -> None:
    assert read_migrations(SQLITE_MIGRATIONS)[0].name == "log"


async def test_copy_under_load_is_of_one_moment(tmp_path: Path) -> None:
    path, target = tmp_path / "store.db", tmp_path / "copy.db"
    async with opened(path) as storage:

        async def drive(instance_id: str) -> None:
            for seq in range(40):
                await storage.append([make_batch(instance_id, seq)])

        await storage.append([make_batch("i0", events=500)])
        work = [asyncio.ensure_future(drive(f"x{number}")) for number in range(20)]
        await asyncio.sleep(0)
        await storage.back_up(target)
        await asyncio.gather(*work)
    async with opened(target) as copy:
        listed = await copy.list_instances(InstanceListRequest(limit=1000))
        for row in listed.rows:
            log = await copy.read_log(LogReadRequest(instance_id=row.instance_id, limit=1000))
            assert len(log.events) == row.seq
        assert listed.total >= 1


async def test_readers_never_wait_for_a_writer(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as storage:
        await storage.append([make_batch()])
        release = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(connection: sqlite3.Connection) -> None:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10)

        writing = asyncio.ensure_future(storage.write(slow))
        await asyncio.sleep(0)
        row = await storage.get_instance("i1")
        assert row is not None
        assert not writing.done()
        release.set()
        await writing


async def test_durability_settings_are_in_force(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as storage:

        def pragmas(connection: sqlite3.Connection) -> list[Any]:
            names = ("synchronous", "journal_mode", "foreign_keys", "wal_autocheckpoint")
            return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

        with pytest.raises(StoreFailed, match="READONLY"):
            await storage.read("DELETE FROM events")
        assert await storage.write(pragmas) == [2, "wal", 1, 0]
