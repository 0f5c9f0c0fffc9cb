"""Validation of data against rules and a JSON Schema. An invalid document is an answer; only a wrong rule is an error.

A list is validated record by record. Every rule but `required` passes on an absent or null field. Messages are made
from the rules, never from the data.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from orchestration.definition.document import Document
from orchestration.definition.findings import Findings
from orchestration.expressions.errors import (
    INVALID_INPUT,
    LIMIT,
    ExpressionError,
    RuleError,
    did_you_mean,
    shown,
)
from orchestration.expressions.evaluator import Evaluator
from orchestration.expressions.grammar import Expression, parse
from orchestration.expressions.regex import Pattern, compile_pattern, guard
from orchestration.expressions.values import MISSING, kind
from orchestration.transforms import steps_for

MAX_RULES = 200
MAX_RECORDS = 1_000_000
MAX_LISTED_RECORDS = 100
"""How many failing records a rule lists by index; all are counted."""
MAX_MESSAGES = 100
MAX_ENUM_VALUES = 10_000
CACHED_SCHEMAS = 64
STEPS_PER_PATTERN_STEP = 128

_TYPE_TESTS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: (isinstance(value, int) and not isinstance(value, bool)) or _whole(value),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list | tuple),
    "dict": lambda value: isinstance(value, Mapping),
    "null": lambda value: value is None,
}
_TYPE_NAMES: Mapping[str, str] = {
    "str": "str", "string": "str", "text": "str", "int": "int", "integer": "int", "float": "float", "number": "float",
    "bool": "bool", "boolean": "bool", "list": "list", "array": "list", "tuple": "list", "dict": "dict",
    "object": "dict", "null": "null", "None": "null", "NoneType": "null",
}  # fmt: skip
"""Python's and JSON Schema's names of types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationOutcome:
    """What came of a validation.

    `results` has one entry a rule: {rule, field, valid} with message when it failed, error when it could not be
    evaluated, and for lists failed_count and failed_records (indexes). `failed_rules` are the entries that failed.
    `primary` is {valid, failed_rules, validation_errors} and for lists valid_records, invalid_records and
    validation_summary {total, valid, invalid}.
    """

    is_valid: bool
    results: list[dict[str, Any]]
    failed_rules: list[dict[str, Any]]
    primary: dict[str, Any]


Verdict = str | None
"""What is wrong with a value, None when nothing is."""


@dataclass(slots=True, kw_only=True)
class _Rule:
    """A rule made ready, and what it has found so far."""

    type: str
    field: str
    message: str
    test: Callable[["_Subject"], Verdict]
    failed_records: list[int] = dataclasses.field(default_factory=list)
    failed_count: int = 0
    first: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a rule looks at: the record, the field's value in it, and the evaluator for its expressions."""

    record: Any
    value: Any
    evaluator: Evaluator


def validate(
    data: Any,
    rules: Sequence[Mapping[str, Any]],
    names: Mapping[str, Any],
    *,
    schema: Mapping[str, Any] | None = None,
    declared: Collection[str] = frozenset(),
    now: datetime | None = None,
) -> ValidationOutcome:
    """Return whether the data satisfy the rules and the schema.

    Args:
        rules: [{type, field, config, message}]; types: required, type, range, regex, length, enum, schema, custom.
            A field may be dotted. Without a field a rule is about the whole record.
        names: The context for custom expressions, below `data`, `field_value` and the record's own keys.
        schema: A JSON Schema for the data as a whole; for a list, one that does not describe a list is applied to
            each record.

    Raises: RuleError when a rule or the schema is misdescribed or takes too much.
    """
    if not isinstance(rules, list | tuple):
        raise RuleError(INVALID_INPUT, "rules are a list of {type, field, config}")
    if len(rules) > MAX_RULES:
        raise RuleError(LIMIT, f"there may be {MAX_RULES} rules, there are {len(rules)}")
    prepared = [_prepare(rule, index) for index, rule in enumerate(rules)]
    whole: list[_Rule] = []
    if schema is not None:
        described = _Rule(type="schema", field="", message="", test=_schema_test(schema))
        (whole if not isinstance(data, list) or _describes_list(schema) else prepared).append(described)
    evaluator = Evaluator(names, declared=declared, now=now, steps=steps_for(data))
    records = data if isinstance(data, list) else [data]
    if len(records) > MAX_RECORDS:
        raise RuleError(LIMIT, f"{MAX_RECORDS} records are validated at most")
    for rule in whole:
        _look(rule, data, None, evaluator, names)
    failing = [
        index for index, record in enumerate(records) if _fails(prepared, record, index, evaluator, names)
    ]
    return _outcome([*whole, *prepared], data, failing)


