"""What follows when nobody knows how an attempt ended: dispatch again, give up, or find out whether it was done.

An attempt whose agent is gone is dispatched again when it may be repeated. One that must not be repeated has an
unknown outcome: its reconcile task says whether it was done, else a person does; a late result settles it as well, and
so does its executor when it never began. Where the author declared that the work must not be repeated, its outcome is
unknown also when its agent only says that it stopped waiting; else an error is an error, and the policy counts.
"""

from collections.abc import Mapping
from typing import Any

from orchestration import commands as cmd
from orchestration import events as ev
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import TaskPlan
from orchestration.errors import IllegalMove
from orchestration.instance import Run
from orchestration.outputs import map_outputs
from orchestration.status import UNREPEATABLE, TaskStatus
from orchestration.turn import MAX_LOSSES, Turn, again, attempt_failed, is_current, skip

EXECUTOR = "task-executor"
"""Who decided, when an executor without a name knew that nothing was done."""
OPERATOR = "operator"
"""Who decided, when a person did."""
INCONCLUSIVE = frozenset({"TIMEOUT", "NETWORK_ERROR", "TASK_CANCELLED", "OUTCOME_UNKNOWN"})
"""Codes that say that somebody stopped waiting for the work, and not what became of it."""


def leaves_open(task: TaskPlan, error: ErrorInfo) -> bool:
    """Return whether after this error nobody knows if work that was declared not to be repeated was done.

    What the author of the task said about its code counts first, then what whoever did the work says about itself
    (`details.begun`), then the code.
    """
    declared = task.effects in UNREPEATABLE and task.effects_declared
    if not declared or error.code in task.named_codes:
        return False
    return error.code in INCONCLUSIVE if error.begun is None else error.begun


def ended_unclear(turn: Turn, run: Run, error: ErrorInfo) -> None:
    """The current attempt ended with an error that leaves its outcome open. An open outcome stays so."""
    if run.status is TaskStatus.RUNNING:
        lose(turn, run, f"{error.code}: {error.message}", error=error)
        return
    detail = f"the error {error.code} does not say whether the work was done"
    turn.record(
        ev.LateResult(at=turn.at, task_id=run.task_id, attempt=run.attempt, detail=detail, error=error)
    )


def attempt_vanished(turn: Turn, stimulus: st.AttemptVanished) -> None:
    """The agent that had an attempt is gone, or gives no sign of life."""
    run = turn.draft.runs[stimulus.task_id]
    if not is_current(run, stimulus.token):
        return
    if run.status is TaskStatus.OUTCOME_UNKNOWN:
        if not stimulus.begun:
            end_reconcile(turn, run.task_id, "its executor says that it never began")
            _never_began(turn, run, stimulus)
    elif stimulus.begun or turn.plan.tasks[run.task_id].effects not in UNREPEATABLE:
        lose(turn, run, stimulus.reason, agent_id=stimulus.agent_id, may_be_at_work=stimulus.may_be_at_work)
    else:
        turn.record(
            ev.AttemptLost(
                at=turn.at,
                task_id=run.task_id,
                attempt=run.attempt,
                agent_id=stimulus.agent_id,
                reason=stimulus.reason,
            )
        )
        _never_began(turn, turn.draft.runs[run.task_id], stimulus)


def _never_began(turn: Turn, run: Run, stimulus: st.AttemptVanished) -> None:
    """Begin another attempt of work that must not be repeated: the lost one is known to have done nothing."""
    if run.losses >= MAX_LOSSES:
        attempt_failed(turn, run, _poison(run), jitter=0.0)
    else:
        again(turn, run.task_id, stimulus.reason, stimulus.agent_id or EXECUTOR)


