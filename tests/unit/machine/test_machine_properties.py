"""Whatever the graph and whatever happens: promises that hold for every instance."""

from hypothesis import given, settings
from hypothesis import strategies as some

from orchestration import events as ev
from orchestration import machine
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import Condition, OnError, Plan
from orchestration.errors import IllegalMove
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import Effects, RecoveryAction, Severity, TaskStatus
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
            )
        )
    return make_plan(*tasks)


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
        return draw.draw(
            some.sampled_from([st.SkipOrder(at=now, task_id=task_id), st.RetryOrder(at=now, task_id=task_id)])
        )
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
    outcome = draw.draw(some.sampled_from(["ok", "ok", "error", "lost"]))
    if outcome == "ok":
        return st.AttemptSucceeded(
            at=now, task_id=run.task_id, token=run.token, outputs={f"{run.task_id}_out": 1}
        )
    if outcome == "lost":
        return st.AttemptVanished(at=now, task_id=run.task_id, token=run.token)
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
        assert machine.due_times(play.plan, instance), "an unfinished instance has nothing that will wake it"
        assert instance.active or any(run.status is TaskStatus.PENDING for run in open_runs)
    for run in instance.runs.values():
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
            case ev.TaskReset():
                final = {
                    task_id
                    for task_id in final
                    if task_id != event.task_id and not behind(play.plan, event.task_id, task_id)
                }
            case _:
                pass


def behind(plan: Plan, first: str, task_id: str) -> bool:
    """Return whether `task_id` depends on `first`, directly or not."""
    depends_on = plan.tasks[task_id].depends_on
    return any(name == first or behind(plan, first, name) for name in depends_on)
