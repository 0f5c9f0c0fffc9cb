"""What is told about a running instance: one line for each thing that matters, on standard error."""

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TextIO

from cli.errors import ExitCode
from runtime.texts import escape_control

MAX_LINE_CHARACTERS = 500
RESET = "\x1b[0m"
GREEN, RED, YELLOW, DIM = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[2m"
ENDS: Mapping[str, str] = {
    "workflow.completed": "completed",
    "workflow.failed": "failed",
    "workflow.cancelled": "cancelled",
}
"""The events after which nothing more happens, and the status they leave."""


class Progress:
    """Tells an instance's events as lines.

    Args:
        colour: Whether to use terminal colours; by default when the output is a terminal and NO_COLOR is unset.
    """

    def __init__(self, output: TextIO, *, colour: bool | None = None) -> None:
        self._output = output
        self._colour = output.isatty() and "NO_COLOR" not in os.environ if colour is None else colour
        self._started_at: dict[str, datetime] = {}

    def say(self, text: str) -> None:
        """Write one line."""
        shown = escape_control(text)[:MAX_LINE_CHARACTERS]
        self._output.write(f"{shown}\n")
        self._output.flush()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Write the line about an event of the log: a flat object with `type`, `at` and its own fields."""
        task = str(event.get("task_id", ""))
        match event.get("type"):
            case "task.started":
                self._started_at[task] = _time(event["at"])
                if event.get("attempt", 1) > 1:
                    self._line("◐", f"{task}: attempt {event['attempt']}", DIM)
            case "task.completed":
                self._line("✓", f"{task} {self._took(task, event)}", GREEN)
            case "task.attempt_failed":
                self._line("✕", f"{task}: {_problem(event)}", YELLOW)
            case "task.attempt_lost":
                self._line("✕", f"{task}: the executor was lost; the outcome is unknown", YELLOW)
            case "task.outcome_unknown":
                self._line(
                    "?", f"{task}: nobody knows whether it did its work; `amp why` says what to do", YELLOW
                )
            case "task.reconciling":
                self._line("◐", f"{task}: {event.get('reconcile')} finds out whether it did its work", DIM)
            case "task.retrying":
                self._line("↻", f"{task}: tried again at {event.get('due_at')}", YELLOW)
            case "task.failed":
                self._line("✕", f"{task} failed: {_problem(event)}", RED)
            case "task.skipped":
                self._line("⤼", f"{task} skipped: {event.get('detail') or event.get('reason', '')}", DIM)
            case "task.cancelled":
                self._line("■", f"{task} cancelled", DIM)
            case "workflow.paused":
                self._line("⏸", f"paused {event.get('reason', '')}".rstrip(), YELLOW)
            case "workflow.resumed":
                self._line("◐", "resumed", DIM)
            case "workflow.output_mismatched":
                for problem in event.get("problems", ()):
                    self._line("!", f"the outputs do not fit the output schema: {problem}", YELLOW)
            case _:
                pass  # the rest is detail, kept in the log

    def _line(self, mark: str, text: str, colour: str) -> None:
        shown = escape_control(f"  {mark} {text}")[:MAX_LINE_CHARACTERS]
        self._output.write(f"{colour}{shown}{RESET}\n" if self._colour else f"{shown}\n")
        self._output.flush()

    def _took(self, task: str, event: Mapping[str, Any]) -> str:
        began = self._started_at.get(task)
        return "" if began is None else f"{max(0.0, (_time(event['at']) - began).total_seconds()):.2f} s"


def exit_code_of(status: str) -> ExitCode:
    """Return what the shell learns of an instance that ended."""
    return ExitCode.OK if status == "completed" else ExitCode.FAILED


def _time(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def _problem(event: Mapping[str, Any]) -> str:
    error = event.get("error")
    if not isinstance(error, Mapping):
        return "no reason given"
    return f"{error.get('code', '')}: {error.get('message', '')}"
