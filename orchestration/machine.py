"""The heart: the only code that decides what happens next to an instance.

`advance` takes an instance and what reached it, and returns the facts to store, the instance after them, and what
to do once they are stored. It reads no clock and draws no number; the same values in give the same values out.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from orchestration import commands as cmd
from orchestration import events as ev
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.inputs import check_outputs
from orchestration.definition.plan import Plan, TaskPlan
from orchestration.errors import IllegalMove
from orchestration.instance import ACTIVE, BLOCKING, Draft, Instance, Run, evolve, new_draft, skipped_behind
from orchestration.outputs import map_outputs, workflow_outputs
from orchestration.retry import delay_seconds, should_retry
from orchestration.status import Effects, InstanceStatus, RecoveryAction, TaskStatus

MAX_LOSSES = 3
"""An attempt whose executor disappeared is dispatched again this often at most; then the task is poison."""
MAX_PROBLEMS = 20
"""Most problems with a workflow's outputs that one warning lists."""
SCHEDULE_TO_START_SECONDS = 3600.0
"""How long an attempt may wait for a free agent before it counts as timed out."""
NOT_BEGUN = frozenset({TaskStatus.PENDING, TaskStatus.SKIPPED})
REPEATABLE = frozenset({Effects.NONE, Effects.READ, Effects.IDEMPOTENT})
"""Effects that a second attempt may repeat without asking anybody."""


class Step(msgspec.Struct, frozen=True):
    """The outcome of one stimulus. No events: nothing changed and nothing is to be stored."""

    instance: Instance
    events: tuple[ev.Event, ...]
    commands: tuple[cmd.Command, ...]


class _Turn:
    """One call of `advance`: the draft, the facts so far, the commands so far."""

    __slots__ = ("at", "commands", "draft", "ended", "events", "plan")

    def __init__(self, draft: Draft, at: datetime) -> None:
        self.draft = draft
        self.plan = draft.plan
        self.at = at
        self.events: list[ev.Event] = []
        self.commands: list[cmd.Command] = []
        self.ended: list[str] = []

    def record(self, event: ev.Event) -> None:
        self.events.append(event)
        evolve(self.draft, event)
        if isinstance(event, (ev.TaskCompleted, ev.TaskFailed, ev.TaskSkipped)):
            self.ended.append(event.task_id)

    def finish(self) -> Step:
        _settle(self)
        return Step(self.draft.freeze(), tuple(self.events), tuple(self.commands))


def start(
    plan: Plan,
    instance_id: str,
    inputs: dict[str, Any],
    *,
    at: datetime,
    trigger: str = "api",
    request_hash: str = "",
    admit: bool = False,
) -> Step:
    """Return the first step of an instance. `inputs` are checked and have their defaults.

    Args:
        request_hash: What was asked for, when the start may be repeated (see `orchestration.starts`).
        admit: Begin at once, because a slot is free; otherwise the instance is pending until `Admit`.
    """
    started = ev.InstanceStarted(
        at=at,
        workflow_id=plan.workflow_id,
        workflow_version=plan.version,
        definition_hash=plan.definition_hash,
        inputs=inputs,
        trigger=trigger,
        request_hash=request_hash,
        admitted=admit,
    )
    turn = _Turn(new_draft(plan, instance_id, started), at)
    turn.record(started)
    if admit:
        turn.record(ev.InstanceAdmitted(at=at))
    return turn.finish()


def replay(plan: Plan, instance_id: str, events: Iterable[ev.Event]) -> Instance:
    """Return the instance that these facts make.

    Raises: ValueError if they do not begin with the instance's start.
    """
    draft: Draft | None = None
    for event in events:
        if draft is None:
            if not isinstance(event, ev.InstanceStarted):
                raise ValueError(
                    f"instance {instance_id}: its first event is {ev.type_of(event)}, not its start"
                )
            draft = new_draft(plan, instance_id, event)
        evolve(draft, event)
        draft.unblocked.clear()
    if draft is None:
        raise ValueError(f"instance {instance_id} has no events")
    return draft.freeze()


