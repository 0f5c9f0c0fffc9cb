"""One log stream of many processes: each line with the name of who said it, readable, in colour on a terminal."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from runtime.texts import escape_control

MAX_SHOWN_CHARACTERS = 2000
RESET = "\x1b[0m"
DIM = "\x1b[2m"
CHILD_COLOURS = (
    "\x1b[36m",
    "\x1b[35m",
    "\x1b[34m",
    "\x1b[32m",
    "\x1b[96m",
    "\x1b[95m",
    "\x1b[94m",
    "\x1b[92m",
)
LEVEL_COLOURS: Mapping[str, str] = {
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
    "debug": DIM,
}
_PLACED = frozenset({"timestamp", "level", "event", "logger", "role", "exception", "stack"})


class LogStream:
    """Writes lines of named sources to one output.

    Args:
        names: Who will speak; sets the width of the first column.
        colour: Whether to use terminal colours; by default when the output is a terminal and NO_COLOR is unset.
    """

    def __init__(self, output: TextIO, names: Sequence[str], *, colour: bool | None = None) -> None:
        self._output = output
        self._width = max((len(name) for name in names), default=0)
        self._colour = output.isatty() and "NO_COLOR" not in os.environ if colour is None else colour
        self._colours = {name: CHILD_COLOURS[place % len(CHILD_COLOURS)] for place, name in enumerate(names)}

    def emit(self, name: str, line: str) -> None:
        """Write one line of a source. JSON log lines are written for people, others as they are, always harmless."""
        prefix = self._paint(f"{name:<{self._width}} |", self._colours.get(name, DIM))
        for text in self._rendered(line):
            self._output.write(f"{prefix} {text}\n")
        self._output.flush()

    def _rendered(self, line: str) -> Iterator[str]:
        fields = _fields(line)
        if fields is None:
            yield _shown(line)
            return
        level = str(fields.get("level", "info"))
        time = str(fields.get("timestamp", ""))[11:19]
        facts = " ".join(f"{key}={_value(value)}" for key, value in fields.items() if key not in _PLACED)
        text = _shown(f"{level.upper():<7} {fields['event']} {facts}".rstrip())
        yield f"{self._paint(_shown(time), DIM)} {self._paint(text, LEVEL_COLOURS.get(level, ''))}"
        for part in (fields.get("exception"), fields.get("stack")):
            for trace_line in str(part).split("\n") if part else ():
                yield f"         {_shown(trace_line)}"

    def _paint(self, text: str, colour: str) -> str:
        return f"{colour}{text}{RESET}" if self._colour and colour else text


def _fields(line: str) -> dict[str, Any] | None:
    """Return the fields of a JSON log line, or None when the line is something else."""
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and "event" in fields else None


def _value(value: Any) -> str:
    if isinstance(value, str) and value and not set(value) & set(' \t\r\n"='):
        return value
    return json.dumps(value, ensure_ascii=False)


def _shown(text: str) -> str:
    escaped = escape_control(text)
    return escaped if len(escaped) <= MAX_SHOWN_CHARACTERS else f"{escaped[:MAX_SHOWN_CHARACTERS]}..."
