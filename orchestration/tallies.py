"""Counting what happened: events of the log become tallies by minute, workflow and task.

Folding is exact: any split of the log into batches gives the same tallies, and tallies of any parts of the
time add up. Nothing here reads a clock or a store; the monitor keeps what `fold` says has changed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from orchestration.alerts import AlertSeverity, Finding
from orchestration.contracts import ErrorInfo, EventRecord
from orchestration.status import RecoveryAction, Severity
from orchestration.undecided import Unknown, follow

BUCKET_SECONDS = 60
"""The grain of time. Ranges begin at the start of a bucket, so up to this much more than asked is counted."""
UNKNOWN_WORKFLOW = "unknown"
"""Where the end of an instance is counted whose start is not in the log any more."""


class Tally(msgspec.Struct, kw_only=True):
    """What happened to one workflow, or one of its tasks, in one stretch of time. Durations are in seconds.

    `completed`, `failed` and `cancelled` count ends, `started` counts beginnings (of a task: attempts).
    """

    started: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    retried: int = 0
    lost: int = 0
    errors: int = 0
    timed: int = 0
    seconds_sum: float = 0.0
    seconds_min: float | None = None
    seconds_max: float | None = None
    last_at: datetime | None = None

    @property
    def ended(self) -> int:
        """How many ended, well or badly or by a stop."""
        return self.completed + self.failed + self.cancelled

    def take_time(self, seconds: float) -> None:
        """Count one duration."""
        seconds = max(0.0, seconds)
        self.timed += 1
        self.seconds_sum += seconds
        self.seconds_min = seconds if self.seconds_min is None else min(self.seconds_min, seconds)
        self.seconds_max = seconds if self.seconds_max is None else max(self.seconds_max, seconds)

    def add(self, other: "Tally") -> None:
        """Count all that another tally counted."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds_sum += other.seconds_sum
        self.seconds_min = _either(min, self.seconds_min, other.seconds_min)
        self.seconds_max = _either(max, self.seconds_max, other.seconds_max)
        self.last_at = _either(max, self.last_at, other.last_at)


_COUNTERS = ("started", "completed", "failed", "cancelled", "skipped", "retried", "lost", "errors", "timed")


class Place(msgspec.Struct, frozen=True, order=True):
    """What a tally is about and when. `task_id` "" is the workflow itself; `bucket` counts from 1970."""

    bucket: int
    workflow_id: str
    task_id: str = ""


class FailurePlace(msgspec.Struct, frozen=True, order=True):
    """A kind of failure, where and when."""

    bucket: int
    workflow_id: str
    task_id: str
    code: str


class OpenInstance(msgspec.Struct, kw_only=True):
    """An instance that has not ended. `tasks` holds the start of each attempt that is under way.

    `unknown` are its tasks of which nobody knows whether they did their work.
    """

    instance_id: str
    workflow_id: str
    started_at: datetime
    status: str = "pending"
    tasks: dict[str, datetime] = {}
    unknown: dict[str, Unknown] = {}


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """One instance as lists show it."""

    instance_id: str
    workflow_id: str
    started_at: datetime
    status: str
    completed_at: datetime | None = None
    execution_time: float | None = None
    error: str = ""


class Changes(msgspec.Struct, kw_only=True):
    """What a batch of events changed, to be kept together with the offset it was read up to.

    `undecided`: the tasks for which a person must decide may be others now.
    """

    tallies: dict[Place, Tally] = {}
    failures: Counter[FailurePlace] = msgspec.field(default_factory=Counter)
    opened: dict[str, OpenInstance] = {}
    ended: list[Execution] = []
    findings: list[tuple[int, datetime, Finding]] = []
    undecided: bool = False
    unreadable: int = 0


class _Head(msgspec.Struct):
    workflow_id: str = UNKNOWN_WORKFLOW
    task_id: str = ""
    error: ErrorInfo | None = None
    severity: Severity = Severity.LOW
    action: RecoveryAction = RecoveryAction.ABORT
    reason: str = ""
    reconcile: str = ""
    escalated: bool = False


_decode_head = msgspec.json.Decoder(_Head).decode


def fold(instances: dict[str, OpenInstance], records: Iterable[EventRecord]) -> Changes:
    """Return what a batch of events changes, and bring the open instances up to date.

    Args:
        instances: The open instances after the events before, by id. It is changed.
        records: The next events, in the order of their offsets, none left out.
    """
    changes = Changes()
    for record in records:
        act = _FOLDS.get(record.type)
        if act is None:
            continue
        try:
            head = _decode_head(record.data)
        except msgspec.MsgspecError:
            changes.unreadable += 1
            continue
        instance = instances.get(record.instance_id)
        if instance is None:
            instance = OpenInstance(
                instance_id=record.instance_id, workflow_id=head.workflow_id, started_at=record.at
            )
            if record.type == "workflow.started":
                instances[record.instance_id] = instance
        act(instance, head, record, changes)
        if follow(
            instance.unknown,
            record.type,
            head.task_id,
            record.at,
            reason=head.reason,
            reconcile=head.reconcile,
        ):
            changes.undecided = True
        if record.type in _ENDS:
            instances.pop(record.instance_id, None)
            changes.opened.pop(record.instance_id, None)
        elif record.instance_id in instances:
            changes.opened[record.instance_id] = instance
    return changes


