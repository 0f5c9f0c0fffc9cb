"""Reads YAML into plain data with positions: the 1.2 core schema, one document, nothing that can surprise.

`no`, `on` and dates stay text. Keys are text as written. Anchors, aliases, merges and tags are refused, since they
let a small text grow without bound or name types; duplicate keys are refused, since one of the two would be lost.
It must never build anything but dicts, lists, text, numbers, booleans and null.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from orchestration.definition.document import Document, Mark, TooMuch, bounded
from orchestration.definition.errors import Path, Problem, pointer, quoted

_NULL = re.compile(r"~|null|Null|NULL|", re.ASCII)
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE", re.ASCII)
_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_OCTAL = re.compile(r"0o[0-7]+", re.ASCII)
_HEX = re.compile(r"0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN", re.ASCII)
_MAX_DIGITS = 400
"""Longest number that is converted; anything longer is out of range in any case."""

_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class _Open:
    """A mapping or sequence that is being read."""

    value: Any
    mark: Mark
    path: Path
    key: str | None = None
    key_mark: tuple[int, int] = (0, 0)
    seen: set[str] = field(default_factory=set)


def read_yaml(text: str) -> Document:
    """Return the data and positions of a YAML text; `problems` of the result lists what was wrong.

    Reading goes on after a duplicate key, an alias or a tag, and ends at an error of syntax or at a bound.
    """
    reader = _Reader()
    loader = _LOADER(text)
    is_complete = False
    try:
        while loader.check_event() and not reader.finished:
            reader.take(loader.get_event())
        is_complete = not reader.finished
    except TooMuch as refusal:
        reader.problems.append(refusal.problem)
    except yaml.YAMLError as error:
        reader.problems.append(_syntax_problem(error, text))
    finally:
        loader.dispose()
    return Document(reader.value, reader.root, reader.problems, is_complete=is_complete)


class _Reader:
    def __init__(self) -> None:
        self.value: Any = None
        self.root: Mark | None = None
        self.problems: list[Problem] = []
        self.finished = False
        self._open: list[_Open] = []
        self._count = 0
        self._documents = 0

    def take(self, event: Any) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._start_document(event)
            case yaml.AliasEvent():
                self._refuse(
                    event, "yaml-alias", f"the alias *{event.anchor} is not allowed; write the value out"
                )
                self._place(None, event)
            case yaml.ScalarEvent():
                self._check_properties(event)
                self._scalar(event)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._check_properties(event)
                self._start(event)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._open.pop()

    def _start_document(self, event: Any) -> None:
        self._documents += 1
        if self._documents > 1:
            self._refuse(event, "yaml-documents", "the text has more than one document; a definition is one")
            self.finished = True
        if event.tags:
            self._refuse(event, "yaml-tag", "%TAG directives are not allowed")

    def _check_properties(self, event: Any) -> None:
        if event.anchor is not None:
            self._refuse(
                event, "yaml-anchor", f"the anchor &{event.anchor} is not allowed; write the value out"
            )
        if event.tag is not None:
            self._refuse(
                event, "yaml-tag", f"the tag {quoted(event.tag)} is not allowed; plain YAML needs none"
            )

    def _scalar(self, event: Any) -> None:
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._key(top, event)
            return
        if not event.implicit[0] or self._is_version(top):
            self._place(event.value, event)
            return
        try:
            self._place(_plain(event.value), event)
        except ValueError as error:
            self._refuse(event, "bad-number", str(error))
            self._place(0, event)

    def _is_version(self, top: _Open | None) -> bool:
        """True for the workflow's version, which is text even without quotes: 1.10 is not 1.1."""
        return top is not None and len(self._open) == 1 and top.key == "version"

    def _key(self, top: _Open, event: Any) -> None:
        key: str = event.value
        top.key, top.key_mark = key, _position(event)
        if key in top.seen:
            self._refuse(event, "duplicate-key", f"the key {quoted(key)} appears twice in one mapping")
        top.seen.add(key)
        self._count += 1

    def _start(self, event: Any) -> None:
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            line, column = _position(event)
            raise TooMuch(
                Problem(
                    code="bad-key",
                    message="a key must be text, not a list or a mapping",
                    path=pointer(top.path),
                    line=line,
                    column=column,
                    hint='write a template in quotes: "{name}"'
                    if isinstance(event, yaml.MappingStartEvent)
                    else "",
                )
            )
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        path = self._here()
        mark = self._place(value, event)
        self._open.append(_Open(value, mark, path))

    def _place(self, value: Any, event: Any) -> Mark:
        """Put a value where it belongs and return its mark."""
        line, column = _position(event)
        mark = Mark(line, column)
        top = self._open[-1] if self._open else None
        self._count += 1
        depth = len(self._open) + isinstance(value, dict | list)
        bounded(self._count, depth, line=line, column=column, path=top.path if top else ())
        if top is None:
            self.value, self.root = value, mark
        elif isinstance(top.value, list):
            top.mark.inside[len(top.value)] = mark
            top.value.append(value)
        elif top.key is None:
            # An alias stands where a key belongs. It is refused already; its value goes under no name.
            top.key, top.key_mark = "", (line, column)
        else:
            mark.key_line, mark.key_column = top.key_mark
            top.mark.inside[top.key] = mark
            top.value[top.key] = value
            top.key = None
        return mark

    def _here(self) -> Path:
        """Return the path of the value that comes next."""
        if not self._open:
            return ()
        top = self._open[-1]
        if isinstance(top.value, list):
            return (*top.path, len(top.value))
        return top.path if top.key is None else (*top.path, top.key)

    def _refuse(self, event: Any, code: str, message: str) -> None:
        line, column = _position(event)
        self.problems.append(
            Problem(code=code, message=message, path=pointer(self._here()), line=line, column=column)
        )


def _position(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _plain(text: str) -> str | int | float | bool | None:
    """Return the value of an unquoted scalar. Source: YAML 1.2.2, section 10.3.2, the core schema."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a number that JSON knows; write it in quotes if it is text")
    is_number = (
        _INT.fullmatch(text) or _FLOAT.fullmatch(text) or _OCTAL.fullmatch(text) or _HEX.fullmatch(text)
    )
    if not is_number:
        return text
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} characters is too long; write it in quotes if it is text")
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    return int(text) if _INT.fullmatch(text) else float(text)


def _syntax_problem(error: yaml.YAMLError, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        lines = text.split("\n")
        # What was never closed is noticed after the last line.
        past_end = mark.line >= len(lines)
        said = " ".join(
            part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part
        )
        return Problem(
            code="yaml-syntax",
            message=f"not YAML: {said}",
            line=len(lines) if past_end else mark.line + 1,
            column=len(lines[-1]) + 1 if past_end else mark.column + 1,
            hint=_syntax_hint(said),
        )
    found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    offset = found.start() if found else 0
    line = text.count("\n", 0, offset) + 1
    column = offset - (text.rfind("\n", 0, offset) + 1) + 1
    return Problem(
        code="yaml-syntax",
        message="not YAML: a control character is not allowed here",
        line=line,
        column=column,
    )


def _syntax_hint(said: str) -> str:
    if "cannot start any token" in said or "'\\t'" in said:
        return "indent with spaces, and put text that begins with a special character in quotes"
    if "mapping values are not allowed" in said:
        return "put text that contains ': ' in quotes"
    if "flow mapping" in said or "flow sequence" in said:
        return 'put templates in quotes: "{name}"'
    return ""
