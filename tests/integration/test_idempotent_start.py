"""Starts with an Idempotency-Key over real processes: two dashboards, two engines, kills, lost answers."""

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestration import contracts
from tests.ports import free_port
from tests.processes import ROOT, Processes, running_processes

pytestmark = pytest.mark.processes

AGENTS = ("state_manager", "workflow_engine")
KEY = {"Idempotency-Key": "order-4711"}
BODY = {"inputs": {"n": 1}}
ANSWER_SECONDS = 60.0
FLOW = {
    "id": "flow",
    "name": "Flow",
    "tasks": [{"id": "wait", "type": "custom", "capability": "held", "effects": "none"}],
}
"""Nobody offers the capability, so an instance stays where it is."""


class Dashboards:
    """Dashboards as processes, each on a port of its own."""

    def __init__(self, mesh: Processes, count: int) -> None:
        self._mesh = mesh
        self.ports = [free_port() for _ in range(count)]

    def start(self, number: int, **environment: str) -> None:
        command = [sys.executable, str(ROOT / "web/app.py"), "--port", str(self.ports[number])]
        command += ["--agent-id", f"dashboard-{number}"]
        self._mesh.launch(f"dashboard-{number}", command, **environment)

    def start_all(self) -> None:
        for number in range(len(self.ports)):
            self.start(number)

    def kill_all(self) -> None:
        for number in range(len(self.ports)):
            self._mesh.kill(f"dashboard-{number}")

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.ports[number % len(self.ports)]}/api/workflows/flow/start"


async def answered(
    http: aiohttp.ClientSession, url: str, body: dict[str, Any] = BODY, headers: dict[str, str] = KEY
) -> tuple[int, bytes, bool]:
    """Return status, body and whether it is a repeated answer; what is not answered yet is asked again."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            try:
                async with http.post(url, json=body, headers=headers) as response:
                    found = response.status, await response.read(), "Idempotent-Replayed" in response.headers
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
                continue
            if found[0] not in (502, 503, 504):
                return found
            await asyncio.sleep(0.1)


async def define(mesh: Processes) -> None:
    await mesh.client.request(
        contracts.WORKFLOW_CREATE.id,
        contracts.WorkflowCreateRequest(definition=FLOW, overwrite=True),
        patience_seconds=ANSWER_SECONDS,
    )


async def instances(mesh: Processes) -> list[str]:
    reply = await mesh.client.request(
        contracts.INSTANCE_LIST.id,
        contracts.InstanceListRequest(limit=200),
        reply_type=contracts.InstanceListReply,
        patience_seconds=ANSWER_SECONDS,
        resend=True,
    )
    return [row.instance_id for row in reply.rows]


async def test_two_hundred_starts_with_one_key_make_one_instance_also_after_a_restart(tmp_path: Path) -> None:
    async with running_processes(tmp_path, agents=AGENTS) as mesh, aiohttp.ClientSession() as http:
        mesh.start("workflow_engine", "second engine")
        dashboards = Dashboards(mesh, 2)
        dashboards.start_all()
        await mesh.joined(contracts.STATE_APPEND.id, contracts.WORKFLOW_START.id)
        while len(await mesh.client.discover(capabilities=[contracts.WORKFLOW_START.id])) < 2:
            await asyncio.sleep(0.05)
        await define(mesh)
        for number in range(2):  # both serve
            other = {"Idempotency-Key": f"warm-{number}"}
            await answered(http, dashboards.url(number), headers=other)
        before = await asyncio.gather(*(answered(http, dashboards.url(number)) for number in range(200)))
        for name in list(mesh.running):
            mesh.kill(name)
        mesh.start_router()
        for agent in (*AGENTS, "workflow_engine"):
            mesh.start(agent, agent if agent not in mesh.running else "second engine")
        dashboards.start_all()
        after = await asyncio.gather(*(answered(http, dashboards.url(number)) for number in range(20)))
        changed = await answered(http, dashboards.url(0), body={"inputs": {"n": 2}})
        found = await instances(mesh)
    assert Counter(status for status, _, _ in before + after) == {201: 220}
    assert len({body for _, body, _ in before + after}) == 1
    assert [replayed for _, _, replayed in before].count(False) == 1
    assert all(replayed for _, _, replayed in after)
    assert changed[0] == 422
    assert b"idempotency_key_reused" in changed[1]
    assert len(found) == 3, "one, and one for each dashboard that was tried before"


async def test_a_start_whose_engine_died_before_it_answered_is_found_by_the_retry(tmp_path: Path) -> None:
    async with (
        running_processes(tmp_path, agents=("state_manager",)) as mesh,
        aiohttp.ClientSession() as http,
    ):
        dashboards = Dashboards(mesh, 1)
        dashboards.start_all()
        command = [sys.executable, "-m", "agents.workflow_engine", "--port", "0"]
        mesh.launch("engine", command, AMP_CRASH="engine.start.after_append:1")
        await mesh.joined(contracts.STATE_APPEND.id, contracts.WORKFLOW_START.id)
        await define(mesh)
        retried = asyncio.ensure_future(answered(http, dashboards.url(0)))
        assert await asyncio.to_thread(mesh.running.pop("engine").wait, ANSWER_SECONDS) == -9
        (instance_id,) = await instances(mesh)
        mesh.start("workflow_engine")
        status, body, replayed = await retried
        document = await mesh.until(instance_id, "running")
    assert (status, replayed) == (201, True)
    assert instance_id.encode() in body
    assert document.tasks["wait"]["status"] == "running", "the new engine drives it"


async def test_a_start_whose_dashboard_died_before_it_answered_is_found_by_the_retry(tmp_path: Path) -> None:
    async with running_processes(tmp_path, agents=AGENTS) as mesh, aiohttp.ClientSession() as http:
        dashboards = Dashboards(mesh, 1)
        dashboards.start(0, AMP_CRASH="dashboard.start.committed:1")
        await mesh.joined(contracts.STATE_APPEND.id, contracts.WORKFLOW_START.id)
        await define(mesh)
        retried = asyncio.ensure_future(answered(http, dashboards.url(0)))
        assert await asyncio.to_thread(mesh.running.pop("dashboard-0").wait, ANSWER_SECONDS) == -9
        dashboards.start(0)
        status, body, replayed = await retried
        found = await instances(mesh)
    assert (status, replayed) == (201, True)
    assert [name.encode() in body for name in found] == [True]