def advance(plan: Plan, instance: Instance, stimulus: st.AnyStimulus) -> Step:
    """Return what follows from a stimulus. A final instance never changes.

    Raises: IllegalMove if an order cannot be obeyed in this state; nothing changes then.
    """
    if instance.status.is_final:
        if isinstance(stimulus, _ORDERS):
            raise IllegalMove(f"instance {instance.id} is {instance.status} and cannot change any more")
        return Step(instance, (), ())
    turn = _Turn(Draft(plan, instance), stimulus.at)
    _RULES[type(stimulus)](turn, stimulus)
    if not turn.events:
        return Step(instance, (), tuple(turn.commands))
    return turn.finish()


def pending_commands(plan: Plan, instance: Instance) -> tuple[cmd.Command, ...]:
    """Return what has to be done again for an instance that was just rebuilt from its facts."""
    if instance.status.is_final or instance.started_at is None:
        return ()
    found: list[cmd.Command] = []
    for task_id in instance.active:
        run, task = instance.runs[task_id], plan.tasks[task_id]
        if run.deciding and run.error is not None:
            found.append(cmd.AskRecovery(task_id, run.error))
        elif run.awaiting_fallback:
            continue
        elif run.status is TaskStatus.RUNNING:
            again = task.effects in REPEATABLE
            found.append(
                cmd.Dispatch(task_id, run.attempt, run.token)
                if again
                else cmd.AwaitResult(task_id, run.token)
            )
        elif run.status is TaskStatus.READY and run.condition_met is None and _needs_question(task):
            found.append(cmd.AskCondition(task_id))
    return tuple(found)


def due_times(plan: Plan, instance: Instance) -> list[tuple[datetime, str]]:
    """Return when something is due for an instance, each with its reason; unordered."""
    if instance.status.is_final:
        return []
    times: list[tuple[datetime, str]] = []
    if instance.started_at is not None:
        times.append(
            (instance.started_at + timedelta(seconds=plan.global_timeout_seconds), "time for the whole is up")
        )
    if instance.resume_at is not None:
        times.append((instance.resume_at, "the pause ends"))
    for task_id in instance.active:
        due = _due_at(plan.tasks[task_id], instance.runs[task_id])
        if due is not None:
            times.append((due, f"task {task_id} is due"))
    return times


def _due_at(task: TaskPlan, run: Run) -> datetime | None:
    if run.status is TaskStatus.RETRYING:
        return run.due_at
    if run.status is TaskStatus.RUNNING and run.token and run.attempt_started_at is not None:
        return run.attempt_started_at + timedelta(seconds=task.timeout_seconds + SCHEDULE_TO_START_SECONDS)
    return None


# --- the rules, one a stimulus ------------------------------------------------------------------------------


def _admit(turn: _Turn, stimulus: st.Admit) -> None:
    if turn.draft.status is InstanceStatus.PENDING:
        turn.record(ev.InstanceAdmitted(at=stimulus.at))


def _condition_answer(turn: _Turn, stimulus: st.ConditionAnswer) -> None:
    run = turn.draft.runs[stimulus.task_id]
    if run.status not in (TaskStatus.READY, TaskStatus.RETRYING) or run.condition_met is not None:
        return
    condition = turn.plan.tasks[run.task_id].condition
    expression = condition.expression if condition is not None else ""
    if stimulus.error is not None:
        _attempt_failed(turn, run, stimulus.error, jitter=0.0)
        return
    turn.record(
        ev.ConditionEvaluated(
            at=turn.at,
            task_id=run.task_id,
            result=stimulus.result,
            expression=expression,
            details=stimulus.details,
        )
    )
    if stimulus.result:
        _proceed(turn, run.task_id)
    else:
        _skip(turn, run.task_id, "condition_false", f"the condition is false: {expression}")


def _attempt_succeeded(turn: _Turn, stimulus: st.AttemptSucceeded) -> None:
    run = turn.draft.runs[stimulus.task_id]
    if not _is_current(run, stimulus.token):
        _note_late(turn, run, "a result")
        return
    turn.record(
        ev.TaskCompleted(
            at=turn.at,
            task_id=run.task_id,
            attempt=run.attempt,
            outputs=stimulus.outputs,
            primary=stimulus.primary,
            primary_output=stimulus.primary_output,
            metadata=stimulus.metadata,
        )
    )


