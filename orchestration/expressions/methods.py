"""The methods that values have inside an expression, by type. None changes its value."""

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Any

from orchestration.expressions.errors import FAILED, LIMIT, ExpressionError
from orchestration.expressions.functions import Meter, collect, iterate
from orchestration.expressions.values import kind

Method = Callable[..., Any]

MAX_FORMAT_CHARS = 100
_DATE_FORMAT = re.compile(r"(?:[^%]|%[aAbBdHIjmMpSyYzZf%])*")


def _room(meter: Meter, chars: int) -> None:
    """Refuse a text before it is made."""
    if chars > meter.limits.max_string_chars:
        raise ExpressionError(LIMIT, f"a text may have {meter.limits.max_string_chars} characters")


def _same_size(name: str) -> Method:
    """Return a method of text without arguments whose result is about as long as the text."""
    made = getattr(str, name)

    def method(meter: Meter, value: str) -> Any:
        _room(meter, len(value))
        return meter.text(made(value))

    return method


def _strip(name: str) -> Method:
    made = getattr(str, name)

    def method(meter: Meter, value: str, chars: str | None = None) -> Any:
        _room(meter, len(value))
        return meter.text(made(value, chars))

    return method


def _test(name: str) -> Method:
    """Return a method of text that answers a bool or a position."""
    made = getattr(str, name)

    def method(meter: Meter, value: str, *arguments: Any) -> Any:
        meter.charge(len(value) // 32)
        return made(value, *arguments)

    return method


def _pad(name: str) -> Method:
    made = getattr(str, name)

    def method(meter: Meter, value: str, width: int, *fill: str) -> Any:
        _room(meter, max(len(value), width))
        return meter.text(made(value, width, *fill))

    return method


def _split(name: str) -> Method:
    made = getattr(str, name)

    def method(meter: Meter, value: str, *arguments: Any, **options: Any) -> Any:
        _room(meter, len(value))
        parts = made(value, *arguments, **options)
        meter.charge(len(parts) + len(value) // 32)
        return parts

    return method


def _join(meter: Meter, value: str, parts: Any) -> str:
    texts = collect(meter, parts)
    for text in texts:
        if not isinstance(text, str):
            raise ExpressionError(FAILED, f"join() takes texts, not {kind(text)}; use str(...) for each")
    _room(meter, sum(map(len, texts)) + len(value) * max(0, len(texts) - 1))
    return meter.text(value.join(texts))


def _replace(meter: Meter, value: str, old: str, new: str, count: int = -1) -> str:
    found = value.count(old)
    found = min(found, count) if count >= 0 else found
    _room(meter, len(value) + found * (len(new) - len(old)))
    return meter.text(value.replace(old, new, count))


def _index(meter: Meter, value: Any, element: Any) -> int:
    for position, candidate in enumerate(iterate(meter, value)):
        if meter.equal(candidate, element):
            return position
    raise ExpressionError(FAILED, "index() did not find the element")


def _count(meter: Meter, value: Any, element: Any) -> int:
    return sum(1 for candidate in iterate(meter, value) if meter.equal(candidate, element))


def _get(meter: Meter, value: Mapping[Any, Any], key: Any, default: Any = None) -> Any:
    return value.get(key, default)


def _keys(meter: Meter, value: Mapping[Any, Any]) -> list[Any]:
    return list(iterate(meter, value))


def _values(meter: Meter, value: Mapping[Any, Any]) -> list[Any]:
    meter.charge(len(value))
    return list(value.values())


def _items(meter: Meter, value: Mapping[Any, Any]) -> list[Any]:
    meter.charge(len(value))
    return list(value.items())


def _strftime(meter: Meter, value: Any, pattern: str) -> str:
    if len(pattern) > MAX_FORMAT_CHARS or not _DATE_FORMAT.fullmatch(pattern):
        raise ExpressionError(
            FAILED, "strftime() takes plain directives such as %Y-%m-%d, without widths or flags"
        )
    return meter.text(value.strftime(pattern))


def _simple(name: str) -> Method:
    """Return a method without arguments, by name, of a type whose results are small."""

    def method(meter: Meter, value: Any) -> Any:
        return getattr(value, name)()

    return method


def _set_method(name: str) -> Method:
    def method(meter: Meter, value: frozenset[Any], other: Any) -> Any:
        meter.charge(len(value))
        return getattr(value, name)(frozenset(collect(meter, other)))

    return method


def _group(meter: Meter, value: re.Match[str], *which: Any) -> Any:
    found = value.group(*which)
    _charge_texts(meter, found if isinstance(found, tuple) else (found,))
    return found


def _groups(meter: Meter, value: re.Match[str]) -> Any:
    return _charge_texts(meter, value.groups())


def _groupdict(meter: Meter, value: re.Match[str]) -> Any:
    found = value.groupdict()
    _charge_texts(meter, found.values())
    return found


def _charge_texts(meter: Meter, texts: Any) -> Any:
    """Charge for texts cut out of another; each is a copy."""
    for text in texts:
        meter.text(text or "")
    return texts


TEXT_METHODS: Mapping[str, Method] = {
    **{name: _same_size(name) for name in ("upper", "lower", "title", "capitalize", "casefold", "swapcase")},
    **{name: _strip(name) for name in ("strip", "lstrip", "rstrip")},
    **{name: _test(name) for name in (
        "startswith", "endswith", "find", "rfind", "count", "isdigit", "isalpha", "isalnum", "isnumeric",
        "isdecimal", "isspace", "isupper", "islower", "istitle", "isidentifier", "isascii",
    )},
    **{name: _strip(name) for name in ("removeprefix", "removesuffix")},
    **{name: _pad(name) for name in ("ljust", "rjust", "center", "zfill")},
    **{name: _split(name) for name in ("split", "rsplit", "splitlines", "partition", "rpartition")},
    "index": _test("index"),
    "join": _join,
    "replace": _replace,
}  # fmt: skip

OBJECT_METHODS: Mapping[str, Method] = {"get": _get, "keys": _keys, "values": _values, "items": _items}

LIST_METHODS: Mapping[str, Method] = {"index": _index, "count": _count}

DATE_METHODS: Mapping[str, Method] = {
    "isoformat": _simple("isoformat"), "weekday": _simple("weekday"), "isoweekday": _simple("isoweekday"),
    "strftime": _strftime,
}  # fmt: skip

METHODS: Mapping[type, Mapping[str, Method]] = {
    str: TEXT_METHODS,
    dict: OBJECT_METHODS,
    list: LIST_METHODS,
    tuple: LIST_METHODS,
    frozenset: {name: _set_method(name) for name in (
        "union", "intersection", "difference", "issubset", "issuperset", "isdisjoint",
    )},
    float: {"is_integer": _simple("is_integer")},
    datetime: {**DATE_METHODS, "date": _simple("date"), "timestamp": _simple("timestamp")},
    date: DATE_METHODS,
    timedelta: {"total_seconds": _simple("total_seconds")},
    re.Match: {
        "group": _group, "groups": _groups, "groupdict": _groupdict, "start": _simple("start"), "end": _simple("end"),
    },
}  # fmt: skip
"""Methods by exact type; any other mapping has those of an object."""

METHOD_NAMES = frozenset(name for methods in METHODS.values() for name in methods)
"""Every method name there is, for the check before evaluation."""
