"""A writer that is killed at any moment: whatever it acknowledged is there."""

import asyncio
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from agents.state_manager.storage.sqlite import SqliteStorage
from orchestration.contracts import InstanceListRequest, LogReadRequest
from tests.unit.state_manager.conftest import refuse_loss
from tests.unit.state_manager.store_values import make_store_clock

INSTANCES = 50
INDEX_HELD_AT = 128
"""The byte of SQLite's shared index that everybody who has it open keeps locked (UNIX_SHM_DMS)."""
TRY_LOCK = f"""
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, {INDEX_HELD_AT})
"""
WRITER = """
import asyncio, os, sys
from pathlib import Path
from agents.state_manager.storage.sqlite import SqliteStorage
from tests.unit.state_manager.store_values import make_batch, make_store_clock

async def main():
    storage = SqliteStorage(Path(sys.argv[1]), make_store_clock(), print)
    await storage.start()

    async def drive(name):
        row = await storage.get_instance(name)
        seq = row.seq if row else 0
        while True:
            (outcome,) = await storage.append([make_batch(name, seq)])
            seq = outcome.seq
            os.write(1, f"{name} {seq}\\n".encode())

    await asyncio.gather(*(drive(f"i{number}") for number in range(int(sys.argv[2]))))

asyncio.run(main())
"""


def run_and_kill(path: Path, acknowledgements: int) -> dict[str, int]:
    """Let a process append until it acknowledged so much, kill it, and return the last seq it told of each instance."""
    acked: dict[str, int] = {}
    command = [sys.executable, "-c", WRITER, str(path), str(INSTANCES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout):
            name, seq = line.decode().split()
            acked[name] = int(seq)
            if count == acknowledgements:
                process.kill()
    return acked


@pytest.mark.processes
async def test_acknowledged_appends_survive_kills(tmp_path: Path) -> None:
    path, random = tmp_path / "store.db", Random(7)
    acked: dict[str, int] = {}
    for _ in range(4):
        acked |= await asyncio.to_thread(run_and_kill, path, random.randrange(100, 2000))
    storage = SqliteStorage(path, make_store_clock(), refuse_loss)
    await storage.start()
    rows = (await storage.list_instances(InstanceListRequest(limit=1000))).rows
    stored = {row.instance_id: row.seq for row in rows}
    assert {name: stored[name] for name, seq in acked.items() if stored[name] < seq} == {}
    seqs: dict[str, int] = {}
    after, is_end = 0, False
    while not is_end:
        page = await storage.read_log(LogReadRequest(after=after, limit=1000))
        for event in page.events:
            assert event.seq == seqs.get(event.instance_id, 0) + 1
            seqs[event.instance_id] = event.seq
        after, is_end = page.next, page.end
    assert seqs == stored
    await storage.stop()


@pytest.mark.processes
async def test_nobody_takes_the_index_of_a_recovered_store_for_abandoned(tmp_path: Path) -> None:
    """Whoever opens the file and finds that byte free cuts the index short, and the state manager dies of SIGBUS."""
    path = tmp_path / "store.db"
    await asyncio.to_thread(run_and_kill, path, 100)
    storage = SqliteStorage(path, make_store_clock(), refuse_loss)
    await storage.start()
    tried = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", TRY_LOCK, f"{path}-shm"], capture_output=True, check=False
    )
    await storage.stop()
    assert b"BlockingIOError" in tried.stderr
