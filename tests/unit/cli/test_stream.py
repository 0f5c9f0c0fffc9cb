"""The log stream of many processes, and the lines about a running instance."""

import io
import json

import pytest

from cli.errors import ExitCode
from cli.progress import Progress, exit_code_of
from cli.stream import LogStream


def emitted(line: str, *, colour: bool = False) -> str:
    output = io.StringIO()
    LogStream(output, ["engine", "state"], colour=colour).emit("state", line)
    return output.getvalue()


def test_json_line_becomes_time_level_event_and_facts() -> None:
    line = json.dumps(
        {
            "timestamp": "2026-01-01T10:20:30.5Z",
            "level": "info",
            "event": "ready",
            "logger": "x",
            "port": 1,
            "why": "a b",
        }
    )
    assert emitted(line) == 'state  | 10:20:30 INFO    ready port=1 why="a b"\n'


def test_other_lines_are_passed_on_as_they_are() -> None:
    assert emitted("plain text") == "state  | plain text\n"
    assert emitted('{"no": "log line"}') == 'state  | {"no": "log line"}\n'
    assert emitted("{" * 100_000)[:10] == "state  | {"


def test_exception_keeps_its_lines_under_the_name() -> None:
    line = json.dumps({"event": "failed", "level": "error", "exception": "Traceback\n  ValueError"})
    assert emitted(line).splitlines() == [
        "state  |  ERROR   failed",
        "state  |          Traceback",
        "state  |            ValueError",
    ]


@pytest.mark.parametrize(
    "line", ["\x1b[2Jgone\r", json.dumps({"event": "x\n\x1b[2J", "text": "\u202eevil\n"})]
)
def test_hostile_lines_are_harmless(line: str) -> None:
    text = emitted(line)
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_colour_marks_the_name_and_the_level() -> None:
    text = emitted(json.dumps({"event": "x", "level": "error"}), colour=True)
    assert "\x1b[31m" in text
    assert text.count("\x1b[0m") >= 2


def test_unknown_name_is_no_problem() -> None:
    output = io.StringIO()
    LogStream(output, [], colour=False).emit("who", "said")
    assert output.getvalue() == "who | said\n"


def told(*events: dict[str, object]) -> list[str]:
    output = io.StringIO()
    progress = Progress(output, colour=False)
    for event in events:
        progress.tell({"at": "2026-01-01T00:00:00Z", **event})
    return output.getvalue().splitlines()


def test_task_is_told_with_its_time() -> None:
    assert told(
        {"type": "task.started", "task_id": "a", "attempt": 1},
        {"type": "task.completed", "task_id": "a", "at": "2026-01-01T00:00:01.5Z"},
    ) == ["  ✓ a 1.50 s"]


def test_failures_and_retries_are_told_with_their_reason() -> None:
    error = {"code": "TIMEOUT", "message": "no answer"}
    assert told(
        {"type": "task.started", "task_id": "a", "attempt": 1},
        {"type": "task.attempt_failed", "task_id": "a", "attempt": 1, "error": error},
        {"type": "task.retrying", "task_id": "a", "attempt": 2, "due_at": "soon"},
        {"type": "task.started", "task_id": "a", "attempt": 2},
        {"type": "task.attempt_lost", "task_id": "a", "attempt": 2},
        {"type": "task.failed", "task_id": "a", "error": error},
        {"type": "task.skipped", "task_id": "b", "reason": "dependency_failed", "detail": "a failed"},
        {"type": "task.cancelled", "task_id": "c"},
    ) == [
        "  ✕ a: TIMEOUT: no answer",
        "  ↻ a: tried again at soon",
        "  ◐ a: attempt 2",
        "  ✕ a: the executor was lost; the outcome is unknown",
        "  ✕ a failed: TIMEOUT: no answer",
        "  ⤼ b skipped: a failed",
        "  ■ c cancelled",
    ]


def test_pauses_and_warnings_are_told_and_detail_is_not() -> None:
    assert told(
        {"type": "workflow.paused", "reason": "by operator"},
        {"type": "workflow.resumed"},
        {"type": "workflow.output_mismatched", "problems": ["/a is missing"]},
        {"type": "condition.evaluated", "task_id": "a"},
        {"type": "task.failed", "task_id": "a"},
    ) == [
        "  ⏸ paused by operator",
        "  ◐ resumed",
        "  ! the outputs do not fit the output schema: /a is missing",
        "  ✕ a failed: no reason given",
    ]


def test_hostile_event_text_is_harmless() -> None:
    (line,) = told({"type": "task.skipped", "task_id": "a\n\x1b[2J", "detail": "x" * 10_000})
    assert "\x1b" not in line
    assert len(line) <= 500


@pytest.mark.parametrize(
    ("status", "code"),
    [("completed", ExitCode.OK), ("failed", ExitCode.FAILED), ("cancelled", ExitCode.FAILED)],
)
def test_status_decides_the_exit_code(status: str, code: ExitCode) -> None:
    assert exit_code_of(status) == code
