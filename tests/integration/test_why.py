"""Why an instance does not move, asked of real engines on a real mesh."""

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agents.state_manager import StateManager
from agents.workflow_engine import WorkflowEngine
from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError
from orchestration import contracts
from orchestration.contracts import WorkflowWhy
from tests.mesh import END_SECONDS, Mesh, running_mesh

AGENTS = (StateManager, WorkflowEngine)


def flow(*ids: str, **more: Any) -> dict[str, Any]:
    tasks = [{"id": task_id, "type": "custom", "capability": "held", **more} for task_id in ids]
    last = {"id": "last", "type": "custom", "capability": "held", "depends_on": list(ids)}
    return {"id": "flow", "name": "Flow", "tasks": [*tasks, last]}


class Worker:
    """An agent from outside that takes one task at a time and ends it when the test says so."""

    def __init__(self, mesh: Mesh) -> None:
        self.taken = asyncio.Event()
        self.release = asyncio.Event()
        self.client = MeshClient(
            AgentIdentity(id="worker-1"),
            mesh.network.transport(),
            offers=[Offer(capability=Capability(id="held"), handler=self.work)],
            max_in_flight=1,
            random=Random(7),
        )

    async def work(self, incoming: Incoming) -> object:
        self.taken.set()
        await self.release.wait()
        return {"done": True}


async def ask(mesh: Mesh, instance_id: str, task_id: str = "", **more: Any) -> WorkflowWhy:
    return await mesh.client.request(
        contracts.WORKFLOW_WHY.id,
        contracts.WorkflowWhyRequest(instance_id=instance_id, task_id=task_id),
        reply_type=WorkflowWhy,
        timeout_seconds=END_SECONDS,
        **more,
    )


async def until(mesh: Mesh, instance_id: str, task_id: str, code: str, **facts: Any) -> contracts.Reason:
    """Return the task's reason once it has this code and facts: a request needs a moment to reach the router."""
    async with asyncio.timeout(END_SECONDS):
        while True:
            for reason in (await ask(mesh, instance_id, task_id)).reasons:
                if reason.code == code and facts.items() <= reason.facts.items():
                    return reason


async def test_a_wait_is_followed_through_the_mesh(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=AGENTS) as mesh:
        instance_id = await mesh.start(await mesh.define(flow("a", "b")))
        nobody = await until(mesh, instance_id, "a", "no_agent_offers_capability")
        assert nobody.facts == {"capability": "held"}
        assert nobody.until is not None
        worker = Worker(mesh)
        await worker.client.start()
        await worker.taken.wait()
        runs = {(await ask(mesh, instance_id, task_id)).reasons[0].code: task_id for task_id in ("a", "b")}
        first, second = runs["running"], runs["agents_busy"]
        running = await until(mesh, instance_id, first, "running")
        assert running.held_by == "worker-1"
        busy = await until(mesh, instance_id, second, "agents_busy", place=1, waiting=1)
        assert busy.held_by == "worker-1"
        whole = await ask(mesh, instance_id)
        assert {reason.task_id for reason in whole.reasons} == {"a", "b", "last"}
        assert whole.refusals == {}
        worker.release.set()
        await mesh.until(instance_id)
        ended = await ask(mesh, instance_id)
        assert [reason.code for reason in ended.reasons] == ["ended"]
        await worker.client.stop()


async def test_an_engine_that_does_not_own_it_asks_the_owner(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=AGENTS) as mesh:
        instance_id = await mesh.start(await mesh.define(flow("a")))
        other = await mesh.add(WorkflowEngine, agent_id="engine-2")
        told = await ask(mesh, instance_id, "last", agent_id=other.agent_id)
        assert told.reasons[0].code == "dependency_waiting"
        assert told.reasons[0].facts["root_cause"] == "no_agent_offers_capability"
        with pytest.raises(AmpError) as caught:
            await ask(mesh, instance_id, "nope", agent_id=other.agent_id)
        assert caught.value.code == "TASK_NOT_FOUND"
        with pytest.raises(AmpError) as caught:
            await ask(mesh, "ins_nope", agent_id=other.agent_id)
        assert caught.value.code == "INSTANCE_NOT_FOUND"


async def test_without_its_owner_the_log_is_asked(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=AGENTS) as mesh:
        instance_id = await mesh.start(await mesh.define(flow("a")))
        watcher = WorkflowEngine(transport=mesh.network.transport(), agent_id="watcher", random=Random(9))
        await watcher.start(wait_seconds=END_SECONDS)  # embedded: it takes nothing over
        owner = mesh.agents.pop(1)
        await owner.stop()
        told = await ask(mesh, instance_id, agent_id="watcher")
        assert told.reasons[0].code == "owner_lost_waiting_for_takeover"
        assert {reason.task_id for reason in told.reasons} == {"", "a", "last"}
        await watcher.stop()


async def test_a_silent_store_is_part_of_the_answer(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=AGENTS) as mesh:
        instance_id = await mesh.start(await mesh.define(flow("a")))
        store = mesh.agents.pop(0)
        await store.stop()
        told = await ask(mesh, instance_id)
        assert told.reasons[0].code == "store_unavailable"


class StuckStore(StateManager):
    """A state manager that answers appends while the test lets it."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, incoming: Incoming) -> contracts.AppendReply:
        await self.open.wait()
        return await super().append(incoming)


async def test_facts_that_the_store_does_not_take_do_not_hold_up_the_answer(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=(StuckStore, WorkflowEngine)) as mesh:
        instance_id = await mesh.start(await mesh.define(flow("a")))
        (store,) = (agent for agent in mesh.agents if isinstance(agent, StuckStore))
        worker = Worker(mesh)
        await worker.client.start()
        await worker.taken.wait()
        store.open.clear()
        worker.release.set()
        async with asyncio.timeout(END_SECONDS):
            while (await ask(mesh, instance_id)).reasons[0].code != "store_unavailable":
                continue
        store.open.set()
        await mesh.until(instance_id)
        await worker.client.stop()


async def test_an_order_that_the_machine_refuses_is_refused_at_once(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=AGENTS) as mesh:
        instance_id = await mesh.start(await mesh.define(flow("a")))
        request = contracts.TaskRetryRequest(workflow_instance_id=instance_id, task_id="a")
        with pytest.raises(AmpError) as caught:
            await mesh.client.request(
                contracts.TASK_RETRY.id,
                request,
                reply_type=contracts.TaskControlled,
                timeout_seconds=END_SECONDS,
            )
        assert caught.value.code == "ILLEGAL_STATE"
        assert caught.value.details["current_state"] == "running"
        assert caught.value.details["allowed"] == ["skip"]
        told = await ask(mesh, instance_id, "a")
        assert told.refusals["skip"] == ""
        assert "only a task that failed" in told.refusals["retry"]
