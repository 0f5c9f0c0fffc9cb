"""Who is to blame for the deaths of an executor, and who only happened to be there."""

import os
from pathlib import Path

import pytest

from agents.task_executor import under_way
from agents.task_executor.spool_folder import DEATHS, UNDER_WAY
from agents.task_executor.under_way import MAX_NAME_BYTES, MAX_REMEMBERED, NO_SLOT, Suspects, UnderWay


def die_with(folder: Path, *names: str) -> None:
    """Leave a folder as a process does that is killed while these tasks are under way."""
    table = UnderWay(folder, 20)
    done = table.enter("done before")
    for name in names:
        table.enter(name)
    table.leave(done)
    table.close()


def live_on(folder: Path) -> Suspects:
    suspects = Suspects()
    suspects.learn(folder)
    suspects.store(folder)
    return suspects


def test_what_was_under_way_is_known_after_a_kill_and_what_had_ended_is_not(tmp_path: Path) -> None:
    die_with(tmp_path, "a", "b")
    assert sorted(Suspects().learn(tmp_path)) == ["a", "b"]


def test_a_task_that_is_there_at_two_deaths_is_poison(tmp_path: Path) -> None:
    die_with(tmp_path, "bad")
    assert not live_on(tmp_path).is_poison("bad")
    die_with(tmp_path, "bad")
    suspects = live_on(tmp_path)
    assert suspects.is_poison("bad")
    assert not suspects.is_poison("good")
    die_with(tmp_path)
    assert live_on(tmp_path).is_poison("bad"), "it is remembered over lives that end well"


def test_a_task_that_is_there_with_many_others_is_hardly_suspect(tmp_path: Path) -> None:
    for _ in range(2):
        die_with(tmp_path, "long", *(f"short-{number}" for number in range(9)))
        suspects = live_on(tmp_path)
    assert not suspects.is_poison("long")


def test_with_one_other_each_time_the_one_that_is_always_there_is_poison(tmp_path: Path) -> None:
    die_with(tmp_path, "bad", "x")
    live_on(tmp_path)
    die_with(tmp_path, "bad", "y")
    suspects = live_on(tmp_path)
    assert [name for name in ("bad", "x", "y") if suspects.is_poison(name)] == ["bad"]


def test_one_death_counts_once_however_often_it_is_looked_at(tmp_path: Path) -> None:
    die_with(tmp_path, "a")
    for _ in range(3):
        suspects = live_on(tmp_path)
    assert not suspects.is_poison("a")


def test_when_the_machine_went_down_nobody_is_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_with(tmp_path, "a")
    monkeypatch.setattr(under_way, "boot_id", lambda: "another start of the machine")
    assert Suspects().learn(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"\xff" * 1000, b"\x00\x05hello" + b"\x00" * 600, os.urandom(5000)])
def test_a_table_or_a_memory_that_makes_no_sense_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / UNDER_WAY).write_bytes(content)
    (tmp_path / DEATHS).write_bytes(content)
    assert Suspects().learn(tmp_path) == []
    assert not live_on(tmp_path).is_poison("a")


def test_folders_where_files_should_be_harm_nobody(tmp_path: Path) -> None:
    (tmp_path / UNDER_WAY).mkdir()
    (tmp_path / DEATHS).mkdir()
    assert Suspects().learn(tmp_path) == []


def test_slots_are_used_again_and_when_all_are_taken_nothing_is_noted(tmp_path: Path) -> None:
    table = UnderWay(tmp_path, 2)
    for _ in range(100):
        table.leave(table.enter("x"))
    slots = [table.enter(name) for name in ("a", "b", "c")]
    assert slots[2] == NO_SLOT
    table.leave(slots[2])
    table.leave(slots[0])
    assert table.enter("d") == slots[0]
    table.close()
    assert sorted(Suspects().learn(tmp_path)) == ["b", "d"]


def test_long_names_are_cut_alike_everywhere(tmp_path: Path) -> None:
    name = "ü" * MAX_NAME_BYTES
    for _ in range(2):
        die_with(tmp_path, name)
        suspects = live_on(tmp_path)
    assert suspects.is_poison(name)


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    die_with(tmp_path, "first")
    live_on(tmp_path)
    for start in range(0, MAX_REMEMBERED, 10):
        die_with(tmp_path, *(f"{start + number}" for number in range(10)))
        live_on(tmp_path)
    die_with(tmp_path, "first")
    assert not live_on(tmp_path).is_poison("first"), "its first death is forgotten"
    assert (tmp_path / DEATHS).stat().st_size < 200_000


def test_without_room_for_the_table_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        UnderWay(tmp_path, 10)
