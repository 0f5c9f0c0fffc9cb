"""Answers why an instance does not move: gathers what is known beside its facts and has `orchestration.why` tell it.

It only reads. The engine that drives an instance knows most about it, so another engine asks that one first; when it
cannot, it answers from the log and says that the owner is gone.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Protocol

import msgspec
import structlog

from agents.workflow_engine.driver import Driver
from agents.workflow_engine.errors import InstanceUnreadable, TaskNotFound
from agents.workflow_engine.histories import Histories
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts, orders, reasons
from orchestration.contracts import InstanceRow, Reason, WorkflowWhy, WorkflowWhyRequest
from orchestration.definition.plan import Plan
from orchestration.instance import Instance
from orchestration.status import TaskStatus
from orchestration.surroundings import Offerer, Place, Slots, Surroundings
from orchestration.why import summary, why, why_task
from runtime.clock import Clock

MAX_REASONS = 200
"""Most reasons in one answer; those of the whole instance and of what is under way come first."""
MAX_LOOKED_UP = 256
"""Most attempts, and most capabilities, that the router is asked about for one answer."""
LOOK_UP_SECONDS = 2.0
"""How long the store is given; when it does not answer, that is part of the answer."""
FORWARD_SECONDS = 5.0

logger = structlog.get_logger(__name__)


class EngineView(Protocol):
    """What the explainer reads of its engine."""

    @property
    def owner(self) -> str:
        """The name under which this engine owns instances."""
        ...

    def driver_of(self, instance_id: str) -> Driver | None:
        """Return who drives the instance here, if anybody does."""
        ...

    def ended_here(self, instance_id: str) -> tuple[Plan, Instance] | None:
        """Return an instance that ended here lately."""
        ...

    def set_aside_here(self, instance_id: str) -> str:
        """Return why this engine left an instance alone; empty when it did not."""
        ...

    def slots_for(self, instance_id: str) -> Slots:
        """Return how the slots are taken, and the instance's place in the line."""
        ...

    def place_of(self, token: str) -> Place | None:
        """Return what the engine itself knows of where an attempt is."""
        ...


