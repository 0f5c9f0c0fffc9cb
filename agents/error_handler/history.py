"""What went wrong lately, by instance, in bounded memory. It holds and counts; it decides nothing.

Errors come from two sides: the log brings every failed attempt of every instance, and strangers report errors of
their own. Decisions are what recovery chose; the next choice depends on them.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec

from orchestration.contracts import ErrorHandleReply, ErrorInfo, EventRecord
from orchestration.recovery import (
    PATTERNS,
    FailureContext,
    PastError,
    Pattern,
    pattern_of,
    recommendations,
    severity_of,
)
from orchestration.status import RecoveryAction, Severity

MAX_RECORDS = 100_000
"""Error records in all; the instances that were quiet longest are forgotten first."""
MAX_WORKFLOW_NAMES = 100_000
MAX_DETAILS_BYTES = 4096
MAX_MESSAGE_CHARACTERS = 2000
MAX_ANALYZED = 20
EVENT_TYPES = (
    "workflow.started", "workflow.failed", "task.attempt_failed", "task.failed", "error.handled",
)  # fmt: skip
"""What the history reads of the log."""


class ErrorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that went wrong."""

    id: str
    timestamp: datetime
    error_code: str
    error_message: str
    error_details: dict[str, Any] = {}
    context: dict[str, Any] = {}
    workflow_instance_id: str = ""
    workflow_id: str = ""
    task_id: str = ""
    agent_id: str = ""
    workflow_state: str = ""
    severity: Severity = Severity.LOW


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What recovery chose for one failure. The same question gets the same answer again."""

    past: PastError
    error_id: str
    attempt: int
    reply: ErrorHandleReply | None = None


class _Instance:
    """What is known of one instance."""

    __slots__ = ("decisions", "records")

    def __init__(self, keep: int) -> None:
        self.records: deque[ErrorRecord] = deque(maxlen=keep)
        self.decisions: deque[Decision] = deque(maxlen=keep)


class _Logged(msgspec.Struct):
    """What the history reads of an event's data."""

    workflow_id: str = ""
    task_id: str = ""
    attempt: int = 0
    error: ErrorInfo | None = None
    action: RecoveryAction = RecoveryAction.ABORT
    error_id: str = ""


_decode = msgspec.json.Decoder(_Logged).decode


class ErrorHistory:
    """Error records and decisions by instance; at most `per_instance` of each for one."""

    def __init__(self, per_instance: int, max_records: int = MAX_RECORDS) -> None:
        self._per_instance = per_instance
        self._max_records = max_records
        self._instances: OrderedDict[str, _Instance] = OrderedDict()
        self._workflows: OrderedDict[str, str] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def past(self, instance_id: str) -> list[PastError]:
        """Return what recovery decided for an instance before. Errors of no instance have nothing in common."""
        known = self._instances.get(instance_id) if instance_id else None
        return [decision.past for decision in known.decisions] if known else []

    def workflow_of(self, instance_id: str) -> str:
        """Return the id of an instance's workflow, "" when it is not known."""
        return self._workflows.get(instance_id, "")

    def decided(self, instance_id: str, task_id: str, attempt: int, code: str) -> ErrorHandleReply | None:
        """Return the answer that was given about this very failure before, None when there was none."""
        known = self._instances.get(instance_id)
        for decision in reversed(known.decisions) if known and attempt else ():
            past = decision.past
            if (past.task_id, decision.attempt, past.code) == (task_id, attempt, code):
                return decision.reply
        return None

    def add(self, record: ErrorRecord) -> None:
        """Keep a record."""
        instance = self._instance(record.workflow_instance_id)
        self._count += len(instance.records) < self._per_instance
        instance.records.append(record)
        while self._count > self._max_records:
            _, forgotten = self._instances.popitem(last=False)
            self._count -= len(forgotten.records)

    def decide(self, instance_id: str, decision: Decision) -> None:
        """Keep a decision."""
        self._instance(instance_id).decisions.append(decision)

    def take(self, event: EventRecord) -> ErrorRecord | None:
        """Return the error that an event of the log tells of, None when it tells of none. It is kept."""
        data = _decode(event.data)
        match event.type:
            case "workflow.started":
                self._workflows[event.instance_id] = data.workflow_id
                if len(self._workflows) > MAX_WORKFLOW_NAMES:
                    self._workflows.popitem(last=False)
            case "error.handled":
                self._take_decision(event, data)
            case "task.attempt_failed" if data.error:
                return self._take_error(event, data, data.error)
            case "workflow.failed" if data.error and not data.task_id:
                return self._take_error(event, data, data.error)
        return None

    def _take_error(self, event: EventRecord, data: _Logged, error: ErrorInfo) -> ErrorRecord:
        context = FailureContext(at=event.at, task_id=data.task_id)
        record = make_record(
            f"log-{event.offset}",
            error,
            context,
            severity_of(error, context, self.past(event.instance_id)),
            workflow_instance_id=event.instance_id,
            workflow_id=self.workflow_of(event.instance_id),
            attempt=data.attempt,
        )
        self.add(record)
        return record

    def _take_decision(self, event: EventRecord, data: _Logged) -> None:
        instance = self._instance(event.instance_id)
        if data.error_id and any(known.error_id == data.error_id for known in instance.decisions):
            return
        code = next((r.error_code for r in reversed(instance.records) if r.task_id == data.task_id), "")
        past = PastError(at=event.at, code=code, task_id=data.task_id, action=data.action)
        instance.decisions.append(Decision(past=past, error_id=data.error_id, attempt=0))

    def _instance(self, instance_id: str) -> _Instance:
        instance = self._instances.get(instance_id)
        if instance is None:
            instance = self._instances[instance_id] = _Instance(self._per_instance)
            if len(self._instances) > self._max_records:
                _, forgotten = self._instances.popitem(last=False)
                self._count -= len(forgotten.records)
        else:
            self._instances.move_to_end(instance_id)
        return instance

    # --- looking back ----------------------------------------------------------------------------------

    def select(
        self, since: datetime, *, codes: Collection[str] = (), workflow_ids: Collection[str] = ()
    ) -> Iterator[ErrorRecord]:
        """Yield the records since a time, of these codes and workflows; empty filters mean all."""
        for instance in self._instances.values():
            for record in instance.records:
                if (
                    record.timestamp >= since
                    and (not codes or record.error_code in codes)
                    and (not workflow_ids or record.workflow_id in workflow_ids)
                ):
                    yield record

    def actions_since(self, since: datetime) -> Counter[str]:
        """Return how often each action was chosen."""
        return Counter(
            str(decision.past.action)
            for instance in self._instances.values()
            for decision in instance.decisions
            if decision.past.at >= since and decision.past.action
        )


