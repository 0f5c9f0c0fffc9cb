"""Attempts that go wrong, over a whole mesh: silent agents, lost agents, agents that nobody offers, kept results."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agents.condition_evaluator import ConditionEvaluator
from agents.error_handler import ErrorHandler
from agents.state_manager import StateManager
from agents.workflow_engine import WorkflowEngine, attempts, peers
from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError
from amp.router import Router
from orchestration import contracts
from orchestration import events as ev
from orchestration.turn import MAX_LOSSES
from runtime.clock import SystemClock
from tests.mesh import Mesh, running_mesh

AGENTS = (StateManager, ConditionEvaluator, ErrorHandler, WorkflowEngine)
NO_RETRY = {"strategy": "none"}

Handler = Callable[[Incoming], Awaitable[object]]


def task(task_id: str, capability: str = "work", **more: Any) -> dict[str, Any]:
    return {
        "id": task_id,
        "type": "custom",
        "capability": capability,
        "parameters": {"for": task_id},
        "retry_config": NO_RETRY,
        **more,
    }


def workflow(*tasks: dict[str, Any]) -> dict[str, Any]:
    return {"id": "flow", "tasks": list(tasks)}


@asynccontextmanager
async def worker(
    mesh: Mesh, name: str = "worker", *, max_in_flight: int = 10, **handlers: Handler
) -> AsyncIterator[MeshClient]:
    """Have an agent on the mesh that offers these handlers, their names with `-` for `_`."""
    offers = [
        Offer(capability=Capability(id=each.replace("_", "-")), handler=handler)
        for each, handler in handlers.items()
    ]
    client = MeshClient(
        AgentIdentity(id=name, session_id=f"{name} session"),
        mesh.network.transport(),
        offers=offers,
        max_in_flight=max_in_flight,
        random=Random(name),
    )
    await client.start(wait_seconds=10)
    try:
        yield client
    finally:
        await client.stop(drain_seconds=0)


async def facts(mesh: Mesh, instance_id: str) -> list[ev.Event]:
    reply = await mesh.client.request(
        contracts.LOG_READ.id,
        contracts.LogReadRequest(instance_id=instance_id, limit=1000),
        reply_type=contracts.LogReadReply,
        patience_seconds=10,
        resend=True,
    )
    return [ev.decode(record.data) for record in reply.events]


async def until_task(mesh: Mesh, instance_id: str, task_id: str, status: str) -> contracts.WorkflowStatus:
    changed = asyncio.Event()
    await mesh.client.subscribe(contracts.EVENT_LOG_ADVANCED, lambda event: changed.set())
    async with asyncio.timeout(20):
        while True:
            changed.clear()
            document = await mesh.status(instance_id)
            if document.tasks[task_id]["status"] == status:
                return document
            await changed.wait()


class Once:
    """Hangs on the first request and answers the others."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, incoming: Incoming) -> object:
        self.tokens.append(incoming.message.id)
        self.asked.set()
        if len(self.tokens) == 1:
            await self.go_on.wait()
        return {"done": len(self.tokens)}


async def test_an_attempt_of_a_silent_agent_is_lost_and_made_again(tmp_path: Path) -> None:
    work = Once()
    async with running_mesh(tmp_path, agents=AGENTS) as mesh, worker(mesh, work=work):
        definition = workflow(task("a", effects="idempotent", heartbeat_seconds=0.5, outputs=["done"]))
        document = await mesh.run(definition)
        events = await facts(mesh, document.instance["id"])
    assert document.instance["status"] == "completed"
    assert document.tasks["a"]["lost_attempts"] == 1
    (lost,) = (event for event in events if isinstance(event, ev.AttemptLost))
    assert lost.reason == "no sign of life for 0.5 s"


