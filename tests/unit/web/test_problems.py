"""Which HTTP answer each error of the mesh becomes."""

import pytest

from amp.errors import (
    AgentNotFound,
    AmpError,
    CapabilityNotFound,
    Disconnected,
    InsufficientResources,
    InternalError,
    RequestTimeout,
)
from web.server.problems import from_mesh, unknown_field


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CapabilityNotFound("none"), 503, "agent_absent"),
        (AgentNotFound("none"), 503, "agent_absent"),
        (Disconnected("gone"), 503, "mesh_unavailable"),
        (InsufficientResources("full", {"retry_after_ms": 4000}), 503, "busy"),
        (RequestTimeout("late"), 504, "timeout"),
        (InternalError("bug"), 502, "agent_failed"),
        (AmpError("WORKFLOW_NOT_FOUND", "no"), 404, "workflow_not_found"),
        (AmpError("INSTANCE_NOT_FOUND", "no"), 404, "instance_not_found"),
        (AmpError("INVALID_INPUT", "no"), 422, "invalid_inputs"),
        (AmpError("CIRCULAR_DEPENDENCY", "no"), 422, "invalid_definition"),
        (AmpError("ILLEGAL_STATE", "no", {"current_state": "completed"}), 409, "state_conflict"),
        (AmpError("WORKFLOW_EXISTS", "no"), 409, "workflow_exists"),
    ],
)
def test_error_of_the_mesh_has_its_status(error: AmpError, status: int, code: str) -> None:
    problem = from_mesh(error, "workflow-start")
    assert (problem.status, problem.code) == (status, code)


def test_absent_agents_say_when_to_come_back() -> None:
    assert from_mesh(CapabilityNotFound("none"), "x").headers["Retry-After"] == "2"
    busy = InsufficientResources("full", {"retry_after_ms": 4000})
    assert from_mesh(busy, "x").headers["Retry-After"] == "4"


def test_conflict_names_the_present_state() -> None:
    problem = from_mesh(AmpError("ILLEGAL_STATE", "no", {"current_state": "completed", "secret": 1}), "x")
    assert problem.more == {"current_state": "completed"}


def test_listed_problems_keep_pointer_line_and_column() -> None:
    listed = {
        "problems": [{"path": "/tasks/0", "message": "bad", "code": "x", "line": 3, "column": 5}, "junk"]
    }
    problem = from_mesh(AmpError("INVALID_WORKFLOW_DEFINITION", "no", listed), "x")
    assert problem.errors == [{"pointer": "/tasks/0", "detail": "bad", "code": "x", "line": 3, "column": 5}]


def test_misspelt_field_gets_a_suggestion() -> None:
    assert "did you mean 'inputs'?" in unknown_field("inptus", ["inputs", "instance_id"])
    assert "known here" in unknown_field("zzz", ["inputs"])
