"""JSONPath conditions: true when the path selects something truthy.

The subset: `$`, `.name`, `['name']`, `[0]`, `[-1]`, `[a:b]`, `[*]`, `.*`, `..name`, `..*` and `[?(@.name OP value)]`
with `&&` between comparisons. Filters compare, they do not compute.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestration.conditions.simple import Comparison, compare, parse_simple
from orchestration.expressions.errors import LIMIT, SYNTAX, ExpressionError
from orchestration.expressions.evaluator import Evaluator
from orchestration.expressions.limits import Limits
from orchestration.expressions.values import MISSING

MAX_STEPS_IN_PATH = 50
MAX_SELECTED = 10_000

_STEP = re.compile(
    r"""\.\.(?P<deep>[A-Za-z_][\w-]*|\*)
      | \.(?P<name>[A-Za-z_][\w-]*)
      | (?P<all>\.\*|\[\s*\*\s*\])
      | \[\s*(?P<index>-?\d{1,9})\s*\]
      | \[\s*(?P<slice>-?\d{0,9}:-?\d{0,9})\s*\]
      | \[\s*(?P<quoted>'[^']*'|"[^"]*")\s*\]
      | \[\s*\?\s*\(?(?P<filter>(?:'[^']*'|"[^"]*"|[^'"\]])*?)\)?\s*\]""",
    re.VERBOSE,
)
_HERE = re.compile(r"@\.?")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a path: name, all, deep, index, slice or filter, with its argument."""

    kind: str
    argument: Any = None


@dataclass(frozen=True, slots=True)
class Path:
    """A JSONPath, parsed."""

    steps: tuple[Step, ...]

    @property
    def names(self) -> frozenset[str]:
        """The context name it begins with, if it begins with one."""
        first = self.steps[0] if self.steps else None
        return frozenset((first.argument,)) if first is not None and first.kind == "name" else frozenset()

    @property
    def whole_context(self) -> bool:
        """Whether it looks at more of the context than one name."""
        return not self.names


def parse_path(source: str, limits: Limits) -> Path:
    """Return the path. Raises ExpressionError with the place of what is wrong."""
    if not isinstance(source, str) or len(source) > limits.max_source_chars:
        raise ExpressionError(LIMIT, f"a path may have {limits.max_source_chars} characters")
    text = source.strip()
    shift = len(source) - len(source.lstrip())
    if not text.startswith("$"):
        raise ExpressionError(SYNTAX, "a path begins with $", shift)
    steps: list[Step] = []
    place = 1
    while place < len(text):
        match = _STEP.match(text, place)
        if match is None:
            raise ExpressionError(SYNTAX, "this is no step of a path", shift + place)
        if len(steps) >= MAX_STEPS_IN_PATH:
            raise ExpressionError(LIMIT, f"a path may have {MAX_STEPS_IN_PATH} steps", shift + place)
        steps.append(_step(match, limits, shift))
        place = match.end()
    return Path(tuple(steps))


def select(path: Path, evaluator: Evaluator, root: Any) -> list[Any]:
    """Return what the path selects, in document order. Every visited value is charged to the evaluator."""
    selected = [root]
    for step in path.steps:
        found: list[Any] = []
        for value in selected:
            for part in _take(step, value, evaluator):
                evaluator.charge(1)
                if len(found) >= MAX_SELECTED:
                    raise ExpressionError(LIMIT, f"a path may select {MAX_SELECTED} values")
                found.append(part)
        selected = found
    return selected


def _step(match: re.Match[str], limits: Limits, shift: int) -> Step:
    kind = match.lastgroup or ""
    argument: Any = match[kind]
    match kind:
        case "quoted":
            return Step("name", argument[1:-1])
        case "index":
            return Step(kind, int(argument))
        case "slice":
            low, high = argument.split(":")
            return Step(kind, slice(int(low) if low else None, int(high) if high else None))
        case "filter":
            return Step(kind, _filter(argument, limits, shift))
    return Step(kind, argument)


def _filter(source: str, limits: Limits, shift: int) -> tuple[Comparison | tuple[str, ...], ...]:
    """Return comparisons that must all hold; a path alone means that there is something."""
    tests: list[Comparison | tuple[str, ...]] = []
    for part in source.split("&&"):
        text = part.strip()
        if not text.startswith("@"):
            raise ExpressionError(SYNTAX, "a filter compares a path that begins with @", shift)
        named = (
            _HERE.sub("item.", text, count=1) if text.startswith("@.") else _HERE.sub("item", text, count=1)
        )
        only_path = re.fullmatch(r"item(?:\.[\w-]+)*", named) is not None
        tests.append(tuple(named.split(".")) if only_path else parse_simple(named, limits))
    return tuple(tests)


def _take(step: Step, value: Any, evaluator: Evaluator) -> Iterator[Any]:
    match step.kind:
        case "name":
            if isinstance(value, Mapping) and step.argument in value:
                yield value[step.argument]
        case "all":
            yield from _children(value)
        case "deep":
            yield from _below(step.argument, value, evaluator)
        case "index":
            if isinstance(value, list) and -len(value) <= step.argument < len(value):
                yield value[step.argument]
        case "slice":
            if isinstance(value, list):
                yield from value[step.argument]
        case _:
            yield from (part for part in _children(value) if _passes(step.argument, part, evaluator))


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _below(name: str, value: Any, evaluator: Evaluator) -> Iterator[Any]:
    """Yield every value below that has the name, nearest first; `*` is every value below."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        evaluator.charge(1)
        if name == "*":
            yield from _children(part)
        elif isinstance(part, Mapping) and name in part:
            yield part[name]
        waiting.extend(reversed(list(_children(part))))


def _passes(tests: tuple[Comparison | tuple[str, ...], ...], item: Any, evaluator: Evaluator) -> bool:
    outer = evaluator.layers
    evaluator.layers = ({"item": item},)
    try:
        for test in tests:
            if isinstance(test, tuple):
                value = evaluator.find(test)
                if value is MISSING or not value:
                    return False
            elif not compare(test, evaluator):
                return False
    finally:
        evaluator.layers = outer
    return True
