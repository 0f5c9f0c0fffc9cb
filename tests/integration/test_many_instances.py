"""Two hundred instances of twenty tasks, while the store is copied, verified and purged: never a locked database."""

import asyncio
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agents.state_manager import StateManager, retention
from agents.state_manager.verifier import Verifier
from amp.subscriptions import Event
from orchestration import contracts
from orchestration.definition.compile import load_plan
from orchestration.status import InstanceStatus
from tests.mesh import ALL_AGENTS, Mesh, running_mesh

INSTANCES = 200
TASKS = 20
END_SECONDS = 100.0

FLOW: dict[str, Any] = {
    "id": "wide",
    "name": "Wide",
    "tasks": [
        {
            "id": f"t{number}",
            "type": "data_transform",
            "depends_on": [f"t{number - 4}"] if number >= 4 else [],
            "parameters": {"input_data": [number], "transformations": []},
            "outputs": [f"o{number}"],
        }
        for number in range(TASKS)
    ],
}


def says_locked(text: str) -> bool:
    return "locked" in text.lower() or "SQLITE_BUSY" in text


class LockedRecords(logging.Handler):
    """Keeps every record that says that a database was locked or busy."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.getMessage()} {record.__dict__}"
        if says_locked(text):
            self.found.append(text)


async def disturb(manager: StateManager, folder: Path, errors: list[Exception]) -> None:
    """Copy, verify and purge again and again, as operators and timers do."""
    number = 0
    while True:
        number += 1
        try:
            await manager.backups.create(f"busy-{number}")
            path = manager.storage.path  # type: ignore[attr-defined]
            verified = await asyncio.to_thread(Verifier(path, lambda record: load_plan(record.content)).run)
            errors += [AssertionError(str(finding)) for finding in verified.findings]
            await manager.retention.purge(1)
            await manager.sweeper.sweep()
        except (sqlite3.Error, retention.StateManagerError) as error:
            errors.append(error)
        await asyncio.sleep(0.2)


async def all_completed(mesh: Mesh) -> None:
    advanced = asyncio.Event()

    def note(event: Event) -> None:
        advanced.set()

    await mesh.client.subscribe(contracts.EVENT_LOG_ADVANCED, note)
    async with asyncio.timeout(END_SECONDS):
        while True:
            advanced.clear()
            listed = await mesh.client.request(
                contracts.INSTANCE_LIST.id,
                contracts.InstanceListRequest(limit=1),
                reply_type=contracts.InstanceListReply,
                timeout_seconds=END_SECONDS,
            )
            if listed.counts == {InstanceStatus.COMPLETED: INSTANCES}:
                return
            await advanced.wait()
            await asyncio.sleep(0.2)


@pytest.mark.timeout(240)
async def test_many_instances_at_once_never_meet_a_locked_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locked, errors = LockedRecords(), list[Exception]()
    logging.getLogger().addHandler(locked)
    limits = {
        "workflow_engine": {"max_concurrent_workflows": INSTANCES, "load_workflows_on_start": False},
        "task_executor": {"max_concurrent_tasks": 50},
    }
    try:
        async with running_mesh(tmp_path, agents=ALL_AGENTS, **limits) as mesh:
            manager = next(agent for agent in mesh.agents if isinstance(agent, StateManager))
            workflow_id = await mesh.define(FLOW)
            disturbing = asyncio.ensure_future(disturb(manager, tmp_path, errors))
            started = await asyncio.gather(*(mesh.start(workflow_id) for _ in range(INSTANCES)))
            assert len(set(started)) == INSTANCES
            await all_completed(mesh)
            disturbing.cancel()
            await asyncio.gather(disturbing, return_exceptions=True)
            assert manager.storage.trouble == ""
            failed = manager.metrics.get_sample_value("amp_store_appends_total", {"status": "conflict"})
            assert not failed
    finally:
        logging.getLogger().removeHandler(locked)
    printed = [line for line in capsys.readouterr().out.splitlines() if says_locked(line)]
    assert (locked.found, printed, errors) == ([], [], [])
