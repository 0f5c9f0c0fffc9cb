"""When something is due for an instance, computed from its facts alone, so that it survives every restart.

Pure: it says when, never that it has happened. What the engine knows beside the facts (who has an attempt since when,
when it last gave a sign of life) is not here.
"""

from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from orchestration.definition.plan import Plan, TaskPlan
from orchestration.instance import Draft, Instance, Run
from orchestration.status import InstanceStatus, TaskStatus


class Due(NamedTuple):
    """Something that happens at a time. `what`: a retry begins, an attempt or all attempts of a task run out of time,

    the instance runs out of time, or its pause ends.
    """

    at: datetime
    what: Literal["retry", "timeout", "total_timeout", "global_timeout", "resume"]
    task_id: str = ""

    @property
    def reason(self) -> str:
        """What happens then, in a few words."""
        match self.what:
            case "retry":
                return f"task {self.task_id} is tried again"
            case "timeout":
                return f"the time for an attempt of task {self.task_id} is up"
            case "total_timeout":
                return f"the time for all attempts of task {self.task_id} is up"
            case "global_timeout":
                return "time for the whole is up"
            case _:
                return "the pause ends"


def due_of_task(task: TaskPlan, run: Run, status: InstanceStatus) -> Due | None:
    """Return what is due next for a task of an instance in this status, or None.

    An attempt may wait `schedule_to_start_seconds` for an agent and then take `timeout_seconds`. When an agent took it
    is not a fact, so what is due by the facts is the end of both. A paused instance begins no retry.
    """
    if run.status is TaskStatus.RETRYING:
        if run.due_at is None or status is InstanceStatus.PAUSED:
            return None
        return Due(run.due_at, "retry", run.task_id)
    if run.status is not TaskStatus.RUNNING or not run.token or run.attempt_started_at is None:
        return None
    end = run.attempt_started_at + timedelta(seconds=task.schedule_to_start_seconds + task.timeout_seconds)
    total = total_due_at(task, run)
    if total is not None and total < end:
        return Due(total, "total_timeout", run.task_id)
    return Due(end, "timeout", run.task_id)


def total_due_at(task: TaskPlan, run: Run) -> datetime | None:
    """Return when the time for all attempts of a task is up, or None where there is no such limit."""
    if not task.total_timeout_seconds or run.total_from is None:
        return None
    return run.total_from + timedelta(seconds=task.total_timeout_seconds)


def due_of_instance(plan: Plan, instance: Instance | Draft) -> list[Due]:
    """Return what is due for an unfinished instance as a whole."""
    found: list[Due] = []
    if instance.started_at is not None:
        end = instance.started_at + timedelta(seconds=plan.global_timeout_seconds)
        found.append(Due(end, "global_timeout"))
    if instance.status is InstanceStatus.PAUSED and instance.resume_at is not None:
        found.append(Due(instance.resume_at, "resume"))
    return found


def due_times(plan: Plan, instance: Instance) -> list[Due]:
    """Return everything that is due for an instance, unordered; nothing when it has ended."""
    if instance.status.is_final:
        return []
    runs = ((plan.tasks[task_id], instance.runs[task_id]) for task_id in instance.active)
    tasks = (due_of_task(task, run, instance.status) for task, run in runs)
    return [*due_of_instance(plan, instance), *(due for due in tasks if due is not None)]
