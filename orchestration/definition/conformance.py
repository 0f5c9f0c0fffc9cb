"""Applies a checked JSON Schema to a value, within a budget of steps, and says in plain words what the value breaks.

Equal values are compared by their canonical JSON, patterns go through the engine's own bounded matcher, references
resolve inside the schema only. It must never fetch anything, and never repeat a checked value in a message.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import date, datetime
from functools import partial
from itertools import islice
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry

from orchestration.definition.errors import Problem, pointer, quoted
from orchestration.expressions.errors import ExpressionError
from orchestration.expressions.regex import compile_pattern, guard

MAX_STEPS = 50_000
"""Most keywords that one check applies; about a quarter of a second."""

MAX_VIOLATIONS = 50
"""Most violations that one check reports."""

FORMATS = frozenset({"date", "date-time", "email", "uuid", "ipv4", "ipv6"})
"""Values of `format` that are checked; all others are notes to the reader."""


class SchemaTooCostly(Exception):
    """A check met its budget of steps."""


_steps_left: ContextVar[list[int]] = ContextVar("_steps_left")

Keyword = Callable[[Any, Any, Any, Any], Any]


def violations(schema: Mapping[str, Any], value: object, *, part: Any = None) -> list[Problem]:
    """Return how a value breaks a schema that `check_schema` found sound; at most MAX_VIOLATIONS.

    Args:
        part: A subschema of `schema` to apply instead of the whole.
    """
    bare = {keyword: inner for keyword, inner in schema.items() if keyword not in ("$schema", "$id")}
    validator = _Bounded(bare, format_checker=_FORMAT_CHECKER, registry=Registry())
    if part is not None:
        validator = validator.evolve(schema=part)
    token = _steps_left.set([MAX_STEPS])
    try:
        return [_problem(error) for error in islice(validator.iter_errors(value), MAX_VIOLATIONS)]
    except (SchemaTooCostly, RecursionError):
        return [
            Problem(code="schema-budget", message="the value is too large to be checked against its schema")
        ]
    except ExpressionError as error:
        return [
            Problem(
                code="schema-budget", message=f"a pattern of the schema cannot be applied: {error.reason}"
            )
        ]
    finally:
        _steps_left.reset(token)


def _spend(steps: int) -> None:
    left = _steps_left.get()
    left[0] -= steps
    if left[0] < 0:
        raise SchemaTooCostly


def _counted(keyword: Keyword) -> Keyword:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        _spend(1)
        return keyword(validator, value, instance, schema)

    return counted


def _matches(pattern: str, text: str) -> bool:
    compiled = compile_pattern(pattern)
    _spend(1 + guard(compiled, text, search=True) // 1000)
    return compiled.compiled.search(text) is not None


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError("does not match the pattern")


def _properties(
    validator: Any, properties: dict[str, Any], instance: Any, _: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for name, subschema in properties.items():
        if name not in instance:
            continue
        if subschema is False:
            yield _unexpected(name)
        else:
            yield from validator.descend(instance[name], subschema, path=name, schema_path=name)


def _unexpected(name: str) -> ValidationError:
    error = ValidationError("is not expected here")
    error.path.append(name)
    return error


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: Any, _: Any
) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            for name, inner in instance.items():
                if _matches(pattern, name):
                    yield from validator.descend(inner, subschema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, rule: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    known = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    for name, inner in instance.items():
        if name in known or any(_matches(pattern, name) for pattern in patterns):
            continue
        if rule is False:
            yield _unexpected(name)
        else:
            yield from validator.descend(inner, rule, path=name)


def _enum(validator: Any, allowed: list[Any], instance: Any, _: Any) -> Iterator[ValidationError]:
    wanted = _canonical(instance)
    _spend(len(allowed))
    if all(_canonical(choice) != wanted for choice in allowed):
        yield ValidationError("is not allowed")


def _const(_: Any, wanted: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if _canonical(wanted) != _canonical(instance):
        yield ValidationError("is not allowed")


def _unique_items(_: Any, unique: bool, instance: Any, __: Any) -> Iterator[ValidationError]:
    if unique and isinstance(instance, list):
        _spend(len(instance))
        if len({_canonical(item) for item in instance}) != len(instance):
            yield ValidationError("has repeated items")


def _canonical(value: Any) -> bytes:
    """Return one text for all values that JSON Schema takes for equal: 1 is 1.0, true is not 1."""
    return msgspec.json.encode(_with_plain_numbers(value), order="sorted")


def _with_plain_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {name: _with_plain_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_plain_numbers(inner) for inner in value]
    return value


_OWN_KEYWORDS: dict[str, Keyword] = {
    "properties": _properties,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "enum": _enum,
    "const": _const,
    "uniqueItems": _unique_items,
}
_Bounded: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        name: _counted(_OWN_KEYWORDS.get(name) or keyword)
        for name, keyword in Draft202012Validator.VALIDATORS.items()
        if keyword is not None
    },
)

_FORMAT_CHECKER = FormatChecker(formats=())
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,255}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _has_format(name: str, value: object) -> bool:
    if not isinstance(value, str):
        return True
    match name:
        case "email":
            return _EMAIL.fullmatch(value) is not None
        case "uuid":
            return _UUID.fullmatch(value) is not None
        case "date":
            return _DATE.fullmatch(value) is not None and bool(date.fromisoformat(value))
        case "date-time":
            return _DATE_TIME.fullmatch(value) is not None and bool(datetime.fromisoformat(value.upper()))
        case "ipv4":
            return bool(ipaddress.IPv4Address(value).packed)
        case _:
            return bool(ipaddress.IPv6Address(value).packed)


for _name in sorted(FORMATS):
    _FORMAT_CHECKER.checkers[_name] = (partial(_has_format, _name), ValueError)


# --- saying what a value breaks ------------------------------------------------------------------------------

_KINDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "text",
}


def _problem(error: Any) -> Problem:
    path = list(error.absolute_path)
    keyword = str(error.validator or "")
    if keyword == "required":
        missing = next((name for name in error.validator_value if name not in error.instance), "")
        missing = _missing_name(error) or missing
        return Problem(code="required", message="is required", path=pointer((*path, missing)))
    return Problem(code=keyword or "schema", message=_message(keyword, error), path=pointer(path))


def _missing_name(error: Any) -> str:
    """Return the name that a `required` error is about; jsonschema says it in its message only, in quotes."""
    for name in error.validator_value:
        if name not in error.instance and error.message == f"{name!r} is a required property":
            return str(name)
    return ""


def _message(keyword: str, error: Any) -> str:
    """Return what the value should be, without repeating the value."""
    rule = error.validator_value
    match keyword:
        case "type":
            names = [rule] if isinstance(rule, str) else rule
            return f"must be {' or '.join(_KINDS.get(name, name) for name in names)}"
        case "enum":
            return f"must be one of {', '.join(_shown(choice) for choice in rule[:20])}"
        case "const":
            return f"must be {_shown(rule)}"
        case "minimum":
            return f"must be at least {rule}"
        case "maximum":
            return f"must be at most {rule}"
        case "exclusiveMinimum":
            return f"must be more than {rule}"
        case "exclusiveMaximum":
            return f"must be less than {rule}"
        case "multipleOf":
            return f"must be a multiple of {rule}"
        case "minLength":
            return "must not be empty" if rule == 1 else f"must have at least {rule} characters"
        case "maxLength":
            return f"must have at most {rule} characters"
        case "minItems" | "maxItems":
            return f"must have at {'least' if keyword == 'minItems' else 'most'} {rule} items"
        case "minProperties" | "maxProperties":
            return f"must have at {'least' if keyword == 'minProperties' else 'most'} {rule} fields"
        case "pattern":
            return f"must match the pattern {quoted(rule)}"
        case "format":
            return f"must be a valid {rule}"
        case "uniqueItems":
            return "must not repeat an item"
        case "additionalProperties" | "properties":
            return "is not expected here"
        case "anyOf":
            return f"matches none of the {len(rule)} allowed forms"
        case "oneOf":
            return f"must match exactly one of the {len(rule)} allowed forms"
        case "not":
            return "matches a form that is not allowed"
        case "contains" | "minContains" | "maxContains":
            return "does not have the items that it must contain"
        case "dependentRequired":
            return "lacks a field that another one needs"
    return "is not allowed here"


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else msgspec.json.encode(value).decode()[:80]
