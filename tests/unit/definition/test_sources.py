"""Reading YAML and JSON: the values, the places, and everything that is refused."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.definition.document import MAX_DEPTH, MAX_TEXT_BYTES, Document, Mark
from orchestration.definition.errors import DefinitionError, Problem
from orchestration.definition.json_source import read_json
from orchestration.definition.parse import format_of, parse_text
from orchestration.definition.values import check_values
from orchestration.definition.yaml_source import read_yaml


def first_problem(document: Document) -> Problem:
    assert document.problems, document.value
    return document.problems[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("2024-01-15", "2024-01-15"),
        ("12:30:45", "12:30:45"),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("-12", -12),
        ("+3", 3),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1e", "1e"),
        ("True", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("Null", None),
        ("", None),
        ("'true'", "true"),
        ('"1"', "1"),
        ('"{name}"', "{name}"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        (">-\n  two\n  words\n", "two words"),
        ("<<", "<<"),
        ("=", "="),
        ("Ünïcode ☃ 😀", "Ünïcode ☃ 😀"),
    ],
)
def test_yaml_scalars_follow_the_core_schema(text: str, value: object) -> None:
    document = read_yaml(f"key: {text}")
    assert document.problems == []
    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)


def test_yaml_keys_are_text_as_written() -> None:
    assert read_yaml("{1: a, true: b, null: c, on: d}").value == {
        "1": "a",
        "true": "b",
        "null": "c",
        "on": "d",
    }


def test_the_version_is_text_even_without_quotes() -> None:
    document = read_yaml("version: 1.10\nother: 1.10\ninner: {version: 1.10}")
    assert document.value == {"version": "1.10", "other": 1.1, "inner": {"version": 1.1}}


def test_an_unquoted_template_in_yaml_gets_the_cure() -> None:
    problem = first_problem(read_yaml("a: 1\ndata: {{name}}"))
    assert problem.code == "bad-key"
    assert "quotes" in problem.hint


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("a: 1\na: 2", "duplicate-key", 2, 1),
        ("a: &x 1", "yaml-anchor", 1, 4),
        ("a: *x", "yaml-alias", 1, 4),
        ("a: [1, *x]", "yaml-alias", 1, 8),
        ("*x : 1", "yaml-alias", 1, 1),
        ("a: !!python/object:os.system x", "yaml-tag", 1, 4),
        ("a: !!str 1", "yaml-tag", 1, 4),
        ("a: ! 1", "yaml-tag", 1, 4),
        ("a: !!set {x}", "yaml-tag", 1, 4),
        ("%TAG ! tag:x,2000:\n---\na: 1", "yaml-tag", 1, 1),
        ("a: 1\n---\nb: 2", "yaml-documents", 2, 1),
        ("? [a, b]\n: 1", "bad-key", 1, 3),
        ("a: .inf", "bad-number", 1, 4),
        ("a: -.INF", "bad-number", 1, 4),
        ("a: .NaN", "bad-number", 1, 4),
        ("a: " + "9" * 5000, "bad-number", 1, 4),
        ("a: 'x", "yaml-syntax", 1, 6),
        ("a: b: c", "yaml-syntax", 1, 5),
        ("a:\n\tb: 1", "yaml-syntax", 2, 1),
        ("a: [1, 2", "yaml-syntax", 1, 9),
        ("a: 1\nb: \x01", "yaml-syntax", 2, 4),
        ('a: "\\ud800"', "yaml-syntax", 1, 7),
        ("- " * (MAX_DEPTH + 1), "too-deep", 1, 101),
        ("[" * 100_000, "too-deep", 1, 51),
        ("a: [" + "1," * 300_000 + "]", "too-large", 1, 499_999),
    ],
)
def test_yaml_that_is_refused_says_where(text: str, code: str, line: int, column: int) -> None:
    problem = first_problem(read_yaml(text))
    assert (problem.code, problem.line, problem.column) == (code, line, column)
    assert problem.severity == "error"


def test_reading_goes_on_after_what_is_only_forbidden() -> None:
    document = read_yaml("a: &x 1\na: 2\nb: !t 3\nc: *x\nd: .nan")
    codes = [problem.code for problem in document.problems]
    assert codes == ["yaml-anchor", "duplicate-key", "yaml-tag", "yaml-alias", "bad-number"]
    assert [problem.path for problem in document.problems] == ["/a", "/a", "/b", "/c", "/d"]


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ('{"a": 1, "a": 2}', "appears twice", 1, 10),
        ('{"a": NaN}', "'NaN' is not a JSON value", 1, 7),
        ('{"a": -Infinity}', "is not a JSON value", 1, 7),
        ('{"a": True}', "'True' is not a JSON value", 1, 7),
        ('{"a": 01}', "is expected", 1, 8),
        ('{"a": .5}', "begins no value", 1, 7),
        ("{'a': 1}", "in double quotes", 1, 2),
        ("{\"a\": 'b'}", "begins no value", 1, 7),
        ('{"a": 1,\n}', "in double quotes", 2, 1),
        ("[1,]", "a value is expected", 1, 4),
        ("[1 2]", "is expected", 1, 4),
        ('{"a" 1}', "':' is expected", 1, 6),
        ('{"a": 1', "the text ends here", 1, 8),
        ('{"a": ', "the text ends", 1, 7),
        ('{"a": // no\n 1}', "begins no value", 1, 7),
        ('{"a": "x}', "no closing quote", 1, 7),
        ('{"a": "x\ny"}', "control character", 1, 9),
        ('{"a": "\\x41"}', "is not an escape", 1, 8),
        ('{"a": "\\u12g4"}', "four hexadecimal", 1, 8),
        ('{"a": "\\ud800"}', "surrogate", 1, 8),
        ('{"a": "\\ud800\\ud800"}', "surrogate", 1, 8),
        ('{"a": "\\udc00x"}', "surrogate", 1, 8),
        ('{"a": 1} x', "after the end", 1, 10),
        ("", "the text ends", 1, 1),
        ('{"a": ' + "9" * 5000 + "}", "too long", 1, 7),
        ("[" * 100_000, "nested deeper", 1, 51),
        ("[" + "1," * 300_000, "more than", 1, 500_000),
    ],
)
def test_json_that_is_refused_says_where(text: str, message: str, line: int, column: int) -> None:
    problem = first_problem(read_json(text))
    assert message in problem.message
    assert (problem.line, problem.column) == (line, column)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[1,]", "no comma before"),
        ('{"a": 1,}', "no comma before"),
        ("{'a': 1}", ""),
        ('{"a": # x\n1}', "no comments"),
        ("['a']", "double quotes"),
        ("[+1]", "begins with a digit"),
        ('["a\tb"]', "\\n"),
    ],
)
def test_json_mistakes_that_people_make_get_a_cure(text: str, hint: str) -> None:
    assert hint in first_problem(read_json(text)).hint


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=25,
)


def _every_place(value: object, mark: Mark) -> list[tuple[object, Mark]]:
    found: list[tuple[object, Mark]] = [(value, mark)]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _every_place(inner, mark.inside[key])
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _every_place(inner, mark.inside[index])
    return found


@given(values, st.sampled_from([None, 1, 2]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_json_is_read_as_python_reads_it_and_every_place_is_right(
    value: object, indent: int | None, ascii_: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    document = read_json(text)
    assert document.problems == []
    assert document.value == value
    assert document.root is not None
    lines = text.split("\n")
    for inner, mark in _every_place(document.value, document.root):
        dumped = json.dumps(inner, ensure_ascii=ascii_)
        beginning = re.match(r"[\[{]?", dumped)
        assert beginning is not None
        expected = beginning.group() or dumped
        assert lines[mark.line - 1][mark.column - 1 :].startswith(expected)


yaml_text = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029\x85\ufeff")
)
yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | yaml_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(yaml_text, inner, max_size=4),
    max_leaves=20,
)


@given(yaml_values, st.booleans())
@settings(max_examples=200, deadline=None)
def test_yaml_that_json_can_say_is_read_the_same(value: object, flow: bool) -> None:
    text = yaml.safe_dump({"top": value}, default_flow_style=flow, allow_unicode=True, width=10_000)
    if "&id" in text or "!!" in text or "\n? " in text or "? " in text:
        return
    document = read_yaml(text)
    assert document.problems == []
    assert document.value == {"top": value}


@given(st.text(), st.sampled_from(["yaml", "json"]))
@settings(max_examples=400, deadline=None)
def test_any_text_gives_a_definition_or_a_definition_error(text: str, format: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_text(text, format)  # type: ignore[arg-type]
    assert raised.value.problems


@given(st.binary())
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_definition_error(data: bytes) -> None:
    with pytest.raises(DefinitionError):
        parse_text(data)


structure = st.lists(
    st.sampled_from(
        [
            *"{}[]:,-?*&!|>'\"%@`#\n \t",
            "a",
            "- ",
            ": ",
            "\n  ",
            "---\n",
            "...\n",
            "<<: ",
            "!!str ",
            "&a ",
            "*a",
        ]
    ),
    max_size=60,
).map("".join)


@given(structure, st.sampled_from(["yaml", "json"]))
@settings(max_examples=500, deadline=None)
def test_any_jumble_of_signs_gives_a_definition_error(text: str, format: str) -> None:
    with pytest.raises(DefinitionError):
        parse_text(text, format)  # type: ignore[arg-type]


def test_a_text_that_is_too_long_is_refused_before_it_is_read() -> None:
    for text in ("#" * (MAX_TEXT_BYTES + 1), b"#" * (MAX_TEXT_BYTES + 1), "é" * (MAX_TEXT_BYTES // 2 + 1)):
        with pytest.raises(DefinitionError) as raised:
            parse_text(text)
        assert raised.value.problems[0].code == "too-large"


def test_bytes_that_are_no_utf8_are_refused_with_their_place() -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_text(b"id: a\nname: \xff\xfe")
    problem = raised.value.problems[0]
    assert (problem.code, problem.line, problem.column) == ("not-utf8", 2, 7)


def test_a_lone_surrogate_in_a_text_is_refused_with_its_place() -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_text("id: a\nname: \ud800")
    problem = raised.value.problems[0]
    assert (problem.code, problem.line, problem.column) == ("bad-value", 2, 7)


def test_a_byte_order_mark_is_skipped() -> None:
    text = "id: a\ntasks: [{id: b, type: subprocess, parameters: {command: ls}}]"
    assert parse_text(("\ufeff" + text).encode()).definition.id == "a"


def test_the_format_follows_the_file_name() -> None:
    assert [format_of(name) for name in ("a.json", "A.JSON", "a.yaml", "a.yml", "a")] == [
        "json",
        "json",
        "yaml",
        "yaml",
        "yaml",
    ]


class Odd:
    pass


cyclic: list[object] = []
cyclic.append(cyclic)
laughs: object = "ha"
for _ in range(40):
    laughs = [laughs, laughs]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (float("nan"), "bad-value"),
        (float("inf"), "bad-value"),
        (2**63, "bad-value"),
        (-(2**63) - 1, "bad-value"),
        ("\ud800", "bad-value"),
        ("a\0b", "bad-value"),
        ("é\0", "bad-value"),
        (b"bytes", "bad-value"),
        ((1, 2), "bad-value"),
        ({1, 2}, "bad-value"),
        (Odd(), "bad-value"),
        ({1: "a"}, "bad-key"),
        ({None: "a"}, "bad-key"),
        ({"a\0": 1}, "bad-key"),
        ({"\udfff": 1}, "bad-key"),
        (cyclic, "too-deep"),
        (laughs, "too-large"),
        ("x" * (MAX_TEXT_BYTES + 1), "too-large"),
        ("\x01" * (MAX_TEXT_BYTES // 2), "too-large"),
        ([0] * 300_000, "too-large"),
        ({"a": {"b": [0] * 300_000}}, "too-large"),
    ],
)
def test_values_that_are_not_json_within_bounds_are_refused(value: object, code: str) -> None:
    assert [problem.code for problem in check_values(Document({"parameters": value}))] == [code]


def test_values_within_bounds_pass() -> None:
    assert check_values(Document({"a": [1, 2.5, None, True, "x", {"y": 2**63 - 1}], "é": "😀"})) == []
