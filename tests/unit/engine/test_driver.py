"""One driver: it stores first and acts afterwards, whatever arrives meanwhile."""

import asyncio
from collections.abc import Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from agents.workflow_engine.driver import LOOK_AGAIN_SECONDS, Driver, KeptResult, Letter
from orchestration import commands as cmd
from orchestration import contracts, machine
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import Condition, Plan
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import Effects, InstanceStatus
from tests.builders import START, at, make_plan, make_task


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

    def __init__(self, plan: Plan, *, admit: bool = True) -> None:
        self.clock = FakeClock()
        self.log = FakeLog()
        self.performed: list[cmd.Command] = []
        self.settled: list[KeptResult] = []
        self.handed_on: list[st.AnyStimulus] = []
        self.lost: list[str] = []
        self.changes = 0
        self.step = machine.start(plan, "ins_1", {}, at=self.clock.now(), admit=admit)
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

    def hand_on(self, driver: Driver, letters: Sequence[Letter]) -> None:
        self.handed_on.extend(letter.stimulus for letter in letters)

    def settle(self, kept: KeptResult) -> None:
        self.settled.append(kept)

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


async def test_an_attempt_that_was_given_up_before_it_was_stored_is_not_sent() -> None:
    stage = Stage(make_plan(make_task("a"), make_task("b", "a")))
    await stage.driver.begin(stage.step)
    stage.driver.post(stage.success("a"))
    stage.driver.post(st.StopOrder(at=stage.clock.now()))
    await stage.driver.idle()
    assert [command.task_id for command in stage.performed] == ["a"]


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
    result = stage.success("a")
    stage.driver.post(result)
    await stage.driver.idle()
    assert stage.driver.lost
    assert stage.lost
    assert stage.handed_on == [result]
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


async def test_a_kept_result_is_settled_once_it_is_stored() -> None:
    stage = Stage(make_plan(make_task("a"), make_task("b", "a")))
    kept = KeptResult("executor", "ins_1/a/1")
    await stage.driver.begin(stage.step)
    stage.log.open.clear()
    stage.driver.post(stage.success("a"), kept=kept)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert stage.settled == []
    stage.log.open.set()
    await stage.driver.idle()
    assert stage.settled == [kept]


async def test_a_kept_result_that_nobody_wants_is_settled_too() -> None:
    stage = Stage(make_plan(make_task("a")))
    await stage.driver.begin(stage.step)
    first, again, late = (KeptResult("executor", f"token {number}") for number in range(3))
    stage.driver.post(stage.success("a"), kept=first)
    stage.driver.post(stage.success("a"), kept=again)
    await stage.driver.idle()
    stage.driver.let_go()
    stage.driver.post(stage.success("a"), kept=late)
    assert stage.settled == [first, again, late]


async def test_a_kept_result_of_an_instance_that_another_engine_owns_is_not_settled() -> None:
    stage = Stage(make_plan(make_task("a"), make_task("b", "a")))
    await stage.driver.begin(stage.step)
    stage.log.answer = "stale_owner"
    stage.driver.post(stage.success("a"), kept=KeptResult("executor", "token"))
    await stage.driver.idle()
    stage.driver.post(stage.success("a"), kept=KeptResult("executor", "token"))
    assert stage.settled == []


async def test_the_row_says_when_the_instance_is_looked_at_next() -> None:
    quick = make_task("a", timeout_seconds=5, schedule_to_start_seconds=5)
    stage = Stage(make_plan(quick, make_task("b", "a"), global_timeout_seconds=100))
    await stage.driver.begin(stage.step)
    assert stage.log.batches[-1].row.wake_at == at(10)
    stage.clock.seconds = 3
    stage.driver.post(stage.success("a"))
    await stage.driver.idle()
    assert stage.log.batches[-1].row.wake_at == at(100), (
        "what is due for a task that has ended does not count"
    )
    stage.driver.let_go()


async def test_a_paused_instance_wakes_for_no_retry_until_it_is_resumed() -> None:
    retry = RetryPolicy(strategy=RetryStrategy.FIXED_DELAY, initial_delay_seconds=10)
    stage = Stage(make_plan(make_task("a", retry=retry), global_timeout_seconds=100))
    await stage.driver.begin(stage.step)
    stage.driver.post(
        st.AttemptErrored(
            at=stage.clock.now(),
            task_id="a",
            token="ins_1/a/1",
            error=ErrorInfo(code="TIMEOUT", message="late"),
            jitter=0.5,
        )
    )
    await stage.driver.idle()
    assert stage.log.batches[-1].row.wake_at == at(10)
    stage.driver.post(st.PauseOrder(at=stage.clock.now()))
    await stage.driver.idle()
    assert stage.log.batches[-1].row.wake_at == at(100)
    stage.driver.post(st.ResumeOrder(at=stage.clock.now()))
    await stage.driver.idle()
    assert stage.log.batches[-1].row.wake_at == at(10)
    stage.driver.let_go()


async def test_an_instance_for_which_nothing_is_due_is_looked_at_all_the_same() -> None:
    stage = Stage(make_plan(make_task("a")), admit=False)
    await stage.driver.begin(stage.step)
    row = stage.log.batches[-1].row
    assert row.wake_at == at(LOOK_AGAIN_SECONDS)
    assert row.wake_reason
    stage.clock.seconds = LOOK_AGAIN_SECONDS + 1
    stage.driver.post(st.Tick(at=stage.clock.now()))
    await stage.driver.idle()
    assert stage.log.batches[-1].events == []
    assert stage.log.batches[-1].row.wake_at == at(2 * LOOK_AGAIN_SECONDS + 1)
    stage.driver.let_go()


async def test_a_tick_before_its_time_stores_nothing() -> None:
    stage = Stage(make_plan(make_task("a")))
    await stage.driver.begin(stage.step)
    stage.driver.post(st.Tick(at=stage.clock.now()))
    await stage.driver.idle()
    assert len(stage.log.batches) == 1
    stage.driver.let_go()


async def test_a_nudge_has_forgotten_commands_performed_and_the_row_renewed() -> None:
    stage = Stage(make_plan(make_task("a"), make_task("b", effects=Effects.ONCE)))
    await stage.driver.begin(stage.step)
    stage.performed.clear()
    stage.driver.nudge()
    await stage.driver.idle()
    assert stage.performed == [cmd.Dispatch("a", 1, "ins_1/a/1"), cmd.AwaitResult("b", "ins_1/b/1")]
    assert len(stage.log.batches) == 2
    assert stage.log.batches[-1].events == []
    stage.driver.let_go()
    stage.driver.nudge()
    assert len(stage.performed) == 2
