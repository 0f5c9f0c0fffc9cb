"""The picture of one instance, made by folding its events: what the instance page shows.

`static/js/core/fold.js` does the same in the browser, rule by rule; `tests/web/test_pages.py` holds both to it.
Pure: a document and an event in, the document changed in place. It must never look at a clock.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

Document = MutableMapping[str, Any]
Event = Mapping[str, Any]


def new_document(instance_id: str, definition: Mapping[str, Any]) -> Document:
    """Return the picture before the first event.

    Args:
        definition: The content of the stored definition, normalized.
    """
    tasks = [task for task in definition.get("tasks", ()) if isinstance(task, Mapping)]
    return {
        "seq": 0,
        "instance": {
            "id": instance_id,
            "workflow_id": "",
            "workflow_name": "",
            "workflow_version": "",
            "definition_hash": "",
            "status": "pending",
            "created_at": None,
            "started_at": None,
            "completed_at": None,
            "updated_at": None,
            "inputs": {},
            "outputs": {},
            "error": None,
            "error_message": None,
            "failed_task": None,
            "reason": None,
            "resume_at": None,
            "trigger": None,
            "warnings": [],
        },
        "tasks": {str(task["id"]): _new_task(task) for task in tasks if "id" in task},
    }


_DESCRIPTION = (
    "type", "capability", "agent_id", "parameters", "condition", "timeout_seconds", "retry_config", "on_error",
    "effects", "reconcile",
)  # fmt: skip


def _new_task(task: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": task["id"],
        "name": task.get("name") or task["id"],
        **{key: task[key] for key in _DESCRIPTION if task.get(key) not in (None, {}, "")},
        "depends_on": list(task.get("depends_on") or ()),
        "output_names": list(task.get("outputs") or ()),
        **_blank_run(),
    }


def _blank_run() -> dict[str, Any]:
    return {
        "status": "pending",
        "started_at": None,
        "completed_at": None,
        "attempt_count": 0,
        "attempts": [],
        "outputs": {},
        "result": None,
        "last_error": None,
        "due_at": None,
        "condition_result": None,
        "skip": None,
        "recovery": None,
    }


def fold(document: Document, event: Event) -> None:
    """Apply one event. An event that was applied before, or is older, changes nothing."""
    if event["seq"] <= document["seq"]:
        return
    document["seq"] = event["seq"]
    instance = document["instance"]
    instance["updated_at"] = event["at"]
    kind = event["type"]
    if kind.startswith("workflow."):
        _fold_instance(instance, kind, event)
        return
    tasks = document["tasks"]
    task = tasks.get(event.get("task_id", ""))
    if task is not None and kind == "task.reset":
        _reset(tasks, task)
    elif task is not None and kind == "task.reconciling":
        _begin_anew(tasks.get(event.get("reconcile", "")))
    elif task is not None:
        _fold_task(task, kind, event)


def _fold_instance(instance: Document, kind: str, event: Event) -> None:
    match kind:
        case "workflow.started":
            instance["created_at"] = event["at"]
            instance["inputs"] = event.get("inputs", {})
            instance["trigger"] = event.get("trigger", "api")
        case "workflow.admitted":
            instance["status"] = "running"
            instance["started_at"] = event["at"]
        case "workflow.paused":
            instance["status"] = "paused"
            instance["reason"] = event.get("reason") or None
            instance["resume_at"] = event.get("resume_at")
        case "workflow.resumed":
            instance["status"] = "running" if instance["started_at"] else "pending"
            instance["reason"] = None
            instance["resume_at"] = None
        case "workflow.completed":
            _end(instance, "completed", event)
            instance["outputs"] = event.get("outputs", {})
        case "workflow.failed":
            _end(instance, "failed", event)
            instance["error"] = event.get("error")
            instance["error_message"] = (event.get("error") or {}).get("message")
            instance["failed_task"] = event.get("task_id") or None
        case "workflow.cancelled":
            _end(instance, "cancelled", event)
            instance["reason"] = event.get("reason") or None
        case "workflow.output_mismatched":
            instance["warnings"] = [*instance["warnings"], *event.get("problems", ())]
        case _:
            pass  # a newer engine's event: kept in the list of events, no part of the picture


def _end(instance: Document, status: str, event: Event) -> None:
    instance["status"] = status
    instance["completed_at"] = event["at"]
    instance["resume_at"] = None


def _fold_task(task: Document, kind: str, event: Event) -> None:
    match kind:
        case "task.started":
            attempt = {
                "attempt": event["attempt"],
                "started_at": event["at"],
                "ended_at": None,
                "outcome": None,
            }
            task["attempts"] = [*task["attempts"], {**attempt, "error": None, "agent_id": None}]
            task["status"] = "running"
            task["started_at"] = task["started_at"] or event["at"]
            task["attempt_count"] = event["attempt"]
            task["due_at"] = None
        case "task.completed":
            outputs, primary = event.get("outputs", {}), event.get("primary_output")
            agent = event.get("metadata", {}).get("executor_id")
            _close_attempt(task, "completed", event, agent=agent)
            _finish(task, "completed", event)
            task["outputs"] = outputs
            task["result"] = outputs.get(primary) if primary else event.get("primary")
        case "task.attempt_failed":
            _close_attempt(task, "failed", event, error=event.get("error"))
            task["last_error"] = event.get("error")
        case "task.attempt_lost":
            error = {"code": "OUTCOME_UNKNOWN", "message": event.get("reason") or "the executor was lost"}
            _close_attempt(task, "lost", event, error=error, agent=event.get("agent_id") or None)
            task["last_error"] = error
        case "task.outcome_unknown":
            task["status"] = "outcome_unknown"
        case "task.retrying":
            task["status"] = "retrying"
            task["due_at"] = event.get("due_at")
        case "task.failed":
            _finish(task, "failed", event)
            task["last_error"] = event.get("error")
        case "task.skipped":
            _finish(task, "skipped", event)
            task["skip"] = {"reason": event.get("reason", ""), "detail": event.get("detail", "")}
        case "task.cancelled":
            _close_attempt(task, "cancelled", event)
            _finish(task, "cancelled", event)
        case "condition.evaluated":
            task["condition_result"] = {
                "result": event.get("result"),
                "expression": event.get("expression", ""),
                "details": event.get("details", {}),
            }
        case "error.handled":
            keys = ("action", "severity", "reason", "escalated", "delay_seconds")
            task["recovery"] = {key: event[key] for key in keys if key in event}
        case _:
            pass  # late results and what newer engines write


_CONSEQUENCES = frozenset({"dependency_failed", "dependencies_skipped"})


def _reset(tasks: Mapping[str, Document], task: Document) -> None:
    """Begin a new round of a task; what was skipped because of it waits again."""
    task.update(_blank_run(), status="ready", attempts=task["attempts"])
    frontier = [task["id"]]
    while frontier:
        source = frontier.pop()
        for dependent in tasks.values():
            skip = dependent["skip"]
            if source in dependent["depends_on"] and skip is not None and skip["reason"] in _CONSEQUENCES:
                dependent.update(_blank_run(), attempts=dependent["attempts"])
                frontier.append(dependent["id"])


def _begin_anew(task: Document | None) -> None:
    """Begin a new round of a task that was called for; what it did before stays with its attempts."""
    if task is not None:
        task.update(_blank_run(), attempts=task["attempts"])


def _finish(task: Document, status: str, event: Event) -> None:
    task["status"] = status
    task["completed_at"] = event["at"]
    task["due_at"] = None


def _close_attempt(
    task: Document, outcome: str, event: Event, *, error: object = None, agent: object = None
) -> None:
    """End the open attempt; without one (it was ended before) nothing happens."""
    if not task["attempts"] or task["attempts"][-1]["ended_at"] is not None:
        return
    last = {
        **task["attempts"][-1],
        "ended_at": event["at"],
        "outcome": outcome,
        "error": error,
        "agent_id": agent,
    }
    task["attempts"] = [*task["attempts"][:-1], last]
