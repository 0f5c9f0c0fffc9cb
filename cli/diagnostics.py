"""Problems as a compiler shows them: place, code, sentence, hint, and the line they stand on."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from orchestration.definition.errors import Problem
from runtime.texts import escape_control

MAX_EXCERPT_CHARACTERS = 160


def write_problems(output: TextIO, problems: Iterable[Problem], *, source_name: str, text: str = "") -> None:
    """Write every problem with the line of `text` that it is about."""
    lines = text.splitlines()
    for problem in problems:
        output.write("\n".join(_rendered(problem, source_name, lines)) + "\n")


def _rendered(problem: Problem, source_name: str, lines: Sequence[str]) -> Iterator[str]:
    yield escape_control(problem.describe(source_name))
    if problem.line is None or not 1 <= problem.line <= len(lines):
        return
    line, column = lines[problem.line - 1].replace("\t", " "), max(problem.column or 1, 1)
    start = max(0, column - 1 - MAX_EXCERPT_CHARACTERS // 2)
    before = escape_control(line[start : column - 1])
    after = escape_control(line[column - 1 : start + MAX_EXCERPT_CHARACTERS])
    number = str(problem.line)
    yield f"  {number} | {before}{after}"
    yield f"  {' ' * len(number)} | {' ' * len(before)}^"


def counted(count: int, noun: str) -> str:
    """Return `1 error`, `2 errors`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
