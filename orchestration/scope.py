"""Which names a task or a condition sees, and their values. Only what is used leaves the engine."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from orchestration.definition.plan import Plan, TaskPlan
from orchestration.instance import Instance

BUILTINS = frozenset(
    {
        "request_data",
        "user_input",
        "inputs",
        "workflow_context",
        "workflow_instance_id",
        "workflow_id",
        "task_id",
        "timestamp",
        "current_timestamp",
        "execution_time",
        "tasks",
    }
)
"""Names every expression may use; a variable of the same name wins."""


def variables_for(
    plan: Plan,
    instance: Instance,
    names: Iterable[str],
    *,
    task_id: str,
    now: datetime,
    whole_context: bool = False,
) -> dict[str, Any]:
    """Return the values of the names that are present, and of everything when the whole context is asked for.

    Names that are declared but unset are left out: the reader takes them as null. The names' order is fixed.
    """
    wanted = set(names)
    if whole_context:
        wanted.update(instance.variables)
    found = {name: instance.variables[name] for name in sorted(wanted) if name in instance.variables}
    for name in sorted(wanted & BUILTINS):
        if name not in found:
            found[name] = _builtin(name, plan, instance, task_id, now)
    return found


def _builtin(name: str, plan: Plan, instance: Instance, task_id: str, now: datetime) -> Any:
    begun = instance.started_at or instance.created_at
    match name:
        case "request_data" | "user_input" | "inputs":
            return instance.inputs
        case "workflow_context":
            return instance.variables
        case "workflow_instance_id":
            return instance.id
        case "workflow_id":
            return plan.workflow_id
        case "task_id":
            return task_id
        case "timestamp":
            return begun.strftime("%Y%m%dT%H%M%SZ")
        case "current_timestamp":
            return now.isoformat()
        case "execution_time":
            return (now - begun).total_seconds()
        case _:
            return {run.task_id: _task_facts(run.task_id, instance) for run in instance.runs.values()}


def _task_facts(task_id: str, instance: Instance) -> Mapping[str, Any]:
    run = instance.runs[task_id]
    error = None if run.error is None else {"code": run.error.code, "message": run.error.message}
    return {"status": run.status.value, "outputs": run.outputs, "error": error, "attempt": run.attempt}


def task_variables(plan: Plan, instance: Instance, task: TaskPlan, now: datetime) -> dict[str, Any]:
    """Return the values that a task's parameters use, in templates and in expressions."""
    if not task.references and not task.whole_context:
        return {}
    return variables_for(
        plan, instance, task.references, task_id=task.id, now=now, whole_context=task.whole_context
    )


def condition_context(plan: Plan, instance: Instance, task: TaskPlan, now: datetime) -> dict[str, Any]:
    """Return the context of a task's condition: its own variables over the instance's; declared names are null."""
    assert task.condition is not None
    condition = task.condition
    context: dict[str, Any] = dict.fromkeys(sorted(condition.names & plan.declared))
    context.update(
        variables_for(
            plan, instance, condition.names, task_id=task.id, now=now, whole_context=condition.whole_context
        )
    )
    context.update(condition.variables)
    return context
