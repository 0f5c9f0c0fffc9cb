"""Backups by order and by the clock."""

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from agents.state_manager.backups import Backups
from agents.state_manager.errors import BackupNotFound, InvalidRequest
from agents.state_manager.state_values import put_whole
from agents.state_manager.storage.base import Storage, StoredState
from tests.unit.state_manager.store_values import START, ManualClock, until


def make_backups(
    storage: Storage, folder: Path, clock: ManualClock, hours: float = 24, kept: int = 2
) -> Backups:
    return Backups(storage, folder, clock, interval_hours=hours, kept=kept)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a..b", "a\x00b", "a" * 200, "-rf", "ü"])
async def test_only_plain_names_are_taken(
    storage: Storage, tmp_path: Path, clock: ManualClock, name: str
) -> None:
    backups = make_backups(storage, tmp_path / "backups", clock)
    with pytest.raises(InvalidRequest, match="plain file name"):
        await backups.create(name)
    with pytest.raises(InvalidRequest, match="plain file name"):
        await backups.restore(name, [], lambda state: asyncio.sleep(0, True))
    assert not (tmp_path / "backups").exists()


async def test_states_come_back_all_or_those_wanted(
    storage: Storage, tmp_path: Path, clock: ManualClock
) -> None:
    for name in ("a", "b", "c"):
        await storage.change_state(name, put_whole({"n": name}, overwrite=True, description="", max_bytes=99))
    backups = make_backups(storage, tmp_path / "backups", clock)
    made = await backups.create("mine")
    assert (made.name, made.path, made.created_at) == ("mine.db", tmp_path / "backups" / "mine.db", START)
    taken: list[str] = []

    async def put(state: StoredState) -> bool:
        taken.append(state.workflow_instance_id)
        return state.workflow_instance_id != "b"

    assert await backups.restore("mine", [], put) == 2
    assert taken == ["a", "b", "c"]
    assert await backups.restore("mine.db", ["c"], put) == 1
    with pytest.raises(BackupNotFound, match="no state 'x'"):
        await backups.restore("mine", ["c", "x"], put)
    with pytest.raises(BackupNotFound):
        await backups.restore("other", [], put)


async def test_overdue_backup_is_made_at_once_and_old_ones_go(
    storage: Storage, tmp_path: Path, clock: ManualClock
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    for days in (5, 4, 3, 2):
        stamp = (START - timedelta(days=days)).strftime("%Y%m%dT%H%M%S")
        (folder / f"auto-{stamp}Z.db").write_text("old")
    (folder / "auto-mine.db").write_text("kept: not named by us")
    backups = make_backups(storage, folder, clock)
    running = asyncio.ensure_future(backups.run())
    await until(lambda: len(list(folder.iterdir())) == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["auto-20260113T100000Z.db", "auto-20260115T100000Z.db", "auto-mine.db"]
    assert backups.last == START
    assert backups.trouble == ""


async def test_interval_of_0_means_never(storage: Storage, tmp_path: Path, clock: ManualClock) -> None:
    await make_backups(storage, tmp_path / "backups", clock, hours=0).run()
    assert not (tmp_path / "backups").exists()


async def test_copies_that_a_dead_process_began_are_removed(
    storage: Storage, tmp_path: Path, clock: ManualClock
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    ended = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    await ended.wait()
    left = [f".a.db.{ended.pid}.unfinished", f".b.db.{os.getpid()}.unfinished"]
    kept = [f".c.db.{os.getppid()}.unfinished", "mine.unfinished", ".d.db.x.unfinished", "auto-mine.db"]
    for name in (*left, *kept):
        (folder / name).write_text("")
    make_backups(storage, folder, clock).remove_unfinished()
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
    make_backups(storage, tmp_path / "none", clock).remove_unfinished()
