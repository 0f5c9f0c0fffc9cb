"""Several engines on one store as real processes: work spreads, is taken over, and is never done twice."""

import asyncio
import json
import signal
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orchestration import contracts
from orchestration.status import InstanceStatus
from tests.processes import Processes, running_processes

pytestmark = pytest.mark.processes

AGENTS = ("state_manager", "condition_evaluator", "error_handler")
ENGINES = ("engine one", "engine two", "engine three")
INSTANCES = 300
STEPS = 3
PATIENCE_SECONDS = 90.0
OPEN = [status for status in InstanceStatus if not status.is_final]


class Ledger:
    """A service that notes each effect. Steps of the first kind wait until the gate is opened."""

    def __init__(self) -> None:
        self.effects: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.effects[request.query_string] += 1
        await self.gate.wait()
        return web.json_response({"step": request.query_string})


@asynccontextmanager
async def ledger() -> AsyncIterator[Ledger]:
    book = Ledger()
    application = web.Application()
    application.router.add_get("/", book.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    book.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield book
    finally:
        book.gate.set()
        await runner.cleanup()


def flow(url: str) -> dict[str, Any]:
    return {
        "id": "flow",
        "name": "Flow",
        "tasks": [
            {
                "id": f"t{number}",
                "type": "api_call",
                "parameters": {"url": f"{url}?{{workflow_instance_id}}/t{number}"},
                "outputs": [f"body{number}"],
                "depends_on": [f"t{number - 1}"] if number else [],
            }
            for number in range(STEPS)
        ],
    }


@asynccontextmanager
async def engines(
    folder: Path, book: Ledger, names: tuple[str, ...], **settings: str
) -> AsyncIterator[Processes]:
    async with running_processes(folder, agents=AGENTS) as mesh:
        mesh.environment |= {
            "AMP_WORKFLOW_ENGINE__MAX_CONCURRENT_WORKFLOWS": "400",
            "AMP_TASK_EXECUTOR__MAX_CONCURRENT_TASKS": "50",
            **settings,
        }
        mesh.start("task_executor")
        for name in names:
            mesh.start("workflow_engine", name)
        await mesh.joined(contracts.STATE_APPEND.id, contracts.TASK_API_CALL.id, contracts.WORKFLOW_START.id)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not all('"agent_ready"' in mesh.log_of(name) for name in names):
                await asyncio.sleep(0.05)
        await mesh.client.request(
            contracts.WORKFLOW_CREATE.id,
            contracts.WorkflowCreateRequest(definition=flow(book.url), overwrite=True),
            patience_seconds=PATIENCE_SECONDS,
        )
        yield mesh


async def start_many(mesh: Processes, count: int) -> list[str]:
    async def start(number: int) -> str:
        reply = await mesh.client.request(
            contracts.WORKFLOW_START.id,
            contracts.WorkflowStartRequest(workflow_id="flow", idempotency_key=f"start-{number}"),
            reply_type=contracts.WorkflowStarted,
            patience_seconds=PATIENCE_SECONDS,
            resend=True,
        )
        return reply.instance_id

    return list(await asyncio.gather(*(start(number) for number in range(count))))


async def rows(mesh: Processes, statuses: list[InstanceStatus]) -> list[contracts.InstanceRow]:
    found: list[contracts.InstanceRow] = []
    cursor: str | None = None
    while True:
        reply = await mesh.client.request(
            contracts.INSTANCE_LIST.id,
            contracts.InstanceListRequest(statuses=statuses, limit=200, cursor=cursor),
            reply_type=contracts.InstanceListReply,
            patience_seconds=PATIENCE_SECONDS,
            resend=True,
        )
        found += reply.rows
        cursor = reply.next_cursor
        if cursor is None:
            return found


async def owners(mesh: Processes) -> Counter[str]:
    return Counter(row.owner for row in await rows(mesh, OPEN))


async def until_owned_by(mesh: Processes, wanted: set[str]) -> Counter[str]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = await owners(mesh)
            if set(found) <= wanted:
                return found
            await asyncio.sleep(0.1)


async def until_ended(mesh: Processes, count: int) -> list[contracts.InstanceRow]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(found := await rows(mesh, [InstanceStatus.COMPLETED, InstanceStatus.FAILED])) < count:
            await asyncio.sleep(0.2)
    return found


async def completions(mesh: Processes) -> Counter[tuple[str, str]]:
    """Return how often the log says of each task that it completed."""
    found: Counter[tuple[str, str]] = Counter()
    after, end = 0, False
    while not end:
        page = await mesh.client.request(
            contracts.LOG_READ.id,
            contracts.LogReadRequest(after=after, limit=500, types=["task.completed"]),
            reply_type=contracts.LogReadReply,
        )
        for record in page.events:
            found[record.instance_id, json.loads(bytes(record.data))["task_id"]] += 1
        after, end = page.next, page.end
    return found


def said(mesh: Processes, name: str, event: str) -> dict[str, Any]:
    """Return what a process said about an event first."""
    for line in mesh.log_of(name).splitlines():
        fields = json.loads(line) if line.startswith("{") else {}
        if fields.get("event") == event:
            return fields
    raise AssertionError(f"{name} never said {event}")


def owner_of(mesh: Processes, name: str) -> str:
    """Return the agent id that a process took."""
    return str(said(mesh, name, "agent_ready")["agent_id"])


def steps_of(names: list[str]) -> set[str]:
    return {f"{name}/t{number}" for name in names for number in range(STEPS)}


async def test_two_of_three_engines_die_and_the_third_ends_everything_once(tmp_path: Path) -> None:
    async with ledger() as book, engines(tmp_path, book, ENGINES) as mesh:
        names = await start_many(mesh, INSTANCES)
        spread = await owners(mesh)
        by_agent = {owner.rpartition(":")[0]: owner for owner in spread}
        two, three = (by_agent[owner_of(mesh, name)] for name in ENGINES[1:])
        mesh.kill("engine one")
        shared = await until_owned_by(mesh, {two, three})
        mesh.kill("engine two")
        left = await until_owned_by(mesh, {three})
        book.gate.set()
        ended = await until_ended(mesh, INSTANCES)
        done = await completions(mesh)
    assert len(set(names)) == INSTANCES
    assert sum(spread.values()) == INSTANCES
    assert min(spread.values()) >= INSTANCES // 6, f"work was not spread: {spread}"
    assert min(shared.values()) >= INSTANCES // 4, f"what one left was not shared: {shared}"
    assert left == {three: INSTANCES}
    assert {row.status for row in ended} == {InstanceStatus.COMPLETED}
    assert {row.owner for row in ended} == {three}
    assert done == {(name, f"t{number}"): 1 for name in names for number in range(STEPS)}
    assert set(book.effects) == steps_of(names)
    assert set(book.effects.values()) == {1}, "an effect happened twice although the executor lived"


async def test_an_engine_that_was_frozen_past_its_lease_does_nothing_with_what_another_took(
    tmp_path: Path,
) -> None:
    settings = {"AMP_WORKFLOW_ENGINE__LEASE_SECONDS": "2"}
    async with ledger() as book, engines(tmp_path, book, ENGINES[:2], **settings) as mesh:
        names = await start_many(mesh, 40)
        by_agent = {owner.rpartition(":")[0]: owner for owner in await owners(mesh)}
        frozen, awake = (by_agent[owner_of(mesh, name)] for name in ENGINES[:2])
        process = mesh.running["engine one"]
        process.send_signal(signal.SIGSTOP)
        try:
            await until_owned_by(mesh, {awake})
        finally:
            process.send_signal(signal.SIGCONT)
        book.gate.set()
        ended = await until_ended(mesh, len(names))
        done = await completions(mesh)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await asyncio.to_thread(health, mesh, "engine one"))["instances"]:
                await asyncio.sleep(0.1)
        told = await mesh.client.request(
            contracts.WORKFLOW_STATUS.id,
            contracts.WorkflowStatusRequest(instance_id=names[0]),
            reply_type=contracts.WorkflowStatus,
            agent_id=frozen.rpartition(":")[0],
            patience_seconds=PATIENCE_SECONDS,
        )
    assert {row.owner for row in ended} == {awake}
    assert {row.status for row in ended} == {InstanceStatus.COMPLETED}
    assert done == {(name, f"t{number}"): 1 for name in names for number in range(STEPS)}
    assert set(book.effects.values()) == {1}, "the engine that was away dispatched something"
    assert told.instance["status"] == "completed"


def health(mesh: Processes, name: str) -> dict[str, Any]:
    """Return what a process says at /health."""
    with urllib.request.urlopen(
        f"{said(mesh, name, 'health_listening')['url']}/health", timeout=5
    ) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
