"""The users of a simulated mesh: they start, insist, order, and decide what only a person can.

They behave as good clients do: the same key for the same start, until it is acknowledged.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts, machine
from orchestration import events as ev
from orchestration.contracts import Contract
from orchestration.definition.plan import Plan
from orchestration.instance import Instance
from orchestration.status import InstanceStatus, TaskStatus
from simulation.mesh import SimulatedMesh, sleep_until
from simulation.work import outputs_of
from simulation.workload import Order, Start, Workload

ANSWER_SECONDS = 10.0
AGAIN_SECONDS = 1.0
LOOK_SECONDS = 5.0
"""How often a person looks at what waits for a decision."""
ORDERS: dict[str, Contract] = {
    "pause": contracts.WORKFLOW_PAUSE,
    "resume": contracts.WORKFLOW_RESUME,
    "stop": contracts.WORKFLOW_STOP,
}


@dataclass(slots=True)
class Users:
    """Everybody who wants something of the mesh.

    `acknowledged` are the instances by the label of their start, `asked` every id that may exist.
    """

    mesh: SimulatedMesh
    workload: Workload
    plans: dict[str, Plan]
    acknowledged: dict[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)
    orders_left: int = 0
    client: MeshClient | None = None

    async def act(self) -> None:
        """Define, start and order everything; then look after what is open, for ever."""
        self.client = self.mesh.client()
        await self.client.start()
        for definition in self.workload.definitions:
            await self._insist(
                contracts.WORKFLOW_CREATE,
                contracts.WorkflowCreateRequest(definition=dict(definition), overwrite=True),
                contracts.WorkflowCreated,
            )
        async with asyncio.TaskGroup() as group:
            for start in self.workload.starts:
                self.orders_left += len(start.orders)
                group.create_task(self._use(start), name=f"user of {start.label}")
            group.create_task(self._decide(), name="person")

    @property
    def done(self) -> bool:
        """Return whether every start was acknowledged and every order given."""
        return len(self.acknowledged) == len(self.workload.starts) and self.orders_left == 0

    async def _insist(self, contract: Contract, request: object, reply_type: type[Any]) -> Any:
        """Ask until there is an answer."""
        assert self.client is not None
        while True:
            try:
                return await self.client.request(
                    contract.id,
                    request,
                    reply_type=reply_type,
                    timeout_seconds=ANSWER_SECONDS,
                    patience_seconds=ANSWER_SECONDS,
                )
            except AmpError as error:
                self.mesh.note(f"{contract.id} was answered {error.code}: {error.message}")
                await asyncio.sleep(AGAIN_SECONDS)

    # --- one start -----------------------------------------------------------------------------------------

    async def _use(self, start: Start) -> None:
        await sleep_until(self.mesh.loop, start.at)
        request = contracts.WorkflowStartRequest(
            workflow_id=start.workflow_id,
            inputs=dict(start.inputs),
            instance_id=None if start.by_key else f"i-{start.label}",
            idempotency_key=f"key-{start.label}" if start.by_key else "",
        )
        first = await self._insist(contracts.WORKFLOW_START, request, contracts.WorkflowStarted)
        self.asked.add(first.instance_id)
        self.acknowledged[start.label] = first.instance_id
        if start.again:
            again = await self._insist(contracts.WORKFLOW_START, request, contracts.WorkflowStarted)
            if again.instance_id != first.instance_id:
                self.findings.append(
                    f"{start.label}: one start made two instances: {first.instance_id}, {again.instance_id}"
                )
        began = self.mesh.loop.time()
        for order in start.orders:
            await sleep_until(self.mesh.loop, began + order.after_seconds)
            await self._order(first.instance_id, order)
            self.orders_left -= 1

    async def _order(self, instance_id: str, order: Order) -> None:
        """Give an order until it is taken or the instance has ended."""
        assert self.client is not None
        request = contracts.WorkflowControlRequest(instance_id=instance_id, reason="a user wants it")
        while not self._ended(instance_id):
            try:
                await self.client.request(
                    ORDERS[order.kind].id,
                    request,
                    reply_type=contracts.WorkflowControlled,
                    timeout_seconds=ANSWER_SECONDS,
                    patience_seconds=ANSWER_SECONDS,
                )
                return
            except AmpError as error:
                self.mesh.note(f"{order.kind} was answered {error.code}: {error.message}")
                await asyncio.sleep(AGAIN_SECONDS)

    def _ended(self, instance_id: str) -> bool:
        row = self.mesh.store.rows.get(instance_id)
        return row is not None and row.status.is_final

    # --- what only a person can decide ---------------------------------------------------------------------

    async def _decide(self) -> None:
        """Look at open instances: resume what waits for it, say what is known about unknown outcomes."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.orders_left:
                continue
            for row in list(self.mesh.store.rows.values()):
                if row.status is InstanceStatus.PAUSED:
                    await self._order(row.instance_id, Order(kind="resume", after_seconds=0))
                if row.task_counts.get(TaskStatus.OUTCOME_UNKNOWN.value):
                    await self._settle(row.instance_id)

    async def _settle(self, instance_id: str) -> None:
        instance = self.instance(instance_id)
        plan = self.plans[instance.definition_hash]
        for run in instance.runs.values():
            task = plan.tasks[run.task_id]
            if run.status is not TaskStatus.OUTCOME_UNKNOWN or (task.reconcile and run.attempt < 3):
                continue
            done = self.mesh.ledger.settle(instance_id, run.task_id)
            about = task.parameters.get("parameters", {})
            if done:
                given = _filled(about.get("given"), instance)
                await self._say(
                    contracts.TASK_COMPLETE,
                    contracts.TaskCompleteRequest(
                        workflow_instance_id=instance_id,
                        task_id=run.task_id,
                        outputs=outputs_of(run.task_id, task.output_names, given),
                    ),
                )
            else:
                await self._say(
                    contracts.TASK_RETRY,
                    contracts.TaskRetryRequest(workflow_instance_id=instance_id, task_id=run.task_id),
                )

    async def _say(self, contract: Contract, request: object) -> None:
        """Say something once; whoever has to say it looks again later."""
        assert self.client is not None
        try:
            await self.client.request(contract.id, request, timeout_seconds=ANSWER_SECONDS)
        except AmpError as error:
            self.mesh.note(f"{contract.id} was answered {error.code}: {error.message}")

    def instance(self, instance_id: str) -> Instance:
        """Return an instance as its facts in the store make it."""
        row = self.mesh.store.rows[instance_id]
        facts = [
            ev.decode(event.data) for event in self.mesh.store.events if event.instance_id == instance_id
        ]
        return machine.replay(self.plans[row.definition_hash], instance_id, facts)


def _filled(given: object, instance: Instance) -> object:
    """Return the task's `given` with the instance's values, as the executor fills it."""
    if not isinstance(given, list):
        return given
    return [
        instance.variables.get(item[1:-1]) if isinstance(item, str) and item.startswith("{") else item
        for item in given
    ]
