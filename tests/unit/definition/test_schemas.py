"""JSON Schemas that people write: what is refused, and what values break."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from orchestration.definition.conformance import MAX_VIOLATIONS, violations
from orchestration.definition.document import Document
from orchestration.definition.errors import InputError
from orchestration.definition.findings import Findings
from orchestration.definition.inputs import MAX_INPUT_BYTES, check_outputs, prepare_inputs
from orchestration.definition.schemas import MAX_SCHEMA_VALUES, check_schema


def check(schema: Any) -> Findings:
    findings = Findings(Document({"input_schema": schema}))
    check_schema(schema, ("input_schema",), findings)
    return findings


def errors_of(schema: Any) -> list[tuple[str, str]]:
    return [
        (problem.path.removeprefix("/input_schema"), problem.message) for problem in check(schema).errors()
    ]


@pytest.mark.parametrize(
    ("schema", "path", "message"),
    [
        ({"type": "strin"}, "/type", "must be one of"),
        ({"type": ["object", "object"]}, "/type", "must not repeat"),
        ({"type": []}, "/type", "must be one of"),
        ({"type": "array"}, "/type", "are an object"),
        ({"properties": []}, "/properties", "object of schemas"),
        ({"properties": {"a": 3}}, "/properties/a", "a schema is an object"),
        ({"properties": {"a": {"minimum": "1"}}}, "/properties/a/minimum", "must be a number"),
        ({"properties": {"a": {"minLength": -1}}}, "/properties/a/minLength", "whole number"),
        ({"properties": {"a": {"minLength": 1.5}}}, "/properties/a/minLength", "whole number"),
        ({"properties": {"a": {"multipleOf": 0}}}, "/properties/a/multipleOf", "above 0"),
        ({"properties": {"a": {"enum": []}}}, "/properties/a/enum", "list of values"),
        ({"properties": {"a": {"pattern": "("}}}, "/properties/a/pattern", "not a regular expression"),
        ({"properties": {"a": {"pattern": "(a+)+$"}}}, "/properties/a/pattern", "exponential"),
        ({"properties": {"a": {"pattern": 3}}}, "/properties/a/pattern", "must be text"),
        ({"patternProperties": {"(a+)*$": {}}}, "/patternProperties/(a+)*$", "exponential"),
        ({"patternProperties": {"(a*)*$": {}}}, "/patternProperties/(a*)*$", "exponential"),
        ({"required": "a"}, "/required", "different names"),
        ({"required": ["a", "a"]}, "/required", "different names"),
        ({"dependentRequired": {"a": "b"}}, "/dependentRequired", "lists of names"),
        ({"allOf": []}, "/allOf", "at least one"),
        ({"not": 3}, "/not", "a schema is"),
        ({"items": [{}]}, "/items", "a schema is"),
        ({"uniqueItems": 1}, "/uniqueItems", "true or false"),
        ({"unevaluatedProperties": False}, "/unevaluatedProperties", "not supported"),
        ({"$dynamicRef": "#x"}, "/$dynamicRef", "not supported"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "/$ref", "must point into this schema"),
        ({"$ref": "file:///etc/passwd"}, "/$ref", "must point into this schema"),
        ({"$ref": "#/$defs/x"}, "/$ref", "points to no schema"),
        ({"$ref": "#/properties", "properties": {"a": {}}}, "/$ref", "points to no schema"),
        ({"$ref": "#"}, "/$ref", "refers to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "", "without end"),
        ({"properties": {"a": {"$id": "x"}}}, "/properties/a/$id", "top of a schema"),
        ({"properties": {"a": {"$schema": "x"}}}, "/properties/a/$schema", "top of a schema"),
        (
            {"properties": {"a": {"type": "integer", "default": "x"}}},
            "/properties/a/default",
            "a whole number",
        ),
        (
            {"properties": {"a": {"$ref": "#/$defs/n", "default": -1}}, "$defs": {"n": {"minimum": 0}}},
            "/properties/a/default",
            "at least 0",
        ),
        ({"enum": [0] * (MAX_SCHEMA_VALUES + 1)}, "", "values"),
    ],
)
def test_schemas_that_are_wrong_are_refused_at_their_place(schema: Any, path: str, message: str) -> None:
    found = errors_of(schema)
    assert found, schema
    assert found[0][0] == path
    assert message in found[0][1]


def test_all_that_is_wrong_with_a_schema_is_said_at_once() -> None:
    schema = {"type": "objekt", "required": "a", "properties": {"a": {"minimum": "x"}, "b": {"pattern": "["}}}
    assert [path for path, _ in errors_of(schema)] == [
        "/type",
        "/required",
        "/properties/a/minimum",
        "/properties/b/pattern",
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": ["object", "null"]},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:x", "type": "object"},
        {"properties": {"$schema": {"type": "string"}, "pattern": {}, "required": {}, "$ref": {}}},
        {
            "properties": {"tree": {"$ref": "#/$defs/node"}},
            "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}},
        },
        {"properties": {"self": {"$ref": "#"}}},
        {"definitions": {"a": True}, "allOf": [{"$ref": "#/definitions/a"}]},
        {"properties": {"a": {"prefixItems": [{}, False], "contains": {}, "minContains": 1}}},
        {"if": {}, "then": {}, "else": {}, "dependentSchemas": {"a": {}}, "propertyNames": {"maxLength": 9}},
        {"properties": {"a/b~c": {"default": 1}}, "$defs": {"x": {"$ref": "#/properties/a~1b~0c"}}},
    ],
)
def test_good_schemas_are_accepted(schema: Any) -> None:
    findings = check(schema)
    assert findings.errors() == []
    assert findings.warnings() == []


def test_unknown_keywords_and_dialects_are_warnings() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {"a": {"requried": True, "x-note": 1}},
    }
    findings = check(schema)
    assert findings.errors() == []
    assert [(problem.code, problem.hint) for problem in findings.warnings()] == [
        ("schema-dialect", ""),
        ("schema-keyword", "did you mean 'required'?"),
    ]


keywords = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "required",
        "minimum",
        "maxLength",
        "pattern",
        "enum",
        "const",
        "default",
        "allOf",
        "not",
        "$ref",
        "$defs",
        "multipleOf",
        "uniqueItems",
        "additionalProperties",
        "dependentRequired",
        "title",
        "format",
        "oneOf",
        "prefixItems",
        "if",
        "then",
        "contains",
    ]
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["string", "object", "a", "#", "#/$defs/a", "(", "^a$"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keywords | st.sampled_from(["a", "b"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(keywords, anything, max_size=4), anything)
@settings(max_examples=500, deadline=None)
def test_what_we_accept_the_metaschema_accepts_and_can_be_applied(schema: dict[str, Any], value: Any) -> None:
    if check(schema).has_errors:
        return
    Draft202012Validator.check_schema(schema)
    ours = bool(violations(schema, value))
    assert isinstance(ours, bool)
    if isinstance(value, dict):
        with suppress(InputError):
            prepare_inputs(schema, value)


@given(anything, anything)
@settings(max_examples=300, deadline=None)
def test_our_verdict_is_the_verdict_of_jsonschema(value: Any, other: Any) -> None:
    for schema in ({"enum": [value]}, {"const": value}, {"items": {"const": value}, "uniqueItems": True}):
        expected = Draft202012Validator(schema).is_valid(other)
        assert (not violations(schema, other)) is expected


@pytest.mark.parametrize(
    ("schema", "value", "path", "message"),
    [
        ({"required": ["a", "b"]}, {"a": 1}, "/b", "is required"),
        ({"properties": {"a": {"type": "number"}}}, {"a": "x"}, "/a", "must be a number"),
        ({"properties": {"a": {"type": ["string", "null"]}}}, {"a": 1}, "/a", "must be text or null"),
        ({"properties": {"a": {"type": "integer"}}}, {"a": True}, "/a", "must be a whole number"),
        ({"properties": {"a": {"enum": ["x", 1, None]}}}, {"a": 2}, "/a", "must be one of 'x', 1, null"),
        ({"properties": {"a": {"const": 1}}}, {"a": 2}, "/a", "must be 1"),
        ({"properties": {"a": {"minimum": 3}}}, {"a": 2}, "/a", "must be at least 3"),
        ({"properties": {"a": {"maximum": 3}}}, {"a": 4}, "/a", "must be at most 3"),
        ({"properties": {"a": {"exclusiveMinimum": 3}}}, {"a": 3}, "/a", "must be more than 3"),
        ({"properties": {"a": {"exclusiveMaximum": 3}}}, {"a": 3}, "/a", "must be less than 3"),
        ({"properties": {"a": {"multipleOf": 2}}}, {"a": 3}, "/a", "must be a multiple of 2"),
        ({"properties": {"a": {"minLength": 1}}}, {"a": ""}, "/a", "must not be empty"),
        ({"properties": {"a": {"minLength": 2}}}, {"a": "x"}, "/a", "must have at least 2 characters"),
        ({"properties": {"a": {"maxLength": 2}}}, {"a": "xxx"}, "/a", "must have at most 2 characters"),
        ({"properties": {"a": {"minItems": 2}}}, {"a": []}, "/a", "must have at least 2 items"),
        ({"properties": {"a": {"maxItems": 0}}}, {"a": [1]}, "/a", "must have at most 0 items"),
        ({"minProperties": 2}, {"a": 1}, "", "must have at least 2 fields"),
        ({"maxProperties": 0}, {"a": 1}, "", "must have at most 0 fields"),
        ({"properties": {"a": {"pattern": "^x"}}}, {"a": "yx"}, "/a", "must match the pattern '^x'"),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [1, 1.0]}, "/a", "must not repeat an item"),
        ({"properties": {"a": {"format": "email"}}}, {"a": "x"}, "/a", "must be a valid email"),
        ({"properties": {"a": {"format": "date"}}}, {"a": "2024-02-30"}, "/a", "must be a valid date"),
        (
            {"properties": {"a": {"format": "date-time"}}},
            {"a": "2024-02-03"},
            "/a",
            "must be a valid date-time",
        ),
        ({"properties": {"a": {"format": "uuid"}}}, {"a": "x"}, "/a", "must be a valid uuid"),
        ({"properties": {"a": {"format": "ipv4"}}}, {"a": "1.2.3"}, "/a", "must be a valid ipv4"),
        ({"properties": {"a": {"format": "ipv6"}}}, {"a": "1.2.3"}, "/a", "must be a valid ipv6"),
        ({"additionalProperties": False}, {"a": 1}, "/a", "is not expected here"),
        (
            {"patternProperties": {"^a": {}}, "additionalProperties": {"type": "string"}},
            {"ab": 1, "b": 1},
            "/b",
            "must be text",
        ),
        ({"patternProperties": {"^a": {"type": "string"}}}, {"ab": 1, "b": 1}, "/ab", "must be text"),
        (
            {"properties": {"a": {"anyOf": [{"type": "string"}, {"minimum": 3}]}}},
            {"a": 1},
            "/a",
            "none of the 2",
        ),
        ({"properties": {"a": {"oneOf": [{}, {}]}}}, {"a": 1}, "/a", "exactly one of the 2"),
        ({"properties": {"a": {"not": {}}}}, {"a": 1}, "/a", "not allowed"),
        ({"properties": {"a": {"contains": {"const": 1}}}}, {"a": [2]}, "/a", "must contain"),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, "", "lacks a field"),
        ({"properties": {"a": False}}, {"a": 1}, "/a", "is not expected here"),
        ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, "", "at most 1 characters"),
        (
            {"properties": {"l": {"items": {"required": ["x"]}}}},
            {"l": [{"x": 1}, {}]},
            "/l/1/x",
            "is required",
        ),
    ],
)
def test_violations_say_what_would_be_right(schema: Any, value: Any, path: str, message: str) -> None:
    assert check(schema).errors() == []
    found = violations(schema, value)
    assert (found[0].path, message in found[0].message) == (path, True), found


@pytest.mark.parametrize(
    ("format", "value"),
    [
        ("email", "ada@example.com"),
        ("date", "2024-02-29"),
        ("date-time", "2024-02-29T12:30:00Z"),
        ("date-time", "2024-02-29t12:30:00.5+01:00"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000"),
        ("ipv4", "127.0.0.1"),
        ("ipv6", "::1"),
        ("ipv6", 3),
        ("uri", "anything, not checked"),
    ],
)
def test_formats_accept_what_is_right(format: str, value: object) -> None:
    assert violations({"properties": {"a": {"format": format}}}, {"a": value}) == []


def test_violations_never_repeat_a_value() -> None:
    canary = "s3cret-canary"
    for rule in (
        {"type": "integer"},
        {"const": 1},
        {"pattern": "^x$"},
        {"enum": [1]},
        {"maxLength": 1},
        {"not": {}},
        {"format": "email"},
    ):
        (problem,) = violations({"properties": {"password": rule}}, {"password": canary})
        assert canary not in problem.describe()


def test_violations_are_cut() -> None:
    assert len(violations({"items": {"type": "string"}}, [1] * 1000)) == MAX_VIOLATIONS


HARD = [
    (
        {"properties": {"a": {"anyOf": [{"anyOf": [{"anyOf": [{"type": "null"}] * 10}] * 10}] * 10}}},
        {"a": list(range(2000))},
    ),
    ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"x": [index]} for index in range(16_000)]}),
    (
        {"properties": {"a": {"items": {"items": {"type": "null"}}}}},
        {"a": [[None] * 200 for _ in range(240)]},
    ),
    ({"properties": {"a": {"pattern": "a.*b.*c$"}}}, {"a": "ab" * 100_000}),
    (
        {"additionalProperties": False, "patternProperties": {"a.*b": {}}},
        {"ab" * 5_000 + str(index): 1 for index in range(40)},
    ),
    ({"properties": {"a": {"items": {"enum": list(range(1000))}}}}, {"a": [-1] * 10_000}),
    (
        {
            "allOf": [{"properties": {"a": {"items": {"$ref": "#/$defs/n"}}}}] * 50,
            "$defs": {"n": {"type": "integer", "minimum": 0}},
        },
        {"a": [1] * 20_000},
    ),
]


ENDS = ["anyOf", "", "", "schema-budget", "schema-budget", "schema-budget", "schema-budget"]
"""What the first violation is, by position in HARD: some are checked to the end, the others meet the budget."""


@pytest.mark.parametrize(
    ("schema", "value", "end"),
    [(schema, value, end) for (schema, value), end in zip(HARD, ENDS, strict=True)],
    ids=range(len(HARD)),
)
def test_hard_schemas_end_within_their_budget(schema: Any, value: Any, end: str) -> None:
    assert check(schema).errors() == []
    assert [problem.code for problem in violations(schema, value)][:1] == ([end] if end else [])


def test_a_schema_that_descends_too_deep_is_an_answer_not_a_crash() -> None:
    node: dict[str, Any] = {"$ref": "#/$defs/n"}
    for _ in range(16):
        node = {"allOf": [node]}
    schema = {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"a": node}}}}
    assert check(schema).errors() == []
    value: dict[str, Any] = {}
    for _ in range(48):
        value = {"a": value}
    with pytest.raises(InputError) as raised:
        prepare_inputs(schema, value)
    assert raised.value.problems[0].code == "schema-budget"


# --- inputs and outputs --------------------------------------------------------------------------------------

ADDRESS = {"type": "object", "properties": {"country": {"default": "ES"}, "city": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "given", "expected"),
    [
        (None, {"a": 1}, {"a": 1}),
        ({}, {"a": 1}, {"a": 1}),
        ({"properties": {"a": {"default": 1}}}, {}, {"a": 1}),
        ({"properties": {"a": {"default": 1}}}, {"a": None}, {"a": None}),
        ({"properties": {"a": {"default": None}}}, {}, {"a": None}),
        ({"properties": {"a": ADDRESS}}, {}, {"a": {"country": "ES"}}),
        ({"properties": {"a": ADDRESS}}, {"a": {"city": "x"}}, {"a": {"country": "ES", "city": "x"}}),
        ({"properties": {"a": {"properties": {"b": {"type": "string"}}}}}, {}, {}),
        (
            {"properties": {"a": {**ADDRESS, "default": {"city": "y"}}}},
            {},
            {"a": {"country": "ES", "city": "y"}},
        ),
        ({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": ADDRESS}}, {}, {"a": {"country": "ES"}}),
        (
            {"properties": {"a": {"items": ADDRESS}}},
            {"a": [{}, {"country": "FR"}]},
            {"a": [{"country": "ES"}, {"country": "FR"}]},
        ),
        (
            {"properties": {"a": {"prefixItems": [{}], "items": ADDRESS}}},
            {"a": [{}, {}]},
            {"a": [{}, {"country": "ES"}]},
        ),
        (
            {"allOf": [{"properties": {"a": {"default": 1}}}, {"properties": {"b": {"default": 2}}}]},
            {},
            {"a": 1, "b": 2},
        ),
        (
            {
                "properties": {"n": {"$ref": "#/$defs/n"}},
                "$defs": {"n": {"properties": {"v": {"default": 0}, "n": {"$ref": "#/$defs/n"}}}},
            },
            {},
            {"n": {"v": 0}},
        ),
        ({"properties": {"a": True}}, {"a": 1}, {"a": 1}),
    ],
)
def test_defaults_are_filled_in(schema: Any, given: Any, expected: Any) -> None:
    if schema is not None:
        assert check(schema).errors() == []
    before = repr(given)
    assert prepare_inputs(schema, given) == expected
    assert repr(given) == before


def test_defaults_are_copies() -> None:
    schema = {"properties": {"a": {"default": []}}}
    prepare_inputs(schema, {})["a"].append(1)
    assert prepare_inputs(schema, {}) == {"a": []}


@pytest.mark.parametrize(
    ("inputs", "code", "path"),
    [
        ([], "type", ""),
        (None, "type", ""),
        ("x", "type", ""),
        ({"a": float("nan")}, "bad-value", "/a"),
        ({"a": object()}, "bad-value", "/a"),
        ({1: 2}, "bad-key", ""),
        ({"a": "x" * (MAX_INPUT_BYTES + 1)}, "too-large", ""),
        ({"a": [0] * 60_000}, "too-large", "/a"),
        ({"a": "x"}, "type", "/a"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused_with_pointers(inputs: Any, code: str, path: str) -> None:
    with pytest.raises(InputError) as raised:
        prepare_inputs({"properties": {"a": {"type": "integer"}}}, inputs)
    assert [(problem.code, problem.path) for problem in raised.value.problems] == [(code, path)]
    assert raised.value.code == "INVALID_INPUT"


def test_all_violations_of_inputs_are_reported() -> None:
    schema = {"required": ["user_id"], "properties": {"amount": {"type": "number"}, "user_id": {}}}
    with pytest.raises(InputError) as raised:
        prepare_inputs(schema, {"amount": "a lot"})
    assert sorted(problem.path for problem in raised.value.problems) == ["/amount", "/user_id"]


def test_outputs_are_checked() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]}
    assert check_outputs(None, {}) == []
    assert check_outputs(schema, {"a": "x", "b": 1}) == []
    assert sorted(check_outputs(schema, {"a": 1})) == ["/a must be text", "/b is required"]
    assert check_outputs({"minProperties": 1}, {}) == ["the outputs must have at least 1 fields"]
