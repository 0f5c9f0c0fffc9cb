"""A start is answered when it is durable, and a repeated one gets the first one's answer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agents.state_manager import StateManager
from agents.workflow_engine import WorkflowEngine
from amp.capability import Incoming
from amp.errors import AmpError
from orchestration import contracts
from tests.mesh import Mesh, running_mesh

WAITING = {
    "id": "flow",
    "name": "Flow",
    "tasks": [{"id": "wait", "type": "custom", "capability": "held", "effects": "none"}],
    "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}},
}
QUESTIONS = 20
"""So many questions are answered after a start was sent; had it not been held up, it would be answered by then."""


class SlowStore(StateManager):
    """A state manager that answers appends when the test lets it, and refuses the first ones if it is told to."""

    appends = 0
    refusals = 0

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.asked = asyncio.Event()
        self.open = asyncio.Event()

    async def append(self, incoming: Incoming) -> contracts.AppendReply:
        self.appends += 1
        self.asked.set()
        await self.open.wait()
        if self.refusals:
            self.refusals -= 1
            return contracts.AppendReply(
                outcomes=[
                    contracts.AppendOutcome(
                        instance_id=batch.instance_id, status="full", seq=0, reason="the disk is full"
                    )
                    for batch in incoming.parameters.batches
                ]
            )
        return await super().append(incoming)


async def started(mesh: Mesh, **more: Any) -> contracts.WorkflowStarted:
    return await mesh.client.request(
        contracts.WORKFLOW_START.id,
        contracts.WorkflowStartRequest(workflow_id="flow", **more),
        reply_type=contracts.WorkflowStarted,
        patience_seconds=20,
    )


async def questions(mesh: Mesh) -> None:
    for _ in range(QUESTIONS):
        await mesh.client.request(contracts.WORKFLOW_LIST.id, contracts.WorkflowListRequest())


@pytest.mark.parametrize("name", [{"instance_id": "order-7"}, {"idempotency_key": "order-7"}])
async def test_a_duplicate_is_not_answered_before_the_first_start_is_durable(
    tmp_path: Path, name: dict[str, str]
) -> None:
    async with running_mesh(tmp_path, agents=(SlowStore, WorkflowEngine)) as mesh:
        store: SlowStore = mesh.agents[0]  # type: ignore[assignment]
        await mesh.define(WAITING)
        first = asyncio.ensure_future(started(mesh, **name))
        await store.asked.wait()
        second = asyncio.ensure_future(started(mesh, **name))
        await questions(mesh)
        assert not first.done()
        assert not second.done(), "told of an instance that is not stored"
        store.open.set()
        answers = await asyncio.gather(first, second)
        listed = await mesh.client.request(
            contracts.INSTANCE_LIST.id,
            contracts.InstanceListRequest(),
            reply_type=contracts.InstanceListReply,
        )
    assert len({answer.instance_id for answer in answers}) == 1
    assert len(listed.rows) == 1


@pytest.mark.parametrize("name", [{"instance_id": "order-7"}, {"idempotency_key": "order-7"}])
async def test_a_duplicate_of_a_start_that_failed_starts_the_instance_itself(
    tmp_path: Path, name: dict[str, str]
) -> None:
    async with running_mesh(tmp_path, agents=(SlowStore, WorkflowEngine)) as mesh:
        store: SlowStore = mesh.agents[0]  # type: ignore[assignment]
        await mesh.define(WAITING)
        store.refusals = 1
        first = asyncio.ensure_future(started(mesh, **name))
        await store.asked.wait()
        second = asyncio.ensure_future(started(mesh, **name))
        await questions(mesh)
        store.open.set()
        with pytest.raises(AmpError) as refused:
            await first
        answer = await second
        document = await mesh.status(answer.instance_id)
    assert refused.value.code == "INSUFFICIENT_RESOURCES"
    assert answer.created
    assert document.instance["status"] == "running"


async def test_a_start_whose_caller_went_away_is_driven_all_the_same(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=(SlowStore, WorkflowEngine)) as mesh:
        store: SlowStore = mesh.agents[0]  # type: ignore[assignment]
        engine: WorkflowEngine = mesh.agents[1]  # type: ignore[assignment]
        await mesh.define(WAITING)
        start = asyncio.ensure_future(engine.start_workflow("flow", instance_id="order-7"))
        await store.asked.wait()
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        store.open.set()
        async with asyncio.timeout(20):
            while engine._drivers.get("order-7") is None:
                await asyncio.sleep(0.01)
        assert (await mesh.until("order-7", "running")).instance["status"] == "running"
        assert await engine.stop_workflow("order-7") == "cancelled"


async def test_a_repeated_start_leaves_a_running_instance_to_who_drives_it(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=(StateManager, WorkflowEngine)) as mesh:
        engine: WorkflowEngine = mesh.agents[1]
        await mesh.define(WAITING)
        await started(mesh, instance_id="order-7")
        driver = engine.driver_of("order-7")
        again = await started(mesh, instance_id="order-7")
        assert not again.created
        assert engine.driver_of("order-7") is driver
        assert driver is not None
        assert not driver.lost


async def test_the_same_key_and_request_get_the_same_answer_for_ever(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=(StateManager, WorkflowEngine)) as mesh:
        await mesh.define(WAITING)
        first = await started(mesh, inputs={"n": 1}, idempotency_key="k")
        await mesh.client.request(
            contracts.WORKFLOW_STOP.id, contracts.WorkflowControlRequest(instance_id=first.instance_id)
        )
        await mesh.define({**WAITING, "input_schema": {"type": "object", "required": ["other"]}})
        again = await started(mesh, inputs={"n": 1}, idempotency_key="k")
    assert (first.status, first.replayed) == ("running", False)
    assert (again.instance_id, again.workflow_id, again.status, again.created, again.replayed) == (
        first.instance_id,
        first.workflow_id,
        "running",
        True,
        True,
    )


async def test_an_instance_that_had_to_wait_for_a_slot_is_answered_as_pending_again(tmp_path: Path) -> None:
    engine = {"load_workflows_on_start": False, "max_concurrent_workflows": 1}
    async with running_mesh(tmp_path, agents=(StateManager, WorkflowEngine), workflow_engine=engine) as mesh:
        await mesh.define(WAITING)
        running = await started(mesh, idempotency_key="one")
        waiting = await started(mesh, idempotency_key="two")
        await mesh.client.request(
            contracts.WORKFLOW_STOP.id, contracts.WorkflowControlRequest(instance_id=running.instance_id)
        )
        await mesh.until(waiting.instance_id, "running")
        answers = [(await started(mesh, idempotency_key=key)).status for key in ("one", "two")]
    assert (running.status, waiting.status) == ("running", "pending")
    assert answers == ["running", "pending"]


@pytest.mark.parametrize("inputs", [{"n": 2}, {}])
async def test_the_same_key_with_another_request_is_refused(tmp_path: Path, inputs: dict[str, int]) -> None:
    async with running_mesh(tmp_path, agents=(StateManager, WorkflowEngine)) as mesh:
        await mesh.define(WAITING)
        await started(mesh, inputs={"n": 1}, idempotency_key="k")
        with pytest.raises(AmpError) as refused:
            await started(mesh, inputs=inputs, idempotency_key="k")
    assert refused.value.code == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize(
    "name",
    [
        {"instance_id": "order-7", "idempotency_key": "k"},
        {"idempotency_key": "two words"},
        {"idempotency_key": "x" * 256},
    ],
)
async def test_a_key_that_is_none_or_stands_beside_an_id_is_refused(
    tmp_path: Path, name: dict[str, str]
) -> None:
    async with running_mesh(tmp_path, agents=(StateManager, WorkflowEngine)) as mesh:
        await mesh.define(WAITING)
        with pytest.raises(AmpError) as refused:
            await started(mesh, **name)
    assert refused.value.code == "INVALID_INPUT"


async def test_nobody_is_told_of_an_instance_that_is_not_stored(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, agents=(SlowStore, WorkflowEngine)) as mesh:
        store: SlowStore = mesh.agents[0]  # type: ignore[assignment]
        await mesh.define(WAITING)
        first = asyncio.ensure_future(started(mesh, instance_id="order-7"))
        await store.asked.wait()
        with pytest.raises(AmpError) as refused:
            await mesh.status("order-7")
        store.open.set()
        await first
        document = await mesh.status("order-7")
    assert refused.value.code == "INSTANCE_NOT_FOUND"
    assert document.instance["status"] == "running"
