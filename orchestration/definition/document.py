"""A parsed text together with where each of its values stands. It holds plain data and never interprets it."""

from dataclasses import dataclass, field
from typing import Any

from orchestration.definition.errors import Path, Problem, pointer

MAX_TEXT_BYTES = 1024 * 1024
"""Largest definition, as text or as the JSON of an object."""

MAX_DEPTH = 50
"""Most containers inside one another."""

MAX_VALUES = 250_000
"""Most values and keys in one definition."""


@dataclass(slots=True)
class Mark:
    """Where a value and its key begin, counted from 1, and the marks of what is inside it."""

    line: int
    column: int
    key_line: int = 0
    key_column: int = 0
    inside: dict[str | int, "Mark"] = field(default_factory=dict)


@dataclass(slots=True)
class Document:
    """Plain data and, when it came from a text, its marks.

    `is_complete` is false when reading ended early: what the data lack then says nothing about the text.
    """

    value: Any
    root: Mark | None = None
    problems: list[Problem] = field(default_factory=list)
    is_complete: bool = True

    def problem(
        self, code: str, message: str, path: Path, *, hint: str = "", at_key: bool = False
    ) -> Problem:
        """Return an error at a path, with the position of the nearest value that the text has there."""
        line, column = self.position(path, at_key=at_key)
        return Problem(code=code, message=message, path=pointer(path), line=line, column=column, hint=hint)

    def position(self, path: Path, *, at_key: bool = False) -> tuple[int | None, int | None]:
        """Return line and column of the value at a path (of its key, when asked), else of the nearest one around it."""
        mark = self.root
        if mark is None:
            return None, None
        found_all = True
        for part in path:
            inner = mark.inside.get(part)
            if inner is None:
                found_all = False
                break
            mark = inner
        if at_key and found_all and mark.key_line:
            return mark.key_line, mark.key_column
        return mark.line, mark.column


class TooMuch(Exception):
    """A reader met a bound. `problem` says which and where."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def bounded(count: int, depth: int, *, line: int, column: int, path: Path) -> None:
    """Check the bounds that every reader keeps.

    Raises: TooMuch at too many values or too deep a nesting.
    """
    place = {"path": pointer(path), "line": line, "column": column}
    if depth > MAX_DEPTH:
        raise TooMuch(
            Problem(code="too-deep", message=f"values are nested deeper than {MAX_DEPTH} levels", **place)  # type: ignore[arg-type]
        )
    if count > MAX_VALUES:
        raise TooMuch(
            Problem(code="too-large", message=f"the definition has more than {MAX_VALUES:,} values", **place)  # type: ignore[arg-type]
        )
