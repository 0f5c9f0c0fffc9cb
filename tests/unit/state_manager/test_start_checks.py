"""A store that is not what was written is refused, and left as it is."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from agents.state_manager.errors import StateManagerError, StoreDamaged, StoreLost, StoreUnusable
from agents.state_manager.room import RESERVE_NAME, Room
from agents.state_manager.storage import start_checks, wal_file
from agents.state_manager.storage.sqlite import SqliteStorage
from orchestration.contracts import InstanceListRequest, LogReadRequest
from tests.unit.state_manager.store_values import make_batch, make_event, make_store_clock

ROOT = Path(__file__).resolve().parents[3]
LEAVE_BEHIND = """
import asyncio, os, sys
from pathlib import Path
from agents.state_manager.storage.sqlite import SqliteStorage
from tests.unit.state_manager.store_values import make_batch, make_store_clock

async def main():
    storage = SqliteStorage(Path(sys.argv[1]), make_store_clock(), print)
    await storage.start()
    for number in range(20):
        await storage.append([make_batch(f"i{number}", events=2)])
    os._exit(0)

asyncio.run(main())
"""


def left_behind(path: Path) -> None:
    """Make a store with 20 instances whose process was killed: all of it lies in the write-ahead log."""
    subprocess.run([sys.executable, "-c", LEAVE_BEHIND, str(path)], check=True, cwd=ROOT, timeout=60)


def make_storage(path: Path, lost: list[StoreLost] | None = None, room: Room | None = None) -> SqliteStorage:
    return SqliteStorage(path, make_store_clock(), (lost if lost is not None else []).append, room)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "store.db"
    left_behind(path)
    return path


@pytest.fixture
def store(killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed store, for a test to spoil."""
    for file in killed.parent.iterdir():
        if not file.name.endswith(("-shm", ".lock")):
            shutil.copy(file, tmp_path / file.name)
    return tmp_path / "store.db"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


async def seqs(storage: SqliteStorage) -> dict[str, int]:
    rows = (await storage.list_instances(InstanceListRequest(limit=1000))).rows
    return {row.instance_id: row.seq for row in rows}


async def test_log_of_a_killed_process_is_taken_over_and_checked_behind_the_work(store: Path) -> None:
    storage = make_storage(store)
    await storage.start()
    assert not storage.was_stopped_in_order
    assert await seqs(storage) == {f"i{number}": 2 for number in range(20)}
    await storage.check()
    await storage.stop()
    again = make_storage(store)
    await again.start()
    assert again.was_stopped_in_order
    await again.stop()


def commits_in(path: Path) -> list[int]:
    """Return where in the file the frames begin that end a commit."""
    log = Path(f"{path}-wal")
    size, page = log.stat().st_size, 4096 + wal_file.FRAME_HEADER_BYTES
    content = log.read_bytes()
    places = range(wal_file.HEADER_BYTES, size - page + 1, page)
    return [place for place in places if any(content[place + 4 : place + 8])]


@pytest.mark.parametrize("where", ["header", "salt", "page number", "content", "checksum", "first frame"])
async def test_broken_write_ahead_log_is_not_taken_for_its_end(store: Path, where: str) -> None:
    commits = commits_in(store)
    assert len(commits) > 10
    middle = commits[len(commits) // 2]
    places = {
        "header": 9,
        "salt": middle + 9,
        "page number": middle + 3,
        "content": middle + 2000,
        "checksum": middle + 17,
        "first frame": wal_file.HEADER_BYTES + 100,
    }
    log = Path(f"{store}-wal")
    flip(log, places[where])
    spoiled = log.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreUnusable, match="write-ahead log is broken"):
            await make_storage(store).start()
        assert log.read_bytes() == spoiled, "what is left is evidence"


async def test_last_commit_that_power_loss_cut_short_is_dropped_silently(store: Path) -> None:
    log = Path(f"{store}-wal")
    os.truncate(log, commits_in(store)[-1] + 100)
    storage = make_storage(store)
    await storage.start()
    found = await seqs(storage)
    assert {f"i{number}": 2 for number in range(18)}.items() <= found.items()
    await storage.stop()


async def test_flipped_bytes_never_give_wrong_data(store: Path, tmp_path: Path) -> None:
    """Wherever a byte flips in the database file: it is refused, or noticed when read, or was of no account."""
    storage = make_storage(store)
    await storage.start()
    await storage.append([make_batch("big", events=[make_event(data=b'"%s"' % (b"x" * 9000))])])
    true = (await storage.read_log(LogReadRequest(limit=1000))).events
    await storage.stop()
    sound, random, noticed = store.read_bytes(), Random(5), 0
    for number in range(40):
        path = tmp_path / f"spoiled{number}" / "store.db"
        path.parent.mkdir()
        content = bytearray(sound)
        # Every other time where it counts for certain: within the data of an event.
        place = random.randrange(len(sound)) if number % 2 else sound.index(b"xxxx") + random.randrange(3000)
        content[place] ^= 1 << random.randrange(8)
        path.write_bytes(content)
        lost: list[StoreLost] = []
        spoiled = make_storage(path, lost)
        try:
            await spoiled.start()
            read = (await spoiled.read_log(LogReadRequest(limit=1000))).events
            assert read == true, "wrong data was served"
        except StateManagerError:
            noticed += 1
        finally:
            await spoiled.stop()
    assert noticed >= 20


