"""Several engines on one store: fair shares, lost answers, leases that ended, instances that break."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.base import Agent
from agents.state_manager import StateManager
from agents.workflow_engine import WorkflowEngine
from agents.workflow_engine.ownership import fair_share
from amp.capability import Capability, Incoming, Offer
from amp.errors import AmpError
from orchestration import contracts
from orchestration import events as ev
from orchestration.status import InstanceStatus
from tests.mesh import Mesh, running_mesh

PATIENCE_SECONDS = 20.0
FLOW = {
    "id": "flow",
    "name": "Flow",
    "tasks": [{"id": "wait", "type": "custom", "capability": "held", "effects": "none"}],
}
QUICK_LEASE = {"load_workflows_on_start": False, "lease_seconds": 0.6}


@pytest.mark.parametrize(
    ("standing", "room", "waited", "share"),
    [
        ({"claimable": 0, "held": 0, "open": 9, "engines": 2}, 100, False, 0),
        ({"claimable": 10, "held": 0, "open": 10, "engines": 1}, 100, False, 10),
        ({"claimable": 10, "held": 0, "open": 10, "engines": 2}, 100, False, 5),
        ({"claimable": 9, "held": 0, "open": 9, "engines": 2}, 100, False, 5),
        ({"claimable": 100, "held": 100, "open": 300, "engines": 2}, 1000, False, 50),
        ({"claimable": 100, "held": 180, "open": 300, "engines": 2}, 1000, False, 0),
        ({"claimable": 100, "held": 180, "open": 300, "engines": 2}, 1000, True, 100),
        ({"claimable": 100, "held": 0, "open": 100, "engines": 1}, 7, False, 7),
        ({"claimable": 100, "held": 0, "open": 100, "engines": 0}, 0, True, 0),
    ],
)
def test_an_engine_claims_its_fair_share_and_the_rest_when_others_had_their_time(
    standing: dict[str, int], room: int, waited: bool, share: int
) -> None:
    reply = contracts.LeaseReply(lease_seconds=15, **standing)
    assert fair_share(reply, room=room, waited=waited) == share


class Store(StateManager):
    """A state manager that can lose answers and keep an engine waiting."""

    lose_claims = 0
    held_appends = 0
    cut_off = ""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.healed = asyncio.Event()

    async def claim(self, incoming: Incoming) -> contracts.ClaimReply:
        reply = await super().claim(incoming)
        if self.lose_claims and reply.rows:
            self.lose_claims -= 1
            raise AmpError("NETWORK_ERROR", "the answer was lost", {}, retryable=True)
        return reply

    async def lease(self, incoming: Incoming) -> contracts.LeaseReply:
        await self._pass(incoming)
        return await super().lease(incoming)

    async def append(self, incoming: Incoming) -> contracts.AppendReply:
        self.held_appends += incoming.message.source.agent_id == self.cut_off
        await self._pass(incoming)
        return await super().append(incoming)

    async def _pass(self, incoming: Incoming) -> None:
        if incoming.message.source.agent_id == self.cut_off:
            await self.healed.wait()


async def two_engines(mesh: Mesh) -> tuple[Store, WorkflowEngine, WorkflowEngine]:
    store = next(agent for agent in mesh.agents if isinstance(agent, Store))
    first = next(agent for agent in mesh.agents if isinstance(agent, WorkflowEngine))
    await mesh.define(FLOW)
    return store, first, await mesh.add(WorkflowEngine)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.01)


async def rows(mesh: Mesh) -> list[contracts.InstanceRow]:
    reply = await mesh.client.request(
        contracts.INSTANCE_LIST.id,
        contracts.InstanceListRequest(limit=200),
        reply_type=contracts.InstanceListReply,
    )
    return reply.rows


async def test_what_a_lost_engine_leaves_is_shared_by_the_others(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=(Store, WorkflowEngine)) as mesh:
        _, first, second = await two_engines(mesh)
        names = [(await first.start_workflow("flow")).id for _ in range(20)]
        third = await mesh.add(WorkflowEngine)
        await first.stop()
        await until(lambda: len(second._drivers) + len(third._drivers) == len(names))
        counts = Counter(row.owner for row in await rows(mesh))
    assert counts == {second.owner: 10, third.owner: 10}


async def test_a_claim_whose_answer_was_lost_leaves_nothing_undriven(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=(Store, WorkflowEngine)) as mesh:
        store, first, second = await two_engines(mesh)
        names = {(await first.start_workflow("flow")).id for _ in range(5)}
        store.lose_claims = 1
        await first.stop()
        await until(lambda: len(second._drivers) == len(names))
        assert {row.owner for row in await rows(mesh)} == {second.owner}


async def test_an_engine_whose_lease_ended_keeps_what_nobody_took(tmp_path: Path) -> None:
    overrides = {"workflow_engine": QUICK_LEASE}
    async with running_mesh(tmp_path, agents=(Store, WorkflowEngine), **overrides) as mesh:
        await mesh.define(FLOW)
        store, engine = mesh.agents[0], mesh.agents[1]
        assert isinstance(store, Store)
        assert isinstance(engine, WorkflowEngine)
        name = (await engine.start_workflow("flow")).id
        await store.storage.end_lease(engine.owner)
        await until(lambda: engine._ownership.is_live)
        await engine.pause_workflow(name)
        (row,) = await rows(mesh)
    assert (row.owner, row.epoch, row.status) == (engine.owner, 1, InstanceStatus.PAUSED)


async def test_an_engine_lets_go_of_what_another_claimed_while_its_lease_was_over(tmp_path: Path) -> None:
    overrides = {"workflow_engine": QUICK_LEASE}
    async with running_mesh(tmp_path, agents=(Store, WorkflowEngine), **overrides) as mesh:
        store, first, second = await two_engines(mesh)
        names = {(await first.start_workflow("flow")).id for _ in range(3)}
        store.cut_off = first.agent_id
        await until(lambda: len(second._drivers) == len(names))
        assert not first._ownership.is_live
        store.cut_off = ""
        store.healed.set()
        await until(lambda: len(first._drivers) == 0)
        assert first._ownership.is_live
        assert {row.owner for row in await rows(mesh)} == {second.owner}


async def test_an_engine_that_is_cut_off_commits_nothing_and_tells_nothing_old(tmp_path: Path) -> None:
    overrides = {"workflow_engine": QUICK_LEASE}
    async with running_mesh(tmp_path, agents=(Store, WorkflowEngine), **overrides) as mesh:
        store, first, second = await two_engines(mesh)
        name = (await first.start_workflow("flow")).id
        store.cut_off = first.agent_id
        await until(lambda: name in second._drivers)
        assert await second.pause_workflow(name) == "paused"
        told = await first.get_status(name)
        store.cut_off = ""
        store.healed.set()
        await until(lambda: name not in first._drivers)
        (row,) = await rows(mesh)
    assert told.instance["status"] == "paused", "it asked the store, because its lease was over"
    assert (row.status, row.owner) == (InstanceStatus.PAUSED, second.owner)


async def test_an_engine_permits_no_effect_of_what_another_owns_and_gave_up(tmp_path: Path) -> None:
    async def refused_by_first() -> list[str]:
        reply = await mesh.client.request(
            contracts.TASK_HEARTBEAT.id,
            contracts.TaskHeartbeatRequest(beats=[contracts.TaskBeat(token=token, begun=False)]),
            reply_type=contracts.TaskHeartbeatReply,
            agent_id=first.agent_id,
        )
        return reply.unwanted

    overrides = {"workflow_engine": QUICK_LEASE}
    async with running_mesh(tmp_path, agents=(Store, WorkflowEngine), **overrides) as mesh:
        store, first, second = await two_engines(mesh)
        name = (await first.start_workflow("flow")).id
        token = f"{name}/wait/1"
        assert await refused_by_first() == []
        store.cut_off = first.agent_id
        await until(lambda: name in second._drivers)
        assert await refused_by_first() == [], "whoever owns it wants it still"
        await mesh.client.request(
            contracts.TASK_SKIP.id,
            contracts.TaskSkipRequest(workflow_instance_id=name, task_id="wait"),
            agent_id=second.agent_id,
        )
        await mesh.until(name)
        assert name in first._drivers
        assert await refused_by_first() == [token]
        store.cut_off = ""
        store.healed.set()
        await until(lambda: name not in first._drivers)
        assert await refused_by_first() == [token]


class Holder(Agent):
    """An agent whose only work is done when the test lets it."""

    section_name = "task_executor"

    def offers(self) -> list[Offer]:
        return [Offer(capability=Capability(id="held"), handler=self.work)]

    async def on_start(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()

    async def work(self, incoming: Incoming) -> dict[str, int]:
        self.begun.set()
        await self.let_go.wait()
        return {"paid": 1}


async def test_a_result_that_reached_the_engine_that_lost_the_instance_reaches_the_other(
    tmp_path: Path,
) -> None:
    overrides = {"workflow_engine": QUICK_LEASE}
    async with running_mesh(tmp_path, agents=(Store, WorkflowEngine), **overrides) as mesh:
        store, first, second = await two_engines(mesh)
        holder: Holder = await mesh.add(Holder)
        once = {**FLOW["tasks"][0], "effects": "once", "outputs": ["paid"]}  # type: ignore[index,dict-item]
        await mesh.define({**FLOW, "tasks": [once]})
        name = (await first.start_workflow("flow")).id
        await holder.begun.wait()
        store.cut_off = first.agent_id
        await until(lambda: name in second._drivers)
        holder.let_go.set()
        # The result comes to an engine that still tries to record it, or has just heard that it cannot.
        await until(lambda: store.held_appends > 0 or name not in first._drivers)
        store.cut_off = ""
        store.healed.set()
        document = await mesh.until(name)
    assert document.instance["status"] == "completed"
    assert document.tasks["wait"]["outputs"] == {"paid": 1}
    assert document.tasks["wait"]["attempt_count"] == 1


@pytest.mark.parametrize("order", ["pause", "stop", "skip"])
async def test_an_order_works_at_an_engine_that_does_not_own_the_instance(tmp_path: Path, order: str) -> None:
    async with running_mesh(tmp_path, agents=(Store, WorkflowEngine)) as mesh:
        _, owner, other = await two_engines(mesh)
        name = (await owner.start_workflow("flow")).id
        if order == "skip":
            await mesh.client.request(
                contracts.TASK_SKIP.id,
                contracts.TaskSkipRequest(workflow_instance_id=name, task_id="wait"),
                agent_id=other.agent_id,
            )
            document = await mesh.until(name)
        else:
            contract = contracts.WORKFLOW_PAUSE if order == "pause" else contracts.WORKFLOW_STOP
            await mesh.client.request(
                contract.id, contracts.WorkflowControlRequest(instance_id=name), agent_id=other.agent_id
            )
            document = await mesh.until(name, "paused", "cancelled")
            if order == "pause":
                await mesh.client.request(
                    contracts.WORKFLOW_RESUME.id,
                    contracts.WorkflowControlRequest(instance_id=name),
                    agent_id=other.agent_id,
                )
                document = await mesh.until(name, "running")
        assert name not in other._drivers
    expected = {"pause": "running", "stop": "cancelled", "skip": "completed"}[order]
    assert document.instance["status"] == expected


async def left_behind(mesh: Mesh, name: str, *, hash: str, facts: list[bytes]) -> None:
    """Put a history into the log as a process left it that is gone."""
    at = mesh.agents[0].clock.now()
    await mesh.client.request(
        contracts.STATE_APPEND.id,
        contracts.AppendRequest(
            batches=[
                contracts.AppendBatch(
                    instance_id=name,
                    owner="gone:s",
                    epoch=1,
                    expected_seq=0,
                    events=[
                        contracts.NewEvent(type="workflow.started", at=at, data=msgspec.Raw(data))
                        for data in facts
                    ],
                    row=contracts.InstanceRow(
                        instance_id=name,
                        workflow_id="flow",
                        workflow_version="1.0",
                        workflow_name="Flow",
                        definition_hash=hash,
                        status=InstanceStatus.RUNNING,
                        created_at=at,
                        wake_reason="wait runs",
                    ),
                )
            ]
        ),
    )


@pytest.mark.parametrize("broken", ["event", "order", "definition"])
async def test_an_instance_that_cannot_be_replayed_is_set_aside_and_hinders_no_other(
    tmp_path: Path, broken: str
) -> None:
    overrides = {"workflow_engine": QUICK_LEASE}
    async with running_mesh(tmp_path, agents=(StateManager, WorkflowEngine), **overrides) as mesh:
        engine = next(agent for agent in mesh.agents if isinstance(agent, WorkflowEngine))
        await mesh.define(FLOW)
        plan = await engine.catalog.newest("flow")
        at = engine.clock.now()
        start = ev.encode(
            ev.InstanceStarted(
                at=at,
                workflow_id="flow",
                workflow_version="1.0",
                definition_hash=plan.definition_hash,
                inputs={},
            )
        )
        admitted = ev.encode(ev.InstanceAdmitted(at=at))
        facts = {"event": [b'{"type":"unheard.of"}'], "order": [admitted], "definition": [start, admitted]}
        hash = "no-such-hash" if broken == "definition" else plan.definition_hash
        await left_behind(mesh, "broken", hash=hash, facts=facts[broken])
        await left_behind(mesh, "whole", hash=plan.definition_hash, facts=[start, admitted])
        await until(lambda: "whole" in engine._drivers and "broken" in engine._drivers.quarantined)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                row = next(row for row in await rows(mesh) if row.instance_id == "broken")
                if row.wake_reason.startswith("quarantined: "):
                    break
                await asyncio.sleep(0.01)
        health = engine.health()
        assert engine._drivers.owned == 2
        engine._drivers.note_owned(["whole"])
        assert engine._drivers.owned == 1, "it is another engine's by now"
        assert await engine.stop_workflow("whole") == "cancelled"
    assert row.wake_at is None
    assert health["quarantined"] == 1
    assert "broken" in health["quarantined_instances"]


async def test_an_instance_that_breaks_the_code_does_not_end_the_engine(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=(StateManager, WorkflowEngine)) as mesh:
        engine = next(agent for agent in mesh.agents if isinstance(agent, WorkflowEngine))
        await mesh.define(FLOW)
        poison, healthy = [(await engine.start_workflow("flow")).id for _ in range(2)]
        driver = engine._drivers.get(poison)
        assert driver is not None
        driver.post("no stimulus at all")  # type: ignore[arg-type]
        await until(lambda: poison in engine._drivers.quarantined)
        assert await engine.stop_workflow(healthy) == "cancelled"
        assert not engine.failed.is_set()
