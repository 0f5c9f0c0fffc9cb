"""What must hold for every instance, whatever was killed, lost or delayed: checked over its history and its row.

Used where the product is proved (simulation, tests with kill -9) and by `amp db verify`. It reads facts and states
what is wrong with them in sentences; it never repairs, and it never trusts the fold alone: each fact is judged by
what stood before it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from orchestration import events as ev
from orchestration.contracts import InstanceRow
from orchestration.definition.plan import Plan, TaskPlan
from orchestration.documents import row_of
from orchestration.instance import BLOCKING, Draft, Instance, Run, evolve, new_draft
from orchestration.status import InstanceStatus, TaskStatus
from orchestration.turn import MAX_LOSSES

MAX_FINDINGS = 20
"""Most findings that are told of one instance."""

_STARTS_FROM = frozenset(
    {TaskStatus.READY, TaskStatus.RETRYING, TaskStatus.RUNNING, TaskStatus.OUTCOME_UNKNOWN}
)
_ROW_FIELDS = (
    "instance_id",
    "workflow_id",
    "workflow_version",
    "definition_hash",
    "status",
    "seq",
    "created_at",
    "started_at",
    "completed_at",
    "updated_at",
    "task_counts",
    "error_code",
    "trigger",
)
"""What of a row follows from the facts alone."""


def check_history(plan: Plan, instance_id: str, events: Iterable[ev.Event]) -> list[str]:
    """Return what is wrong with an instance's history, one sentence a finding, at most `MAX_FINDINGS`.

    Checked: it begins with its start, once; nothing follows its end; no task starts before what it depends on is
    final, while the instance is not running or against its condition; attempts count up by one and end at most
    once; a task ends once a round; retries and losses stay within their limits; the end fits the tasks.
    """
    findings: list[str] = []
    draft: Draft | None = None
    for number, event in enumerate(events, start=1):
        name = ev.type_of(event)
        if draft is None:
            if not isinstance(event, ev.InstanceStarted):
                return [f"the first event is {name}, not the start"]
            draft = new_draft(plan, instance_id, event)
        else:
            findings.extend(f"event {number} ({name}): {text}" for text in _check(draft, event))
        try:
            evolve(draft, event)
        except KeyError as error:
            return [
                *findings[: MAX_FINDINGS - 1],
                f"event {number} ({name}) is about the unknown task {error}",
            ]
        draft.unblocked.clear()
        if len(findings) >= MAX_FINDINGS:
            return findings[:MAX_FINDINGS]
    if draft is None:
        return ["there are no events"]
    return [*findings, *_check_limits(draft)][:MAX_FINDINGS]


def check_row(plan: Plan, instance: Instance, row: InstanceRow) -> list[str]:
    """Return how a stored row differs from what its facts make, and whether an unfinished one can be woken."""
    wanted = row_of(plan, instance, row.wake_at)
    findings = [
        f"the row's {name} is {_short(getattr(row, name))}, the events make it {_short(getattr(known, name))}"
        for known in (msgspec.structs.replace(wanted, seq=instance.seq),)
        for name in _ROW_FIELDS
        if getattr(row, name) != getattr(known, name)
    ]
    if not instance.status.is_final:
        if row.wake_at is None:
            findings.append("it is unfinished and has no time at which it is looked at again")
        if not row.wake_reason:
            findings.append("it is unfinished and has no wake reason")
    elif row.wake_at is not None:
        findings.append("it has ended and still has a time at which it is to be woken")
    return findings


def _check(draft: Draft, event: ev.Event) -> list[str]:
    """Return what forbids an event after the facts so far."""
    if draft.status.is_final:
        return [f"the instance was {draft.status} already"]
    if isinstance(event, ev.InstanceStarted):
        return ["the instance was started already"]
    rule = _RULES.get(type(event))
    if rule is not None:
        return list(rule(draft, event))
    task_id = getattr(event, "task_id", "")
    if task_id and task_id in draft.runs and not isinstance(event, (ev.LateResult, ev.TaskReset)):
        run = draft.runs[task_id]
        return [f"task {task_id} was {run.status} already"] if run.status.is_final else []
    return []


def _check_start(draft: Draft, event: ev.TaskStarted) -> Iterable[str]:
    run, task = draft.runs.get(event.task_id), draft.plan.tasks.get(event.task_id)
    if run is None or task is None:
        return
    if draft.status is not InstanceStatus.RUNNING:
        yield f"task {task.id} was started while the instance was {draft.status}"
    if run.status not in _STARTS_FROM:
        yield f"task {task.id} was started while it was {run.status}"
    if event.attempt != run.attempt + 1:
        yield f"task {task.id} goes from attempt {run.attempt} to {event.attempt}"
    if event.token != f"{draft.id}/{task.id}/{event.attempt}":
        yield f"task {task.id} has the token {event.token!r} in attempt {event.attempt}"
    if run.status is TaskStatus.RUNNING and run.token:
        yield f"task {task.id} has attempt {run.attempt} under way"
    yield from _check_dependencies(draft, task)
    if task.condition is not None and task.condition.expression and run.condition_met is not True:
        yield f"task {task.id} was started without its condition being true"


def _check_dependencies(draft: Draft, task: TaskPlan) -> Iterable[str]:
    ends = {name: draft.runs[name].status for name in task.depends_on}
    for name, status in ends.items():
        if not status.is_final:
            yield f"task {task.id} was started before {name} was final ({status})"
        elif status in BLOCKING:
            yield f"task {task.id} was started although {name} is {status}"
    if ends and TaskStatus.COMPLETED not in ends.values():
        yield f"task {task.id} was started although nothing it depends on completed"


def _check_completion(draft: Draft, event: ev.TaskCompleted) -> Iterable[str]:
    run, wrong = draft.runs.get(event.task_id), list(_check_attempt_end(draft, event))
    yield from wrong
    if run is None or wrong:
        return
    if run.status is TaskStatus.RUNNING and not (run.token or run.awaiting_fallback):
        yield f"task {run.task_id} completed without an attempt under way"


def _check_attempt_end(
    draft: Draft, event: ev.AttemptFailed | ev.AttemptLost | ev.TaskCompleted
) -> Iterable[str]:
    run = draft.runs.get(event.task_id)
    if run is None:
        return
    if run.status.is_final:
        yield f"task {run.task_id} was {run.status} already"
    elif event.attempt != run.attempt:
        yield f"attempt {event.attempt} of task {run.task_id} ended while attempt {run.attempt} was current"


def _check_end(draft: Draft, event: ev.InstanceCompleted) -> Iterable[str]:
    for run in draft.runs.values():
        if not run.status.is_final:
            yield f"the instance completed while task {run.task_id} was {run.status}"
        elif run.status is TaskStatus.FAILED and not draft.plan.tasks[run.task_id].is_reconcile:
            yield f"the instance completed although task {run.task_id} failed"


def _check_early_end(draft: Draft, event: ev.InstanceFailed | ev.InstanceCancelled) -> Iterable[str]:
    for run in draft.runs.values():
        if not run.status.is_final:
            yield f"the instance ended while task {run.task_id} was {run.status}"


_RULES: Mapping[type, Callable[[Draft, Any], Iterable[str]]] = {
    ev.TaskStarted: _check_start,
    ev.TaskCompleted: _check_completion,
    ev.AttemptFailed: _check_attempt_end,
    ev.AttemptLost: _check_attempt_end,
    ev.InstanceCompleted: _check_end,
    ev.InstanceFailed: _check_early_end,
    ev.InstanceCancelled: _check_early_end,
}


def _check_limits(draft: Draft) -> list[str]:
    """Return which tasks were tried more often than their policy and the error handler allow."""
    return [text for run in draft.runs.values() for text in _limits_of(draft.plan.tasks[run.task_id], run)]


def _limits_of(task: TaskPlan, run: Run) -> Iterable[str]:
    allowed = task.retry.max_attempts + run.handler_retries
    if run.failures > allowed:
        yield f"task {task.id} failed {run.failures} times in a round; {allowed} attempts were granted"
    losses = MAX_LOSSES + run.handler_retries
    if run.losses > losses:
        yield f"task {task.id} was lost {run.losses} times in a round; at most {losses} are allowed"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