async def test_an_agent_that_gives_signs_of_life_keeps_its_attempt(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=AGENTS) as mesh:
        clients: list[MeshClient] = []

        async def work(incoming: Incoming) -> object:
            token = incoming.message.id
            for _ in range(8):
                reply = await clients[0].request(
                    contracts.TASK_HEARTBEAT.id,
                    contracts.TaskHeartbeatRequest(beats=[contracts.TaskBeat(token=token)]),
                    reply_type=contracts.TaskHeartbeatReply,
                    agent_id="workflow-engine",
                )
                assert reply.unwanted == []
                await asyncio.sleep(0.15)
            stale = contracts.TaskBeat(token=token.rpartition("/")[0] + "/7")
            strange = contracts.TaskBeat(token="ins_of_somebody_else/a/1")
            reply = await clients[0].request(
                contracts.TASK_HEARTBEAT.id,
                contracts.TaskHeartbeatRequest(beats=[stale, strange]),
                reply_type=contracts.TaskHeartbeatReply,
                agent_id="workflow-engine",
            )
            return {"unwanted": [each.rpartition("/")[2] for each in reply.unwanted]}

        async with worker(mesh, work=work) as client:
            clients.append(client)
            document = await mesh.run(workflow(task("a", heartbeat_seconds=0.5, outputs=["unwanted"])))
    assert document.tasks["a"]["outputs"] == {"unwanted": ["7"]}
    assert document.tasks["a"]["lost_attempts"] == 0


async def test_a_task_that_nobody_offers_to_do_says_so(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=AGENTS) as mesh:
        document = await mesh.run(workflow(task("a", "nowhere", schedule_to_start_seconds=0.3)))
    error = document.tasks["a"]["last_error"]
    assert error["code"] == "SCHEDULE_TO_START_TIMEOUT"
    assert error["details"] == {"capability": "nowhere", "cause": "CAPABILITY_NOT_FOUND"}


async def test_a_task_that_waits_too_long_for_a_busy_agent_says_so_and_the_busy_one_goes_on(
    tmp_path: Path,
) -> None:
    work = Once()
    async with (
        running_mesh(tmp_path, agents=AGENTS) as mesh,
        worker(mesh, max_in_flight=1, work=work),
    ):
        first = task("busy", effects="idempotent", schedule_to_start_seconds=0.3, timeout_seconds=60)
        waiting = task("waits", depends_on=["begin"], schedule_to_start_seconds=0.3, timeout_seconds=60)
        begin = task("begin", "other")

        async def after_it(incoming: Incoming) -> object:
            await work.asked.wait()
            return {}

        async with worker(mesh, "other", other=after_it):
            name = await mesh.start(await mesh.define(workflow(first, begin, waiting)))
            document = await until_task(mesh, name, "waits", "failed")
            assert document.tasks["busy"]["status"] == "running"
            work.go_on.set()
            document = await mesh.until(name)
    assert document.tasks["busy"]["status"] == "completed"
    error = document.tasks["waits"]["last_error"]
    assert (error["code"], error["details"]["cause"]) == ("SCHEDULE_TO_START_TIMEOUT", "TIMEOUT")


