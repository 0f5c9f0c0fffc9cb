"""What follows from the facts of a turn until nothing more does: tasks become free, stand-ins and instances end.

Only the machine uses this. It asks nobody and reads no time but the turn's.
"""

from orchestration import events as ev
from orchestration import losses
from orchestration.definition.inputs import check_outputs
from orchestration.instance import BLOCKING, Run
from orchestration.outputs import map_outputs, workflow_outputs
from orchestration.status import TaskStatus
from orchestration.turn import Turn, fail, proceed, skip

MAX_PROBLEMS = 20
"""Most problems with a workflow's outputs that one warning lists."""


def settle(turn: Turn) -> None:
    """Work off what became possible until nothing more follows; end the instance when every task is final."""
    draft = turn.draft
    while (draft.unblocked or turn.ended) and not draft.status.is_final:
        for task_id in _take(draft.unblocked):
            _unblock(turn, task_id)
        for task_id in _take(turn.ended):
            _close_calls(turn, task_id)
    if draft.open_runs == 0 and not draft.status.is_final:
        _end(turn)


def _take(names: list[str]) -> list[str]:
    taken = names[:]
    names.clear()
    return taken


def _unblock(turn: Turn, task_id: str) -> None:
    """Decide about a task whose dependencies are all final: the fold made it ready where the join lets it run."""
    run, task = turn.draft.runs[task_id], turn.plan.tasks[task_id]
    if run.status is TaskStatus.READY:
        proceed(turn, task_id)
    elif run.status is TaskStatus.PENDING and (run.is_called or not task.is_on_call):
        ended_badly = [name for name in task.depends_on if turn.draft.runs[name].status in BLOCKING]
        if ended_badly:
            skip(turn, task_id, "dependency_failed", f"failed before it: {', '.join(ended_badly)}")
        else:
            skip(turn, task_id, "dependencies_skipped", "everything it depends on was skipped")


def _close_calls(turn: Turn, task_id: str) -> None:
    """A task became final: for whom did it run, and who stands by for it in vain?"""
    run, task = turn.draft.runs[task_id], turn.plan.tasks[task_id]
    if run.fallback_for:
        _stand_in_ended(turn, run, turn.draft.runs[run.fallback_for])
    if run.reconciles:
        losses.reconcile_ended(turn, run)
    if task.reconcile:
        losses.end_reconcile(turn, task_id, f"the outcome of {task_id} is known")
    stand_in = turn.draft.runs.get(task.on_error.fallback)
    if stand_in is None or stand_in.status is not TaskStatus.PENDING or stand_in.fallback_for:
        return
    users = (user for user in turn.plan.tasks.values() if user.on_error.fallback == stand_in.task_id)
    if all(turn.draft.runs[user.id].status.is_final for user in users):
        skip(turn, stand_in.task_id, "fallback_not_needed", f"{task_id} needed no fallback")


def _stand_in_ended(turn: Turn, stand_in: Run, waiting: Run) -> None:
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
        fail(turn, waiting.task_id, waiting.error)


def _end(turn: Turn) -> None:
    """Every task is final: the instance completed, or failed with its first failed task."""
    draft = turn.draft
    for run in draft.runs.values():
        failed = run.status is TaskStatus.FAILED and run.error is not None
        if failed and not draft.plan.tasks[run.task_id].is_reconcile:
            assert run.error is not None
            turn.record(ev.InstanceFailed(at=turn.at, error=run.error, task_id=run.task_id))
            return
    newest_first = (draft.runs[task_id].primary_value for task_id in reversed(draft.finished))
    outputs = workflow_outputs(turn.plan.output_names, draft.variables, newest_first)
    problems = check_outputs(turn.plan.output_schema, outputs)
    if problems:
        turn.record(ev.OutputMismatched(at=turn.at, problems=problems[:MAX_PROBLEMS]))
    turn.record(ev.InstanceCompleted(at=turn.at, outputs=outputs))
