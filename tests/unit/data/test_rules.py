"""Validation rules: what passes, what fails with which words, what is no rule."""

import copy

import pytest

from orchestration.expressions import RuleError
from orchestration.rules import MAX_LISTED_RECORDS, check, validate


def rule(kind, field="f", message="", **config):
    return {"type": kind, "field": field, "config": config, **({"message": message} if message else {})}


CASES = [
    # required
    (rule("required"), {"f": 1}, True),
    (rule("required"), {"f": ""}, True),
    (rule("required"), {"f": None}, False),
    (rule("required"), {}, False),
    (rule("required", "a.b"), {"a": {"b": 1}}, True),
    (rule("required", "a.b"), {"a": {}}, False),
    (rule("required", "a.b"), {"a.b": 1}, True),
    (rule("required", "a.b"), {"a": 5}, False),
    # type, by Python's and JSON Schema's names
    (rule("type", type="str"), {"f": "x"}, True),
    (rule("type", type="string"), {"f": 1}, False),
    (rule("type", type="int"), {"f": 1}, True),
    (rule("type", type="integer"), {"f": 1.0}, True),
    (rule("type", type="int"), {"f": 1.5}, False),
    (rule("type", type="int"), {"f": True}, False),
    (rule("type", type="float"), {"f": 1}, True),
    (rule("type", type="number"), {"f": "1"}, False),
    (rule("type", type="bool"), {"f": False}, True),
    (rule("type", type="boolean"), {"f": 0}, False),
    (rule("type", type="list"), {"f": []}, True),
    (rule("type", type="array"), {"f": {}}, False),
    (rule("type", type="dict"), {"f": {}}, True),
    (rule("type", type="object"), {"f": []}, False),
    (rule("type", type=["str", "null"]), {"f": "x"}, True),
    (rule("type", type="str"), {"f": None}, True),
    (rule("type", type="str"), {}, True),
    (rule("type", "", type="null"), None, True),
    (rule("type", "", type="object"), None, False),
    # range
    (rule("range", min=0, max=10), {"f": 10}, True),
    (rule("range", min=0, max=10), {"f": 10.5}, False),
    (rule("range", min=0), {"f": -1}, False),
    (rule("range", max=5), {"f": 5}, True),
    (rule("range", min=0), {"f": "5"}, False),
    (rule("range", min=0), {"f": True}, False),
    (rule("range", min=0), {}, True),
    # regex, at the start
    (rule("regex", pattern="[A-Z]"), {"f": "Abc"}, True),
    (rule("regex", pattern="b"), {"f": "abc"}, False),
    (rule("regex", pattern="12"), {"f": 123}, True),
    (rule("regex", pattern="true"), {"f": True}, True),
    (rule("regex", pattern=".*"), {"f": []}, False),
    (rule("regex", pattern="x"), {"f": None}, True),
    # length
    (rule("length", min=1, max=3), {"f": "abc"}, True),
    (rule("length", min=1, max=3), {"f": "abcd"}, False),
    (rule("length", min=1), {"f": []}, False),
    (rule("length", max=1), {"f": {"a": 1}}, True),
    (rule("length", exact=2), {"f": "ab"}, True),
    (rule("length", exact=2), {"f": "abc"}, False),
    (rule("length", min=1), {"f": 5}, False),
    # enum
    (rule("enum", values=["a", 1]), {"f": "a"}, True),
    (rule("enum", allowed=["a", 1]), {"f": True}, False),
    (rule("enum", values=[None, True]), {"f": 1}, False),
    # schema
    (rule("schema", schema={"type": "object", "required": ["a"]}), {"f": {"a": 1}}, True),
    (rule("schema", schema={"type": "object", "required": ["a"]}), {"f": {}}, False),
    (rule("schema", "", schema={"properties": {"f": {"minimum": 5}}}), {"f": 4}, False),
    (rule("schema", schema={"type": "string", "pattern": "^a+$"}), {"f": "aab"}, False),
    # custom
    (rule("custom", expression="field_value > 5"), {"f": 6}, True),
    (rule("custom", expression="field_value > 5"), {"f": 5}, False),
    (rule("custom", expression="field_value > 5"), {}, True),
    (rule("custom", "", expression="data.a < data.b"), {"a": 1, "b": 2}, True),
    (rule("custom", "", expression="a < b and a < limit"), {"a": 1, "b": 2}, True),
    (rule("custom", "", condition="nope > 1"), {"a": 1}, False),
]


@pytest.mark.parametrize(("one", "data", "valid"), CASES, ids=[f"{case[0]}-{case[1]}"[:80] for case in CASES])
def test_rule_judges(one, data, valid):
    before = copy.deepcopy((one, data))
    outcome = validate(data, [one], {"limit": 100})
    assert outcome.is_valid is valid
    assert outcome.primary["valid"] is valid
    assert len(outcome.results) == 1
    assert outcome.results[0]["rule"] == one["type"]
    assert outcome.results[0]["valid"] is valid
    assert outcome.failed_rules == ([] if valid else outcome.results)
    assert bool(outcome.primary["validation_errors"]) is not valid
    assert before == (one, data)


