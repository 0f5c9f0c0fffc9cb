"""Whose folder it is: one living process holds it, and what executors that are gone left can be taken over."""

from pathlib import Path

import pytest

from agents.task_executor import spool_folder
from agents.task_executor.spool_folder import (
    ACCEPTED,
    ASIDE,
    BEGUN,
    LOCK,
    PARTIAL,
    RESULT,
    folder_name,
    orphans,
    record_name,
    take,
)


def test_a_living_process_is_never_robbed_of_its_folder(tmp_path: Path) -> None:
    first, second = take(tmp_path, "executor"), take(tmp_path, "executor")
    assert (first.path.name, second.path.name) == ("executor", "executor+2")
    first.close()
    assert take(tmp_path, "executor").path.name == "executor"
    second.close()


def test_folders_without_a_living_process_are_found_and_their_records_taken_over(tmp_path: Path) -> None:
    own, alive, gone = (take(tmp_path, name) for name in ("own", "alive", "gone"))
    gone.write("r1", b"{}")
    gone.put("r1", after=RESULT, sync_name=True)
    gone.write("r2", b"{}")
    gone.close()
    (found,) = orphans(tmp_path, own)
    assert found.path.name == "gone"
    assert own.adopt(found) == 2
    found.discard()
    assert sorted(own.records()) == [("r1", RESULT), ("r2", PARTIAL)]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["alive", "own"]
    alive.close()


def test_a_folder_with_files_of_others_is_left_where_it_is(tmp_path: Path) -> None:
    own, gone = take(tmp_path, "own"), take(tmp_path, "gone")
    (gone.path / "notes.txt").write_text("mine")
    gone.close()
    for folder in orphans(tmp_path, own):
        folder.discard()
    assert (tmp_path / "gone" / "notes.txt").read_text() == "mine"
    assert [folder.path.name for folder in orphans(tmp_path, own)] == ["gone"]


def test_a_lock_on_a_removed_folder_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the lock file and locking it, another executor removed the folder."""
    real, removed = spool_folder.fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(True)
            (tmp_path / "executor" / LOCK).unlink()
            (tmp_path / "executor").rmdir()
        real(descriptor, how)

    monkeypatch.setattr(spool_folder.fcntl, "flock", flock)
    folder = take(tmp_path, "executor")
    assert (folder.path / LOCK).exists()
    folder.close()


def test_files_and_folders_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = take(tmp_path / "spool", "executor")
    folder.write("r", b"secret")
    folder.put("r", after=RESULT, sync_content=True, sync_name=True)
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.path.iterdir()} == {0o600}
    folder.close()


@pytest.mark.parametrize(
    ("agent_id", "name"),
    [
        ("task-executor-1", "task-executor-1"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("a/../b", "a%2F..%2Fb"),
        ("x+2", "x%2B2"),
        ("ä", "%C3%A4"),
    ],
)
def test_an_id_never_leads_out_of_the_spool(agent_id: str, name: str) -> None:
    assert folder_name(agent_id) == name
    assert len(folder_name("ä" * 500)) == 64
    assert folder_name("a" * 151) != folder_name("a" * 152)


def test_names_of_records_are_short_and_differ(tmp_path: Path) -> None:
    assert len(record_name("t" * 512)) == 40
    assert record_name("a") != record_name("b")


def test_reading_refuses_links_large_files_and_what_is_not_there(tmp_path: Path) -> None:
    folder = take(tmp_path, "executor")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder.path / f"link{RESULT}").symlink_to(tmp_path / "secret")
    (folder.path / f"large{RESULT}").write_bytes(b"x" * 11)
    (folder.path / f"folder{RESULT}").mkdir()
    assert folder.read("link", RESULT, 100) is None
    assert folder.read("large", RESULT, 10) is None
    assert folder.read("large", RESULT, 11) == b"x" * 11
    assert folder.read("folder", RESULT, 10) is None
    assert folder.read("missing", RESULT, 10) is None
    folder.close()


def test_removing_forgets_every_state_and_setting_aside_keeps(tmp_path: Path) -> None:
    folder = take(tmp_path, "executor")
    for suffix in (ACCEPTED, BEGUN, RESULT):
        (folder.path / f"r{suffix}").write_bytes(b"x")
    (folder.path / "stranger").write_bytes(b"x")
    assert folder.strangers() == ["stranger"]
    folder.set_aside("stranger")
    folder.remove(["r", "never"])
    assert sorted(file.name for file in folder.path.iterdir()) == [ASIDE, LOCK]
    assert folder.strangers() == []
    assert folder.free_bytes() > 0
    folder.close()
    folder.close()
