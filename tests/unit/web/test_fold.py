"""The picture of an instance that its events make."""

from typing import Any

from web.server.fold import fold, new_document

DEFINITION = {
    "id": "w",
    "tasks": [
        {"id": "a", "type": "api_call", "outputs": ["x"], "parameters": {"url": "u"}},
        {"id": "b", "depends_on": ["a"]},
        {"id": "c", "depends_on": ["b"]},
        {"id": "d", "depends_on": ["a"]},
    ],
}


def folded(*events: dict[str, Any]) -> dict[str, Any]:
    document: Any = new_document("ins_1", DEFINITION)
    for number, event in enumerate(events, start=1):
        fold(document, {"seq": number, "at": f"t{number}", **event})
    return document


STARTED = {"type": "workflow.started", "inputs": {"n": 1}}
ADMITTED = {"type": "workflow.admitted"}
ERROR = {"code": "TIMEOUT", "message": "too slow"}


def task_event(kind: str, task_id: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": kind, "task_id": task_id, **fields}


def test_started_instance_is_pending_until_it_is_admitted() -> None:
    assert folded(STARTED)["instance"]["status"] == "pending"
    instance = folded(STARTED, ADMITTED)["instance"]
    assert (instance["status"], instance["created_at"], instance["started_at"]) == ("running", "t1", "t2")
    assert instance["inputs"] == {"n": 1}


def test_pause_keeps_its_reason_until_it_ends() -> None:
    paused = {"type": "workflow.paused", "reason": "lunch", "resume_at": "t9"}
    instance = folded(STARTED, ADMITTED, paused)["instance"]
    assert (instance["status"], instance["reason"], instance["resume_at"]) == ("paused", "lunch", "t9")
    instance = folded(STARTED, ADMITTED, paused, {"type": "workflow.resumed"})["instance"]
    assert (instance["status"], instance["reason"], instance["resume_at"]) == ("running", None, None)


def test_instance_paused_before_it_began_resumes_to_pending() -> None:
    events = (STARTED, {"type": "workflow.paused"}, {"type": "workflow.resumed"})
    assert folded(*events)["instance"]["status"] == "pending"


def test_completed_task_takes_its_result_from_the_named_output() -> None:
    done = task_event("task.completed", attempt=1, outputs={"x": 5}, primary_output="x")
    task = folded(STARTED, task_event("task.started", attempt=1), done)["tasks"]["a"]
    assert (task["status"], task["outputs"], task["result"]) == ("completed", {"x": 5}, 5)
    assert [one["outcome"] for one in task["attempts"]] == ["completed"]


def test_retried_task_keeps_every_attempt() -> None:
    task = folded(
        STARTED,
        task_event("task.started", attempt=1),
        task_event("task.attempt_failed", attempt=1, error=ERROR),
        task_event("task.retrying", attempt=2, due_at="t99"),
    )["tasks"]["a"]
    assert (task["status"], task["due_at"], task["last_error"]) == ("retrying", "t99", ERROR)
    assert task["attempts"][0]["outcome"] == "failed"
    assert task["attempts"][0]["ended_at"] == "t3"


def test_lost_attempt_ends_without_ending_the_task() -> None:
    lost = task_event("task.attempt_lost", attempt=1, agent_id="x-1")
    task = folded(STARTED, task_event("task.started", attempt=1), lost)["tasks"]["a"]
    assert task["status"] == "running"
    assert (task["attempts"][0]["outcome"], task["attempts"][0]["agent_id"]) == ("lost", "x-1")


def test_reset_task_takes_what_was_skipped_because_of_it_with_it() -> None:
    tasks = folded(
        STARTED,
        task_event("task.failed", error=ERROR),
        task_event("task.skipped", "b", reason="dependency_failed"),
        task_event("task.skipped", "c", reason="dependencies_skipped"),
        task_event("task.skipped", "d", reason="condition_false"),
        task_event("task.reset"),
    )["tasks"]
    assert {key: task["status"] for key, task in tasks.items()} == {
        "a": "ready", "b": "pending", "c": "pending", "d": "skipped",
    }  # fmt: skip


def test_event_that_was_applied_before_changes_nothing() -> None:
    document = folded(STARTED, ADMITTED)
    fold(document, {"seq": 2, "at": "t0", "type": "workflow.failed", "error": ERROR})
    assert document["instance"]["status"] == "running"


def test_unknown_events_and_tasks_only_count() -> None:
    document = folded(STARTED, {"type": "workflow.dreamt"}, task_event("task.started", "zz", attempt=1))
    assert document["seq"] == 3
    assert document["instance"]["status"] == "pending"


def test_unknown_outcome_is_a_state_until_a_late_result_ends_it() -> None:
    lost = task_event("task.attempt_lost", attempt=1, reason="gone")
    unknown = task_event("task.outcome_unknown", attempt=1, token="t", reason="gone")
    begun = (STARTED, ADMITTED, task_event("task.started", attempt=1), lost, unknown)
    task = folded(*begun)["tasks"]["a"]
    assert (task["status"], task["attempts"][0]["outcome"]) == ("outcome_unknown", "lost")
    done = folded(*begun, task_event("task.completed", attempt=1, outputs={"x": 5}))["tasks"]["a"]
    assert (done["status"], done["outputs"]) == ("completed", {"x": 5})


def test_a_reconcile_task_that_is_called_again_begins_anew() -> None:
    events = (
        STARTED,
        task_event("task.started", "d", attempt=1),
        task_event("task.completed", "d", attempt=1, outputs={"y": 1}),
        task_event("task.reconciling", "a", reconcile="d"),
    )
    task = folded(*events)["tasks"]["d"]
    assert (task["status"], task["outputs"], task["completed_at"]) == ("pending", {}, None)
    assert len(task["attempts"]) == 1
