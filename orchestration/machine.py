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
from orchestration import losses
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import Plan, TaskPlan
from orchestration.errors import IllegalMove
from orchestration.instance import ACTIVE, Draft, Instance, Run, evolve, new_draft, skipped_behind
from orchestration.settling import settle
from orchestration.status import UNREPEATABLE, InstanceStatus, RecoveryAction, TaskStatus
from orchestration.times import Due, due_of_task, total_due_at
from orchestration.turn import (
    Turn,
    attempt_failed,
    fail,
    is_current,
    needs_question,
    out_of_time,
    proceed,
    retry,
    skip,
)

NOT_BEGUN = frozenset({TaskStatus.PENDING, TaskStatus.SKIPPED})


class Step(msgspec.Struct, frozen=True):
    """The outcome of one stimulus. No events: nothing changed and nothing is to be stored."""

    instance: Instance
    events: tuple[ev.Event, ...]
    commands: tuple[cmd.Command, ...]


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
    turn = Turn(new_draft(plan, instance_id, started), at)
    turn.record(started)
    if admit:
        turn.record(ev.InstanceAdmitted(at=at))
    return _finish(turn)


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
    turn = Turn(Draft(plan, instance), stimulus.at)
    _RULES[type(stimulus)](turn, stimulus)
    if not turn.events:
        return Step(instance, (), tuple(turn.commands))
    return _finish(turn)


def _finish(turn: Turn) -> Step:
    settle(turn)
    return Step(turn.draft.freeze(), tuple(turn.events), tuple(turn.commands))


def without_superseded(instance: Instance, commands: Iterable[cmd.Command]) -> list[cmd.Command]:
    """Return what is still to be done when several steps were stored together; `instance` is as the last made it.

    An attempt that was decided on and given up again was never sent: it is not sent, and nobody is told to stop.
    """
    commands = list(commands)
    never_sent = {
        command.token
        for command in commands
        if isinstance(command, cmd.Dispatch) and not _is_under_way(instance, command)
    }
    return [
        command
        for command in commands
        if not (isinstance(command, cmd.Dispatch | cmd.CancelAttempt) and command.token in never_sent)
    ]


def _is_under_way(instance: Instance, command: cmd.Dispatch) -> bool:
    run = instance.runs[command.task_id]
    return run.status is TaskStatus.RUNNING and run.token == command.token


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
            found.append(
                cmd.AwaitResult(task_id, run.token)
                if task.effects in UNREPEATABLE
                else cmd.Dispatch(task_id, run.attempt, run.token)
            )
        elif run.status is TaskStatus.READY and run.condition_met is None and needs_question(task):
            found.append(cmd.AskCondition(task_id))
    return tuple(found)


# --- the rules, one a stimulus ------------------------------------------------------------------------------


def _admit(turn: Turn, stimulus: st.Admit) -> None:
    if turn.draft.status is InstanceStatus.PENDING:
        turn.record(ev.InstanceAdmitted(at=stimulus.at))


def _condition_answer(turn: Turn, stimulus: st.ConditionAnswer) -> None:
    run = turn.draft.runs[stimulus.task_id]
    if run.status not in (TaskStatus.READY, TaskStatus.RETRYING) or run.condition_met is not None:
        return
    condition = turn.plan.tasks[run.task_id].condition
    expression = condition.expression if condition is not None else ""
    if stimulus.error is not None:
        attempt_failed(turn, run, stimulus.error, jitter=0.0)
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
        proceed(turn, run.task_id)
    else:
        skip(turn, run.task_id, "condition_false", f"the condition is false: {expression}")


def _attempt_succeeded(turn: Turn, stimulus: st.AttemptSucceeded) -> None:
    run = turn.draft.runs[stimulus.task_id]
    if not is_current(run, stimulus.token):
        _note_late(turn, run, stimulus.token, "a result", outputs=stimulus.outputs)
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


def _attempt_errored(turn: Turn, stimulus: st.AttemptErrored) -> None:
    run = turn.draft.runs[stimulus.task_id]
    if not is_current(run, stimulus.token):
        _note_late(turn, run, stimulus.token, f"the error {stimulus.error.code}", error=stimulus.error)
        return
    if losses.leaves_open(turn.plan.tasks[run.task_id], stimulus.error):
        losses.ended_unclear(turn, run, stimulus.error)
    else:
        attempt_failed(turn, run, stimulus.error, stimulus.jitter)


