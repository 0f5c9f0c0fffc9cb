"""JSON Schemas that a person wrote: checked before they are stored, applied within a budget of steps.

Supported is Draft 2020-12 without what reaches outside the schema (`$dynamicRef`, `$anchor`, remote `$ref`) and without
`unevaluated*`, whose cost has no small bound. `format` is checked for the formats in `FORMATS`. Patterns go through the
engine's own bounded matcher. It must never fetch anything, and never repeat a checked value in a message.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import date, datetime
from itertools import islice
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry

from orchestration.definition.errors import Path, Problem, did_you_mean, pointer, quoted
from orchestration.definition.findings import Findings
from orchestration.definition.graph import draw_cycle, order_tasks
from orchestration.expressions.errors import ExpressionError
from orchestration.expressions.regex import compile_pattern, guard

MAX_SCHEMA_VALUES = 5_000
"""Most values in one schema."""

MAX_STEPS = 50_000
"""Most keywords that one check applies; about a quarter of a second."""

MAX_VIOLATIONS = 50
"""Most violations that one check reports."""

FORMATS = frozenset({"date", "date-time", "email", "uuid", "ipv4", "ipv6"})
"""Values of `format` that are checked; all others are notes to the reader."""

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_ONE = frozenset({"not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"})
_SEVERAL = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_IN_PLACE = frozenset({"not", "if", "then", "else", "allOf", "anyOf", "oneOf", "dependentSchemas"})
_NUMBERS = frozenset({"maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"})
_COUNTS = frozenset(
    {"maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties", "minContains", "maxContains"}
)
_TEXTS = frozenset(
    {"$ref", "$schema", "$id", "$comment", "title", "description", "format", "contentEncoding", "contentMediaType"}
)
_FLAGS = frozenset({"uniqueItems", "deprecated", "readOnly", "writeOnly"})
_ANY = frozenset({"const", "default"})
_LISTS = frozenset({"enum", "examples"})
_REFUSED = {
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "$dynamicAnchor": "use $defs",
    "$anchor": "use $defs",
    "$vocabulary": "",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "dependencies": "use dependentRequired or dependentSchemas",
}
_KNOWN = (
    _ONE | _SEVERAL | _NAMED | _NUMBERS | _COUNTS | _TEXTS | _FLAGS | _ANY | _LISTS
    | {"type", "pattern", "multipleOf", "required", "dependentRequired"}
)  # fmt: skip


class SchemaTooCostly(Exception):  # noqa: N818 - it is turned into a Problem, never seen outside
    """A check met its budget of steps."""


# --- checking a schema ---------------------------------------------------------------------------------------


def check_schema(schema: object, path: Path, findings: Findings, *, describes_object: bool = True) -> None:
    """Note what is wrong with a schema at `path` of the definition.

    Args:
        describes_object: The schema is of inputs or outputs, which are objects.
    """
    if _size(schema) > MAX_SCHEMA_VALUES:
        findings.error("schema-too-large", f"a schema may have {MAX_SCHEMA_VALUES:,} values", path)
        return
    walk = _Walk(path, findings)
    walk.schema(schema, ())
    if walk.is_sound:
        walk.references()
    if not walk.is_sound or not isinstance(schema, dict):
        return
    kinds = schema.get("type", "object")
    if describes_object and "object" not in ([kinds] if isinstance(kinds, str) else kinds):
        findings.error("schema", "the values described here are an object: write type: object", (*path, "type"))
    for place in walk.defaults:
        owner = _at(schema, place)
        for violation in violations(schema, owner["default"], part=owner):
            where = (*path, *place, "default")
            findings.error("schema-default", f"the default does not satisfy its own schema: {violation.message}", where)


def _size(value: object) -> int:
    count, pending = 0, [value]
    while pending and count <= MAX_SCHEMA_VALUES:
        item = pending.pop()
        count += 1
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return count


def _at(schema: Any, place: Path) -> Any:
    for part in place:
        schema = schema[part]
    return schema


class _Walk:
    """Visits every subschema of a schema. The source of the rules is the Draft 2020-12 meta-schema."""

    def __init__(self, base: Path, findings: Findings) -> None:
        self.is_sound = True
        self.defaults: list[Path] = []
        self._base = base
        self._findings = findings
        self._references: list[tuple[Path, str]] = []
        self._in_place: dict[str, list[str]] = {}

    def _error(self, message: str, place: Path, *, hint: str = "", at_key: bool = False) -> None:
        self.is_sound = False
        self._findings.error("schema", message, (*self._base, *place), hint=hint, at_key=at_key)

    def schema(self, schema: object, place: Path) -> None:
        self._in_place[pointer(place)] = []
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            self._error("a schema is an object, or true or false", place)
            return
        for keyword, value in schema.items():
            self._keyword(keyword, value, place)

    def _keyword(self, keyword: str, value: object, place: Path) -> None:
        inner = (*place, keyword)
        if keyword in _REFUSED:
            self._error(f"{quoted(keyword)} is not supported", inner, hint=_REFUSED[keyword], at_key=True)
        elif keyword in _ONE:
            self._inside(value, inner, keyword, place)
        elif keyword in _SEVERAL:
            if not isinstance(value, list) or not value:
                self._error(f"{quoted(keyword)} must be a list of schemas, with at least one", inner)
                return
            for index, item in enumerate(value):
                self._inside(item, (*inner, index), keyword, place)
        elif keyword in _NAMED:
            self._named(keyword, value, inner, place)
        else:
            self._plain(keyword, value, inner, place)

    def _inside(self, value: object, inner: Path, keyword: str, place: Path) -> None:
        if keyword in _IN_PLACE:
            self._in_place[pointer(place)].append(pointer(inner))
        self.schema(value, inner)

    def _named(self, keyword: str, value: object, inner: Path, place: Path) -> None:
        if not isinstance(value, dict):
            self._error(f"{quoted(keyword)} must be an object of schemas", inner)
            return
        for name, item in value.items():
            if keyword == "patternProperties":
                self._pattern(name, (*inner, name))
            self._inside(item, (*inner, name), keyword, place)

    def _plain(self, keyword: str, value: object, inner: Path, place: Path) -> None:
        """Check the value of a keyword that holds no schema."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        wrong = ""
        if keyword == "type":
            wrong = _wrong_type(value)
        elif keyword in _NUMBERS:
            wrong = "" if is_number else "must be a number"
        elif keyword == "multipleOf":
            wrong = "" if is_number and value > 0 else "must be a number above 0"  # type: ignore[operator]
        elif keyword in _COUNTS:
            is_count = is_number and float(value).is_integer() and value >= 0  # type: ignore[operator, arg-type]
            wrong = "" if is_count else "must be a whole number from 0"
        elif keyword in _FLAGS:
            wrong = "" if isinstance(value, bool) else "must be true or false"
        elif keyword in _LISTS:
            wrong = "" if isinstance(value, list) and (value or keyword != "enum") else "must be a list of values"
        elif keyword == "required":
            wrong = "" if _is_names(value) else "must be a list of different names"
        elif keyword == "dependentRequired":
            sound = isinstance(value, dict) and all(_is_names(names) for names in value.values())
            wrong = "" if sound else "must be an object of lists of names"
        elif keyword in _TEXTS or keyword == "pattern":
            wrong = "" if isinstance(value, str) else "must be text"
        elif keyword not in _ANY:
            self._unknown(keyword, inner)
        if wrong:
            self._error(f"{quoted(keyword)} {wrong}", inner)
        else:
            self._note(keyword, value, inner, place)

    def _note(self, keyword: str, value: Any, inner: Path, place: Path) -> None:
        if keyword == "pattern":
            self._pattern(value, inner)
        elif keyword == "$ref":
            self._references.append((place, value))
        elif keyword == "default":
            self.defaults.append(place)
        elif keyword in ("$schema", "$id") and place:
            self._error(f"{quoted(keyword)} may stand at the top of a schema only", inner)
        elif keyword == "$schema" and value.rstrip("#") != Draft202012Validator.META_SCHEMA["$schema"]:
            message = "schemas are read as JSON Schema Draft 2020-12, whatever '$schema' says"
            self._findings.warn("schema-dialect", message, (*self._base, *inner))

    def _unknown(self, keyword: str, inner: Path) -> None:
        if not keyword.startswith("x-"):
            self._findings.warn(
                "schema-keyword",
                f"JSON Schema has no keyword {quoted(keyword)}; it has no effect",
                (*self._base, *inner),
                hint=did_you_mean(keyword, _KNOWN),
            )

    def _pattern(self, pattern: str, inner: Path) -> None:
        try:
            compile_pattern(pattern)
        except ExpressionError as error:
            self._error(error.reason, inner)

    def references(self) -> None:
        """Check that every `$ref` points to a schema in here, and that none leads back to itself at once."""
        for place, reference in self._references:
            inner = (*place, "$ref")
            if not reference.startswith("#"):
                self._error("'$ref' must point into this schema: '#/$defs/...'", inner, hint="schemas are never fetched")
            elif reference[1:] not in self._in_place:
                targets = [f"#{target}" for target in self._in_place if target.startswith(("/$defs", "/definitions"))]
                self._error(f"{quoted(reference)} points to no schema", inner, hint=did_you_mean(reference, targets))
            elif reference[1:] == pointer(place):
                self._error(f"{quoted(reference)} refers to itself", inner)
            else:
                self._in_place[pointer(place)].append(reference[1:])
        if not self.is_sound:
            return
        for cycle in order_tasks(self._in_place).cycles:
            drawn = draw_cycle([f"#{target}" for target in cycle])
            self._error(f"these schemas refer to each other without end: {drawn}", ())


