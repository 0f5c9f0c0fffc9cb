"""Tasks of unknown outcome for which a person must decide, followed event by event.

Pure, and kept with the monitor's open instances. A reconcile task that is finding out comes before a person.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

import msgspec

from orchestration.alerts import AlertSeverity, Finding

MAX_UNDECIDED = 200
"""Most alerts about them at a time. Who has more to decide needs no more alerts."""
OUTCOME_UNKNOWN = "outcome_unknown"
"""The type of those alerts."""

_UNKNOWN, _RECONCILING = "task.outcome_unknown", "task.reconciling"
_TASK_ENDS = frozenset({"task.completed", "task.failed", "task.skipped", "task.cancelled"})
_SETTLES = _TASK_ENDS | {"task.started", "task.attempt_failed", "task.attempt_lost", "task.retrying"}


class Unknown(msgspec.Struct, kw_only=True):
    """A task of unknown outcome, and since when. `looker` is its reconcile task, `looking` while that finds out."""

    since: datetime
    reason: str = ""
    looker: str = ""
    looking: bool = False


class HasUnknown(Protocol):
    """An open instance with its tasks of unknown outcome by id."""

    instance_id: str
    workflow_id: str
    unknown: dict[str, Unknown]


def follow(
    unknown: dict[str, Unknown],
    type: str,
    task_id: str,
    at: datetime,
    *,
    reason: str = "",
    reconcile: str = "",
) -> bool:
    """Bring an instance's tasks of unknown outcome up to date; return whether it has or had any.

    An outcome is known once something becomes of its task. A reconcile task that ends may have found nothing.
    """
    if not unknown and type != _UNKNOWN:
        return False
    if type == _UNKNOWN:
        unknown[task_id] = Unknown(since=at, reason=reason)
    elif type == _RECONCILING and task_id in unknown:
        unknown[task_id].looker, unknown[task_id].looking = reconcile, True
    elif type in _SETTLES:
        unknown.pop(task_id, None)
        for task in unknown.values():
            if task.looker == task_id:
                task.looking = type not in _TASK_ENDS
    return True


def undecided(instances: Iterable[HasUnknown]) -> list[Finding]:
    """Return a finding for each task that waits for a person, the MAX_UNDECIDED oldest first."""
    waiting = [
        (task.since, instance.instance_id, task_id, task.reason, instance.workflow_id)
        for instance in instances
        for task_id, task in instance.unknown.items()
        if not task.looking
    ]
    return [
        Finding(
            type=OUTCOME_UNKNOWN,
            severity=AlertSeverity.ERROR,
            title=f"Outcome unknown: {workflow_id}, task {task_id}",
            description=f"Nobody knows whether task {task_id} of {instance_id} did its work ({reason}); "
            "it waits until a person completes it, retries it or skips it",
            metadata={"workflow_id": workflow_id, "workflow_instance_id": instance_id, "task_id": task_id},
        )
        for _, instance_id, task_id, reason, workflow_id in sorted(waiting)[:MAX_UNDECIDED]
    ]