def test_messages_say_what_would_be_right_and_never_what_was_there():
    data = {"a": "s3cr3t", "n": 99, "l": ["s3cr3t"]}
    outcome = validate(
        data,
        [
            rule("required", "name"),
            rule("type", "a", type="int"),
            rule("range", "n", min=0, max=10),
            rule("range", "n", max=10),
            rule("length", "l", min=2),
            rule("regex", "a", pattern="^x"),
            rule("enum", "a", values=["x"]),
            rule("schema", "a", schema={"const": "x"}),
            rule("custom", "a", expression="field_value > 1"),
            rule("range", "n", "too much", max=1),
        ],
        {},
    )
    assert outcome.primary["validation_errors"] == [
        "name is required",
        "a must be of type int",
        "n must be between 0 and 10",
        "n must be at most 10",
        "the length of l must be at least 2",
        "a does not match the pattern",
        "a is not one of the allowed values",
        "the value must be 'x'",
        "> does not go with text and a number (at character 1)",
        "too much",
    ]
    assert "s3cr3t" not in str(outcome.results)


def test_list_is_judged_record_by_record():
    records = [{"id": 1}, {"id": "x"}, {}, 5]
    outcome = validate(records, [rule("required", "id"), rule("type", "id", type="int")], {})
    assert not outcome.is_valid
    assert outcome.primary["valid_records"] == [{"id": 1}]
    assert outcome.primary["invalid_records"] == [{"id": "x"}, {}, 5]
    assert outcome.primary["validation_summary"] == {"total": 4, "valid": 1, "invalid": 3}
    assert outcome.results[0]["failed_records"] == [2, 3]
    assert outcome.results[1]["failed_count"] == 1


def test_long_lists_count_all_failures_and_list_some():
    outcome = validate([{}] * 500, [rule("required", "id")], {})
    assert outcome.results[0]["failed_count"] == 500
    assert len(outcome.results[0]["failed_records"]) == MAX_LISTED_RECORDS
    assert len(outcome.primary["invalid_records"]) == 500


def test_empty_list_and_no_rules_are_valid():
    assert validate([], [rule("required", "id")], {}).is_valid
    assert validate({"a": 1}, [], {}).primary == {"valid": True, "failed_rules": [], "validation_errors": []}


def test_schema_of_the_whole_is_for_each_record_unless_it_describes_a_list():
    records = [{"id": 1}, {"id": "x"}]
    each = validate(records, [], {}, schema={"type": "object", "properties": {"id": {"type": "integer"}}})
    assert each.primary["invalid_records"] == [{"id": "x"}]
    whole = validate(records, [], {}, schema={"type": "array", "maxItems": 1})
    assert not whole.is_valid
    assert whole.primary["invalid_records"] == []
    assert not validate(records, [], {}, schema={"type": ["array", "null"], "minItems": 3}).is_valid
    assert not validate({"id": "x"}, [], {}, schema={"properties": {"id": {"type": "integer"}}}).is_valid


def test_config_may_stand_next_to_the_type():
    assert not validate({"n": 5}, [{"type": "range", "field": "n", "max": 3}], {}).is_valid
    assert not validate(
        {"n": 5}, [{"type": "schema", "field": "n", "schema": {"type": "string"}}], {}
    ).is_valid


WRONG = [
    "x",
    5,
    [5],
    [{}],
    [{"type": "requierd"}],
    [{"type": "required", "field": 5}],
    [{"type": "required", "message": 5}],
    [{"type": "range", "config": []}],
    [rule("range")],
    [rule("range", min="0")],
    [rule("range", min=True)],
    [rule("length", min=1.5)],
    [rule("type")],
    [rule("type", type="strng")],
    [rule("type", type=[5])],
    [rule("regex")],
    [rule("regex", pattern="(")],
    [rule("regex", pattern="(a+)+$")],
    [rule("enum")],
    [rule("enum", values=[])],
    [rule("enum", values="abc")],
    [rule("custom")],
    [rule("custom", expression="1 +")],
    [rule("custom", expression="x.__class__")],
    [rule("schema", schema=5)],
    [rule("schema", schema={"type": "strng"})],
    [rule("schema", schema={"pattern": "(a+)+$"})],
    [rule("schema", schema={"$ref": "http://example.org/x"})],
    [rule("schema", schema={"const": object()})],
    [rule("required")] * 201,
]


@pytest.mark.parametrize("rules", WRONG, ids=[str(case)[:60] for case in WRONG])
def test_what_is_no_rule_is_refused(rules):
    with pytest.raises(RuleError):
        validate({"f": "x"}, rules, {})
    assert check(rules)


def test_check_finds_every_problem_with_its_index():
    assert [index for index, _ in check([rule("required"), {"type": "x"}, rule("range")])] == [1, 2]
    assert check([rule("required")]) == []


def test_costly_rules_are_an_error_not_a_verdict():
    with pytest.raises(RuleError):
        validate({"f": 1}, [rule("custom", expression="[x for x in range(90000) for y in range(9)]")], {})
    with pytest.raises(RuleError):
        validate({"f": "n." * 30_000}, [rule("regex", pattern="^.*.*x")], {})
