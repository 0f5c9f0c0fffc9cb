"""The conditions `left OP right` and `field ~ pattern`: one comparison, no nesting, nothing to escape from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestration.expressions.errors import FAILED, LIMIT, SYNTAX, ExpressionError
from orchestration.expressions.evaluator import Evaluator
from orchestration.expressions.functions import MAX_NUMBER_CHARS
from orchestration.expressions.limits import Limits
from orchestration.expressions.matching import regex_match, regex_search
from orchestration.expressions.regex import compile_pattern
from orchestration.expressions.values import MISSING, kind

WORD_OPERATORS = ("not in", "in", "contains", "startswith", "endswith", "matches")
SYMBOL_OPERATORS = ("==", "!=", ">=", "<=", ">", "<")
MAX_LIST_ITEMS = 1000

_LITERALS: Mapping[str, Any] = {
    "true": True, "false": False, "none": None, "null": None, "True": True, "False": False, "None": None,
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(?:\.[A-Za-z0-9][A-Za-z0-9_-]*)*")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_OPERATOR = re.compile(r"==|!=|>=|<=|>|<|(?<=\s)(?:not\s+in|in|contains|startswith|endswith|matches)(?=\s)")
_PATTERN_TEST = re.compile(r"\s*([A-Za-z][\w.-]*)\s*(!?~)\s*(.+?)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a comparison: a literal, a list of operands, or a path into the context."""

    value: Any = None
    path: tuple[str, ...] = ()
    parts: tuple["Operand", ...] | None = None

    @property
    def names(self) -> frozenset[str]:
        """The context names it uses."""
        inner: frozenset[str] = frozenset().union(*(part.names for part in self.parts or ()))
        return inner | frozenset(self.path[:1])


@dataclass(frozen=True, slots=True)
class Comparison:
    """`left OP right`, parsed."""

    left: Operand
    operator: str
    right: Operand

    @property
    def names(self) -> frozenset[str]:
        """The context names it uses. A plain name that is missing stands for its own text, so all may be absent."""
        return self.left.names | self.right.names


@dataclass(frozen=True, slots=True)
class PatternTest:
    """`field ~ pattern` or `field !~ pattern`, parsed."""

    field: Operand
    pattern: str
    negated: bool

    @property
    def names(self) -> frozenset[str]:
        """The context names it uses."""
        return self.field.names


def parse_simple(source: str, limits: Limits) -> Comparison:
    """Return the comparison. Raises ExpressionError with the place of what is wrong."""
    _check_length(source, limits)
    found = _find_operator(source)
    if found is None:
        operators = " ".join((*SYMBOL_OPERATORS, *WORD_OPERATORS))
        raise ExpressionError(SYNTAX, f"a simple condition is 'left OP right', with OP one of {operators}")
    start, end = found
    operator = " ".join(source[start:end].split())
    left, right = source[:start], source[end:]
    second = _find_operator(right)
    if second is not None:
        raise ExpressionError(SYNTAX, "a simple condition has one operator", end + second[0])
    comparison = Comparison(_operand(left, 0), operator, _operand(right, end))
    if operator == "matches" and isinstance(comparison.right.value, str):
        compile_pattern(comparison.right.value)
    return comparison


def parse_pattern_test(source: str, limits: Limits) -> PatternTest:
    """Return the test. Raises ExpressionError when it is none or its pattern is not allowed."""
    _check_length(source, limits)
    match = _PATTERN_TEST.fullmatch(source)
    if match is None:
        raise ExpressionError(SYNTAX, "a regex condition is 'field ~ pattern' or 'field !~ pattern'")
    pattern = match[3]
    if len(pattern) >= 2 and pattern[0] == pattern[-1] and pattern[0] in "'\"":
        pattern = pattern[1:-1]
    compile_pattern(pattern)
    return PatternTest(_operand(match[1], match.start(1)), pattern, match[2] == "!~")


def compare(comparison: Comparison, evaluator: Evaluator) -> bool:
    """Return whether the comparison holds in the evaluator's context. Raises ExpressionError."""
    left = _resolve(comparison.left, evaluator)
    right = _resolve(comparison.right, evaluator)
    match comparison.operator:
        case "==":
            return evaluator.equal(left, right)
        case "!=":
            return not evaluator.equal(left, right)
        case "in":
            return _contains(evaluator, right, left)
        case "not in":
            return not _contains(evaluator, right, left)
        case "contains":
            return _contains(evaluator, left, right)
        case "startswith":
            return left is not None and _text(left).startswith(_text(right))
        case "endswith":
            return left is not None and _text(left).endswith(_text(right))
        case "matches":
            return left is not None and regex_match(evaluator, _text(left), _text(right))
        case symbol:
            return _ordered(symbol, left, right)


