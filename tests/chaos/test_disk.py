"""Disks that fail, under real processes: full in two ways, refusing to sync, and giving back other bytes than it took.

After each, every acknowledged start is there and every row is what its events make.
"""

import asyncio
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agents.state_manager.verifier import Verifier
from amp.errors import AmpError, InsufficientResources
from cli.db_work import Work
from orchestration import contracts
from orchestration.definition.compile import load_plan
from tests.ports import free_port
from tests.processes import END_SECONDS, Processes, running_processes

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

DISK_MEGABYTES = 8
WAIT_SECONDS = 40.0
LOOK_SECONDS = 0.02
STORE = "workflow_state.db"
EXIT_LOST = 1
EXIT_DAMAGED = 78

FLOW = {
    "id": "flow",
    "name": "Flow",
    "input_schema": {"type": "object", "properties": {"text": {"type": "string", "default": ""}}},
    "tasks": [
        {
            "id": "only",
            "type": "data_transform",
            "parameters": {"input_data": [1, 2], "transformations": []},
            "outputs": ["result"],
        }
    ],
}
SLOW = {
    "id": "slow",
    "name": "Slow",
    "tasks": [
        {
            "id": "wait",
            "type": "subprocess",
            "parameters": {"command": "sleep", "args": ["3"]},
            "outputs": ["waited"],
        },
        *(
            {
                "id": f"after{number}",
                "type": "data_transform",
                "depends_on": ["wait" if number == 1 else f"after{number - 1}"],
                "parameters": {"input_data": [number], "transformations": []},
                "outputs": [f"result{number}"],
            }
            for number in range(1, 6)
        ),
    ],
}


def needed(facility: str, *command: str) -> None:
    """Skip when this machine lacks something; in continuous integration that is a failure."""
    found = shutil.which(command[0]) is not None and (
        subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    )
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {facility} here: {' '.join(command)}")


class Bench:
    """A small mesh whose state manager has a disk of its own, started in a way that the test chooses."""

    def __init__(self, mesh: Processes, data: Path) -> None:
        self.mesh = mesh
        self.data = data
        self.acknowledged: list[str] = []
        self.health_port = free_port()

    def start_store(self, *wrapper: str, name: str = "state_manager") -> subprocess.Popen[bytes]:
        """Start the state manager, with a program in front of it."""
        own = [sys.executable, "-m", "agents.state_manager", "--port", str(self.health_port)]
        return self.mesh.launch(name, [*wrapper, *own, "--data-dir", str(self.data)])

    async def ready(self) -> None:
        """Return when a workflow can run, and both workflows are known."""
        wanted = (contracts.STATE_APPEND, contracts.WORKFLOW_START, contracts.TASK_DATA_TRANSFORM)
        await self.mesh.joined(*(contract.id for contract in wanted))
        await self.define(FLOW, SLOW)

    async def define(self, *definitions: dict[str, Any]) -> None:
        for definition in definitions:
            await self.mesh.client.request(
                contracts.WORKFLOW_CREATE.id,
                contracts.WorkflowCreateRequest(definition=definition, overwrite=True),
                patience_seconds=WAIT_SECONDS,
                resend=True,
            )

    async def start(self, workflow_id: str, **inputs: Any) -> str:
        """Start an instance and note that it was acknowledged."""
        reply = await self.mesh.client.request(
            contracts.WORKFLOW_START.id,
            contracts.WorkflowStartRequest(workflow_id=workflow_id, inputs=inputs),
            reply_type=contracts.WorkflowStarted,
            timeout_seconds=WAIT_SECONDS,
        )
        self.acknowledged.append(reply.instance_id)
        return reply.instance_id

    async def all_end(self) -> None:
        for instance_id in self.acknowledged:
            document = await self.mesh.until(instance_id)
            assert document.instance["status"] == "completed", document.instance

    async def start_many(self, count: int) -> None:
        """Start instances with large inputs, one after the other."""
        for _ in range(count):
            await self.start("flow", text="x" * 100_000)

    def health(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.health_port}/health"
        with urllib.request.urlopen(url, timeout=5) as answer:
            document: dict[str, Any] = json.load(answer)
        return document

    async def refused(self) -> None:
        """A new start is refused with a time to come back, and nothing of it is stored."""
        with pytest.raises(InsufficientResources) as caught:
            await self.start("flow")
        assert caught.value.retryable
        assert caught.value.details["retry_after_ms"] > 0

    async def accepted_again(self) -> None:
        """New starts are taken again, without anybody's help."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    await self.start("flow")
                    return
                except InsufficientResources:
                    await asyncio.sleep(0.2)

    async def check(self, seen: Path | None = None) -> None:
        """Stop the store: every acknowledged start is there, and every row is what its events make.

        Args:
            seen: Where this process sees the store's folder.
        """
        process = self.mesh.running.pop("state_manager")
        process.terminate()
        assert await asyncio.to_thread(process.wait, WAIT_SECONDS) == 0
        path = self.mesh.folder / "left.db"
        shutil.copy((seen or self.data) / STORE, path)
        verified = Verifier(path, lambda record: load_plan(record.content)).run()
        assert [(each.instance_id, each.field, each.problem) for each in verified.findings] == []
        assert missing(path, self.acknowledged) == []


def missing(store: Path, ids: Iterable[str]) -> list[str]:
    """Return the acknowledged instances that a store does not have."""
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        there = {row[0] for row in connection.execute("SELECT instance_id FROM instances")}
    connection.close()
    return [each for each in ids if each not in there]


@asynccontextmanager
async def bench_on(folder: Path, data: Path) -> AsyncIterator[Bench]:
    """Run router, engine and executor; the state manager is the test's business."""
    async with running_processes(folder, agents=()) as mesh:
        (folder / "agent_config.yaml").write_text(
            "database: {reserve_megabytes: 1, backup_interval_hours: 0}\n"
            "task_executor: {subprocess: {allowed_commands: [sleep]}}\n"
        )
        for agent in ("workflow_engine", "task_executor", "condition_evaluator", "error_handler"):
            mesh.start(agent)
        yield Bench(mesh, data)