def _wrong_type(value: object) -> str:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
        return f"must be one of {', '.join(sorted(_TYPES))}, or a list of them"
    return "" if len(set(names)) == len(names) else "must not repeat a type"


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


# --- applying a schema ---------------------------------------------------------------------------------------

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
        return [Problem(code="schema-budget", message="the value is too large to be checked against its schema")]
    except ExpressionError as error:
        return [Problem(code="schema-budget", message=f"a pattern of the schema cannot be applied: {error.reason}")]
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


def _pattern_properties(validator: Any, patterns: dict[str, Any], instance: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            for name, inner in instance.items():
                if _matches(pattern, name):
                    yield from validator.descend(inner, subschema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    known = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    for name, inner in instance.items():
        if name in known or any(_matches(pattern, name) for pattern in patterns):
            continue
        if rule is False:
            error = ValidationError("is not expected here")
            error.path.append(name)
            yield error
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
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "enum": _enum,
    "const": _const,
    "uniqueItems": _unique_items,
}
_Bounded: Any = extend(
    Draft202012Validator,
    {
        name: _counted(_OWN_KEYWORDS.get(name, keyword))
        for name, keyword in Draft202012Validator.VALIDATORS.items()
    },
)

_FORMAT_CHECKER = FormatChecker(formats=())
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,255}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATE_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})")


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
    _FORMAT_CHECKER.checkers[_name] = (lambda value, name=_name: _has_format(name, value), ValueError)


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
        case "additionalProperties":
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