def _recovery_answer(turn: Turn, stimulus: st.RecoveryAnswer) -> None:
    run = turn.draft.runs[stimulus.task_id]
    if not run.deciding or run.error is None:
        return
    delay = timedelta(seconds=stimulus.delay_seconds)
    action = _possible_action(turn, run, stimulus.action, delay)
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
    match action:
        case RecoveryAction.RETRY:
            retry(turn, run, turn.at + delay, "the error handler grants another attempt")
        case RecoveryAction.SKIP:
            skip(turn, run.task_id, "recovery", f"skipped after {run.error.code}: {stimulus.reason}")
        case RecoveryAction.PAUSE | RecoveryAction.ESCALATE:
            retry(turn, run, turn.at, "again when the instance is resumed")
            ends = turn.at + delay if action is RecoveryAction.PAUSE and stimulus.delay_seconds > 0 else None
            if turn.draft.status is InstanceStatus.RUNNING:
                reason = (
                    f"task {run.task_id} failed with {run.error.code}: {stimulus.reason or run.error.message}"
                )
                turn.record(ev.InstancePaused(at=turn.at, reason=reason, resume_at=ends))
        case RecoveryAction.FALLBACK:
            pass
        case _:
            fail(turn, run.task_id, run.error)


def _possible_action(turn: Turn, run: Run, wanted: RecoveryAction, delay: timedelta) -> RecoveryAction:
    """Return the wanted action, or abort where the definition or the state makes it impossible."""
    if wanted is RecoveryAction.FALLBACK:
        stand_in = turn.draft.runs.get(turn.plan.tasks[run.task_id].on_error.fallback)
        if stand_in is None or stand_in.status is not TaskStatus.PENDING:
            return RecoveryAction.ABORT
    if wanted is RecoveryAction.ROLLBACK:
        return RecoveryAction.ABORT
    limit = total_due_at(turn.plan.tasks[run.task_id], run)
    if wanted is RecoveryAction.RETRY and limit is not None and turn.at + delay >= limit:
        return RecoveryAction.ABORT
    return wanted


def _tick(turn: Turn, stimulus: st.Tick) -> None:
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
        run, task = draft.runs[task_id], turn.plan.tasks[task_id]
        due = due_of_task(task, run, draft.status)
        if due is not None and due.at <= now:
            _task_due(turn, task, run, due)


def _task_due(turn: Turn, task: TaskPlan, run: Run, due: Due) -> None:
    """A retry begins, or an attempt has run out of time."""
    if due.what == "retry":
        proceed(turn, run.task_id)
        return
    error = ErrorInfo(code="TIMEOUT", message="no agent took the task and finished it in time")
    if due.what == "total_timeout":
        error = out_of_time(task, run.error)
    if task.effects in UNREPEATABLE and (task.effects_declared or due.what != "total_timeout"):
        losses.lose(turn, run, error.message)
        return
    turn.cancel(run)
    attempt_failed(turn, run, error, jitter=0.0)


def _pause(turn: Turn, stimulus: st.PauseOrder) -> None:
    if turn.draft.status is InstanceStatus.PAUSED:
        return
    ends = None
    if stimulus.duration_seconds is not None:
        ends = turn.at + timedelta(seconds=stimulus.duration_seconds)
    turn.record(ev.InstancePaused(at=turn.at, reason=stimulus.reason, resume_at=ends))


def _resume_order(turn: Turn, stimulus: st.ResumeOrder) -> None:
    if turn.draft.status is InstanceStatus.PAUSED:
        _resume(turn, stimulus.reason)


def _resume(turn: Turn, reason: str) -> None:
    turn.record(ev.InstanceResumed(at=turn.at, reason=reason))
    for task_id in list(turn.draft.active):
        run = turn.draft.runs[task_id]
        held = run.status is TaskStatus.READY or (
            run.status is TaskStatus.RETRYING and run.due_at is not None and run.due_at <= turn.at
        )
        if held and not run.awaiting_fallback:
            proceed(turn, task_id)


def _stop(turn: Turn, stimulus: st.StopOrder) -> None:
    _end_early(turn, ev.InstanceCancelled(at=turn.at, reason=stimulus.reason), "the instance was stopped")


def _breakdown(turn: Turn, stimulus: st.Breakdown) -> None:
    _end_early(turn, ev.InstanceFailed(at=turn.at, error=stimulus.error), "the instance cannot go on")


