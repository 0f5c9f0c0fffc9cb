"""Whatever the graph and whatever happens: promises that hold for every instance."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as some

from orchestration import commands as cmd
from orchestration import events as ev
from orchestration import machine
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import Condition, OnError, Plan, TaskPlan
from orchestration.errors import IllegalMove
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import UNREPEATABLE, Effects, InstanceStatus, RecoveryAction, Severity, TaskStatus
from orchestration.times import due_times
from tests.builders import Play, make_plan, make_task

MAX_STEPS = 400


@some.composite
def plans(draw: some.DrawFn) -> Plan:
    count = draw(some.integers(1, 7))
    tasks = []
    for number in range(count):
        earlier = [f"t{index}" for index in range(number)]
        depends_on = draw(some.lists(some.sampled_from(earlier), unique=True, max_size=3)) if earlier else []
        attempts = draw(some.integers(1, 3))
        tasks.append(
            make_task(
                f"t{number}",
                *depends_on,
                condition=draw(some.sampled_from([None, Condition(expression="x")])),
                retry=RetryPolicy(
                    strategy=draw(some.sampled_from(RetryStrategy)),
                    max_attempts=attempts,
                    retry_on_codes=("E",),
                ),
                effects=draw(some.sampled_from(Effects)),
                on_error=OnError(),
                total_timeout_seconds=draw(some.sampled_from([0.0, 0.0, 30.0])),
                schedule_to_start_seconds=draw(some.sampled_from([60.0, 3600.0])),
                timeout_seconds=draw(some.sampled_from([60.0, 300.0])),
            )
        )
    return make_plan(*tasks, *draw(lookers(tasks)))


def lookers(tasks: list[TaskPlan]) -> some.SearchStrategy[list[TaskPlan]]:
    """Give some of the tasks that must not be repeated a reconcile task; they are changed in place."""

    @some.composite
    def build(draw: some.DrawFn) -> list[TaskPlan]:
        found: list[TaskPlan] = []
        for index, task in enumerate(tasks):
            if task.effects in UNREPEATABLE and draw(some.booleans()):
                name = f"look_{task.id}"
                before = [each.id for each in tasks[:index] if task.id not in each.depends_on]
                needs = draw(some.lists(some.sampled_from(before), max_size=1)) if before else []
                found.append(make_task(name, *needs, is_reconcile=True))
                tasks[index] = msgspec.structs.replace(task, reconcile=name)
        return found

    return build()


def next_stimulus(play: Play, draw: some.DataObject) -> st.AnyStimulus | None:
    """Return something that could reach the instance now, or None when it has ended."""
    if play.instance.status.is_final:
        return None
    now = play.later(draw.draw(some.sampled_from([0.5, 2.0, 90.0])))
    choice = draw.draw(some.integers(0, 9))
    if choice == 0:
        return st.PauseOrder(at=now, duration_seconds=draw.draw(some.sampled_from([None, 5.0])))
    if choice == 1:
        return st.ResumeOrder(at=now)
    if choice == 2:
        return st.Tick(at=now)
    task_id = draw.draw(some.sampled_from(list(play.plan.tasks)))
    if choice == 3:
        orders: list[st.AnyStimulus] = [
            st.SkipOrder(at=now, task_id=task_id),
            st.RetryOrder(at=now, task_id=task_id),
            st.CompleteOrder(at=now, task_id=task_id, outputs={f"{task_id}_out": 2}),
        ]
        return draw.draw(some.sampled_from(orders))
    active = list(play.instance.active)
    if not active:
        return st.ResumeOrder(at=now)
    run = play.instance.runs[draw.draw(some.sampled_from(active))]
    if run.deciding:
        action = draw.draw(some.sampled_from(RecoveryAction))
        if run.handler_retries > 3:
            action = RecoveryAction.ABORT
        return st.RecoveryAnswer(at=now, task_id=run.task_id, action=action, severity=Severity.LOW)
    if run.status is TaskStatus.READY:
        return st.ConditionAnswer(at=now, task_id=run.task_id, result=draw.draw(some.booleans()))
    if run.status is TaskStatus.RETRYING:
        return st.Tick(at=now)
    outcome = draw.draw(some.sampled_from(["ok", "ok", "error", "lost", "late"]))
    if outcome == "late" and run.attempt > 1:
        token = f"{play.instance.id}/{run.task_id}/{run.attempt - 1}"
        return st.AttemptSucceeded(at=now, task_id=run.task_id, token=token, outputs={"stale": True})
    if outcome == "ok":
        return st.AttemptSucceeded(
            at=now, task_id=run.task_id, token=run.token, outputs={f"{run.task_id}_out": 1}
        )
    if outcome == "lost":
        silent = draw.draw(some.booleans())
        return st.AttemptVanished(at=now, task_id=run.task_id, token=run.token, may_be_at_work=silent)
    if run.reconciles and outcome == "ok":
        verdict = {"outcome": draw.draw(some.sampled_from(["done", "not_done", "unclear"]))}
        return st.AttemptSucceeded(at=now, task_id=run.task_id, token=run.token, primary=verdict)
    error = ErrorInfo(code="E", message="broken")
    return st.AttemptErrored(at=now, task_id=run.task_id, token=run.token, error=error, jitter=0.5)


@settings(max_examples=200, deadline=None)
@given(plans(), some.data())
def test_promises_hold_for_every_history(plan: Plan, data: some.DataObject) -> None:
    play = Play(plan)
    for _ in range(MAX_STEPS):
        stimulus = next_stimulus(play, data)
        if stimulus is None:
            break
        before = play.instance
        try:
            play.send(stimulus)  # checks that the facts alone rebuild the instance
        except IllegalMove:
            assert play.instance == before
        check(play)
    check_order(play)


def check(play: Play) -> None:
    """What is true after every step."""
    instance = play.instance
    open_runs = [run for run in instance.runs.values() if not run.status.is_final]
    assert instance.open_runs == len(open_runs)
    assert sum(instance.counts.values()) == len(instance.runs)
    assert instance.seq == len(play.events)
    assert instance.status.is_final == (not open_runs)
    if not instance.status.is_final:
        assert due_times(play.plan, instance), "an unfinished instance has nothing that will wake it"
        assert instance.active or any(run.status is TaskStatus.PENDING for run in open_runs)
    assert "stale" not in instance.variables
    for run in instance.runs.values():
        if run.status is TaskStatus.OUTCOME_UNKNOWN:
            assert run.token, "a late result could not settle it"
            assert play.plan.tasks[run.task_id].effects in UNREPEATABLE
        assert run.reconciling == any(
            each.reconciles == run.task_id and not each.status.is_final
            for each in instance.runs.values()
            if run.status is TaskStatus.OUTCOME_UNKNOWN
        )
        assert run.failures <= play.plan.tasks[run.task_id].retry.max_attempts + run.handler_retries + 1


def check_order(play: Play) -> None:
    """No task starts before everything it depends on is final, and each outcome is recorded once a round."""
    final: set[str] = set()
    for event in play.events:
        match event:
            case ev.TaskStarted():
                assert set(play.plan.tasks[event.task_id].depends_on) <= final
            case ev.TaskCompleted() | ev.TaskFailed() | ev.TaskSkipped():
                assert event.task_id not in final
                final.add(event.task_id)
            case ev.TaskReconciling():
                final.discard(event.reconcile)
            case ev.TaskReset():
                final = {
                    task_id
                    for task_id in final
                    if task_id != event.task_id and not behind(play.plan, event.task_id, task_id)
                }
            case _:
                pass


@settings(max_examples=100, deadline=None)
@given(plans(), some.data())
def test_what_was_under_way_is_found_again_after_any_prefix(plan: Plan, data: some.DataObject) -> None:
    """After every step: each active task has a command that goes on with it, a time that wakes it, or a person."""
    play = Play(plan)
    for _ in range(60):
        stimulus = next_stimulus(play, data)
        if stimulus is None:
            break
        try:
            step = play.send(stimulus)
        except IllegalMove:
            continue
        rebuilt = machine.replay(plan, play.instance.id, play.events)
        derived = machine.pending_commands(plan, rebuilt)
        if step.events and not rebuilt.status.is_final:
            lost = [each for each in step.commands if not isinstance(each, cmd.CancelAttempt)]
            assert {key_of(each) for each in lost} <= {key_of(each) for each in derived}
        woken = {each.task_id for each in derived} | {each.task_id for each in due_times(plan, rebuilt)}
        for task_id in rebuilt.active:
            run = rebuilt.runs[task_id]
            waits = run.awaiting_fallback or run.status is TaskStatus.OUTCOME_UNKNOWN
            assert task_id in woken or waits or rebuilt.status is InstanceStatus.PAUSED


def key_of(command: cmd.Command) -> tuple[str, str]:
    """Return what a command is about; a dispatch and a wait for its result are the same attempt."""
    return command.task_id, getattr(command, "token", "")


def behind(plan: Plan, first: str, task_id: str) -> bool:
    """Return whether `task_id` depends on `first`, directly or not."""
    depends_on = plan.tasks[task_id].depends_on
    return any(name == first or behind(plan, first, name) for name in depends_on)