def check(rules: Any) -> list[tuple[int, str]]:
    """Return what is wrong with rules before any data is seen, as (index, message)."""
    if not isinstance(rules, list):
        return [(0, "rules are a list of {type, field, config}")]
    problems: list[tuple[int, str]] = []
    for index, rule in enumerate(rules[:MAX_RULES]):
        try:
            _prepare(rule, index)
        except RuleError as error:
            problems.append((index, error.message))
    if len(rules) > MAX_RULES:
        problems.append((MAX_RULES, f"there may be {MAX_RULES} rules"))
    return problems


# --- running ----------------------------------------------------------------------------------------------


def _fails(
    rules: list[_Rule], record: Any, index: int, evaluator: Evaluator, names: Mapping[str, Any]
) -> bool:
    verdicts = [_look(rule, record, index, evaluator, names) for rule in rules]
    return not all(verdicts)


def _look(
    rule: _Rule, record: Any, index: int | None, evaluator: Evaluator, names: Mapping[str, Any]
) -> bool:
    """Return whether the record satisfies the rule, and note it in the rule when it does not."""
    value = _value_of(record, rule.field)
    absent = value is MISSING or value is None
    if absent and rule.type != "required" and (rule.field or rule.type not in ("schema", "custom", "type")):
        return True
    mine = {"data": record, "field_value": None if value is MISSING else value}
    evaluator.layers = (mine, record, names) if isinstance(record, Mapping) else (mine, names)
    try:
        wrong = rule.test(_Subject(record, value, evaluator))
    except ExpressionError as error:
        if error.code == LIMIT:
            raise RuleError(LIMIT, f"the rule {rule.type} of {shown(rule.field)}: {error.message}") from None
        wrong = rule.error = error.message
    if wrong is None:
        return True
    rule.failed_count += 1
    rule.first = rule.first or wrong
    if index is not None and len(rule.failed_records) < MAX_LISTED_RECORDS:
        rule.failed_records.append(index)
    return False


def _value_of(record: Any, name: str) -> Any:
    if not name:
        return record
    if isinstance(record, Mapping) and name in record:
        return record[name]
    value = record
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return MISSING
        value = value[key]
    return value


def _outcome(rules: list[_Rule], data: Any, failing: list[int]) -> ValidationOutcome:
    listed = isinstance(data, list)
    results = [_entry(rule, listed) for rule in rules]
    failed = [entry for entry in results if not entry["valid"]]
    valid = not failed
    messages = [entry.get("error") or entry["message"] for entry in failed][:MAX_MESSAGES]
    primary: dict[str, Any] = {"valid": valid, "failed_rules": failed, "validation_errors": messages}
    if listed:
        bad = set(failing)
        primary["valid_records"] = [record for index, record in enumerate(data) if index not in bad]
        primary["invalid_records"] = [data[index] for index in failing]
        primary["validation_summary"] = {
            "total": len(data), "valid": len(data) - len(failing), "invalid": len(failing),
        }  # fmt: skip
    return ValidationOutcome(is_valid=valid, results=results, failed_rules=failed, primary=primary)


def _entry(rule: _Rule, listed: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"rule": rule.type, "field": rule.field, "valid": rule.failed_count == 0}
    if rule.failed_count:
        entry["message"] = rule.message or rule.first
        if rule.error:
            entry["error"] = rule.error
        if listed:
            entry["failed_count"] = rule.failed_count
            entry["failed_records"] = rule.failed_records
    return entry


