"""Checks the JSON Schemas that a person wrote, before they are stored.

Supported is Draft 2020-12 without what reaches outside the schema (`$dynamicRef`, `$anchor`, remote `$ref`) and without
`unevaluated*`, whose cost has no small bound. A schema that passes can be applied by `conformance`.
"""

from functools import partial
from typing import Any

from jsonschema import Draft202012Validator

from orchestration.definition.conformance import violations
from orchestration.definition.errors import Path, did_you_mean, pointer, quoted
from orchestration.definition.findings import Findings, Hint
from orchestration.definition.graph import draw_cycle, order_tasks
from orchestration.expressions.errors import ExpressionError
from orchestration.expressions.regex import compile_pattern

MAX_SCHEMA_VALUES = 5_000
"""Most values in one schema."""

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_ONE = frozenset({"not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"})
_SEVERAL = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_IN_PLACE = frozenset({"not", "if", "then", "else", "allOf", "anyOf", "oneOf", "dependentSchemas"})
_NUMBERS = frozenset({"maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"})
_COUNTS = frozenset(
    [
        "maxLength",
        "minLength",
        "maxItems",
        "minItems",
        "maxProperties",
        "minProperties",
        "minContains",
        "maxContains",
    ]
)
_TEXTS = frozenset(
    [
        "$ref",
        "$schema",
        "$id",
        "$comment",
        "title",
        "description",
        "format",
        "contentEncoding",
        "contentMediaType",
    ]
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
        findings.error(
            "schema", "the values described here are an object: write type: object", (*path, "type")
        )
    for place in walk.defaults:
        owner = _at(schema, place)
        for violation in violations(schema, owner["default"], part=owner):
            where = (*path, *place, "default")
            findings.error(
                "schema-default", f"the default does not satisfy its own schema: {violation.message}", where
            )


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

    def _error(self, message: str, place: Path, *, hint: Hint = "", at_key: bool = False) -> None:
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
            wrong = (
                "" if isinstance(value, list) and (value or keyword != "enum") else "must be a list of values"
            )
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
                hint=partial(did_you_mean, keyword, _KNOWN),
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
                self._error(
                    "'$ref' must point into this schema: '#/$defs/...'",
                    inner,
                    hint="schemas are never fetched",
                )
            elif reference[1:] not in self._in_place:
                targets = [
                    f"#{target}" for target in self._in_place if target.startswith(("/$defs", "/definitions"))
                ]
                self._error(
                    f"{quoted(reference)} points to no schema",
                    inner,
                    hint=partial(did_you_mean, reference, targets),
                )
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
    return (
        isinstance(value, list)
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )
