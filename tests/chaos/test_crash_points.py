"""SIGKILL at every place that `amp/crash.py` names, at its first hit, while work is under way; then a restart.

After each, every acknowledged instance must end as it does without faults, each outcome recorded once. A place that
the work does not come to fails its test: it would prove nothing.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import aiohttp
import pytest
import pytest_asyncio

from amp import crash
from amp.client import AgentIdentity, MeshClient
from amp.transports.websocket import WebSocketTransport
from orchestration import contracts
from tests.chaos.scene import Act, Scene, running_scene

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

LARGE_STATE = "x" * 600_000
LARGE_STATES = 8
MAX_LOSSES = 5
SHORT_LEASE = contracts.LeaseRequest(owner="nobody:s", agent_id="nobody", lease_seconds=1.0)
"""A lease that nobody renews."""


async def nothing(scene: Scene) -> None:
    """The usual work comes there."""


async def kill_the_engine(scene: Scene) -> None:
    """An engine is lost while the state manager is there to see it: what it owned is taken from it."""
    await scene.ask(contracts.ENGINE_LEASE.id, SHORT_LEASE, contracts.LeaseReply)
    scene.mesh.kill("engine-1")


async def lose_the_engine(scene: Scene) -> None:
    """No engine for a while, again and again: executors finish what nobody waits for."""
    executor = scene.mesh.lives["executor-1"]
    for _ in range(MAX_LOSSES):
        await asyncio.sleep(0.6)
        scene.mesh.kill("engine-1", hold=True)
        await asyncio.sleep(1.5)
        scene.mesh.release("engine-1")
        if executor.ended.is_set():
            return


async def write_much(scene: Scene) -> None:
    """So much is written that the write-ahead log is moved into the file."""
    for number in range(LARGE_STATES):
        await scene.ask(
            contracts.STATE_SET.id,
            contracts.StateSetRequest(
                workflow_instance_id=f"large-{number}", state={"text": LARGE_STATE}, overwrite=True
            ),
        )


async def back_up(scene: Scene) -> None:
    """Somebody orders a copy of the store."""
    await scene.ask(contracts.STATE_BACKUP.id, contracts.StateBackupRequest())


async def join_twice(scene: Scene) -> None:
    """An agent comes back on another connection before the router has noticed the end of the first."""

    def guest() -> MeshClient:
        identity = AgentIdentity(id="guest", name="guest", version="1", framework="tests", session_id="s")
        return MeshClient(
            identity, WebSocketTransport(scene.mesh.router_url), random=Random(1), exclusive=False
        )

    first, second = guest(), guest()
    try:
        await first.start(wait_seconds=20)
        await second.start(wait_seconds=20)
    finally:
        await second.stop()
        await first.stop()


async def watch_a_page(scene: Scene) -> None:
    """A browser comes back to an instance's page and wants what it missed."""
    await asyncio.sleep(1.0)
    topic = f"instance:{next(iter(scene.customer.asked))}"
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        while True:
            try:
                async with session.ws_connect(
                    f"{scene.mesh.url}/api/ws", protocols=["amp.ui.v1"], origin=scene.mesh.url
                ) as socket:
                    await socket.send_json({"op": "sub", "id": 1, "topic": topic, "after": 1})
                    async for _ in socket:
                        pass
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Case:
    """Which process comes to a place, and what it takes besides one of each workflow."""

    process: str
    trigger: Act = nothing
    extra: tuple[str, ...] = ()


ONCE = ("once",) * 6
BY_PREFIX = {
    "engine": Case("engine-1"),
    "store": Case("state"),
    "executor": Case("executor-1", extra=ONCE),
    "router": Case("router"),
    "condition": Case("condition"),
    "error": Case("error"),
    "monitor": Case("monitor"),
    "dashboard": Case("dashboard"),
}
SPECIAL = {
    "store.lease.swept": Case("state", kill_the_engine),
    "store.checkpoint.before": Case("state", write_much),
    "store.checkpoint.after": Case("state", write_much),
    "store.backup.copied": Case("state", back_up),
    "executor.file.before_rename": Case("executor-1", extra=("files",) * 8),
    "executor.heartbeat.before": Case("executor-1", extra=("beating",) * 6),
    "executor.handover.before": Case("executor-1", lose_the_engine, ("beating",) * 8),
    "router.takeover.before": Case("router", join_twice),
    "dashboard.live.resync": Case("dashboard", watch_a_page),
}
ELSEWHERE = {
    "store.migration.before_commit": "test_store_upkeep.py",
    "store.purge.before_commit": "test_store_upkeep.py",
    "executor.recovery.between": "test_store_upkeep.py",
}
"""Places that ask for a mesh of their own, with the file of their tests."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder: Path = tmp_path_factory.mktemp("chaos")
    async with running_scene(folder, engines=1, executors=2) as scene:
        yield scene


@pytest.mark.parametrize("point", [point for point in crash.POINTS if point not in ELSEWHERE])
async def test_sigkill_loses_and_repeats_nothing(scene: Scene, point: str) -> None:
    case = SPECIAL.get(point) or BY_PREFIX[point.partition(".")[0]]
    await scene.strike(case.process, f"{point}:1", case.trigger, *case.extra)