def _attempt_errored(turn: _Turn, stimulus: st.AttemptErrored) -> None:
    run = turn.draft.runs[stimulus.task_id]
    if not _is_current(run, stimulus.token):
        _note_late(turn, run, f"the error {stimulus.error.code}")
        return
    _attempt_failed(turn, run, stimulus.error, stimulus.jitter)


def _attempt_vanished(turn: _Turn, stimulus: st.AttemptVanished) -> None:
    run = turn.draft.runs[stimulus.task_id]
    if not _is_current(run, stimulus.token):
        return
    task = turn.plan.tasks[run.task_id]
    turn.record(
        ev.AttemptLost(
            at=turn.at,
            task_id=run.task_id,
            attempt=run.attempt,
            agent_id=stimulus.agent_id,
            reason=stimulus.reason,
        )
    )
    if task.effects not in REPEATABLE:
        message = (
            "the agent disappeared; whether the work was done is unknown, and it must not be repeated blindly"
        )
        error = ErrorInfo(code="OUTCOME_UNKNOWN", message=message, retryable=False)
        _attempt_failed(turn, turn.draft.runs[run.task_id], error, jitter=0.0)
    elif run.losses + 1 >= MAX_LOSSES:
        message = f"{run.losses + 1} agents disappeared while they had this task; it is not tried again"
        error = ErrorInfo(code="POISON_TASK", message=message, retryable=False)
        _attempt_failed(turn, turn.draft.runs[run.task_id], error, jitter=0.0)
    elif turn.draft.status is InstanceStatus.RUNNING:
        _start_attempt(turn, run.task_id)
    else:
        _retry(
            turn,
            turn.draft.runs[run.task_id],
            turn.at,
            "its agent was lost; again when the instance is resumed",
        )


def _recovery_answer(turn: _Turn, stimulus: st.RecoveryAnswer) -> None:
    run = turn.draft.runs[stimulus.task_id]
    if not run.deciding or run.error is None:
        return
    action = _possible_action(turn, run, stimulus.action)
    turn.record(
        ev.RecoveryChosen(
            at=turn.at,
            task_id=run.task_id,
            action=action,
            severity=stimulus.severity,
            reason=stimulus.reason,
            error_id=stimulus.error_id,
            escalated=stimulus.escalated,
            delay_seconds=stimulus.delay_seconds,
            decided_by=stimulus.decided_by,
        )
    )
    delay = timedelta(seconds=stimulus.delay_seconds)
    match action:
        case RecoveryAction.RETRY:
            _retry(turn, run, turn.at + delay, "the error handler grants another attempt")
        case RecoveryAction.SKIP:
            _skip(turn, run.task_id, "recovery", f"skipped after {run.error.code}: {stimulus.reason}")
        case RecoveryAction.PAUSE | RecoveryAction.ESCALATE:
            _retry(turn, run, turn.at, "again when the instance is resumed")
            ends = turn.at + delay if action is RecoveryAction.PAUSE and stimulus.delay_seconds > 0 else None
            if turn.draft.status is InstanceStatus.RUNNING:
                reason = (
                    f"task {run.task_id} failed with {run.error.code}: {stimulus.reason or run.error.message}"
                )
                turn.record(ev.InstancePaused(at=turn.at, reason=reason, resume_at=ends))
        case RecoveryAction.FALLBACK:
            pass
        case _:
            _fail(turn, run.task_id, run.error)


def _possible_action(turn: _Turn, run: Run, wanted: RecoveryAction) -> RecoveryAction:
    """Return the wanted action, or abort where the definition or the state makes it impossible."""
    if wanted is RecoveryAction.FALLBACK:
        stand_in = turn.draft.runs.get(turn.plan.tasks[run.task_id].on_error.fallback)
        if stand_in is None or stand_in.status is not TaskStatus.PENDING:
            return RecoveryAction.ABORT
    if wanted is RecoveryAction.ROLLBACK:
        return RecoveryAction.ABORT
    return wanted