def _retry_order(turn: Turn, stimulus: st.RetryOrder) -> None:
    run = _known_run(turn, stimulus.task_id)
    if run.status is TaskStatus.OUTCOME_UNKNOWN:
        losses.say_not_done(turn, run, stimulus.reason)
        return
    waits = run.status is TaskStatus.RETRYING or run.deciding
    if (
        not (run.status is TaskStatus.FAILED or run.skip_reason == "recovery" or waits)
        or run.awaiting_fallback
    ):
        raise IllegalMove(f"task {run.task_id} is {run.status}; only a task that failed can be run again")
    if run.reconciles and turn.draft.runs[run.reconciles].status is not TaskStatus.OUTCOME_UNKNOWN:
        raise IllegalMove(f"the outcome of task {run.reconciles} is known; there is nothing to find out")
    again = {run.task_id} | skipped_behind(turn.plan, turn.draft.runs, run.task_id)
    behind = (name for task_id in again for name in turn.plan.tasks[task_id].dependents if name not in again)
    begun = [name for name in behind if turn.draft.runs[name].status not in NOT_BEGUN]
    if begun:
        raise IllegalMove(
            f"{', '.join(sorted(set(begun)))} went on without task {run.task_id}; start the workflow anew"
        )
    turn.record(ev.TaskReset(at=turn.at, task_id=run.task_id, reason=stimulus.reason))
    proceed(turn, run.task_id)


def _skip_order(turn: Turn, stimulus: st.SkipOrder) -> None:
    run = _known_run(turn, stimulus.task_id)
    if run.status.is_final:
        raise IllegalMove(f"task {run.task_id} is {run.status} already and cannot be skipped")
    turn.cancel(run)
    skip(turn, run.task_id, "operator", stimulus.reason)


def _complete_order(turn: Turn, stimulus: st.CompleteOrder) -> None:
    losses.complete_order(turn, _known_run(turn, stimulus.task_id), stimulus)


def _known_run(turn: Turn, task_id: str) -> Run:
    run = turn.draft.runs.get(task_id)
    if run is None:
        raise IllegalMove(
            f"the workflow has no task {task_id!r}; it has {', '.join(list(turn.plan.tasks)[:20])}"
        )
    return run


def _update(turn: Turn, stimulus: st.UpdateOrder) -> None:
    turn.record(
        ev.VariablesUpdated(
            at=turn.at, updates=stimulus.updates, replace=stimulus.replace, description=stimulus.description
        )
    )


_RULES: dict[type, Callable[[Turn, Any], None]] = {
    st.Admit: _admit,
    st.ConditionAnswer: _condition_answer,
    st.AttemptSucceeded: _attempt_succeeded,
    st.AttemptErrored: _attempt_errored,
    st.AttemptVanished: losses.attempt_vanished,
    st.RecoveryAnswer: _recovery_answer,
    st.Tick: _tick,
    st.PauseOrder: _pause,
    st.ResumeOrder: _resume_order,
    st.StopOrder: _stop,
    st.Breakdown: _breakdown,
    st.RetryOrder: _retry_order,
    st.SkipOrder: _skip_order,
    st.CompleteOrder: _complete_order,
    st.UpdateOrder: _update,
}
_ORDERS = (
    st.PauseOrder,
    st.ResumeOrder,
    st.StopOrder,
    st.RetryOrder,
    st.SkipOrder,
    st.CompleteOrder,
    st.UpdateOrder,
)


# --- what the rules share -----------------------------------------------------------------------------------


def _note_late(
    turn: Turn,
    run: Run,
    token: str,
    what: str,
    *,
    outputs: dict[str, Any] | None = None,
    error: ErrorInfo | None = None,
) -> None:
    """Keep a result that is not wanted any more. One that was recorded before is the same result again."""
    if run.status is TaskStatus.COMPLETED and run.token == token:
        return
    detail = f"{what} of a superseded attempt; the task is {run.status}"
    turn.record(
        ev.LateResult(
            at=turn.at,
            task_id=run.task_id,
            attempt=_attempt_of(token, run),
            detail=detail,
            outputs=outputs or {},
            error=error,
        )
    )


def _attempt_of(token: str, run: Run) -> int:
    """Return the number of a token's attempt; of a token that is none of ours, the current one."""
    number = token.rpartition("/")[2]
    return int(number) if number.isdecimal() and 0 < int(number) < run.attempt else run.attempt


def _end_early(turn: Turn, ending: ev.InstanceFailed | ev.InstanceCancelled, why: str) -> None:
    """End the instance now: what is under way is cancelled, what has not begun is skipped."""
    for run in list(turn.draft.runs.values()):
        if run.status in ACTIVE:
            turn.cancel(run)
            turn.record(ev.TaskCancelled(at=turn.at, task_id=run.task_id, reason=why))
        elif not run.status.is_final:
            skip(turn, run.task_id, "instance_ended", why)
    turn.record(ending)