async def test_event_that_is_not_what_was_written_ends_the_process(store: Path) -> None:
    lost: list[StoreLost] = []
    storage = make_storage(store, lost)
    await storage.start()
    await storage.stop()
    spoil(store, "UPDATE events SET data = '{\"n\": 7}' WHERE offset = 5")
    storage = make_storage(store, lost)
    await storage.start()
    assert len((await storage.read_log(LogReadRequest(limit=4))).events) == 4
    with pytest.raises(StoreDamaged, match="event 5"):
        await storage.read_log(LogReadRequest(after=4))
    assert [type(each) for each in lost] == [StoreDamaged]
    await storage.stop()
    with pytest.raises(StoreUnusable, match="event 5"):
        await make_storage(store).start()
    start_checks.mark_path(store).unlink()
    await (again := make_storage(store)).start()
    await again.stop()


async def test_event_that_is_missing_ends_the_process(store: Path) -> None:
    storage = make_storage(store)
    await storage.start()
    await storage.stop()
    spoil(store, "DELETE FROM events WHERE instance_id = 'i3' AND seq = 1")
    lost: list[StoreLost] = []
    storage = make_storage(store, lost)
    await storage.start()
    assert len((await storage.read_log(LogReadRequest(instance_id="i2"))).events) == 2
    with pytest.raises(StoreDamaged, match="are missing"):
        await storage.read_log(LogReadRequest(instance_id="i3"))
    assert [type(each) for each in lost] == [StoreDamaged]
    await storage.stop()


async def test_events_of_older_releases_have_no_checksum_and_are_read(store: Path) -> None:
    storage = make_storage(store)
    await storage.start()
    await storage.stop()
    spoil(store, "UPDATE events SET checksum = NULL")
    storage = make_storage(store)
    await storage.start()
    assert len((await storage.read_log(LogReadRequest())).events) == 40
    await storage.stop()


async def test_large_store_is_checked_behind_the_work_and_damage_is_told(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = make_storage(store)
    await storage.start()
    await storage.stop()
    monkeypatch.setattr(start_checks, "CHECKED_AT_ONCE_BYTES", 0)
    spoil(
        store,
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'contexts')"
        " WHERE name = 'inbox'",
    )
    lost: list[StoreLost] = []
    storage = make_storage(store, lost)
    await storage.start()
    assert await seqs(storage) == {f"i{number}": 2 for number in range(20)}
    await storage.check()
    assert [type(each) for each in lost] == [StoreDamaged]
    await storage.stop()
    with pytest.raises(StoreUnusable, match="is damaged"):
        await make_storage(store).start()


async def test_background_check_ends_when_the_store_closes(store: Path) -> None:
    check = start_checks.BackgroundCheck(store, full=True)
    check.stop()
    assert await asyncio.to_thread(check.run) is None


def spoil(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


# --- room ---------------------------------------------------------------------------------------------------


def test_reserve_is_made_given_up_and_made_again(tmp_path: Path) -> None:
    reserve = tmp_path / RESERVE_NAME
    reserve.write_bytes(b"of another size")
    room = Room(reserve, 1024 * 1024)
    told: list[bool] = []
    room.on_full = lambda: told.append(True)
    room.open()
    assert (reserve.stat().st_size, room.is_full) == (1024 * 1024, False)
    assert room.give()
    assert (reserve.exists(), room.is_full) == (False, True)
    assert not room.give(), "there is nothing left to give"
    assert told == [True]
    assert room.make()
    assert room.give(), "a reserve that was made meanwhile is given up again"


async def test_room_comes_back_only_with_a_write_that_succeeds(tmp_path: Path) -> None:
    free = [0]
    room = Room(tmp_path / RESERVE_NAME, 4096, lambda folder: free[0])
    room.give()

    async def refuse() -> None:
        room.refuse_new()

    async def take() -> None:
        return

    assert not await room.recover(take), "there is the reserve, and nothing beside it"
    free[0] = 1024 * 1024
    assert not await room.recover(refuse)
    assert room.is_full
    assert await room.recover(take)
    assert (room.is_full, (tmp_path / RESERVE_NAME).exists()) == (False, True)


@pytest.mark.parametrize("place", ["missing/reserve"])
async def test_reserve_that_cannot_be_made_means_full(tmp_path: Path, place: str) -> None:
    room = Room(tmp_path / place, 4096)
    room.open()
    assert room.is_full


async def test_full_group_is_tried_again_with_the_reserve(tmp_path: Path) -> None:
    """The reserve is given up within the very write that found the disk full: its caller notices nothing."""
    room = Room(tmp_path / RESERVE_NAME, 4096)
    storage = make_storage(tmp_path / "store.db", room=room)
    await storage.start()
    await storage.append([make_batch("i1")])
    tried: list[bool] = []

    def work(connection: sqlite3.Connection) -> str:
        tried.append(room.is_full)
        if len(tried) == 1:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            raise error
        return "written"

    assert await storage.write(work) == "written"
    assert tried == [False, True]
    await storage.stop()
