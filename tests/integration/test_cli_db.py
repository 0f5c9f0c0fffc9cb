"""`amp db` on real stores: alone, while a state manager serves it, and on what is broken."""

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.db_work import Work
from cli.errors import CommandError, ExitCode
from orchestration import contracts
from tests.mesh import Mesh, running_mesh
from tests.processes import ROOT, running_processes

FLOW = {
    "id": "flow",
    "name": "Flow",
    "tasks": [
        {
            "id": "only",
            "type": "data_transform",
            "parameters": {"input_data": [1], "transformations": []},
            "outputs": ["result"],
        }
    ],
}
STORE = "workflow_state.db"


async def run_some(folder: Path) -> None:
    async with running_mesh(folder) as mesh:
        for _ in range(3):
            assert (await mesh.run(FLOW)).instance["status"] == "completed"
        await leave_one_open(mesh)


async def leave_one_open(mesh: Mesh) -> None:
    far = {"id": "far", "type": "custom", "capability": "task-nobody", "parameters": {}}
    await mesh.start(await mesh.define({"id": "slow", "name": "Slow", "tasks": [far]}), instance_id="open")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    asyncio.run(run_some(folder))
    return folder


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A data folder with three completed instances and an open one, for a test to spoil."""
    (tmp_path / "data").mkdir()
    shutil.copy(made / "data" / STORE, tmp_path / "data" / STORE)
    (tmp_path / "agent_config.yaml").write_text("database: {reserve_megabytes: 0}\n")
    return tmp_path / "data"


def work(data: Path) -> Work:
    return Work(config=data.parent / "agent_config.yaml", data_dir=data, as_json=True)


def spoil(data: Path, statement: str) -> None:
    with sqlite3.connect(data / STORE) as connection:
        connection.execute(statement)
    connection.close()


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_status_tells_what_the_store_holds(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert work(data).status() == ExitCode.OK
    found = told(capsys)
    assert found["instances"]["completed"] >= 3
    assert (found["in_use"], found["schema"], found["backups"]) == (False, 2, [])
    assert found["last_offset"] == found["counts"]["events"] > 10


def test_store_of_a_real_run_has_nothing_wrong(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (data / STORE).read_bytes()
    assert work(data).verify(None) == ExitCode.OK
    found = told(capsys)
    assert (found["instances"], found["findings"]) == (4, [])
    assert (data / STORE).read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "field"),
    [
        ("UPDATE instances SET status = 'failed' WHERE instance_id = 'open'", "status"),
        ("UPDATE instances SET seq = seq + 1 WHERE instance_id = 'open'", "seq"),
        ("DELETE FROM events WHERE instance_id = 'open' AND seq = 2", "seq"),
        ("UPDATE events SET data = replace(data, 'flow', 'flaw') WHERE type = 'workflow.started'", "events"),
        ("DELETE FROM instances WHERE instance_id = 'open'", "events"),
        ("INSERT INTO inbox (instance_id, kind, data, at) VALUES ('nobody', 'pause', '{}', 0)", "inbox"),
        (
            "INSERT INTO inbox (instance_id, kind, data, at)"
            " SELECT instance_id, 'pause', '{}', 0 FROM instances WHERE status = 'completed' LIMIT 1",
            "inbox",
        ),
        ("UPDATE definitions SET content = replace(content, 'Flow', 'Flaw')", "definition"),
        ("UPDATE sqlite_sequence SET seq = 1 WHERE name = 'events'", "offset"),
        ("UPDATE instances SET task_counts = '{' WHERE instance_id = 'open'", "row"),
        ("DELETE FROM schema_versions WHERE version = 2", "schema"),
    ],
)
def test_every_kind_of_damage_is_found(
    data: Path, capsys: pytest.CaptureFixture[str], statement: str, field: str
) -> None:
    spoil(data, statement)
    assert work(data).verify(None) == ExitCode.FAILED
    assert field in {finding["field"] for finding in told(capsys)["findings"]}


def test_copy_is_restored_and_what_it_replaces_is_kept(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work(data).backup("mine") == ExitCode.OK
    assert told(capsys)["backup"] == "mine.db"
    spoil(data, "DELETE FROM instances WHERE instance_id = 'open'")
    assert work(data).restore(Path("mine")) == ExitCode.OK
    kept = Path(told(capsys)["kept"])
    assert work(data).verify(None) == ExitCode.OK
    assert told(capsys)["instances"] == 4
    with sqlite3.connect(kept) as connection:
        assert connection.execute("SELECT COUNT(*) FROM instances").fetchone() == (3,)
    connection.close()
    left = sorted(path.name for path in data.iterdir() if not path.name.endswith(("-shm", "-wal")))
    assert left == ["backups", STORE, kept.name, f"{STORE}.lock"]


def test_broken_copy_is_not_put_in_place(data: Path, tmp_path: Path) -> None:
    before = (data / STORE).read_bytes()
    copy = tmp_path / "copy.db"
    for statement in (
        "UPDATE instances SET status = 'failed' WHERE instance_id = 'open'",
        "UPDATE schema_versions SET checksum = 'x'",
    ):
        shutil.copy(data / STORE, copy)
        with sqlite3.connect(copy) as connection:
            connection.execute(statement)
        connection.close()
        with pytest.raises(CommandError) as caught:
            work(data).restore(copy)
        assert caught.value.exit_code == ExitCode.FAILED
    copy.write_bytes(b"not a store" * 1000)
    with pytest.raises(CommandError, match="not a usable store"):
        work(data).restore(copy)
    assert (data / STORE).read_bytes() == before
    assert sorted(path.name for path in data.iterdir()) == [STORE, f"{STORE}.lock"]


def test_damaged_store_is_replaced_with_its_mark_and_log_kept(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work(data).backup("mine") == ExitCode.OK
    (data / f"{STORE}.damaged").write_text("page 7 is torn")
    (data / f"{STORE}-wal").write_bytes(b"what was left of it")
    capsys.readouterr()
    assert work(data).status() == ExitCode.FAILED
    assert told(capsys)["damaged"] == "page 7 is torn"
    assert work(data).restore(Path("mine")) == ExitCode.OK
    kept = Path(told(capsys)["kept"])
    assert Path(f"{kept}.damaged").read_text() == "page 7 is torn"
    assert Path(f"{kept}-wal").read_bytes() == b"what was left of it"
    assert work(data).status() == ExitCode.OK


def test_purge_alone_counts_first_and_removes_then(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(data, "UPDATE instances SET completed_at = 1000 WHERE status = 'completed'")
    assert work(data).purge(1, dry_run=True) == ExitCode.OK
    count = told(capsys)
    assert (count["instances"], count["dry_run"]) == (3, True)
    assert work(data).purge(1, dry_run=False) == ExitCode.OK
    assert told(capsys)["instances"] == 3
    assert work(data).verify(None) == ExitCode.OK
    assert told(capsys)["instances"] == 1


def test_exit_codes_tell_what_is_missing(tmp_path: Path) -> None:
    def amp(*arguments: str) -> int:
        command = [sys.executable, "-m", "cli", "db", *arguments, "--data-dir", str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode

    assert amp("verify") == ExitCode.NOT_FOUND
    assert amp("restore", "nothing.db") == ExitCode.NOT_FOUND
    assert amp("purge", "--older-than", "0.5") == ExitCode.USAGE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
async def test_served_store_is_verified_copied_and_purged_and_not_replaced(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(made / "data" / STORE, data / STORE)
    async with running_processes(tmp_path, agents=("state_manager",)) as mesh:
        await mesh.joined(contracts.STATE_APPEND.id)
        (tmp_path / "agent_config.yaml").write_text(f"mesh: {{router_url: '{mesh.router_url}'}}\n")

        def look() -> None:
            ours = work(data)
            assert ours.status() == ExitCode.OK
            assert told(capsys)["in_use"]
            assert ours.verify(None) == ExitCode.OK
            assert told(capsys)["instances"] == 4
            assert ours.backup("served") == ExitCode.OK
            assert Path(told(capsys)["path"]).is_file()
            with pytest.raises(CommandError) as taken:
                ours.backup("served")
            assert taken.value.exit_code == ExitCode.CONFLICT
            with pytest.raises(CommandError) as caught:
                ours.restore(Path("served"))
            assert caught.value.exit_code == ExitCode.CONFLICT
            assert ours.purge(1, dry_run=True) == ExitCode.OK
            assert told(capsys)["instances"] == 0

        await asyncio.to_thread(look)
    assert work(data).verify(Path("served")) == ExitCode.OK
