"""Inputs as a person types them: NAME=VALUE pairs and files, turned into what the input schema asks for."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cli.errors import CommandError, ExitCode
from orchestration.definition.json_source import read_json
from orchestration.definition.yaml_source import read_yaml

MAX_INPUT_BYTES = 4 * 1024 * 1024
MAX_WAIT_SECONDS = 31_536_000.0
_DURATION = re.compile(r"(?i)^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*$")
_UNIT_SECONDS: Mapping[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def parse_pairs(pairs: Sequence[str], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the inputs of NAME=VALUE pairs, each value read as the type that the schema gives the name.

    A name that the schema does not know keeps its text. A later pair wins over an earlier one.

    Raises: CommandError (usage) for a pair without `=`, (invalid) for a value that is not of its type.
    """
    properties = (schema or {}).get("properties")
    known: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise CommandError(f"-i {pair}: write NAME=VALUE", ExitCode.USAGE)
        values[name] = _value(name, text, types_of(known.get(name)))
    return values


def types_of(schema: object) -> tuple[str, ...]:
    """Return the JSON types that a property's schema allows, in its order; empty when it says nothing about types."""
    if not isinstance(schema, Mapping):
        return ()
    declared = schema.get("type")
    if isinstance(declared, str):
        return (declared,)
    if isinstance(declared, Sequence):
        return tuple(str(name) for name in declared)
    found: list[str] = []
    for key in ("anyOf", "oneOf"):
        branches = schema.get(key)
        if isinstance(branches, Sequence):
            found += [name for branch in branches for name in types_of(branch)]
    return tuple(dict.fromkeys(found))


def _value(name: str, text: str, types: Sequence[str]) -> Any:
    """Return the text as the first type that fits; text itself fits last."""
    for kind in sorted(types, key=lambda kind: kind == "string"):
        if kind == "string":
            return text
        try:
            return _READERS[kind](text)
        except (KeyError, ValueError):
            continue
    if not types:
        return text
    raise CommandError(f"input {name}: {text[:80]!r} is not of type {' or '.join(types)}", ExitCode.INVALID)


def _read_integer(text: str) -> int:
    return int(text.strip())


def _read_number(text: str) -> int | float:
    try:
        return int(text.strip())
    except ValueError:
        number = float(text)
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError("not a JSON number") from None
        return number


def _read_boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError(text)


def _read_null(text: str) -> None:
    if text.strip() not in ("", "null"):
        raise ValueError(text)


def _json_of(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(text)
        return value

    return read


_READERS: Mapping[str, Callable[[str], Any]] = {
    "null": _read_null,
    "boolean": _read_boolean,
    "integer": _read_integer,
    "number": _read_number,
    "array": _json_of(list),
    "object": _json_of(dict),
}


def parse_inputs(text: str, source_name: str) -> dict[str, Any]:
    """Return the inputs of a JSON or YAML text.

    Raises: CommandError (invalid) when it is neither, or no mapping.
    """
    if len(text.encode()) > MAX_INPUT_BYTES:
        raise CommandError(f"{source_name}: inputs are larger than {MAX_INPUT_BYTES} bytes", ExitCode.INVALID)
    is_json = text.lstrip().startswith(("{", "["))
    document = read_json(text) if is_json else read_yaml(text)
    if document.problems:
        described = "\n".join(problem.describe(source_name) for problem in document.problems)
        raise CommandError(f"the inputs cannot be used\n{described}", ExitCode.INVALID)
    if document.value is None:
        return {}
    if not isinstance(document.value, dict):
        raise CommandError(f"{source_name}: inputs are a mapping of names to values", ExitCode.INVALID)
    return document.value


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as 90, 90s, 5m, 2h, 250ms.

    Raises: CommandError (usage) when it is none, is zero, or is longer than a year.
    """
    match = _DURATION.match(text)
    seconds = float(match[1]) * _UNIT_SECONDS[(match[2] or "s").lower()] if match else 0.0
    if not 0 < seconds <= MAX_WAIT_SECONDS:
        raise CommandError(
            f"{text!r} is no duration; write 90, 90s, 5m or 2h, at most a year", ExitCode.USAGE
        )
    return seconds
