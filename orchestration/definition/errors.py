"""What can be wrong with a definition or with the inputs of a start, and where.

    DefinitionRefused                a person's text cannot be used
      DefinitionError                a workflow definition has problems
      InputError                     the inputs of a start do not satisfy the input schema

Both carry every problem that was found, never only the first. Values that a person typed are not repeated in the
messages unless they are names, so that a secret among them does not spread.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

MAX_PROBLEMS = 100
"""Most problems that one error carries; the rest are counted."""

MAX_CANDIDATES = 300
"""Most known words that a suggestion is chosen from."""

MAX_LENGTH_DIFFERENCE = 8

MAX_QUOTED_CHARACTERS = 80
"""Longest piece of a person's text that a message repeats."""

Path = tuple[str | int, ...]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `path` is a JSON pointer; `line` and `column` count from 1 and are null without a text."""

    code: str
    message: str
    path: str = ""
    line: int | None = None
    column: int | None = None
    severity: Literal["error", "warning"] = "error"
    hint: str = ""

    def describe(self, source_name: str = "") -> str:
        """Return the finding as one line, as a compiler prints it: `file:line:column error[code] message; hint`."""
        place = source_name
        if self.line is not None:
            place = f"{source_name or 'line'}:{self.line}:{self.column}"
        elif self.path:
            place = f"{source_name}{self.path}"
        text = f"{self.severity}[{self.code}] {self.message}"
        return f"{place} {text}{'; ' + self.hint if self.hint else ''}".lstrip()


class DefinitionRefused(Exception):
    """Something that a person wrote cannot be used. `problems` says all of it."""

    code = "INVALID_INPUT"
    severity = "medium"
    retryable = False

    def __init__(self, problems: Sequence[Problem], *, source_name: str = "") -> None:
        self.problems = list(problems)
        self.source_name = source_name
        super().__init__("\n".join(problem.describe(source_name) for problem in self.problems))


class DefinitionError(DefinitionRefused):
    """A workflow definition has problems. The code is CIRCULAR_DEPENDENCY when cycles are all that is wrong."""

    def __init__(self, problems: Sequence[Problem], *, source_name: str = "") -> None:
        super().__init__(problems, source_name=source_name)
        only_cycles = all(problem.code == "cycle" for problem in self.problems)
        self.code = "CIRCULAR_DEPENDENCY" if self.problems and only_cycles else "INVALID_WORKFLOW_DEFINITION"


class InputError(DefinitionRefused):
    """The inputs of a start do not satisfy the workflow's input schema. Paths start at the inputs."""


def pointer(path: Iterable[str | int]) -> str:
    """Return the JSON pointer of a path. Source: RFC 6901."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def quoted(text: object) -> str:
    """Return a person's text in quotes, on one line and short enough for a message."""
    shown = str(text)
    if len(shown) > MAX_QUOTED_CHARACTERS:
        shown = shown[:MAX_QUOTED_CHARACTERS] + "..."
    return "'" + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown) + "'"


def did_you_mean(word: str, known: Iterable[str], *, list_known: bool = False) -> str:
    """Return a suggestion for a misspelt word, or "" (or the known words, when asked for) if none is close."""
    names = sorted(set(known))
    alike = [name for name in names if abs(len(name) - len(word)) <= MAX_LENGTH_DIFFERENCE][:MAX_CANDIDATES]
    close = difflib.get_close_matches(word[:MAX_QUOTED_CHARACTERS], alike, n=1, cutoff=0.6)
    if close:
        return f"did you mean {quoted(close[0])}?"
    return f"known here: {', '.join(names)}" if list_known and names else ""