# --- preparing --------------------------------------------------------------------------------------------


def _prepare(rule: Any, index: int) -> _Rule:
    which = f"rule {index + 1}"
    if not isinstance(rule, Mapping):
        raise RuleError(INVALID_INPUT, f"{which} is {kind(rule)}, not an object with type, field and config")
    kind_name = rule.get("type")
    if not isinstance(kind_name, str) or kind_name not in _TESTS:
        hint = did_you_mean(kind_name, _TESTS) if isinstance(kind_name, str) else ""
        raise RuleError(INVALID_INPUT, f"{which}: the type is one of {', '.join(_TESTS)}{hint}")
    name = rule.get("field", "")
    message = rule.get("message", "")
    if not isinstance(name, str) or not isinstance(message, str):
        raise RuleError(INVALID_INPUT, f"{which}: field and message are texts")
    config = rule.get("config", MISSING)
    if config is MISSING:
        config = {key: value for key, value in rule.items() if key not in ("type", "field", "message")}
    if not isinstance(config, Mapping):
        raise RuleError(INVALID_INPUT, f"{which}: config is an object, not {kind(config)}")
    try:
        test = _TESTS[kind_name](config, name or "the value")
    except ExpressionError as error:
        raise RuleError(INVALID_INPUT, f"{which} ({kind_name}): {error.message}") from None
    except RuleError as error:
        raise RuleError(error.code, f"{which} ({kind_name}): {error.message}") from None
    return _Rule(type=kind_name, field=name, message=message, test=test)


def _required(config: Mapping[str, Any], name: str) -> Callable[[_Subject], Verdict]:
    return lambda subject: (
        f"{name} is required" if subject.value is MISSING or subject.value is None else None
    )


def _type(config: Mapping[str, Any], name: str) -> Callable[[_Subject], Verdict]:
    wanted = config.get("type", config.get("expected_type"))
    kinds = wanted if isinstance(wanted, list) else [wanted]
    tests = []
    for one in kinds:
        if not isinstance(one, str) or one not in _TYPE_NAMES:
            hint = did_you_mean(one, _TYPE_NAMES) if isinstance(one, str) else ""
            raise RuleError(INVALID_INPUT, f"config.type is one of {', '.join(_TYPE_NAMES)}{hint}")
        tests.append(_TYPE_TESTS[_TYPE_NAMES[one]])
    message = f"{name} must be of type {' or '.join(kinds)}"
    return lambda subject: None if any(test(subject.value) for test in tests) else message


def _range(config: Mapping[str, Any], name: str) -> Callable[[_Subject], Verdict]:
    low, high = _bounds(config, "min", "max", whole=False)
    message = f"{name} must be {_words(low, high)}"

    def test(subject: _Subject) -> Verdict:
        value = subject.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name} must be a number"
        return None if (low is None or value >= low) and (high is None or value <= high) else message

    return test


def _length(config: Mapping[str, Any], name: str) -> Callable[[_Subject], Verdict]:
    if "exact" in config:
        config = {"min": config["exact"], "max": config["exact"]}
    low, high = _bounds(config, "min", "max", whole=True)
    message = f"the length of {name} must be {_words(low, high)}"

    def test(subject: _Subject) -> Verdict:
        value = subject.value
        if not isinstance(value, str | list | tuple | Mapping):
            return f"{name} must be a text, a list or an object"
        return (
            None if (low is None or len(value) >= low) and (high is None or len(value) <= high) else message
        )

    return test


def _regex(config: Mapping[str, Any], name: str) -> Callable[[_Subject], Verdict]:
    source = config.get("pattern")
    if not isinstance(source, str):
        raise RuleError(INVALID_INPUT, "a text under config.pattern is needed")
    pattern = compile_pattern(source)
    message = f"{name} does not match the pattern"
    return lambda subject: None if _matches(pattern, subject) else message


