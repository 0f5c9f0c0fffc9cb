"""Six real processes: started in any order, killed without warning, joined by a script that exits."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orchestration import contracts
from tests.processes import AGENTS, ROOT, Processes, running_processes

pytestmark = pytest.mark.processes

NOTICED_SECONDS = 1.0


def transform(task_id: str, *depends_on: str) -> dict[str, Any]:
    return {
        "id": task_id,
        "type": "data_transform",
        "parameters": {
            "input_data": [1, 2],
            "transformations": [{"type": "map", "config": {"expression": "item + 1"}}],
        },
        "outputs": [task_id],
        "depends_on": list(depends_on),
    }


async def define(mesh: Processes, *tasks: dict[str, Any]) -> None:
    await mesh.client.request(
        contracts.WORKFLOW_CREATE.id,
        contracts.WorkflowCreateRequest(
            definition={"id": "flow", "name": "Flow", "tasks": list(tasks)}, overwrite=True
        ),
        patience_seconds=30,
    )


async def start(mesh: Processes) -> str:
    reply = await mesh.client.request(
        contracts.WORKFLOW_START.id,
        contracts.WorkflowStartRequest(workflow_id="flow"),
        reply_type=contracts.WorkflowStarted,
        patience_seconds=30,
    )
    return reply.instance_id


async def events_of(mesh: Processes, instance_id: str) -> list[contracts.EventRecord]:
    page = await mesh.client.request(
        contracts.LOG_READ.id,
        contracts.LogReadRequest(instance_id=instance_id, limit=1000),
        reply_type=contracts.LogReadReply,
        patience_seconds=30,
    )
    return page.events


@pytest.mark.parametrize("seed", [1, 2])
async def test_six_agents_in_any_order_need_no_router_started_by_hand(tmp_path: Path, seed: int) -> None:
    order = list(AGENTS)
    random.Random(seed).shuffle(order)
    async with running_processes(tmp_path, agents=tuple(order), host_router=True) as mesh:
        await mesh.joined()
        await define(mesh, transform("a"), transform("b", "a"))
        document = await mesh.until(await start(mesh))
    assert document.instance["status"] == "completed"


class SlowService:
    """An HTTP service that holds the first request until it is let go and answers the others at once."""

    def __init__(self) -> None:
        self.calls = 0
        self.held = asyncio.Event()
        self.let_go = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        self.calls += 1
        if self.calls == 1:
            self.held.set()
            await self.let_go.wait()
        return web.json_response({"call": self.calls})


async def test_a_killed_executor_is_noticed_and_its_task_goes_to_the_other(tmp_path: Path) -> None:
    service = SlowService()
    application = web.Application()
    application.router.add_get("/", service.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    call = {
        "id": "call",
        "type": "api_call",
        "parameters": {"url": f"http://127.0.0.1:{port}/"},
        "outputs": ["body"],
    }
    try:
        async with running_processes(tmp_path) as mesh:
            await mesh.joined()
            await define(mesh, call)
            instance_id = await start(mesh)
            async with asyncio.timeout(20):
                await service.held.wait()
            mesh.start("task_executor", "second")
            mesh.running["first"] = mesh.running.pop("task_executor")
            while len(await mesh.client.discover(capabilities=[contracts.TASK_API_CALL.id])) < 2:
                await asyncio.sleep(0.05)
            mesh.kill("first")
            document = await mesh.until(instance_id)
            events = await events_of(mesh, instance_id)
    finally:
        service.let_go.set()
        await runner.cleanup()
    assert document.instance["status"] == "completed"
    assert document.tasks["call"]["outputs"] == {"body": {"call": 2}}
    assert [event.type for event in events].count("task.attempt_lost") == 1
    lost = next(event for event in events if event.type == "task.attempt_lost")
    assert b"task-executor-1" in bytes(lost.data)


@pytest.mark.parametrize("victim", ["workflow_engine", "state_manager", "router", "task_executor"])
async def test_kill_9_loses_nothing(tmp_path: Path, victim: str) -> None:
    async with running_processes(tmp_path) as mesh:
        await mesh.joined()
        await define(mesh, *[transform("t0"), *(transform(f"t{n}", f"t{n - 1}") for n in range(1, 30))])
        names = [await start(mesh) for _ in range(10)]
        mesh.kill(victim)
        if victim == "router":
            mesh.start_router()
        else:
            mesh.start(victim)
        documents = [await mesh.until(name) for name in names]
        histories = [await events_of(mesh, name) for name in names]
    assert {document.instance["status"] for document in documents} == {"completed"}
    for history in histories:
        completed = [
            bytes(event.data).split(b'"task_id":"')[1].split(b'"')[0]
            for event in history
            if event.type == "task.completed"
        ]
        assert sorted(completed) == sorted(f"t{n}".encode() for n in range(30))
        assert [event.seq for event in history] == list(range(1, len(history) + 1))


SCRIPT = """
import asyncio, sys
from agents.workflow_engine import WorkflowEngine

async def run_example():
    engine = WorkflowEngine()
    await engine.start()
    await engine.load_workflow_from_file(sys.argv[1])
    instance = await engine.start_workflow(
        workflow_id="hello-world-workflow", inputs={"name": "AMP User", "language": "en"}
    )
    print(f"Started workflow instance: {instance.id}")

asyncio.run(run_example())
"""


async def test_a_script_starts_an_instance_and_exits_and_the_mesh_completes_it(tmp_path: Path) -> None:
    async with running_processes(tmp_path) as mesh:
        await mesh.joined()
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, str(script), str(ROOT / "workflows/simple_example.yaml")],
            env=mesh.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Started workflow instance: ins_"), (
            "logs must not mix with what a script prints"
        )
        instance_id = done.stdout.strip().rpartition(": ")[2]
        document = await mesh.until(instance_id)
    assert document.instance["status"] == "completed"
    assert "Hello, AMP User!" in document.instance["outputs"].values()


async def test_a_second_executor_takes_a_free_port_and_says_so(tmp_path: Path) -> None:
    async with running_processes(tmp_path, agents=("state_manager",)) as mesh:
        for name in ("one", "two"):
            mesh.environment["AMP_TASK_EXECUTOR__PORT"] = str(mesh.router_port + 1)
            mesh.launch(name, [sys.executable, "-m", "agents.task_executor"])
        await mesh.joined(contracts.TASK_EXECUTE.id)
        while len(await mesh.client.discover(capabilities=[contracts.TASK_EXECUTE.id])) < 2:
            await asyncio.sleep(0.05)
        while not all("agent_ready" in mesh.log_of(name) for name in ("one", "two")):
            await asyncio.sleep(0.05)
        said = mesh.log_of("one") + mesh.log_of("two")
    assert str(mesh.router_port + 1) in said
    assert "taken" in said or "in use" in said
