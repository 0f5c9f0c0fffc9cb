"""What lies in an inbox, read as a stimulus; entries are written by others."""

from typing import Any

import pytest

from agents.workflow_engine.inbox import stimulus_of
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo, InboxItem
from tests.builders import at, make_plan, make_task

PLAN = make_plan(make_task("a", outputs=["price"]))


def read(kind: str, data: dict[str, Any]) -> st.AnyStimulus:
    item = InboxItem(inbox_id=1, instance_id="ins_1", kind=kind, data=data, at=at(0))
    return stimulus_of(item, PLAN, at(1), 0.5)


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("pause", {"reason": "r"}, st.PauseOrder(at=at(1), reason="r")),
        ("pause", {"duration": 5}, st.PauseOrder(at=at(1), duration_seconds=5.0)),
        ("pause", {"duration": "soon"}, st.PauseOrder(at=at(1))),
        ("resume", {}, st.ResumeOrder(at=at(1))),
        ("stop", {"reason": "r"}, st.StopOrder(at=at(1), reason="r")),
        ("task_retry", {"task_id": "a"}, st.RetryOrder(at=at(1), task_id="a")),
        ("task_skip", {"task_id": "a", "reason": "r"}, st.SkipOrder(at=at(1), task_id="a", reason="r")),
        (
            "task_complete",
            {"task_id": "a", "outputs": {"price": 3}, "reason": "r"},
            st.CompleteOrder(at=at(1), task_id="a", outputs={"price": 3}, reason="r"),
        ),
        ("task_complete", {"task_id": "a", "outputs": 3}, st.CompleteOrder(at=at(1), task_id="a")),
        (
            "task_result",
            {
                "task_id": "a",
                "token": "t",
                "error": {"code": "C", "message": "m", "details": {"spooled": True, "x": 1}},
            },
            st.AttemptErrored(
                at=at(1),
                task_id="a",
                token="t",
                error=ErrorInfo(code="C", message="m", details={"x": 1}),
                jitter=0.5,
            ),
        ),
        (
            "task_result",
            {
                "task_id": "a",
                "token": "t",
                "error": {
                    "code": "C",
                    "message": "m",
                    "details": {"retryable": False, "retry_after_seconds": 3, "begun": False},
                },
            },
            st.AttemptErrored(
                at=at(1),
                task_id="a",
                token="t",
                error=ErrorInfo(
                    code="C",
                    message="m",
                    details={"begun": False},
                    retryable=False,
                    retry_after_seconds=3.0,
                ),
                jitter=0.5,
            ),
        ),
        (
            "task_result",
            {
                "task_id": "a",
                "token": "t",
                "error": {"code": "C", "message": "m", "retryable": True, "retry_after_seconds": 2.0},
            },
            st.AttemptErrored(
                at=at(1),
                task_id="a",
                token="t",
                error=ErrorInfo(code="C", message="m", retryable=True, retry_after_seconds=2.0),
                jitter=0.5,
            ),
        ),
        ("state_update", {"updates": {"x": 1}}, st.UpdateOrder(at=at(1), updates={"x": 1})),
        (
            "state_update",
            {"updates": {"x": 1}, "merge_strategy": "replace"},
            st.UpdateOrder(at=at(1), updates={"x": 1}, replace=True),
        ),
        (
            "task_result",
            {"task_id": "a", "token": "t", "result": {"result": {}, "outputs": {"price": 3}, "primary": 3}},
            st.AttemptSucceeded(at=at(1), task_id="a", token="t", outputs={"price": 3}, primary=3),
        ),
        (
            "task_result",
            {"task_id": "a", "token": "t", "error": {"code": "C", "message": "m"}},
            st.AttemptErrored(
                at=at(1), task_id="a", token="t", error=ErrorInfo(code="C", message="m"), jitter=0.5
            ),
        ),
        (
            "task_result",
            {"task_id": "a", "token": "t", "lost": {"begun": False, "agent_id": "x", "reason": "killed"}},
            st.AttemptVanished(at=at(1), task_id="a", token="t", agent_id="x", reason="killed", begun=False),
        ),
        (
            "task_result",
            {"task_id": "a", "token": "t", "lost": {"begun": "no"}},
            st.AttemptVanished(at=at(1), task_id="a", token="t", begun=True),
        ),
    ],
)
def test_entries(kind: str, data: dict[str, Any], expected: st.AnyStimulus) -> None:
    assert read(kind, data) == expected


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("unknown", {}),
        ("state_update", {"updates": "text"}),
        ("task_result", {"task_id": "nowhere", "token": "t"}),
        ("task_result", {"task_id": "a", "token": "t", "result": "text"}),
        ("task_result", {"task_id": "a", "token": "t", "error": {"message": 5}}),
    ],
)
def test_an_entry_that_makes_no_sense_changes_nothing(kind: str, data: dict[str, Any]) -> None:
    assert read(kind, data) == st.Tick(at=at(1))
