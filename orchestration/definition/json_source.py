"""Reads JSON into plain data with positions. Strict: what the standard does not allow is refused with its place.

Duplicate keys are refused, since one of the two would be lost; NaN and Infinity, lone surrogates and raw control
characters are not JSON. It must never build anything but dicts, lists, text, numbers, booleans and null.
"""

import re
from bisect import bisect_right
from typing import Any

from orchestration.definition.document import Document, Mark, TooMuch, bounded
from orchestration.definition.errors import Path, Problem, pointer, quoted

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_PLAIN_TEXT = re.compile(r'[^"\\\x00-\x1f]*')
_WORD = re.compile(r"[A-Za-z_-][A-Za-z0-9_]*")
_HEX4 = re.compile(r"[0-9a-fA-F]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"true": True, "false": False, "null": None}
_MAX_DIGITS = 400
"""Longest number that is converted; anything longer is out of range in any case."""


def read_json(text: str) -> Document:
    """Return the data and positions of a JSON text; `problems` of the result lists what was wrong.

    Reading goes on after a duplicate key, and ends at an error of syntax or at a bound.
    """
    reader = _Reader(text)
    try:
        value, root = reader.document()
    except TooMuch as refusal:
        return Document(None, None, [*reader.problems, refusal.problem], is_complete=False)
    return Document(value, root, reader.problems)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[Problem] = []
        self._at = 0
        self._count = 0
        self._lines = [0, *(found.end() for found in re.finditer(r"\n", text))]

    def document(self) -> tuple[Any, Mark]:
        value, mark = self._value((), 1)
        self._skip()
        if self._at < len(self.text):
            raise self._wrong("text after the end of the document", ())
        return value, mark

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect_right(self._lines, at)
        return line, at - self._lines[line - 1] + 1

    def _wrong(self, message: str, path: Path, *, hint: str = "", at: int | None = None) -> TooMuch:
        line, column = self._place(self._at if at is None else at)
        return TooMuch(
            Problem(
                code="json-syntax",
                message=f"not JSON: {message}",
                path=pointer(path),
                line=line,
                column=column,
                hint=hint,
            )
        )

    def _skip(self) -> str:
        """Skip white space and return the next character, "" at the end."""
        found = _SPACE.match(self.text, self._at)
        self._at = found.end() if found else self._at
        return self.text[self._at : self._at + 1]

    def _value(self, path: Path, depth: int) -> tuple[Any, Mark]:
        first = self._skip()
        line, column = self._place(self._at)
        mark = Mark(line, column)
        self._count += 1
        bounded(self._count, depth if first in ("{", "[") else 0, line=line, column=column, path=path)
        if first == "{":
            return self._object(path, depth, mark), mark
        if first == "[":
            return self._array(path, depth, mark), mark
        if first == '"':
            return self._text(path), mark
        return self._word_or_number(path), mark

    def _object(self, path: Path, depth: int, mark: Mark) -> dict[str, Any]:
        self._at += 1
        value: dict[str, Any] = {}
        if self._skip() == "}":
            self._at += 1
            return value
        while True:
            if self._skip() != '"':
                raise self._wrong("a key in double quotes is expected", path, hint=self._comma_hint("}"))
            key_at = self._at
            key_line, key_column = self._place(key_at)
            key = self._text(path)
            if self._skip() != ":":
                raise self._wrong(f"':' is expected after the key {quoted(key)}", path)
            self._at += 1
            if key in value:
                self._duplicate(key, (*path, key), key_line, key_column)
            value[key], inner = self._value((*path, key), depth + 1)
            inner.key_line, inner.key_column = key_line, key_column
            mark.inside[key] = inner
            if self._ends("}", path):
                return value

    def _array(self, path: Path, depth: int, mark: Mark) -> list[Any]:
        self._at += 1
        value: list[Any] = []
        if self._skip() == "]":
            self._at += 1
            return value
        while True:
            if self._skip() == "]":
                raise self._wrong("a value is expected", path, hint=self._comma_hint("]"))
            item, inner = self._value((*path, len(value)), depth + 1)
            mark.inside[len(value)] = inner
            value.append(item)
            if self._ends("]", path):
                return value

    def _ends(self, closing: str, path: Path) -> bool:
        """Step over the comma or the closing bracket; true for the bracket."""
        following = self._skip()
        if following not in (",", closing) or not following:
            what = "the text ends here; " if not following else ""
            raise self._wrong(f"{what}',' or '{closing}' is expected", path)
        self._at += 1
        return following == closing

    def _comma_hint(self, closing: str) -> str:
        return "JSON allows no comma before a closing bracket" if self._skip() == closing else ""

    def _duplicate(self, key: str, path: Path, line: int, column: int) -> None:
        self.problems.append(
            Problem(
                code="duplicate-key",
                message=f"the key {quoted(key)} appears twice in one object",
                path=pointer(path),
                line=line,
                column=column,
            )
        )

    def _word_or_number(self, path: Path) -> Any:
        word = _WORD.match(self.text, self._at)
        if word and word.group() in _WORDS:
            self._at = word.end()
            return _WORDS[word.group()]
        found = _NUMBER.match(self.text, self._at)
        if found:
            digits = found.group()
            if len(digits) > _MAX_DIGITS:
                raise self._wrong(f"a number of {len(digits)} characters is too long", path)
            self._at = found.end()
            is_float = found.group(1) or found.group(2)
            return float(digits) if is_float else int(digits)
        if word:
            raise self._wrong(
                f"{quoted(word.group())} is not a JSON value", path, hint="put text in double quotes"
            )
        if self._at >= len(self.text):
            raise self._wrong("the text ends where a value is expected", path)
        raise self._wrong(f"{quoted(self.text[self._at])} begins no value", path, hint=self._value_hint())

    def _value_hint(self) -> str:
        match self.text[self._at]:
            case "'":
                return "JSON text is in double quotes"
            case "/" | "#":
                return "JSON has no comments"
            case "." | "+":
                return "a number begins with a digit or a minus"
        return ""

    def _text(self, path: Path) -> str:
        start = self._at
        self._at += 1
        parts: list[str] = []
        while True:
            found = _PLAIN_TEXT.match(self.text, self._at)
            assert found is not None
            parts.append(found.group())
            self._at = found.end()
            closing = self.text[self._at : self._at + 1]
            if closing == '"':
                self._at += 1
                return "".join(parts)
            if closing == "\\":
                parts.append(self._escape(path))
            elif not closing:
                raise self._wrong("this text has no closing quote", path, at=start)
            else:
                raise self._wrong(
                    "a control character inside text must be escaped", path, hint="a line break is \\n"
                )

    def _escape(self, path: Path) -> str:
        kind = self.text[self._at + 1 : self._at + 2]
        if kind in _ESCAPES:
            self._at += 2
            return _ESCAPES[kind]
        if kind != "u":
            raise self._wrong(f"\\{kind} is not an escape", path, hint="a backslash itself is written \\\\")
        first = self._code_unit(path)
        if not 0xD800 <= first <= 0xDFFF:
            self._at += 6
            return chr(first)
        start = self._at
        self._at += 6
        if first <= 0xDBFF and self.text[self._at : self._at + 2] == "\\u":
            second = self._code_unit(path)
            if 0xDC00 <= second <= 0xDFFF:
                self._at += 6
                return chr(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))
        raise self._wrong("half of a surrogate pair stands alone", path, at=start)

    def _code_unit(self, path: Path) -> int:
        found = _HEX4.match(self.text, self._at + 2)
        if found is None:
            raise self._wrong("\\u needs four hexadecimal digits", path)
        return int(found.group(), 16)