def search(test: PatternTest, evaluator: Evaluator) -> bool:
    """Return whether the field holds the pattern, or does not when negated. A missing field holds nothing."""
    value = _resolve(test.field, evaluator, text=False)
    found = value is not None and regex_search(evaluator, _text(value), test.pattern)
    return found is not test.negated


def _check_length(source: str, limits: Limits) -> None:
    if not isinstance(source, str) or not source.strip():
        raise ExpressionError(SYNTAX, "the condition is empty")
    if len(source) > limits.max_source_chars:
        raise ExpressionError(
            LIMIT, f"a condition may have {limits.max_source_chars} characters, this one has {len(source)}"
        )


def _find_operator(source: str) -> tuple[int, int] | None:
    """Return where the first operator outside of quotes and brackets stands."""
    covered = [match.span() for match in _QUOTED.finditer(source)]
    depth = checked = 0
    for match in _OPERATOR.finditer(source):
        while covered and covered[0][1] <= match.start():
            covered.pop(0)
        if covered and covered[0][0] < match.end():
            continue
        between = _QUOTED.sub("", source[checked : match.start()])
        depth += between.count("[") - between.count("]")
        checked = match.start()
        if depth == 0:
            return match.span()
    return None


def _operand(source: str, shift: int) -> Operand:
    text = source.strip()
    place = shift + len(source) - len(source.lstrip())
    if not text:
        raise ExpressionError(SYNTAX, "a value or a name is missing", place)
    if text in _LITERALS:
        return Operand(value=_LITERALS[text])
    if _QUOTED.fullmatch(text):
        return Operand(value=text[1:-1])
    if _NUMBER.fullmatch(text):
        if len(text) > MAX_NUMBER_CHARS:
            raise ExpressionError(LIMIT, "this number is too long", place)
        return Operand(value=int(text) if text.lstrip("+-").isdigit() else float(text))
    if text.startswith("[") and text.endswith("]"):
        return Operand(parts=_list(text[1:-1], place + 1))
    if _NAME.fullmatch(text):
        return Operand(path=tuple(text.split(".")))
    raise ExpressionError(
        SYNTAX, "a value is quoted text, a number, true, false, null, [a list] or a name", place
    )


def _list(source: str, shift: int) -> tuple[Operand, ...]:
    if not source.strip():
        return ()
    pieces: list[Operand] = []
    start = 0
    for match in re.finditer(r"'[^']*'|\"[^\"]*\"|,", source + ","):
        if match.group() != ",":
            continue
        pieces.append(_operand(source[start : match.start()], shift + start))
        start = match.end()
        if len(pieces) > MAX_LIST_ITEMS:
            raise ExpressionError(LIMIT, f"a list may have {MAX_LIST_ITEMS} elements", shift)
    return tuple(pieces)


def _resolve(operand: Operand, evaluator: Evaluator, *, text: bool = True) -> Any:
    """Return an operand's value. A missing dotted name is null; a missing plain name is its own text, if `text`."""
    if operand.parts is not None:
        return [_resolve(part, evaluator, text=text) for part in operand.parts]
    if not operand.path:
        return operand.value
    value = evaluator.find(operand.path)
    if value is not MISSING:
        return value
    return operand.path[0] if text and len(operand.path) == 1 else None


def _contains(evaluator: Evaluator, container: Any, element: Any) -> bool:
    if isinstance(container, str) and not isinstance(element, str):
        return element is not None and _text(element) in container
    return evaluator.contains(container, element)


def _ordered(symbol: str, left: Any, right: Any) -> bool:
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if not numbers and not (isinstance(left, str) and isinstance(right, str)):
        raise ExpressionError(FAILED, f"{symbol} does not go with {kind(left)} and {kind(right)}")
    if symbol == ">":
        return bool(left > right)
    if symbol == "<":
        return bool(left < right)
    return bool(left >= right) if symbol == ">=" else bool(left <= right)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ExpressionError(FAILED, f"text is needed, not {kind(value)}")