def make_record(
    record_id: str,
    error: ErrorInfo,
    context: FailureContext,
    severity: Severity,
    *,
    workflow_instance_id: str = "",
    workflow_id: str = "",
    attempt: int = 0,
    workflow_state: str = "",
) -> ErrorRecord:
    """Return the record of an error, its texts and details cut to what is kept."""
    details = error.details if len(msgspec.json.encode(error.details)) <= MAX_DETAILS_BYTES else {"cut": True}
    return ErrorRecord(
        id=record_id,
        timestamp=context.at,
        error_code=error.code,
        error_message=error.message[:MAX_MESSAGE_CHARACTERS],
        error_details=details,
        context={"attempt": attempt or context.attempt, "wish": str(context.wish)},
        workflow_instance_id=workflow_instance_id or context.workflow_instance_id,
        workflow_id=workflow_id or context.workflow_id,
        task_id=context.task_id,
        agent_id=context.agent_id,
        workflow_state=workflow_state,
        severity=severity,
    )


def summarize(records: list[ErrorRecord], actions: Counter[str], hours: float) -> dict[str, Any]:
    """Return counts of errors by code, severity, workflow and task, most frequent first."""
    return {
        "total_errors": len(records),
        "time_window_hours": hours,
        "errors_per_hour": round(len(records) / hours, 4),
        "by_code": _counted(record.error_code for record in records),
        "by_severity": _counted(record.severity.value for record in records),
        "by_workflow": _counted(record.workflow_id for record in records if record.workflow_id),
        "by_task": _counted(f"{r.workflow_id}/{r.task_id}" for r in records if r.task_id),
        "affected_instances": len({r.workflow_instance_id for r in records if r.workflow_instance_id}),
        "recovery_actions": dict(actions.most_common()),
        "first_error": min((r.timestamp for r in records), default=None),
        "last_error": max((r.timestamp for r in records), default=None),
    }


def find_patterns(records: list[ErrorRecord]) -> list[dict[str, Any]]:
    """Return the built-in patterns among the records, then errors that keep hitting the same task."""
    seen = [pattern for pattern in describe_patterns(records) if pattern["count"]]
    repeated = Counter((r.error_code, r.workflow_id, r.task_id) for r in records if r.task_id)
    return seen + [
        {
            "name": "repeated_failure",
            "error_code": code,
            "workflow_id": workflow,
            "task_id": task,
            "count": count,
        }
        for (code, workflow, task), count in repeated.most_common(MAX_ANALYZED)
        if count > 1
    ]


def describe_patterns(records: list[ErrorRecord]) -> list[dict[str, Any]]:
    """Return every built-in pattern with how often and when last it was seen among the records."""
    seen: dict[str, list[datetime]] = {pattern.name: [] for pattern in PATTERNS}
    for record in records:
        pattern = pattern_of(ErrorInfo(code=record.error_code, message=record.error_message))
        if pattern is not None:
            seen[pattern.name].append(record.timestamp)
    return [_described(pattern, seen[pattern.name]) for pattern in PATTERNS]


def advice(records: list[ErrorRecord], now: datetime) -> list[str]:
    """Return recommendations for the most frequent kinds of errors among the records, without repetition."""
    in_hour = sum(1 for record in records if record.timestamp > now - timedelta(hours=1))
    kinds = Counter((record.error_code, record.severity) for record in records)
    lines: dict[str, None] = {}
    for (code, severity), _ in kinds.most_common(MAX_ANALYZED):
        lines.update(dict.fromkeys(recommendations(ErrorInfo(code=code, message=""), severity, in_hour)))
    return list(lines)


def _described(pattern: Pattern, times: list[datetime]) -> dict[str, Any]:
    return {
        "name": pattern.name,
        "pattern": pattern.expression,
        "severity": pattern.severity.value,
        "action": pattern.action.value,
        "max_retries": pattern.max_retries,
        "delay_seconds": pattern.delay_seconds,
        "count": len(times),
        "last_seen": max(times).isoformat() if times else None,
    }


def _counted(keys: Iterator[str] | Any) -> dict[str, int]:
    return dict(Counter(keys).most_common(MAX_ANALYZED))