async def test_a_task_that_takes_router_and_agent_down_each_time_ends_as_poison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "RETURN_SECONDS", 0.3)
    deaths = 0
    died = asyncio.Event()

    async def work(incoming: Incoming) -> object:
        died.set()
        await asyncio.Event().wait()
        return {}

    async with running_mesh(tmp_path, agents=AGENTS) as mesh:
        name = ""
        document = None
        while document is None:
            died.clear()
            life = MeshClient(
                AgentIdentity(id="worker", session_id=f"life {deaths}"),
                mesh.network.transport(),
                offers=[Offer(capability=Capability(id="work"), handler=work)],
                random=Random(deaths),
            )
            await life.start(wait_seconds=10)
            name = name or await mesh.start(
                await mesh.define(workflow(task("a", effects="idempotent", timeout_seconds=600)))
            )
            ended = asyncio.ensure_future(mesh.until(name))
            dead = asyncio.ensure_future(died.wait())
            await asyncio.wait({ended, dead}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                document = ended.result()
                events = await facts(mesh, name)
            ended.cancel()
            dead.cancel()
            deaths += 1
            assert deaths <= 10, "it never ends"
            await asyncio.sleep(1.0)  # a life is long enough for the others to come back and store something
            await mesh.router.stop()
            await life.stop(drain_seconds=0)
            mesh.router = Router(now=SystemClock().now, random=Random(deaths))
            mesh.router.serve_memory(mesh.network)
    assert document.tasks["a"]["last_error"]["code"] == "POISON_TASK"
    assert sum(isinstance(event, ev.AttemptLost) for event in events) == MAX_LOSSES


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost agent is not waited for."""
    monkeypatch.setattr(attempts, "UNREPEATABLE_GRACE_SECONDS", 0.1)


@pytest.mark.parametrize(
    ("verdict", "attempts_made"),
    [({"outcome": "done", "outputs": {"receipt": "r1"}}, 1), ({"outcome": "not_done"}, 2)],
)
async def test_the_reconcile_task_finds_out_what_a_lost_agent_did(
    tmp_path: Path, short_grace: None, verdict: object, attempts_made: int
) -> None:
    work = Once()

    async def look(incoming: Incoming) -> object:
        return verdict

    async def again(incoming: Incoming) -> object:
        return {"receipt": "r1"}

    definition = workflow(
        task("charge", effects="irreversible", outputs=["receipt"], reconcile="find_out"),
        task("find_out", "look", effects="read"),
        task("ship", "ship", depends_on=["charge"]),
    )
    async with running_mesh(tmp_path, agents=AGENTS) as mesh, worker(mesh, "looker", look=look, ship=again):
        async with worker(mesh, work=work):
            name = await mesh.start(await mesh.define(definition))
            await work.asked.wait()
        async with worker(mesh, "second", work=again):
            document = await mesh.until(name)
    assert document.instance["status"] == "completed"
    assert document.tasks["charge"]["outputs"] == {"receipt": "r1"}
    assert document.tasks["charge"]["attempt_count"] == attempts_made
    assert document.tasks["ship"]["status"] == "completed"


async def test_a_person_completes_a_task_of_unknown_outcome(tmp_path: Path, short_grace: None) -> None:
    work = Once()
    async with running_mesh(tmp_path, agents=AGENTS) as mesh:
        async with worker(mesh, work=work):
            name = await mesh.start(await mesh.define(workflow(task("a", outputs=["receipt"]))))
            await work.asked.wait()
        document = await until_task(mesh, name, "a", "outcome_unknown")
        assert "a person decides" in document.instance["waits_for"]
        await mesh.client.request(
            contracts.TASK_COMPLETE.id,
            contracts.TaskCompleteRequest(
                workflow_instance_id=name, task_id="a", outputs={"receipt": 7}, reason="seen"
            ),
        )
        document = await mesh.until(name)
    assert document.instance["status"] == "completed"
    assert document.tasks["a"]["outputs"] == {"receipt": 7}


async def test_an_agent_is_told_that_the_result_it_keeps_is_recorded(tmp_path: Path) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def custom(incoming: Incoming) -> object:
        if incoming.parameters["task_name"] == "bad":
            raise AmpError("BROKEN", "it broke", {"spooled": True})
        return contracts.TaskResult(result={}, primary=1, metadata={"spooled": True, "took": 2})

    async def settled(incoming: Incoming) -> object:
        for token in incoming.parameters["tokens"]:
            told.put_nowait(token)
        return contracts.TaskSettledReply(removed=1)

    async with (
        running_mesh(tmp_path, agents=AGENTS) as mesh,
        worker(mesh, task_custom=custom, task_settled=settled),
    ):
        tasks = [
            {"id": name, "type": "custom", "parameters": {"task_name": name}, "retry_config": NO_RETRY}
            for name in ("good", "bad")
        ]
        definition = workflow(*tasks)
        document = await mesh.run(definition)
        name = document.instance["id"]
        async with asyncio.timeout(10):
            tokens = {await told.get(), await told.get()}
        events = await facts(mesh, name)
    assert tokens == {f"{name}/good/1", f"{name}/bad/1"}
    (completed,) = (event for event in events if isinstance(event, ev.TaskCompleted))
    assert completed.metadata == {"agent_id": "worker", "took": 2}
    assert document.tasks["bad"]["last_error"]["details"] == {}


async def test_a_result_that_arrives_while_nobody_drives_the_instance_is_not_lost(tmp_path: Path) -> None:
    work = Once()
    async with running_mesh(tmp_path, agents=AGENTS) as mesh, worker(mesh, work=work):
        engine = next(agent for agent in mesh.agents if isinstance(agent, WorkflowEngine))
        name = await mesh.start(await mesh.define(workflow(task("a", effects="once", outputs=["done"]))))
        await work.asked.wait()
        engine._drivers.let_go(name, "for a test")
        work.go_on.set()
        document = await mesh.until(name)
    assert document.tasks["a"]["outputs"] == {"done": 1}
    assert work.tokens == [f"{name}/a/1"]
