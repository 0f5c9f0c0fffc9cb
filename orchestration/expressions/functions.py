"""Every function and method an expression may call. What is not in these tables does not exist.

Each takes the running evaluator first: it charges steps and checks sizes through it. None changes its arguments,
none returns anything that can be called.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol

from orchestration.expressions import matching
from orchestration.expressions.errors import FAILED, LIMIT, NOT_ALLOWED, ExpressionError
from orchestration.expressions.limits import Limits
from orchestration.expressions.values import MISSING, PLAIN, admit, in_order, kind

MAX_NUMBER_CHARS = 40
"""Longest text that is read as a number: 30 digits, a sign, an exponent."""
MAX_ROUND_DIGITS = 30
MAX_INTEGER_KEY = 2**60
"""Larger integers can be chosen to share one hash, and many such keys take quadratic time."""


class Meter(Protocol):
    """What a function sees of the evaluator."""

    limits: Limits

    def charge(self, steps: int) -> None:
        """Count steps; raises when they run out."""

    def measure(self, value: Any) -> int:
        """Charge for every part of a value, also those that are shared, and return their number."""

    def equal(self, left: Any, right: Any) -> bool:
        """Return whether two values are equal."""

    def contains(self, container: Any, element: Any) -> bool:
        """Return whether the element is in the container; nothing is in null."""

    def text(self, value: str) -> str:
        """Return the text, charged and checked for its length."""

    def number(self, value: Any) -> Any:
        """Return the number, checked for its size."""

    def time(self) -> datetime:
        """Return the moment that counts as now."""


Function = Callable[..., Any]


def iterate(meter: Meter, value: Any) -> Iterable[Any]:
    """Return what a loop over the value visits, each visit charged. Null and numbers cannot be visited."""
    if isinstance(value, list | tuple | str):
        return _charged(meter, value)
    if isinstance(value, Mapping):
        return _charged(meter, list(value))
    if isinstance(value, frozenset):
        meter.charge(len(value))
        return in_order(value)
    if isinstance(value, Iterator):
        return value
    raise ExpressionError(FAILED, f"{kind(value)} has no elements to go through")


def _charged(meter: Meter, values: list[Any] | tuple[Any, ...] | str) -> Iterable[Any]:
    meter.charge(len(values))
    return values


def collect(meter: Meter, value: Any) -> list[Any]:
    """Return the elements as a list no longer than the limit."""
    found = [admit(element) for element in iterate(meter, value)]
    if len(found) > meter.limits.max_items:
        raise ExpressionError(LIMIT, f"a list may have {meter.limits.max_items} elements")
    return found


def plain(value: Any) -> Any:
    """Return the value when it can be a key or an element of a set, else raise."""
    if type(value) not in PLAIN:
        raise ExpressionError(NOT_ALLOWED, f"{kind(value)} cannot be a key or an element of a set")
    if type(value) is int and not -MAX_INTEGER_KEY <= value <= MAX_INTEGER_KEY:
        raise ExpressionError(LIMIT, "an integer of more than 60 bits cannot be a key or an element of a set")
    return value


# --- functions --------------------------------------------------------------------------------------------


def _abs(meter: Meter, value: Any) -> Any:
    return abs(value)


def _all(meter: Meter, values: Any) -> bool:
    return all(iterate(meter, values))


def _any(meter: Meter, values: Any) -> bool:
    return any(iterate(meter, values))


def _bool(meter: Meter, value: Any = False) -> bool:
    return bool(value)


def _dict(meter: Meter, source: Any = None, **entries: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    if isinstance(source, Mapping):
        made.update((key, source[key]) for key in iterate(meter, source))
    elif source is not None:
        for pair in iterate(meter, source):
            key, value = pair
            made[plain(key)] = value
    made.update(entries)
    return made


def _enumerate(meter: Meter, values: Any, start: int = 0) -> list[Any]:
    return list(enumerate(collect(meter, values), meter.number(start)))


def _float(meter: Meter, value: Any = 0.0) -> float:
    return float(_numeric_text(value))


def _int(meter: Meter, value: Any = 0) -> Any:
    return meter.number(int(_numeric_text(value)))


def _numeric_text(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_NUMBER_CHARS:
        raise ExpressionError(LIMIT, f"a number is written with {MAX_NUMBER_CHARS} characters at most")
    return value


def _len(meter: Meter, value: Any) -> int:
    return len(value)


def _list(meter: Meter, values: Any = ()) -> list[Any]:
    return collect(meter, values)


def _tuple(meter: Meter, values: Any = ()) -> tuple[Any, ...]:
    return tuple(collect(meter, values))


def _set(meter: Meter, values: Any = ()) -> frozenset[Any]:
    return frozenset(plain(value) for value in collect(meter, values))


def _max(meter: Meter, *values: Any, default: Any = MISSING) -> Any:
    return _extreme(meter, max, values, default)


def _min(meter: Meter, *values: Any, default: Any = MISSING) -> Any:
    return _extreme(meter, min, values, default)


def _extreme(meter: Meter, choose: Function, values: tuple[Any, ...], default: Any) -> Any:
    candidates = collect(meter, values[0]) if len(values) == 1 else list(values)
    if not candidates and default is not MISSING:
        return default
    meter.measure(candidates)
    return choose(candidates)


def _range(meter: Meter, *bounds: int) -> list[int]:
    made = range(*(meter.number(bound) for bound in bounds))
    if len(made) > meter.limits.max_items:
        raise ExpressionError(LIMIT, f"a range may have {meter.limits.max_items} elements")
    meter.charge(len(made))
    return list(made)


def _reversed(meter: Meter, values: Any) -> list[Any]:
    return collect(meter, values)[::-1]


def _round(meter: Meter, value: Any, digits: int | None = None) -> Any:
    if digits is not None and abs(digits) > MAX_ROUND_DIGITS:
        raise ExpressionError(LIMIT, f"round() takes {MAX_ROUND_DIGITS} digits at most")
    return meter.number(round(value, digits))


def _sorted(meter: Meter, values: Any, *, reverse: bool = False) -> list[Any]:
    elements = collect(meter, values)
    # A sort compares each element about log n times, and each comparison can look at all of an element.
    size = meter.measure(elements)
    meter.charge(size * max(1, len(elements).bit_length() // 2))
    return sorted(elements, reverse=bool(reverse))


def _str(meter: Meter, value: Any = "") -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Mapping | list | tuple | frozenset):
        meter.measure(value)
        if isinstance(value, frozenset):
            value = in_order(value)
        return meter.text(str(dict(value) if isinstance(value, Mapping) else value))
    if type(value) not in PLAIN:
        raise ExpressionError(NOT_ALLOWED, f"{kind(value)} cannot be made a text")
    return meter.text(str(value))


def _sum(meter: Meter, values: Any, start: Any = 0) -> Any:
    total = start
    for value in iterate(meter, values):
        if not isinstance(value, int | float | timedelta):
            raise ExpressionError(FAILED, f"sum() adds numbers, not {kind(value)}")
        total = meter.number(total + value)
    return total


def _zip(meter: Meter, *columns: Any) -> list[Any]:
    return list(zip(*(collect(meter, column) for column in columns), strict=False))


def _hasattr(meter: Meter, value: Any, name: Any) -> bool:
    if not isinstance(name, str):
        raise ExpressionError(FAILED, f"hasattr() takes the name as text, not {kind(name)}")
    if isinstance(value, Mapping):
        return name in value
    return name in ATTRIBUTES.get(type(value), ())


# --- dates ------------------------------------------------------------------------------------------------


def to_date(value: Any) -> datetime:
    """Return a date from ISO text or a date; without an offset it is taken as UTC. Raises ExpressionError otherwise."""
    if isinstance(value, str) and len(value) <= MAX_NUMBER_CHARS:
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ExpressionError(FAILED, "this text is not an ISO 8601 date") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        raise ExpressionError(FAILED, f"an ISO 8601 date is needed, not {kind(value)}")
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _now(meter: Meter) -> datetime:
    return meter.time()


def _from_iso(meter: Meter, text: Any) -> datetime:
    return to_date(text)


def make_date(meter: Meter, *parts: int) -> datetime:
    """Return the date with these parts, in UTC: `datetime(2024, 1, 15)`."""
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type,misc]


def _duration(meter: Meter, *, weeks: float = 0, days: float = 0, hours: float = 0, minutes: float = 0,
              seconds: float = 0) -> timedelta:  # fmt: skip
    return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)


def _date_after(meter: Meter, value: Any, other: Any) -> bool:
    return value is not None and to_date(value) > to_date(other)


def _date_before(meter: Meter, value: Any, other: Any) -> bool:
    return value is not None and to_date(value) < to_date(other)


def _days_ago(meter: Meter, value: Any, days: Any = MISSING) -> Any:
    if days is MISSING:
        return meter.time() - timedelta(days=value)
    return value is not None and meter.time() - to_date(value) >= timedelta(days=days)


# --- the functions of custom conditions -------------------------------------------------------------------


def _is_empty(meter: Meter, value: Any) -> bool:
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def _is_not_empty(meter: Meter, value: Any) -> bool:
    return not _is_empty(meter, value)


def _between(meter: Meter, value: Any, low: Any, high: Any) -> bool:
    return bool(low <= value <= high)


def _not_between(meter: Meter, value: Any, low: Any, high: Any) -> bool:
    return not low <= value <= high


def _is_numeric(meter: Meter, value: Any) -> bool:
    if isinstance(value, str) and len(value) <= MAX_NUMBER_CHARS:
        try:
            return math.isfinite(float(value))
        except ValueError:
            return False
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_string(meter: Meter, value: Any) -> bool:
    return isinstance(value, str)


def _is_list(meter: Meter, value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_dict(meter: Meter, value: Any) -> bool:
    return isinstance(value, Mapping)


def _contains_any(meter: Meter, container: Any, *wanted: Any) -> bool:
    return any(meter.contains(container, one) for one in _wanted(meter, wanted))


def _contains_all(meter: Meter, container: Any, *wanted: Any) -> bool:
    return all(meter.contains(container, one) for one in _wanted(meter, wanted))


def _wanted(meter: Meter, wanted: tuple[Any, ...]) -> Iterable[Any]:
    if len(wanted) == 1 and isinstance(wanted[0], list | tuple | frozenset):
        return iterate(meter, wanted[0])
    return wanted


CUSTOM_FUNCTIONS: Mapping[str, Function] = {
    "is_empty": _is_empty,
    "is_not_empty": _is_not_empty,
    "between": _between,
    "not_between": _not_between,
    "is_numeric": _is_numeric,
    "is_string": _is_string,
    "is_list": _is_list,
    "is_dict": _is_dict,
    "contains_any": _contains_any,
    "contains_all": _contains_all,
    "date_after": _date_after,
    "date_before": _date_before,
    "days_ago": _days_ago,
    "regex_match": matching.regex_match,
    "regex_search": matching.regex_search,
}
"""The functions that a `custom` condition is made of; every expression may use them."""

FUNCTIONS: Mapping[str, Function] = {
    "abs": _abs,
    "all": _all,
    "any": _any,
    "bool": _bool,
    "dict": _dict,
    "enumerate": _enumerate,
    "float": _float,
    "hasattr": _hasattr,
    "int": _int,
    "len": _len,
    "list": _list,
    "max": _max,
    "min": _min,
    "range": _range,
    "reversed": _reversed,
    "round": _round,
    "set": _set,
    "sorted": _sorted,
    "str": _str,
    "sum": _sum,
    "timedelta": _duration,
    "tuple": _tuple,
    "zip": _zip,
    **CUSTOM_FUNCTIONS,
}
"""Functions by name. `isinstance` is the evaluator's own, since its second argument is a type's name."""

NAMESPACES: Mapping[str, Mapping[str, Function]] = {
    "re": matching.FUNCTIONS,
    "datetime": {"now": _now, "utcnow": _now, "today": _now, "fromisoformat": _from_iso},
}
"""Functions by namespace and name. `datetime(...)` itself makes a date in UTC."""

NAMESPACE_CONSTANTS: Mapping[str, Mapping[str, int]] = {"re": matching.FLAGS}

TYPES: Mapping[str, Any] = {
    "bool": bool,
    "dict": Mapping,
    "float": float,
    "int": int,
    "list": list,
    "set": frozenset,
    "str": str,
    "tuple": tuple,
    "datetime": datetime,
}
"""Type names that isinstance() knows."""

ATTRIBUTES: Mapping[type, frozenset[str]] = {
    datetime: frozenset({"year", "month", "day", "hour", "minute", "second", "microsecond"}),
    date: frozenset({"year", "month", "day"}),
    timedelta: frozenset({"days", "seconds"}),
}
"""Readable attributes by type."""