def lose(
    turn: Turn,
    run: Run,
    reason: str,
    *,
    agent_id: str = "",
    may_be_at_work: bool = False,
    error: ErrorInfo | None = None,
) -> None:
    """Record the loss of the current attempt, and what follows from it. `error` is what its agent said last."""
    token, task = run.token, turn.plan.tasks[run.task_id]
    turn.record(
        ev.AttemptLost(
            at=turn.at,
            task_id=run.task_id,
            attempt=run.attempt,
            agent_id=agent_id,
            reason=reason,
            error=error,
        )
    )
    lost = turn.draft.runs[run.task_id]
    if task.effects in UNREPEATABLE:
        turn.record(
            ev.TaskOutcomeUnknown(
                at=turn.at, task_id=run.task_id, attempt=run.attempt, token=token, reason=reason
            )
        )
        _ask_reconcile(turn, run.task_id)
        return
    if may_be_at_work:
        turn.commands.append(cmd.CancelAttempt(run.task_id, token))
    if lost.losses >= MAX_LOSSES:
        attempt_failed(turn, lost, _poison(lost), jitter=0.0)
    else:
        again(turn, run.task_id, "its agent was lost; again when the instance is resumed")


def _poison(run: Run) -> ErrorInfo:
    message = f"{run.losses} attempts of this task ended without anybody knowing how; it is not tried again"
    return ErrorInfo(code="POISON_TASK", message=message, retryable=False)


def _ask_reconcile(turn: Turn, task_id: str) -> None:
    """Have the reconcile task, if there is one, find out whether the work was done."""
    name = turn.plan.tasks[task_id].reconcile
    if name in turn.draft.runs:
        turn.record(ev.TaskReconciling(at=turn.at, task_id=task_id, reconcile=name))


def end_reconcile(turn: Turn, task_id: str, why: str) -> None:
    """Skip the reconcile task of a task that needs none (any more)."""
    looker = turn.draft.runs.get(turn.plan.tasks[task_id].reconcile)
    if looker is not None and not looker.status.is_final:
        turn.cancel(looker)
        skip(turn, looker.task_id, "reconcile_not_needed", why)


def reconcile_ended(turn: Turn, looker: Run) -> None:
    """A reconcile task is final: what it found decides about the task; if it found nothing, a person does."""
    run = turn.draft.runs[looker.reconciles]
    if run.status is not TaskStatus.OUTCOME_UNKNOWN or looker.status is not TaskStatus.COMPLETED:
        return
    verdict = looker.primary_value
    if not isinstance(verdict, Mapping):
        return
    match verdict.get("outcome"):
        case "done":
            outputs = verdict.get("outputs")
            rest = {name: value for name, value in verdict.items() if name not in ("outcome", "outputs")}
            given = outputs if isinstance(outputs, Mapping) else rest
            _done(turn, run, given, {"reconciled_by": looker.task_id})
        case "not_done" if run.losses >= MAX_LOSSES:
            attempt_failed(turn, run, _poison(run), jitter=0.0)
        case "not_done":
            again(turn, run.task_id, f"{looker.task_id} says that it was not done", looker.task_id)


def _done(turn: Turn, run: Run, given: Mapping[str, Any], metadata: dict[str, Any]) -> None:
    """The work of a task of unknown outcome was done, and gave this."""
    primary = dict(given) or None
    turn.record(
        ev.TaskCompleted(
            at=turn.at,
            task_id=run.task_id,
            attempt=run.attempt,
            outputs=map_outputs(
                turn.plan.tasks[run.task_id].output_names, result={}, outputs=given, primary=primary
            ),
            primary=primary,
            metadata=metadata,
        )
    )


def say_not_done(turn: Turn, run: Run, reason: str) -> None:
    """A person says that a task of unknown outcome did not do its work: another attempt, under the same key."""
    end_reconcile(turn, run.task_id, "a person decided")
    again(turn, run.task_id, reason or "a person says that it was not done", OPERATOR)


def complete_order(turn: Turn, run: Run, stimulus: st.CompleteOrder) -> None:
    """A person says that a task of unknown outcome did its work.

    Raises: IllegalMove when its outcome is known.
    """
    if run.status is not TaskStatus.OUTCOME_UNKNOWN:
        raise IllegalMove(f"task {run.task_id} is {run.status}; only one of unknown outcome can be completed")
    metadata = {"completed_by": OPERATOR} | ({"reason": stimulus.reason} if stimulus.reason else {})
    _done(turn, run, stimulus.outputs, metadata)