async def until(true: Any, what: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not true():
            await asyncio.sleep(LOOK_SECONDS)
    assert true(), what


# --- full ---------------------------------------------------------------------------------------------------


class SmallDisk:
    """A file system in memory that only a namespace of its own sees; it outlives the processes on it."""

    def __init__(self, place: Path, megabytes: int) -> None:
        place.mkdir()
        mount = f"mount -t tmpfs -o size={megabytes}m none {place} && echo ready && exec sleep 3600"
        self._keeper = subprocess.Popen(["unshare", "-r", "-m", "sh", "-c", mount], stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"ready\n"
        self.place = place
        self.seen_from_outside = Path(f"/proc/{self._keeper.pid}/root{place}")
        self.wrapper = ("nsenter", "-t", str(self._keeper.pid), "-U", "--preserve-credentials", "-m")

    def fill(self) -> int:
        """Fill what is free to the last byte; return how much that was."""
        with (self.seen_from_outside / "filler").open("ab", buffering=0) as file:
            for size in (64 * 1024, 4096, 512, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue
            return file.tell()

    def free(self) -> None:
        (self.seen_from_outside / "filler").unlink()

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.wait()
        assert self._keeper.stdout is not None
        self._keeper.stdout.close()


async def test_full_disk_stops_new_work_only_and_is_over_without_a_restart(tmp_path: Path) -> None:
    needed("mount namespace", "unshare", "-r", "-m", "sh", "-c", "mount -t tmpfs none /mnt")
    disk = SmallDisk(tmp_path / "disk", DISK_MEGABYTES)
    try:
        async with bench_on(tmp_path, disk.place) as bench:
            store = bench.start_store(*disk.wrapper)
            await bench.ready()
            for _ in range(20):
                await bench.start("flow", text="x" * 1000)
            running = await bench.start("slow")
            assert disk.fill() > 0
            await bench.refused()
            health = bench.health()
            assert (health["status"], health["store"]["full"]) == ("degraded", True)
            assert not (disk.seen_from_outside / "reserve").exists()
            document = await bench.mesh.until(running)
            assert document.instance["status"] == "completed", "running work ends in the reserve"
            await bench.refused()
            disk.free()
            await bench.accepted_again()
            await bench.all_end()
            assert store.poll() is None, "it was the same process all the time"
            health = bench.health()
            assert (health["status"], health["store"]["full"]) == ("healthy", False)
            assert (disk.seen_from_outside / "reserve").stat().st_size == 1024 * 1024
            await bench.check(disk.seen_from_outside)
    finally:
        disk.close()


async def test_limit_on_files_stops_new_work_only_and_is_over_without_a_restart(tmp_path: Path) -> None:
    """A limit on the size of files fails writes in another way than a full disk does."""
    data = tmp_path / "store"
    async with bench_on(tmp_path, data) as bench:
        store = bench.start_store()
        await bench.ready()
        for _ in range(20):
            await bench.start("flow", text="x" * 1000)
        running = await bench.start("slow")
        largest = max((data / STORE).stat().st_size, (data / f"{STORE}-wal").stat().st_size)
        before = resource.prlimit(store.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(store.pid, resource.RLIMIT_FSIZE, (largest, before[1]))
        with pytest.raises(InsufficientResources):
            await bench.start_many(50)
        assert "store_full" in bench.mesh.log_of("state_manager")
        resource.prlimit(store.pid, resource.RLIMIT_FSIZE, before)
        await bench.accepted_again()
        await bench.all_end()
        assert (await bench.mesh.until(running)).instance["status"] == "completed"
        assert store.poll() is None, "it was the same process all the time"
        assert "SQLITE_FULL" not in bench.mesh.log_of("workflow_engine")
        await bench.check()


async def test_start_on_a_full_disk_uses_the_reserve(tmp_path: Path) -> None:
    needed("mount namespace", "unshare", "-r", "-m", "sh", "-c", "mount -t tmpfs none /mnt")
    disk = SmallDisk(tmp_path / "disk", DISK_MEGABYTES)
    try:
        async with bench_on(tmp_path, disk.place) as bench:
            bench.start_store(*disk.wrapper)
            await bench.ready()
            for _ in range(10):
                await bench.start("flow")
            bench.mesh.kill("state_manager")
            disk.fill()
            bench.start_store(*disk.wrapper)
            await bench.refused()
            await bench.all_end()
            disk.free()
            await bench.accepted_again()
            await bench.check(disk.seen_from_outside)
    finally:
        disk.close()


# --- refusing to sync ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [30, 45, 60])
async def test_failed_sync_ends_the_process_and_nothing_unsynced_was_acknowledged(
    tmp_path: Path, failing: int
) -> None:
    needed("strace", "strace", "-f", "-qq", "-e", "trace=none", "true")
    data = tmp_path / "store"
    inject = f"inject=fdatasync:error=EIO:when={failing}"
    async with bench_on(tmp_path, data) as bench:
        store = bench.start_store(
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", inject
        )
        await bench.ready()

        async def keep_starting() -> None:
            while store.poll() is None:
                try:
                    await bench.start("flow")
                except AmpError:
                    await asyncio.sleep(LOOK_SECONDS)

        work = [asyncio.ensure_future(keep_starting()) for _ in range(5)]
        assert await asyncio.to_thread(store.wait, WAIT_SECONDS) == EXIT_LOST
        log = bench.mesh.log_of("state_manager")
        assert "SQLITE_IOERR_FSYNC" in log
        assert (data / f"{STORE}-wal").stat().st_size > 0, (
            "the log is left as it is, not moved after a failed sync"
        )
        bench.start_store()
        await asyncio.wait_for(asyncio.gather(*work), END_SECONDS)
        assert bench.acknowledged
        await bench.start("flow")
        await bench.all_end()
        await bench.check()


# --- giving back other bytes --------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x20]))


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, WAIT_SECONDS)


async def test_changed_event_is_noticed_refused_from_then_on_and_cured_by_a_copy(tmp_path: Path) -> None:
    data = tmp_path / "store"
    async with bench_on(tmp_path, data) as bench:
        bench.start_store()
        await bench.ready()
        for _ in range(5):
            await bench.start("flow", text="marked-for-damage")
        await bench.all_end()
        backup = await bench.mesh.client.request(
            contracts.STATE_BACKUP.id,
            {},
            reply_type=contracts.StateBackupReply,
            patience_seconds=WAIT_SECONDS,
        )
        process = bench.mesh.running.pop("state_manager")
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
        flip(data / STORE, (data / STORE).read_bytes().index(b"marked-for-damage") + 3)

        damaged = bench.start_store()
        await bench.mesh.joined(contracts.LOG_READ.id)
        with pytest.raises(AmpError):
            await bench.mesh.client.request(contracts.LOG_READ.id, {}, timeout_seconds=WAIT_SECONDS)
        assert await ended(damaged) == EXIT_DAMAGED
        assert await ended(bench.start_store()) == EXIT_DAMAGED, "it is refused at once from now on"

        def restore() -> int:
            work = Work(config=tmp_path / "agent_config.yaml", data_dir=data, as_json=True)
            return work.restore(Path(backup.backup))

        assert await asyncio.to_thread(restore) == 0
        bench.start_store()
        await bench.mesh.joined(contracts.STATE_APPEND.id)
        await bench.start("flow")
        await bench.all_end()
        await bench.check()


async def test_log_broken_in_its_middle_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    data = tmp_path / "store"
    async with bench_on(tmp_path, data) as bench:
        bench.start_store()
        await bench.ready()
        for _ in range(10):
            await bench.start("flow", text="x" * 5000)
        bench.mesh.kill("state_manager")
        log = data / f"{STORE}-wal"
        flip(log, log.stat().st_size // 2)
        spoiled = log.read_bytes()
        for _ in range(2):
            assert await ended(bench.start_store()) == EXIT_DAMAGED
        assert log.read_bytes() == spoiled
        flip(log, len(spoiled) // 2)
        bench.start_store()
        await bench.mesh.joined(contracts.STATE_APPEND.id)
        await bench.all_end()
        await bench.check()