def _tick(turn: _Turn, stimulus: st.Tick) -> None:
    draft, now = turn.draft, stimulus.at
    limit = turn.plan.global_timeout_seconds
    if draft.started_at is not None and now >= draft.started_at + timedelta(seconds=limit):
        error = ErrorInfo(
            code="TIMEOUT_EXCEEDED", message=f"not finished within {limit:g} s", retryable=False
        )
        _end_early(turn, ev.InstanceFailed(at=now, error=error), "the time for the whole is up")
        return
    if draft.status is InstanceStatus.PAUSED and draft.resume_at is not None and now >= draft.resume_at:
        _resume(turn, "the pause is over")
    for task_id in list(draft.active):
        run = draft.runs[task_id]
        due = _due_at(turn.plan.tasks[task_id], run)
        if due is None or due > now:
            continue
        if run.status is TaskStatus.RETRYING:
            _proceed(turn, task_id)
        else:
            turn.commands.append(cmd.CancelAttempt(task_id, run.token))
            message = "no agent took the task and finished it in time"
            _attempt_failed(turn, run, ErrorInfo(code="TIMEOUT", message=message), jitter=0.0)


def _pause(turn: _Turn, stimulus: st.PauseOrder) -> None:
    if turn.draft.status is InstanceStatus.PAUSED:
        return
    ends = None
    if stimulus.duration_seconds is not None:
        ends = turn.at + timedelta(seconds=stimulus.duration_seconds)
    turn.record(ev.InstancePaused(at=turn.at, reason=stimulus.reason, resume_at=ends))


def _resume_order(turn: _Turn, stimulus: st.ResumeOrder) -> None:
    if turn.draft.status is InstanceStatus.PAUSED:
        _resume(turn, stimulus.reason)


def _resume(turn: _Turn, reason: str) -> None:
    turn.record(ev.InstanceResumed(at=turn.at, reason=reason))
    for task_id in list(turn.draft.active):
        run = turn.draft.runs[task_id]
        held = run.status is TaskStatus.READY or (
            run.status is TaskStatus.RETRYING and run.due_at is not None and run.due_at <= turn.at
        )
        if held and not run.awaiting_fallback:
            _proceed(turn, task_id)


def _stop(turn: _Turn, stimulus: st.StopOrder) -> None:
    _end_early(turn, ev.InstanceCancelled(at=turn.at, reason=stimulus.reason), "the instance was stopped")


def _breakdown(turn: _Turn, stimulus: st.Breakdown) -> None:
    _end_early(turn, ev.InstanceFailed(at=turn.at, error=stimulus.error), "the instance cannot go on")


def _retry_order(turn: _Turn, stimulus: st.RetryOrder) -> None:
    run = _known_run(turn, stimulus.task_id)
    waits = run.status is TaskStatus.RETRYING or run.deciding
    if (
        not (run.status is TaskStatus.FAILED or run.skip_reason == "recovery" or waits)
        or run.awaiting_fallback
    ):
        raise IllegalMove(f"task {run.task_id} is {run.status}; only a task that failed can be run again")
    again = {run.task_id} | skipped_behind(turn.plan, turn.draft.runs, run.task_id)
    behind = (name for task_id in again for name in turn.plan.tasks[task_id].dependents if name not in again)
    begun = [name for name in behind if turn.draft.runs[name].status not in NOT_BEGUN]
    if begun:
        raise IllegalMove(
            f"{', '.join(sorted(set(begun)))} went on without task {run.task_id}; start the workflow anew"
        )
    turn.record(ev.TaskReset(at=turn.at, task_id=run.task_id, reason=stimulus.reason))
    _proceed(turn, run.task_id)


def _skip_order(turn: _Turn, stimulus: st.SkipOrder) -> None:
    run = _known_run(turn, stimulus.task_id)
    if run.status.is_final:
        raise IllegalMove(f"task {run.task_id} is {run.status} already and cannot be skipped")
    if run.status is TaskStatus.RUNNING and not run.deciding:
        turn.commands.append(cmd.CancelAttempt(run.task_id, run.token))
    _skip(turn, run.task_id, "operator", stimulus.reason)


def _known_run(turn: _Turn, task_id: str) -> Run:
    run = turn.draft.runs.get(task_id)
    if run is None:
        raise IllegalMove(
            f"the workflow has no task {task_id!r}; it has {', '.join(list(turn.plan.tasks)[:20])}"
        )
    return run


def _update(turn: _Turn, stimulus: st.UpdateOrder) -> None:
    turn.record(
        ev.VariablesUpdated(
            at=turn.at, updates=stimulus.updates, replace=stimulus.replace, description=stimulus.description
        )
    )


