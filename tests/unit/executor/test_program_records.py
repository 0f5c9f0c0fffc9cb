"""Programs that outlived their executor are found by the record they hold open, never by their number."""

import os
import subprocess
from pathlib import Path

import pytest

from agents.task_executor import program_records
from agents.task_executor.program_records import NO_RECORD, ProgramRecords, end_left_behind
from agents.task_executor.spool_folder import PROGRAMS

SLEEP = ["/bin/sh", "-c", "sleep 300 & wait"]


def records(folder: Path) -> list[Path]:
    return list((folder / PROGRAMS).iterdir())


def test_a_record_is_there_while_the_program_runs(tmp_path: Path) -> None:
    kept = ProgramRecords()
    kept.open(tmp_path)
    with kept.record() as descriptor:
        assert [os.fstat(descriptor).st_ino] == [file.stat().st_ino for file in records(tmp_path)]
    assert records(tmp_path) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_without_a_folder_programs_run_without_a_record(tmp_path: Path) -> None:
    kept = ProgramRecords()
    with kept.record() as descriptor:
        assert descriptor == NO_RECORD
    kept.open(tmp_path)
    (tmp_path / PROGRAMS).rmdir()
    with kept.record() as descriptor:
        assert descriptor == NO_RECORD


def test_who_inherited_a_record_is_killed_and_nobody_else(tmp_path: Path) -> None:
    kept = ProgramRecords()
    kept.open(tmp_path)
    with kept.record() as descriptor:
        family = subprocess.Popen(SLEEP, pass_fds=(descriptor,), start_new_session=True)
        stranger = subprocess.Popen(SLEEP, start_new_session=True)
        left = records(tmp_path)[0].read_bytes()
        os.link(records(tmp_path)[0], tmp_path / "kept")
    try:
        (tmp_path / "kept").rename(tmp_path / PROGRAMS / "left.program")
        assert left == b""
        assert end_left_behind(tmp_path) == 2, "the shell and what it started"
        assert family.wait(10) == -9
        assert stranger.poll() is None
        assert records(tmp_path) == []
    finally:
        os.killpg(stranger.pid, 9)
        stranger.wait(10)
        family.kill()
        family.wait(10)


def test_a_process_that_is_another_by_now_is_spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number was in the list; when it is looked at again, it holds no record."""
    kept = ProgramRecords()
    kept.open(tmp_path)
    stranger = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        with kept.record():
            os.link(records(tmp_path)[0], tmp_path / "kept")
        (tmp_path / "kept").rename(tmp_path / PROGRAMS / "left.program")
        facts = (tmp_path / PROGRAMS / "left.program").stat()
        monkeypatch.setattr(
            program_records, "_open_files", lambda: [(stranger.pid, {(facts.st_dev, facts.st_ino)})]
        )
        monkeypatch.setattr(program_records, "KILL_ROUNDS", 2)
        assert end_left_behind(tmp_path) == 0
        assert stranger.poll() is None
    finally:
        os.killpg(stranger.pid, 9)
        stranger.wait(10)


def test_nothing_to_end_costs_no_look_at_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked() -> list[tuple[int, set[tuple[int, int]]]]:
        raise AssertionError("looked at every process")

    monkeypatch.setattr(program_records, "_open_files", looked)
    assert end_left_behind(tmp_path) == 0
    ProgramRecords().open(tmp_path)
    assert end_left_behind(tmp_path) == 0