def bucket_of(at: datetime) -> int:
    """Return the bucket that a moment lies in."""
    return int(at.timestamp() // BUCKET_SECONDS)


def _tally(changes: Changes, instance: OpenInstance, record: EventRecord, task_id: str = "") -> Tally:
    place = Place(bucket_of(record.at), instance.workflow_id, task_id)
    tally = changes.tallies.get(place)
    if tally is None:
        tally = changes.tallies[place] = Tally()
    tally.last_at = _either(max, tally.last_at, record.at)
    return tally


def _started(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    _tally(changes, instance, record).started += 1


def _admitted(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    instance.status = "running"
    instance.started_at = record.at


def _paused(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    instance.status = "paused"


def _resumed(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    instance.status = "running"


def _ended(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    status = record.type.partition(".")[2]
    tally = _tally(changes, instance, record)
    seconds = max(0.0, (record.at - instance.started_at).total_seconds())
    setattr(tally, status, getattr(tally, status) + 1)
    if status != "cancelled":
        tally.take_time(seconds)
    message = ""
    if head.error is not None:
        message = f"{head.error.code}: {head.error.message}"
        changes.failures[FailurePlace(bucket_of(record.at), instance.workflow_id, "", head.error.code)] += 1
        tally.errors += not head.task_id
        changes.findings.append((record.offset, record.at, _failure_finding(instance, head, message)))
    changes.ended.append(
        Execution(
            instance_id=instance.instance_id,
            workflow_id=instance.workflow_id,
            started_at=instance.started_at,
            status=status,
            completed_at=record.at,
            execution_time=seconds,
            error=message,
        )
    )


def _failure_finding(instance: OpenInstance, head: _Head, message: str) -> Finding:
    assert head.error is not None
    return Finding(
        type="workflow_failure",
        severity=AlertSeverity.ERROR,
        title=f"Workflow failed: {instance.workflow_id}",
        description=f"Instance {instance.instance_id} failed: {message}",
        metadata={
            "workflow_id": instance.workflow_id,
            "instance_id": instance.instance_id,
            "failed_task_id": head.task_id,
            "error_code": head.error.code,
        },
    )


def _task_started(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    instance.tasks[head.task_id] = record.at
    _tally(changes, instance, record, head.task_id).started += 1


def _task_completed(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    tally = _tally(changes, instance, record, head.task_id)
    tally.completed += 1
    began_at = instance.tasks.pop(head.task_id, None)
    if began_at is not None:
        tally.take_time((record.at - began_at).total_seconds())


def _attempt_failed(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    tally = _tally(changes, instance, record, head.task_id)
    tally.errors += 1
    began_at = instance.tasks.pop(head.task_id, None)
    if began_at is not None:
        tally.take_time((record.at - began_at).total_seconds())


def _attempt_lost(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    instance.tasks.pop(head.task_id, None)
    _tally(changes, instance, record, head.task_id).lost += 1


def _task_retrying(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    _tally(changes, instance, record, head.task_id).retried += 1


def _task_failed(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    instance.tasks.pop(head.task_id, None)
    _tally(changes, instance, record, head.task_id).failed += 1
    code = head.error.code if head.error is not None else ""
    changes.failures[FailurePlace(bucket_of(record.at), instance.workflow_id, head.task_id, code)] += 1


def _task_skipped(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    instance.tasks.pop(head.task_id, None)
    _tally(changes, instance, record, head.task_id).skipped += 1


def _task_cancelled(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    instance.tasks.pop(head.task_id, None)
    _tally(changes, instance, record, head.task_id).cancelled += 1


def _handled(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    if not head.escalated:
        return
    finding = Finding(
        type="error_escalation",
        severity=AlertSeverity.CRITICAL if head.severity is Severity.CRITICAL else AlertSeverity.ERROR,
        title=f"Error escalated: {instance.workflow_id}, task {head.task_id}",
        description=f"Recovery of {instance.instance_id} chose {head.action}: {head.reason}",
        metadata={
            "workflow_id": instance.workflow_id,
            "workflow_instance_id": instance.instance_id,
            "task_id": head.task_id,
        },
    )
    changes.findings.append((record.offset, record.at, finding))


def _followed(instance: OpenInstance, head: _Head, record: EventRecord, changes: Changes) -> None:
    """Count nothing: it only says who must decide."""


_ENDS = frozenset({"workflow.completed", "workflow.failed", "workflow.cancelled"})
_FOLDS: Mapping[str, Callable[[OpenInstance, _Head, EventRecord, Changes], None]] = {
    "workflow.started": _started,
    "workflow.admitted": _admitted,
    "workflow.paused": _paused,
    "workflow.resumed": _resumed,
    "workflow.completed": _ended,
    "workflow.failed": _ended,
    "workflow.cancelled": _ended,
    "task.started": _task_started,
    "task.completed": _task_completed,
    "task.attempt_failed": _attempt_failed,
    "task.attempt_lost": _attempt_lost,
    "task.outcome_unknown": _followed,
    "task.reconciling": _followed,
    "task.retrying": _task_retrying,
    "task.failed": _task_failed,
    "task.skipped": _task_skipped,
    "task.cancelled": _task_cancelled,
    "error.handled": _handled,
}
EVENT_TYPES: tuple[str, ...] = tuple(_FOLDS)
"""The events that count. A reader may leave out all others."""


def total(tallies: Iterable[Tally]) -> Tally:
    """Return all tallies added up."""
    result = Tally()
    for tally in tallies:
        result.add(tally)
    return result


def _either(pick: Callable[..., Any], one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return pick(one, other)