def _matches(pattern: Pattern, subject: _Subject) -> bool:
    value = subject.value
    if isinstance(value, list | tuple | Mapping):
        return False
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    subject.evaluator.charge(guard(pattern, text, search=False) // STEPS_PER_PATTERN_STEP)
    return pattern.compiled.match(text) is not None


def _enum(config: Mapping[str, Any], name: str) -> Callable[[_Subject], Verdict]:
    allowed = next((config[key] for key in ("values", "allowed", "enum") if key in config), None)
    if not isinstance(allowed, list) or not 0 < len(allowed) <= MAX_ENUM_VALUES:
        raise RuleError(INVALID_INPUT, f"config.values is a list of 1 to {MAX_ENUM_VALUES} values")
    known = [(isinstance(value, bool), value) for value in allowed]
    message = f"{name} is not one of the allowed values"

    def test(subject: _Subject) -> Verdict:
        value = subject.value
        subject.evaluator.charge(len(known))
        return None if (isinstance(value, bool), value) in known else message

    return test


def _schema(config: Mapping[str, Any], name: str) -> Callable[[_Subject], Verdict]:
    schema = config.get("schema", config)
    if not isinstance(schema, Mapping):
        raise RuleError(INVALID_INPUT, "config.schema is a JSON Schema")
    return _schema_test(schema)


def _custom(config: Mapping[str, Any], name: str) -> Callable[[_Subject], Verdict]:
    source = config.get("expression", config.get("condition"))
    if not isinstance(source, str):
        raise RuleError(INVALID_INPUT, "a text under config.expression is needed")
    expression: Expression = parse(source)
    message = f"{name} does not satisfy the expression"
    return lambda subject: None if subject.evaluator.truth(expression) else message


_TESTS: Mapping[str, Callable[[Mapping[str, Any], str], Callable[[_Subject], Verdict]]] = {
    "required": _required,
    "type": _type,
    "range": _range,
    "regex": _regex,
    "length": _length,
    "enum": _enum,
    "schema": _schema,
    "custom": _custom,
}


def _bounds(config: Mapping[str, Any], low: str, high: str, *, whole: bool) -> tuple[Any, Any]:
    bounds = (config.get(low), config.get(high))
    for bound in bounds:
        if bound is not None and (
            isinstance(bound, bool) or not isinstance(bound, int if whole else int | float)
        ):
            raise RuleError(
                INVALID_INPUT, f"config.{low} and config.{high} are {'whole ' if whole else ''}numbers"
            )
    if bounds == (None, None):
        raise RuleError(INVALID_INPUT, f"config.{low} or config.{high} is needed")
    return bounds


def _words(low: Any, high: Any) -> str:
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"between {low} and {high}"


def _whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


# --- schemas ----------------------------------------------------------------------------------------------


def _schema_test(schema: Mapping[str, Any]) -> Callable[[_Subject], Verdict]:
    try:
        encoded = msgspec.json.encode(schema)
    except (TypeError, ValueError, RecursionError):
        raise RuleError(INVALID_INPUT, "a schema is JSON") from None
    checked = _checked_schema(encoded)

    from orchestration.definition.conformance import violations  # with jsonschema; see `_checked_schema`

    def test(subject: _Subject) -> Verdict:
        subject.evaluator.charge(len(checked))
        found = violations(checked, subject.value)
        if not found:
            return None
        return "; ".join(f"{problem.path or 'the value'} {problem.message}" for problem in found[:5])

    return test


@lru_cache(maxsize=CACHED_SCHEMAS)
def _checked_schema(encoded: bytes) -> Mapping[str, Any]:
    # jsonschema takes 3 MB, and most rules are none of it.
    from orchestration.definition.schemas import check_schema

    schema: dict[str, Any] = msgspec.json.decode(encoded)
    findings = Findings(Document(schema))
    check_schema(schema, (), findings, describes_object=False)
    for problem in findings.errors():
        raise RuleError(INVALID_INPUT, f"the schema at {problem.path or '/'}: {problem.message}")
    return schema


def _describes_list(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type")
    return kinds == "array" or (isinstance(kinds, list) and "array" in kinds) or "items" in schema
