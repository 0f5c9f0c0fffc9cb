"""What people and programs read about an instance: its row in a list, and its status document."""

from datetime import datetime
from typing import Any

from orchestration.contracts import ErrorInfo, InstanceRow
from orchestration.definition.plan import Plan, TaskPlan
from orchestration.instance import Instance, Run
from orchestration.masking import mask_inputs
from orchestration.status import InstanceStatus, TaskStatus

MAX_CURRENT_TASKS = 5
"""Most ids that a row's `current_tasks` names."""


def row_of(plan: Plan, instance: Instance, wake_at: datetime | None) -> InstanceRow:
    """Return the row that lists show; `wake_at` is when the engine will look at the instance again at the latest."""
    error = instance.error
    return InstanceRow(
        instance_id=instance.id,
        workflow_id=instance.workflow_id,
        workflow_version=plan.version,
        workflow_name=plan.name,
        definition_hash=instance.definition_hash,
        status=instance.status,
        created_at=instance.created_at,
        started_at=instance.started_at,
        completed_at=instance.completed_at,
        updated_at=instance.updated_at,
        wake_at=None if instance.status.is_final else wake_at,
        wake_reason=wake_reason(plan, instance),
        task_counts={str(status): count for status, count in instance.counts.items()},
        current_tasks=list(instance.active)[:MAX_CURRENT_TASKS],
        error_code=error.code if error is not None else "",
        error_message=error.message if error is not None else "",
        trigger=instance.trigger,
    )


def wake_reason(plan: Plan, instance: Instance) -> str:
    """Return in a few words what an unfinished instance waits for; empty when it has ended."""
    match instance.status:
        case InstanceStatus.PENDING:
            return "waits for a free slot (workflow_engine.max_concurrent_workflows)"
        case InstanceStatus.PAUSED:
            ends = instance.resume_at
            until = "" if ends is None else f", until {ends.isoformat(timespec='seconds')}"
            return f"paused: {instance.pause_reason or 'by request'}{until}"
        case InstanceStatus.RUNNING:
            shown = list(instance.active)[:MAX_CURRENT_TASKS]
            waits = [_task_reason(plan.tasks[task_id], instance.runs[task_id]) for task_id in shown]
            left_out = len(instance.active) - len(shown)
            if left_out:
                waits.append(f"and {left_out} more")
            return "; ".join(waits) or "something is decided about it"
        case _:
            return ""


def _task_reason(task: TaskPlan, run: Run) -> str:
    match run.status:
        case TaskStatus.RETRYING if run.due_at is not None:
            return f"{run.task_id} is tried again at {run.due_at.isoformat(timespec='milliseconds')}"
        case TaskStatus.READY:
            return f"{run.task_id} waits for its condition"
        case TaskStatus.OUTCOME_UNKNOWN if run.reconciling:
            return f"{run.task_id} may have been done; {task.reconcile} finds out"
        case TaskStatus.OUTCOME_UNKNOWN:
            return f"{run.task_id} may have been done; a person decides (retry, skip or complete the task)"
        case _ if run.awaiting_fallback:
            return f"{run.task_id} waits for its fallback"
        case _ if run.deciding:
            return f"{run.task_id} waits for the error handler"
        case _:
            return f"{run.task_id} runs or waits for an agent with {task.capability}, attempt {run.attempt}"


def status_document(plan: Plan, instance: Instance) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the instance and its tasks as the status document shows them.

    Times are ISO 8601 in UTC; inputs that the schema marks as secret are masked.
    """
    error = instance.error
    about = {
        "id": instance.id,
        "workflow_id": instance.workflow_id,
        "status": instance.status.value,
        "created_at": _iso(instance.created_at),
        "started_at": _iso(instance.started_at),
        "completed_at": _iso(instance.completed_at),
        "inputs": mask_inputs(plan.input_schema, instance.inputs),
        "outputs": dict(instance.outputs),
        "error_message": error.message if error is not None else None,
        "error_code": error.code if error is not None else None,
        "failed_task": instance.failed_task or None,
        "waits_for": wake_reason(plan, instance) or None,
        "definition_hash": instance.definition_hash,
        "trigger": instance.trigger,
        "seq": instance.seq,
    }
    return about, {task_id: _task_document(run) for task_id, run in instance.runs.items()}


def _task_document(run: Run) -> dict[str, Any]:
    return {
        "status": run.status.value,
        "started_at": _iso(run.started_at),
        "completed_at": _iso(run.completed_at),
        "attempt_count": run.attempt,
        "last_error": _error(run.error),
        "outputs": dict(run.outputs),
        "skip_reason": run.skip_reason or None,
        "due_at": _iso(run.due_at),
        "lost_attempts": run.losses,
    }


def _error(error: ErrorInfo | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "details": dict(error.details)}


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None
