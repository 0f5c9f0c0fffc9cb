"""Placeholders in strings: `{expr}` is filled, everything else stays as it is.

A string that is exactly one placeholder yields the value itself; inside text null is empty, text stays as it is and
anything else is JSON. `{{` and `}}` are literal braces. What stands in braces and is no expression stays as written.
Filled text is never looked at again, so data cannot bring in placeholders of its own.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestration.conditions.names import CONDITION_TYPES, names_of
from orchestration.expressions.errors import (
    FAILED,
    NAME,
    SYNTAX,
    TEMPLATE_UNRESOLVED,
    ExpressionError,
    TemplateError,
    shown,
)
from orchestration.expressions.evaluator import Evaluator
from orchestration.expressions.grammar import Expression, SourceCache, parse
from orchestration.expressions.limits import DEFAULT_LIMITS, Limits
from orchestration.expressions.values import MAX_DATA_DEPTH

MAX_TEXT_CHARS = 1024 * 1024
"""Longest text that is searched for placeholders, and longest text that filling may make."""
MAX_PARAMETER_NODES = 200_000
MAX_STEPS = 1_000_000
"""Steps that all placeholders of one rendering may take together; under a second."""
MAX_SCANNED_CHARS = 256 * 1024
"""Characters that may be searched in vain for closing braces in one text."""
CACHED_TEMPLATES = 4096
CACHED_TEMPLATE_CHARS = 512 * 1024
MAX_PROBLEMS = 100

CODE_FIELDS = frozenset({"expression", "condition"})
"""Fields that hold an expression, wherever they are: never templates."""
TASK_CODE_FIELDS = frozenset({"key", "until"})
"""Fields that hold an expression unless they are part of data that a task merely passes on."""
PAYLOAD_FIELDS = frozenset(
    {"data", "headers", "content", "input_data", "join_data", "env", "context", "body", "inputs"}
)
SINK_FIELDS = frozenset({"url", "file_path", "path", "command"})
"""Fields in which an embedded null or a control character would silently name something else."""
WHOLE_CONTEXT_NAMES = frozenset({"workflow_context", "inputs", "user_input", "request_data"})

_OPENING = re.compile(r"\{\{|\}\}|\{|\}")
_INSIDE = re.compile(r"[{}'\"\\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class TemplateProblem:
    """Something wrong with a placeholder or an expression in parameters. `path` is a JSON pointer."""

    path: str
    code: str
    message: str
    position: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What parameters need from the context.

    `names` are all context names that templates and code fields mention, `template_names` those that templates
    mention: each must be declared or present when the task runs. Code fields also mention names that the task
    itself defines, such as an item's keys, so the rest of `names` need not exist.
    """

    names: frozenset[str]
    template_names: frozenset[str]
    whole_context: bool
    problems: tuple[TemplateProblem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Where placeholders get their values. `secrets` returns a secret by name, or None when there is none."""

    variables: Mapping[str, Any]
    declared: Collection[str] = frozenset()
    secrets: Callable[[str], str | None] | None = None
    now: datetime | None = None
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True, slots=True)
class _Template:
    """A text taken apart: literal texts and expressions in turn."""

    parts: tuple[str | Expression, ...]

    @property
    def expressions(self) -> Iterator[Expression]:
        return (part for part in self.parts if isinstance(part, Expression))


class _Secrets(Mapping[str, str]):
    """Secrets as an object that can be asked for a key and for nothing else."""

    def __init__(self, lookup: Callable[[str], str | None]) -> None:
        self._lookup = lookup

    def __getitem__(self, name: str) -> str:
        value = self._lookup(name) if isinstance(name, str) else None
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        raise ExpressionError(FAILED, "secrets are used one by one, as in {secrets.name}")

    def __len__(self) -> int:
        raise ExpressionError(FAILED, "secrets are used one by one, as in {secrets.name}")


_CACHE = SourceCache(CACHED_TEMPLATES, CACHED_TEMPLATE_CHARS)


def render(value: Any, scope: Scope) -> Any:
    """Return the value with every placeholder in its strings filled, at any depth. Keys of objects stay as they are.

    Fields that hold expressions (`expression`, `condition`, a task's `key` and `until`) are left alone. The
    value given is never changed.

    Raises: TemplateError, TEMPLATE_UNRESOLVED for a name that is neither declared nor present and for a null in a
        url, path or command, EXPRESSION_ERROR for anything else, with the JSON pointer of the string.
    """
    return _Renderer(scope).walk(value, (), None, payload=False, depth=0)


def has_templates(value: Any) -> bool:
    """Return whether rendering would change anything: a string with a brace outside the fields that hold code."""
    return any(
        not code and ("{" in text or "}" in text) for text, _, code in _strings(value, "", None, False, 0)
    )


def references(value: Any) -> References:
    """Return which context names the parameters need, and what is wrong with their placeholders and expressions."""
    names: set[str] = set()
    template_names: set[str] = set()
    problems: list[TemplateProblem] = []
    whole = False
    for text, path, code in _strings(value, "", None, False, 0):
        try:
            if code is not None:
                found, needs_all = names_of(code.kind, text)
                names |= found
                whole = whole or needs_all
            elif "{" in text:
                for expression in _template(text).expressions:
                    template_names |= expression.names
        except ExpressionError as error:
            if (code is None or not code.payload) and len(problems) < MAX_PROBLEMS:
                problems.append(TemplateProblem(path, error.code, error.reason, error.position))
    names |= template_names
    return References(
        names=frozenset(names),
        template_names=frozenset(template_names),
        whole_context=whole or not names.isdisjoint(WHOLE_CONTEXT_NAMES),
        problems=tuple(problems),
    )


# --- walking ----------------------------------------------------------------------------------------------


_Place = tuple[Any, ...]
"""Where a value is: `(place of its parent, key)`, empty at the top. It is written out only when somebody is told."""


@dataclass(frozen=True, slots=True)
class _Code:
    """How a code field is written, and whether it is in data that may only look like code."""

    kind: str
    payload: bool


def _is_code(field: str | None, payload: bool) -> bool:
    return field in CODE_FIELDS or (field in TASK_CODE_FIELDS and not payload)


def _strings(
    value: Any, path: str, field: str | None, payload: bool, depth: int, kind: str = "python"
) -> Iterator[tuple[str, str, _Code | None]]:
    """Yield every string with its path, and with how it is written when it is code."""
    if isinstance(value, str):
        yield value, path, _Code(kind, payload) if _is_code(field, payload) else None
    elif depth > MAX_DATA_DEPTH:
        raise TemplateError(FAILED, f"parameters may be nested {MAX_DATA_DEPTH} levels deep", path)
    elif isinstance(value, Mapping):
        written = value.get("condition_type", value.get("type"))
        kind = written if isinstance(written, str) and written in CONDITION_TYPES else "python"
        for key, part in value.items():
            inner = payload or key in PAYLOAD_FIELDS
            yield from _strings(part, f"{path}/{_pointer(key)}", str(key), inner, depth + 1, kind)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _strings(part, f"{path}/{index}", field, payload, depth + 1, kind)


def _written(place: _Place) -> str:
    """Return a place as a JSON pointer."""
    names: list[str] = []
    while place:
        place, name = place
        names.append(_pointer(name))
    return "".join(f"/{name}" for name in reversed(names))


def _pointer(key: Any) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


class _Renderer:
    """One rendering. Counts what it makes."""

    def __init__(self, scope: Scope) -> None:
        layers: list[Mapping[str, Any]] = [scope.variables]
        if scope.secrets is not None:
            layers.append({"secrets": _Secrets(scope.secrets)})
        self._evaluator = Evaluator(
            layers, declared=scope.declared, now=scope.now, limits=scope.limits, steps=MAX_STEPS
        )
        self._nodes = MAX_PARAMETER_NODES
        self._chars = MAX_TEXT_CHARS * 16

    def walk(self, value: Any, place: _Place, field: str | None, *, payload: bool, depth: int) -> Any:
        self._nodes -= 1
        if self._nodes < 0:
            message = f"parameters may have {MAX_PARAMETER_NODES} parts"
            raise TemplateError(FAILED, message, _written(place))
        if isinstance(value, str):
            if ("{" not in value and "}" not in value) or _is_code(field, payload):
                return value
            return self._text(value, _written(place), field)
        if isinstance(value, Mapping):
            self._deep(depth, place)
            return {
                key: self.walk(
                    part,
                    (place, key),
                    key,
                    payload=payload or key in PAYLOAD_FIELDS,
                    depth=depth + 1,
                )
                for key, part in value.items()
            }
        if isinstance(value, list | tuple):
            self._deep(depth, place)
            return [
                self.walk(part, (place, index), field, payload=payload, depth=depth + 1)
                for index, part in enumerate(value)
            ]
        return value

    def _deep(self, depth: int, place: _Place) -> None:
        if depth >= MAX_DATA_DEPTH:
            message = f"parameters may be nested {MAX_DATA_DEPTH} levels deep"
            raise TemplateError(FAILED, message, _written(place))

    def _text(self, text: str, path: str, field: str | None) -> Any:
        try:
            parts = _template(text).parts
            if len(parts) == 1:
                only = parts[0]
                return only if isinstance(only, str) else self._evaluator.run(only)
            made = [part if isinstance(part, str) else self._embedded(part, path, field) for part in parts]
        except ExpressionError as error:
            raise _failure(error, path) from None
        size = sum(map(len, made))
        self._chars -= size
        if size > MAX_TEXT_CHARS or self._chars < 0:
            raise TemplateError(FAILED, f"the filled text has more than {MAX_TEXT_CHARS} characters", path)
        return "".join(made)

    def _embedded(self, expression: Expression, path: str, field: str | None) -> str:
        value = self._evaluator.run(expression)
        if value is None:
            if field in SINK_FIELDS:
                message = f"{shown(expression.source.strip())} is null, which cannot be part of {shown(field or '')}"
                raise TemplateError(TEMPLATE_UNRESOLVED, message, path)
            return ""
        if isinstance(value, str):
            if field in SINK_FIELDS and _CONTROL.search(value):
                message = f"{shown(expression.source.strip())} holds a control character"
                raise TemplateError(FAILED, message, path)
            return value
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            message = f"{shown(expression.source.strip())} cannot be written as JSON"
            raise TemplateError(FAILED, message, path) from None


def _failure(error: ExpressionError, path: str) -> TemplateError:
    code = TEMPLATE_UNRESOLVED if error.code == NAME else FAILED
    return TemplateError(code, error.reason, path, name=error.name)


# --- taking a text apart ----------------------------------------------------------------------------------


def _template(text: str) -> _Template:
    """Return the text taken apart. Raises ExpressionError for an expression that is not allowed or too large."""
    found: _Template | None = _CACHE.get(text)
    if found is None:
        if len(text) > MAX_TEXT_CHARS:
            raise ExpressionError(FAILED, f"a text with placeholders may have {MAX_TEXT_CHARS} characters")
        found = _Template(_take_apart(text))
        if len(text) <= CACHED_TEMPLATE_CHARS // 64:
            _CACHE.put(text, found)
    return found


def _take_apart(text: str) -> tuple[str | Expression, ...]:
    parts: list[str | Expression] = []
    literal: list[str] = []
    budget = MAX_SCANNED_CHARS
    done = open_braces = 0
    while (match := _OPENING.search(text, done)) is not None:
        literal.append(text[done : match.start()])
        brace, done = match.group(), match.end()
        if brace == "}}" and open_braces:
            # In text such as JSON each of the two closes a brace that was opened; they are no escape.
            brace, done = "}", done - 1
        if brace in ("{{", "}}"):
            literal.append(brace[0])
            continue
        if brace == "{":
            end = _closing(text, done)
            expression = _expression(text[done:end]) if end is not None else None
            if end is not None and expression is not None:
                _flush(literal, parts)
                parts.append(expression)
                done = end + 1
                continue
            budget -= (end or min(len(text), done + DEFAULT_LIMITS.max_source_chars)) - done
            if budget < 0:
                raise ExpressionError(FAILED, "the text has too many braces that hold no expression")
        open_braces = max(0, open_braces + (1 if brace == "{" else -1))
        literal.append(brace)
    literal.append(text[done:])
    _flush(literal, parts)
    return tuple(parts) or ("",)


def _flush(literal: list[str], parts: list[str | Expression]) -> None:
    text = "".join(literal)
    literal.clear()
    if text:
        parts.append(text)


def _closing(text: str, start: int) -> int | None:
    """Return where the brace that was opened before `start` is closed, braces in quotes not counted."""
    if not (text[start : start + 1].isalpha() or text[start : start + 1] == "_"):
        return None
    depth, quote, place = 0, "", start
    most = start + DEFAULT_LIMITS.max_source_chars + 1
    while (match := _INSIDE.search(text, place, most)) is not None:
        found, place = match.group(), match.end()
        if found == "\\":
            place += 1
        elif quote:
            quote = "" if found == quote else quote
        elif found in "'\"":
            quote = found
        elif found == "{":
            depth += 1
        elif found == "}":
            if depth == 0:
                return match.start()
            depth -= 1
    return None


def _expression(source: str) -> Expression | None:
    """Return the checked expression; None for text that is no expression and so stays as written."""
    try:
        return parse(source)
    except ExpressionError as error:
        if error.code == SYNTAX:
            return None
        raise
