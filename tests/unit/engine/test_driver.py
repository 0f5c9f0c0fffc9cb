"""One driver: it stores first and acts afterwards, whatever arrives meanwhile."""

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any

from agents.workflow_engine.driver import Driver
from orchestration import commands as cmd
from orchestration import contracts, machine
from orchestration import stimuli as st
from orchestration.definition.plan import Condition, Plan
from orchestration.status import InstanceStatus
from tests.builders import START, make_plan, make_task


class FakeClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


class FakeLog:
    """A log that answers when it is let."""

    def __init__(self) -> None:
        self.batches: list[contracts.AppendBatch] = []
        self.open = asyncio.Event()
        self.open.set()
        self.answer = "ok"
        self.refusals = 0

    async def append(self, batch: contracts.AppendBatch) -> contracts.AppendOutcome:
        await self.open.wait()
        self.batches.append(batch)
        answer = "refused" if self.refusals else self.answer
        self.refusals -= bool(self.refusals)
        return contracts.AppendOutcome(
            instance_id=batch.instance_id,
            status=answer,  # type: ignore[arg-type]
            seq=batch.expected_seq + len(batch.events),
        )


class Stage:
    """A driver with everything around it faked at its seams."""

    def __init__(self, plan: Plan) -> None:
        self.clock = FakeClock()
        self.log = FakeLog()
        self.performed: list[cmd.Command] = []
        self.lost: list[str] = []
        self.changes = 0
        self.step = machine.start(plan, "ins_1", {}, at=self.clock.now(), admit=True)
        self.driver = Driver(
            plan,
            instance=self.step.instance,
            owner="me",
            epoch=1,
            log=self.log,
            performer=self,
            clock=self.clock,
            spawn=self.spawn,
            on_change=self.changed,
            on_lost=lambda driver, reason: self.lost.append(reason),
        )

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    def perform(self, driver: Driver, command: cmd.Command) -> None:
        self.performed.append(command)

    def changed(self, driver: Driver) -> None:
        self.changes += 1

    def success(self, task_id: str) -> st.AttemptSucceeded:
        return st.AttemptSucceeded(
            at=self.clock.now(), task_id=task_id, token=self.driver.instance.runs[task_id].token
        )


async def test_nothing_is_dispatched_before_it_is_stored() -> None:
    stage = Stage(make_plan(make_task("a"), make_task("b", "a")))
    await stage.driver.begin(stage.step)
    stage.log.open.clear()
    stage.driver.post(stage.success("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [command.task_id for command in stage.performed] == ["a"]
    assert stage.driver.committed.runs["b"].attempt == 0
    stage.log.open.set()
    await stage.driver.idle()
    assert [command.task_id for command in stage.performed] == ["a", "b"]
    assert stage.driver.committed.runs["b"].attempt == 1


async def test_questions_are_asked_at_once() -> None:
    stage = Stage(make_plan(make_task("a"), make_task("b", "a", condition=Condition(expression="x"))))
    await stage.driver.begin(stage.step)
    stage.log.open.clear()
    stage.driver.post(stage.success("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert isinstance(stage.performed[-1], cmd.AskCondition)
    stage.log.open.set()
    await stage.driver.idle()


async def test_what_arrives_together_is_stored_together() -> None:
    stage = Stage(make_plan(make_task("a"), make_task("b"), make_task("c")))
    await stage.driver.begin(stage.step)
    for task_id in ("a", "b", "c"):
        stage.driver.post(stage.success(task_id))
    await stage.driver.idle()
    assert len(stage.log.batches) == 2
    assert stage.driver.committed.status is InstanceStatus.COMPLETED


async def test_an_instance_that_another_engine_owns_is_let_go() -> None:
    stage = Stage(make_plan(make_task("a"), make_task("b", "a")))
    await stage.driver.begin(stage.step)
    stage.log.answer = "stale_owner"
    stage.driver.post(stage.success("a"))
    await stage.driver.idle()
    assert stage.driver.lost
    assert stage.lost
    assert [command.task_id for command in stage.performed] == ["a"]


async def test_facts_that_the_store_refuses_fail_the_instance() -> None:
    stage = Stage(make_plan(make_task("a"), make_task("b", "a")))
    await stage.driver.begin(stage.step)
    stage.log.refusals = 1
    stage.driver.post(stage.success("a"))
    await stage.driver.idle()
    assert stage.driver.committed.status is InstanceStatus.FAILED
    assert stage.driver.committed.error is not None
    assert stage.driver.committed.error.code == "STATE_REFUSED"


async def test_an_instance_whose_failure_is_refused_too_is_let_go() -> None:
    stage = Stage(make_plan(make_task("a")))
    await stage.driver.begin(stage.step)
    stage.log.refusals = 2
    stage.driver.post(stage.success("a"))
    await stage.driver.idle()
    assert stage.lost


async def test_a_refused_order_leaves_the_inbox_all_the_same() -> None:
    stage = Stage(make_plan(make_task("a")))
    await stage.driver.begin(stage.step)
    stage.driver.post(st.SkipOrder(at=stage.clock.now(), task_id="nowhere"), inbox_id=9)
    stage.driver.post(st.SkipOrder(at=stage.clock.now(), task_id="nowhere"), inbox_id=9)
    await stage.driver.idle()
    assert stage.log.batches[-1].consumed_inbox_ids == [9]
    assert stage.log.batches[-1].events == []


async def test_a_due_time_wakes_the_instance() -> None:
    stage = Stage(make_plan(make_task("a"), global_timeout_seconds=0.01))
    await stage.driver.begin(stage.step)
    stage.clock.seconds = 5
    async with asyncio.timeout(5):
        while not stage.driver.committed.status.is_final:
            await asyncio.sleep(0.005)
    assert stage.driver.committed.status is InstanceStatus.FAILED


async def test_a_rebuilt_instance_does_again_what_was_under_way() -> None:
    stage = Stage(make_plan(make_task("a")))
    stage.driver.restore()
    await stage.driver.idle()
    assert stage.performed == [cmd.Dispatch("a", 1, "ins_1/a/1")]
    stage.driver.let_go()
