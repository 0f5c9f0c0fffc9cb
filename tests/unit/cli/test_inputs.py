"""Inputs as typed by a person."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.errors import CommandError, ExitCode
from cli.inputs import parse_duration, parse_inputs, parse_pairs, types_of


def schema_of(kind: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": kind}}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, "", ""),
        ({"type": "string"}, "a=b", "a=b"),
        ({"type": "integer"}, "5", 5),
        ({"type": "integer"}, "-5", -5),
        ({"type": "number"}, "5", 5),
        ({"type": "number"}, "2.5", 2.5),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "No", False),
        ({"type": "array"}, '["a", 1]', ["a", 1]),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": "null"}, "null", None),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"type": ["string", "integer"]}, "five", "five"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "7", 7),
        ({"enum": ["a", "b"]}, "a", "a"),
        ({}, "5", "5"),
        (True, "5", "5"),
        ({"type": "strange"}, "5", None),
    ],
)
def test_value_is_read_as_its_declared_type(kind: Any, text: str, value: Any) -> None:
    if kind == {"type": "strange"}:
        with pytest.raises(CommandError):
            parse_pairs([f"x={text}"], schema_of(kind))
        return
    read = parse_pairs([f"x={text}"], schema_of(kind))["x"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("integer", "2.5"),
        ("integer", "x"),
        ("number", "nan"),
        ("number", "inf"),
        ("boolean", "maybe"),
        ("array", "{}"),
    ],
)
def test_value_of_another_type_is_refused(kind: str, text: str) -> None:
    with pytest.raises(CommandError, match=f"input x: .* is not of type {kind}") as refused:
        parse_pairs([f"x={text}"], schema_of({"type": kind}))
    assert refused.value.exit_code == ExitCode.INVALID


def test_unknown_name_keeps_its_text_and_the_last_pair_wins() -> None:
    assert parse_pairs(["y=1", "x=1", "x=2"], schema_of({"type": "integer"})) == {"y": "1", "x": 2}
    assert parse_pairs(["y=1"], None) == {"y": "1"}


@pytest.mark.parametrize("pair", ["x", "=1", ""])
def test_pair_without_name_or_sign_is_wrong_usage(pair: str) -> None:
    with pytest.raises(CommandError, match="NAME=VALUE") as refused:
        parse_pairs([pair], None)
    assert refused.value.exit_code == ExitCode.USAGE


def test_types_of_combined_schemas_keep_their_order() -> None:
    assert types_of({"oneOf": [{"type": "array"}, {"type": ["null", "array"]}]}) == ("array", "null")


@pytest.mark.parametrize("text", ['{"a": [1, null]}', "a: [1, null]", "a:\n  - 1\n  - null\n"])
def test_inputs_are_json_or_yaml(text: str) -> None:
    assert parse_inputs(text, "inputs") == {"a": [1, None]}


def test_empty_text_means_no_inputs() -> None:
    assert parse_inputs("", "inputs") == {}


@pytest.mark.parametrize(
    "text",
    ["[1]", "5", "a: *x", "{", "a: 1\na: 2", '{"a": 1, "a": 2}', "a: !!python/object:os.x {}", "x: [" * 1000],
)
def test_unusable_inputs_are_refused_with_their_source(text: str) -> None:
    with pytest.raises(CommandError, match="inputs") as refused:
        parse_inputs(text, "inputs")
    assert refused.value.exit_code == ExitCode.INVALID


def test_too_large_inputs_are_refused() -> None:
    with pytest.raises(CommandError, match="larger than"):
        parse_inputs("a: " + "x" * 5 * 1024 * 1024, "inputs")


@given(st.text(max_size=200))
def test_any_text_gives_inputs_or_a_refusal(text: str) -> None:
    with contextlib.suppress(CommandError):
        assert isinstance(parse_inputs(text, "inputs"), dict)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1.5 m", 90), ("250ms", 0.25), ("1d", 86400)],
)
def test_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "5x", "forever", "9999999999", "1m30s"])
def test_other_durations_are_wrong_usage(text: str) -> None:
    with pytest.raises(CommandError, match="no duration") as refused:
        parse_duration(text)
    assert refused.value.exit_code == ExitCode.USAGE
