"""What may live inside an expression, and what may come out of it.

Inside: JSON values, tuples, sets of plain values, dates and durations. Out: JSON values only. Nothing here keeps or
changes what it is given.
"""

import math
import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

from orchestration.expressions.errors import LIMIT, NOT_ALLOWED, ExpressionError
from orchestration.expressions.limits import Limits

MAX_DATA_DEPTH = 100
"""How deep a result may be nested."""

MISSING: Any = object()
"""Stands for "no such key", which null cannot."""

PLAIN = frozenset({str, int, float, bool, type(None), datetime, date, timedelta})
"""Types without parts. Keys of objects and elements of sets are of these."""
INSIDE = PLAIN | {list, dict, tuple, frozenset, re.Match}

KIND_NAMES = {type(None): "null", str: "text", bool: "a bool", int: "a number", float: "a number", list: "a list",
              tuple: "a tuple", dict: "an object", frozenset: "a set", datetime: "a date", date: "a date",
              timedelta: "a duration", re.Match: "a match"}  # fmt: skip


def kind(value: object) -> str:
    """Return what sort of value it is, in words that are safe in a message."""
    named = KIND_NAMES.get(type(value))
    if named is not None:
        return named
    return "an object" if isinstance(value, Mapping) else "a value of an unknown type"


def admit(value: Any) -> Any:
    """Return the value as an expression may see it. Subclasses of plain types become those; the rest is refused."""
    if type(value) in INSIDE or isinstance(value, Mapping):
        return value
    for plain in (str, int, float):
        if isinstance(value, plain):
            return plain(value.value) if hasattr(value, "value") else plain(value)
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, list | tuple):
        return list(value)
    raise ExpressionError(NOT_ALLOWED, "a value of this type cannot be used in an expression")


def to_json(value: Any, limits: Limits) -> Any:
    """Return the value as JSON, copied: tuples and sets become lists, dates ISO text, a regex match true.

    Raises: ExpressionError when it is larger than the limits, not finite, or of a type that JSON does not know.
    """
    return _Copy(limits).copy(value, 0)


class _Copy:
    """One conversion. Counts nodes and characters, since parts may be shared and would be written out each time."""

    __slots__ = ("_chars", "_limits", "_nodes")

    def __init__(self, limits: Limits) -> None:
        self._nodes = limits.max_result_nodes
        self._chars = limits.max_result_chars
        self._limits = limits

    def copy(self, value: Any, depth: int) -> Any:
        self._nodes -= 1
        if self._nodes < 0:
            raise ExpressionError(LIMIT, f"the result has more than {self._limits.max_result_nodes} parts")
        of = type(value)
        if of is str:
            return self._text(value)
        if of is bool or value is None:
            return value
        if of is int:
            return value
        if of is float:
            return self._float(value)
        if depth >= MAX_DATA_DEPTH:
            raise ExpressionError(LIMIT, f"the result is nested deeper than {MAX_DATA_DEPTH} levels")
        if of is list or of is tuple:
            return [self.copy(element, depth + 1) for element in value]
        if of is dict:
            return {self._key(key): self.copy(part, depth + 1) for key, part in value.items()}
        return self._other(value, depth)

    def _other(self, value: Any, depth: int) -> Any:
        if isinstance(value, frozenset):
            return [self.copy(element, depth + 1) for element in in_order(value)]
        if isinstance(value, datetime | date):
            return value.isoformat()
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, re.Match):
            return True
        if isinstance(value, Mapping):
            return {self._key(key): self.copy(value[key], depth + 1) for key in value}
        admitted = admit(value)
        return self.copy(admitted, depth + 1)

    def _text(self, value: str) -> str:
        self._chars -= len(value)
        if self._chars < 0:
            raise ExpressionError(
                LIMIT, f"the result has more than {self._limits.max_result_chars} characters"
            )
        return value

    def _float(self, value: float) -> float:
        if not math.isfinite(value):
            raise ExpressionError(LIMIT, "the result is not a finite number")
        return value

    def _key(self, key: Any) -> str:
        if type(key) is str:
            return self._text(key)
        return self._text(key_text(key))


def key_text(key: Any) -> str:
    """Return a plain value as the key of a JSON object: null, true and false in JSON's spelling."""
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, datetime | date):
        return key.isoformat()
    if isinstance(key, str | int | float):
        return str(key)
    raise ExpressionError(NOT_ALLOWED, f"{kind(key)} cannot be the key of an object")


def in_order(values: frozenset[Any]) -> list[Any]:
    """Return a set's elements in an order that is the same in every process."""
    return sorted(values, key=order_key)


def order_key(value: Any) -> tuple[int, Any]:
    """Return a key that sorts plain values of any types together: numbers, text, dates, the rest, nulls last."""
    if value is None:
        return (9, 0)
    if isinstance(value, bool):
        return (0, int(value))
    if isinstance(value, int | float):
        return (1, value)
    if isinstance(value, str):
        return (2, value)
    if isinstance(value, datetime):
        return (3, value.isoformat())
    return (4, str(value))