class Explainer:
    """Answers `workflow-why` for any instance, whoever drives it."""

    def __init__(
        self,
        mesh: MeshClient,
        engine: EngineView,
        *,
        agent_id: str,
        histories: Histories,
        clock: Clock,
        lease_seconds: float,
    ) -> None:
        self._mesh = mesh
        self._engine = engine
        self._agent_id = agent_id
        self._histories = histories
        self._clock = clock
        self._lease_seconds = lease_seconds

    async def explain(self, asked: WorkflowWhyRequest) -> WorkflowWhy:
        """Return why the instance, or one task of it, does not move.

        Raises: InstanceNotFound, TaskNotFound, AmpError when the log cannot be read.
        """
        driver = self._engine.driver_of(asked.instance_id)
        if driver is not None:
            around = await self._around_own(driver, stored=await _stored(driver))
            return self._answer(asked, driver.plan, driver.committed, around)
        ended = self._engine.ended_here(asked.instance_id)
        if ended is not None:
            return self._answer(asked, *ended, Surroundings())
        row = await self._histories.row(asked.instance_id)
        if cause := self._engine.set_aside_here(asked.instance_id):
            set_aside = reasons.quarantined(row.instance_id, cause, self._agent_id)
            return self._told(asked, str(row.status), (set_aside,))
        agent_id = row.owner.rpartition(":")[0]
        if not row.status.is_final and agent_id and agent_id != self._agent_id:
            told = await self._ask_owner(asked, agent_id)
            if told is not None:
                return told
        return await self._from_log(asked, row, agent_id)

    # --- one that is driven here -----------------------------------------------------------------------

    async def _around_own(self, driver: Driver, *, stored: bool) -> Surroundings:
        plan, instance = driver.plan, driver.committed
        tokens = [
            run.token
            for task_id in instance.active
            if (run := instance.runs[task_id]).status is TaskStatus.RUNNING and run.token
        ]
        places, offers = await self._look_up(tokens, _capabilities(plan, instance))
        entries = await self._inbox(instance.id, driver.seen_inbox) if stored else None
        return Surroundings(
            places=places,
            offers=offers,
            slots=self._engine.slots_for(instance.id),
            owner=self._agent_id,
            store_answers=entries is not None,
            inbox=entries or 0,
        )

    async def _look_up(
        self, tokens: list[str], capabilities: Iterable[str]
    ) -> tuple[dict[str, Place], dict[str, tuple[Offerer, ...]]]:
        """Return where the attempts are and who offers the capabilities; nothing of what the router does not say."""
        known = {token: place for token in tokens if (place := self._engine.place_of(token)) is not None}
        try:
            found = await self._mesh.traffic(
                capabilities=list(capabilities)[:MAX_LOOKED_UP], requests=tokens[:MAX_LOOKED_UP]
            )
        except AmpError as error:
            logger.info("traffic_not_told", code=error.code)
            return known, {}
        offers = {
            name: tuple(
                Offerer(
                    agent_id=agent["id"],
                    in_flight=agent["in_flight"],
                    max_in_flight=agent["max_in_flight"],
                )
                for agent in offered["agents"]
            )
            for name, offered in found["capabilities"].items()
        }
        places = {token: _place(told, known.get(token)) for token, told in found["requests"].items()}
        return {**known, **places}, offers

    async def _inbox(self, instance_id: str, seen: set[int]) -> int | None:
        """Return how many entries wait that the driver has not taken up; None when the store does not answer."""
        try:
            reply = await self._mesh.request(
                contracts.INBOX_READ.id,
                contracts.InboxReadRequest(owner=self._engine.owner, instance_ids=[instance_id]),
                reply_type=contracts.InboxReadReply,
                timeout_seconds=LOOK_UP_SECONDS,
                resend=True,
            )
        except AmpError:
            return None
        return sum(1 for item in reply.items if item.inbox_id not in seen)

    # --- one that is not -------------------------------------------------------------------------------

    async def _ask_owner(self, asked: WorkflowWhyRequest, agent_id: str) -> WorkflowWhy | None:
        """Return what the engine that drives it says; None when it does not answer."""
        try:
            return await self._mesh.request(
                contracts.WORKFLOW_WHY.id,
                asked,
                reply_type=WorkflowWhy,
                agent_id=agent_id,
                timeout_seconds=FORWARD_SECONDS,
            )
        except AmpError as error:
            if error.code == TaskNotFound.wire_code:
                raise
            logger.info("owner_not_asked", instance_id=asked.instance_id, owner=agent_id, code=error.code)
            return None

    async def _from_log(self, asked: WorkflowWhyRequest, row: InstanceRow, agent_id: str) -> WorkflowWhy:
        mine = row.owner == self._engine.owner
        try:
            plan, instance = await self._histories.rebuild(row)
        except InstanceUnreadable as error:
            cause = error.message
            return self._told(
                asked, str(row.status), (reasons.quarantined(row.instance_id, cause, agent_id),)
            )
        _, offers = await self._look_up([], _capabilities(plan, instance))
        around = Surroundings(
            offers=offers,
            owner=agent_id,
            owner_lives=mine,
            claimable_at=None if mine else self._clock.now() + timedelta(seconds=self._lease_seconds),
        )
        return self._answer(asked, plan, instance, around)

    # --- the answer ------------------------------------------------------------------------------------

    def _answer(
        self, asked: WorkflowWhyRequest, plan: Plan, instance: Instance, around: Surroundings
    ) -> WorkflowWhy:
        now = self._clock.now()
        if not asked.task_id:
            return self._told(asked, str(instance.status), why(plan, instance, now, around))
        if asked.task_id not in plan.tasks:
            raise TaskNotFound(
                f"workflow {plan.workflow_id!r} has no task {asked.task_id!r}",
                {"known": list(plan.tasks)[:20]},
            )
        found = why_task(plan, instance, now, around, asked.task_id)
        refusals = orders.refusals(plan, instance, asked.task_id, now)
        return self._told(asked, str(instance.runs[asked.task_id].status), found, refusals)

    def _told(
        self,
        asked: WorkflowWhyRequest,
        status: str,
        found: tuple[Reason, ...],
        refusals: Mapping[str, str] | None = None,
    ) -> WorkflowWhy:
        return WorkflowWhy(
            instance_id=asked.instance_id,
            task_id=asked.task_id,
            status=status,
            summary=found[0].sentence if asked.task_id and found else summary(found),
            reasons=list(found[:MAX_REASONS]),
            refusals=dict(refusals or {}),
            as_of=self._clock.now(),
        )


async def _stored(driver: Driver) -> bool:
    """Return whether what the driver decided is stored, after a short wait for it."""
    try:
        async with asyncio.timeout(LOOK_UP_SECONDS):
            await driver.stored()
    except TimeoutError:
        return False
    return True


def _capabilities(plan: Plan, instance: Instance) -> set[str]:
    """Return the capabilities that an instance waits for now."""
    found = set[str]()
    for task_id in instance.active:
        run = instance.runs[task_id]
        if run.deciding:
            found.add(contracts.ERROR_HANDLE.id)
        elif run.status is TaskStatus.READY:
            found.add(contracts.CONDITION_EVALUATE.id)
        elif run.status is TaskStatus.RUNNING:
            found.add(plan.tasks[task_id].capability)
    return found


def _place(told: Mapping[str, Any], known: Place | None) -> Place:
    """Return where the router says that an attempt is, with what the engine knows of it."""
    last = known.last_sign_at if known is not None else None
    place = msgspec.convert(told, Place, strict=False)
    return msgspec.structs.replace(place, last_sign_at=last)
