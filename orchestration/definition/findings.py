"""Collects what the checks find, each at its place in the person's text, within bounds."""

from typing import Literal

import msgspec

from orchestration.definition.document import Document
from orchestration.definition.errors import MAX_PROBLEMS, Path, Problem


class Findings:
    """Errors and warnings about one document, at most MAX_PROBLEMS of each; the rest are counted."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._found: dict[str, list[Problem]] = {"error": [], "warning": []}
        self._left_out = {"error": 0, "warning": 0}
        for problem in document.problems:
            self.add(problem)

    def error(self, code: str, message: str, path: Path, *, hint: str = "", at_key: bool = False) -> None:
        """Note something that makes the definition unusable."""
        self.add(self.document.problem(code, message, path, hint=hint, at_key=at_key))

    def warn(self, code: str, message: str, path: Path, *, hint: str = "") -> None:
        """Note something that is probably not meant, but can run."""
        problem = self.document.problem(code, message, path, hint=hint)
        self.add(msgspec.structs.replace(problem, severity="warning"))

    def add(self, problem: Problem) -> None:
        """Note a finding as it is."""
        found = self._found[problem.severity]
        if len(found) < MAX_PROBLEMS:
            found.append(problem)
        else:
            self._left_out[problem.severity] += 1

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

    def _in_order(self, severity: Literal["error", "warning"]) -> list[Problem]:
        ordered = sorted(self._found[severity], key=lambda problem: (problem.line or 0, problem.column or 0))
        left_out = self._left_out[severity]
        if left_out:
            ordered.append(
                Problem(code="more", message=f"and {left_out} more of this severity", severity=severity)
            )
        return ordered
