"""Collects what the checks find, each at its place in the person's text, within bounds."""

from collections import Counter
from collections.abc import Callable
from typing import Literal

import msgspec

from orchestration.definition.document import Document
from orchestration.definition.errors import MAX_PROBLEMS, Path, Problem

MAX_PER_CODE = 25
"""Most findings of one kind, so that many of one do not hide the others."""

Severity = Literal["error", "warning"]

Hint = str | Callable[[], str]
"""A cure, or how to find one: looking for it may be slow, and is left out for findings that are only counted."""


class Findings:
    """Errors and warnings about one document, at most MAX_PROBLEMS of each; the rest are counted."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._found: dict[Severity, list[Problem]] = {"error": [], "warning": []}
        self._per_code: Counter[str] = Counter()
        self._left_out: dict[Severity, int] = {"error": 0, "warning": 0}
        for problem in document.problems:
            self.add(problem)

    def error(self, code: str, message: str, path: Path, *, hint: Hint = "", at_key: bool = False) -> None:
        """Note something that makes the definition unusable."""
        if self._has_room("error", code):
            said = hint if isinstance(hint, str) else hint()
            self.add(self.document.problem(code, message, path, hint=said, at_key=at_key))

    def warn(self, code: str, message: str, path: Path | Callable[[], Path], *, hint: Hint = "") -> None:
        """Note something that is probably not meant, but can run."""
        if self._has_room("warning", code):
            said = hint if isinstance(hint, str) else hint()
            place = path if isinstance(path, tuple) else path()
            problem = self.document.problem(code, message, place, hint=said)
            self.add(msgspec.structs.replace(problem, severity="warning"))

    def add(self, problem: Problem) -> None:
        """Note a finding as it is."""
        if self._has_room(problem.severity, problem.code):
            self._found[problem.severity].append(problem)
            self._per_code[problem.code] += 1

    def _has_room(self, severity: Severity, code: str) -> bool:
        """Return whether another finding is kept; count it among those left out if not."""
        found = self._found[severity]
        if len(found) < MAX_PROBLEMS and self._per_code[code] < MAX_PER_CODE:
            return True
        self._left_out[severity] += 1
        return False

    @property
    def has_errors(self) -> bool:
        """True when the definition cannot be used."""
        return bool(self._found["error"])

    def errors(self) -> list[Problem]:
        """Return the errors in the order of the text."""
        return self._in_order("error")

    def warnings(self) -> list[Problem]:
        """Return the warnings in the order of the text."""
        return self._in_order("warning")

    def _in_order(self, severity: Severity) -> list[Problem]:
        ordered = sorted(self._found[severity], key=lambda problem: (problem.line or 0, problem.column or 0))
        left_out = self._left_out[severity]
        if left_out:
            ordered.append(
                Problem(code="more", message=f"and {left_out} more of this severity", severity=severity)
            )
        return ordered