_RULES: dict[type, Callable[[_Turn, Any], None]] = {
    st.Admit: _admit,
    st.ConditionAnswer: _condition_answer,
    st.AttemptSucceeded: _attempt_succeeded,
    st.AttemptErrored: _attempt_errored,
    st.AttemptVanished: _attempt_vanished,
    st.RecoveryAnswer: _recovery_answer,
    st.Tick: _tick,
    st.PauseOrder: _pause,
    st.ResumeOrder: _resume_order,
    st.StopOrder: _stop,
    st.Breakdown: _breakdown,
    st.RetryOrder: _retry_order,
    st.SkipOrder: _skip_order,
    st.UpdateOrder: _update,
}
_ORDERS = (st.PauseOrder, st.ResumeOrder, st.StopOrder, st.RetryOrder, st.SkipOrder, st.UpdateOrder)


# --- what the rules share -----------------------------------------------------------------------------------


def _is_current(run: Run, token: str) -> bool:
    return run.status is TaskStatus.RUNNING and bool(token) and run.token == token


def _note_late(turn: _Turn, run: Run, what: str) -> None:
    detail = f"{what} of a superseded attempt; the task is {run.status}"
    turn.record(ev.LateResult(at=turn.at, task_id=run.task_id, attempt=run.attempt, detail=detail))


def _needs_question(task: TaskPlan) -> bool:
    return task.condition is not None and bool(task.condition.expression)


def _proceed(turn: _Turn, task_id: str) -> None:
    """Bring a task nearer to its attempt: condition first, then the attempt; neither while paused."""
    run, task = turn.draft.runs[task_id], turn.plan.tasks[task_id]
    if turn.draft.status is not InstanceStatus.RUNNING:
        return
    if run.condition_met is None and task.condition is not None:
        required = task.condition.required_outputs
        missing = [name for name in required if turn.draft.variables.get(name) is None]
        if missing:
            _skip(turn, task_id, "required_output_missing", f"no value for {', '.join(missing)}")
            return
        if _needs_question(task):
            turn.commands.append(cmd.AskCondition(task_id))
            return
    _start_attempt(turn, task_id)


def _start_attempt(turn: _Turn, task_id: str) -> None:
    attempt = turn.draft.runs[task_id].attempt + 1
    token = f"{turn.draft.id}/{task_id}/{attempt}"
    turn.record(ev.TaskStarted(at=turn.at, task_id=task_id, attempt=attempt, token=token))
    turn.commands.append(cmd.Dispatch(task_id, attempt, token))


def _attempt_failed(turn: _Turn, run: Run, error: ErrorInfo, jitter: float) -> None:
    """Record a failed attempt and either plan the next one or ask what to do."""
    turn.record(ev.AttemptFailed(at=turn.at, task_id=run.task_id, attempt=run.attempt, error=error))
    failed = turn.draft.runs[run.task_id]
    policy = turn.plan.tasks[run.task_id].retry
    if should_retry(policy, failed.failures, error):
        wait = max(delay_seconds(policy, failed.failures, jitter), error.retry_after_seconds or 0.0)
        reason = f"{error.code}; attempt {failed.failures} of {policy.max_attempts} failed"
        _retry(turn, failed, turn.at + timedelta(seconds=wait), reason)
    else:
        turn.commands.append(cmd.AskRecovery(run.task_id, error))


def _retry(turn: _Turn, run: Run, due_at: datetime, reason: str) -> None:
    turn.record(
        ev.TaskRetrying(
            at=turn.at, task_id=run.task_id, attempt=run.attempt + 1, due_at=due_at, reason=reason
        )
    )


def _skip(turn: _Turn, task_id: str, reason: str, detail: str) -> None:
    turn.record(ev.TaskSkipped(at=turn.at, task_id=task_id, reason=reason, detail=detail))


def _fail(turn: _Turn, task_id: str, error: ErrorInfo) -> None:
    turn.record(ev.TaskFailed(at=turn.at, task_id=task_id, error=error))


def _end_early(turn: _Turn, ending: ev.InstanceFailed | ev.InstanceCancelled, why: str) -> None:
    """End the instance now: what is under way is cancelled, what has not begun is skipped."""
    for run in list(turn.draft.runs.values()):
        if run.status in ACTIVE:
            if run.status is TaskStatus.RUNNING and not run.deciding:
                turn.commands.append(cmd.CancelAttempt(run.task_id, run.token))
            turn.record(ev.TaskCancelled(at=turn.at, task_id=run.task_id, reason=why))
        elif not run.status.is_final:
            _skip(turn, run.task_id, "instance_ended", why)
    turn.record(ending)


def _settle(turn: _Turn) -> None:
    """Work off what became possible until nothing more follows; end the instance when every task is final."""
    draft = turn.draft
    while (draft.unblocked or turn.ended) and not draft.status.is_final:
        for task_id in _take(draft.unblocked):
            _unblock(turn, task_id)
        for task_id in _take(turn.ended):
            _close_fallback(turn, task_id)
    if draft.open_runs == 0 and not draft.status.is_final:
        _end(turn)


def _take(names: list[str]) -> list[str]:
    taken = names[:]
    names.clear()
    return taken


def _unblock(turn: _Turn, task_id: str) -> None:
    """Decide about a task whose dependencies are all final: the fold made it ready where the join lets it run."""
    run, task = turn.draft.runs[task_id], turn.plan.tasks[task_id]
    if run.status is TaskStatus.READY:
        _proceed(turn, task_id)
    elif run.status is TaskStatus.PENDING and not (task.is_fallback and not run.fallback_for):
        ended_badly = [name for name in task.depends_on if turn.draft.runs[name].status in BLOCKING]
        if ended_badly:
            _skip(turn, task_id, "dependency_failed", f"failed before it: {', '.join(ended_badly)}")
        else:
            _skip(turn, task_id, "dependencies_skipped", "everything it depends on was skipped")


def _close_fallback(turn: _Turn, task_id: str) -> None:
    """A task became final: whom did it stand in for, and who stands by for it in vain?"""
    run, task = turn.draft.runs[task_id], turn.plan.tasks[task_id]
    if run.fallback_for:
        _stand_in_ended(turn, run, turn.draft.runs[run.fallback_for])
    stand_in = turn.draft.runs.get(task.on_error.fallback)
    if stand_in is None or stand_in.status is not TaskStatus.PENDING or stand_in.fallback_for:
        return
    users = (user for user in turn.plan.tasks.values() if user.on_error.fallback == stand_in.task_id)
    if all(turn.draft.runs[user.id].status.is_final for user in users):
        _skip(turn, stand_in.task_id, "fallback_not_needed", f"{task_id} needed no fallback")


def _stand_in_ended(turn: _Turn, stand_in: Run, waiting: Run) -> None:
    """The fallback is done: its outputs become those of the task it stands in for, or that task fails."""
    if not waiting.awaiting_fallback or waiting.status.is_final:
        return
    if stand_in.status is TaskStatus.COMPLETED:
        names = turn.plan.tasks[waiting.task_id].output_names
        primary = stand_in.primary_value
        turn.record(
            ev.TaskCompleted(
                at=turn.at,
                task_id=waiting.task_id,
                attempt=waiting.attempt,
                outputs=map_outputs(names, result={}, outputs=stand_in.outputs, primary=primary),
                primary=primary,
                metadata={"fallback": stand_in.task_id},
            )
        )
    else:
        assert waiting.error is not None
        _fail(turn, waiting.task_id, waiting.error)


def _end(turn: _Turn) -> None:
    """Every task is final: the instance completed, or failed with its first failed task."""
    draft = turn.draft
    for run in draft.runs.values():
        if run.status is TaskStatus.FAILED and run.error is not None:
            turn.record(ev.InstanceFailed(at=turn.at, error=run.error, task_id=run.task_id))
            return
    newest_first = (draft.runs[task_id].primary_value for task_id in reversed(draft.finished))
    outputs = workflow_outputs(turn.plan.output_names, draft.variables, newest_first)
    problems = check_outputs(turn.plan.output_schema, outputs)
    if problems:
        turn.record(ev.OutputMismatched(at=turn.at, problems=problems[:MAX_PROBLEMS]))
    turn.record(ev.InstanceCompleted(at=turn.at, outputs=outputs))
