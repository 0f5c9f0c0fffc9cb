"""Data as text and back."""

from typing import Any

import pytest

from agents.task_executor.errors import InvalidInput
from agents.task_executor.formats import decode, encode


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        ("text as it is {", "", b"text as it is {"),
        ("text as it is {", "json", b"text as it is {"),
        ({"a": [1, None]}, "", b'{"a":[1,null]}'),
        (None, "", b""),
        (None, "json", b"null"),
        (5, "text", b"5"),
        ([{"a": 1}, {"a": 2}], "jsonl", b'{"a":1}\n{"a":2}\n'),
        ({"a": 1}, "jsonl", b'{"a":1}\n'),
        (
            [{"a": 1, "b": "x,y"}, {"c": None, "a": {"d": 1}}],
            "csv",
            b'a,b,c\n1,"x,y",\n"{""d"":1}",,\n',
        ),
        ({"a": True}, "csv", b"a\ntrue\n"),
        ([["a", 1], ["b", 2.5]], "csv", b"a,1\nb,2.5\n"),
        ([], "csv", b""),
        ({"b": [1, "zwölf"], "a": None}, "yaml", "b:\n- 1\n- zwölf\na: null\n".encode()),
        ("aGVsbG8=", "base64", b"hello"),
    ],
)
def test_data_is_written_in_the_format(data: Any, kind: str, text: bytes) -> None:
    assert encode(data, kind) == text


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        (b"plain", "", "plain"),
        ("grün".encode(), "text", "grün"),
        (b'{"a":[1]}', "json", {"a": [1]}),
        (b'{"a":1}\n\n{"a":2}\n', "jsonl", [{"a": 1}, {"a": 2}]),
        (
            b'a,b\n1,"x,y"\n2\n3,z,extra\n',
            "csv",
            [{"a": "1", "b": "x,y"}, {"a": "2", "b": None}, {"a": "3", "b": "z", "_rest": ["extra"]}],
        ),
        (b"", "csv", []),
        (b"a: 1\nb: [x, 2026-01-02]\n5: y", "yaml", {"a": 1, "b": ["x", "2026-01-02"], "5": "y"}),
        (b"\xff\x00", "base64", "/wA="),
    ],
)
def test_text_in_a_format_is_read(text: bytes, kind: str, data: Any) -> None:
    assert decode(text, kind) == data


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        (b"\xff", "", "base64"),
        (b"{", "json", "not JSON"),
        (b"[" * 100_000, "json", "not JSON"),
        (b'{"a":1}\n{', "jsonl", "line 2"),
        (b'a,b\n"unclosed', "csv", "not CSV"),
        (b"a: [1", "yaml", r"not YAML \(line"),
        (b"a: &x 1\nb: *x", "yaml", "aliases"),
        (b"[" * 60 + b"]" * 60, "yaml", "nested deeper"),
        (b"!!python/object/apply:os.system ['true']", "yaml", "not YAML"),
        (b"? [a]\n: 1", "yaml", "YAML|JSON"),
        (b"a: !!set {b}", "yaml", "."),
        (b"x", "parquet", "unknown; use one of"),
    ],
)
def test_unreadable_text_is_invalid_input(text: bytes, kind: str, reason: str) -> None:
    if text == b"a: !!set {b}":
        assert decode(text, kind) == {"a": ["b"]}
        return
    with pytest.raises(InvalidInput, match=reason):
        decode(text, kind)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ([1, 2], "csv"),
        ([{"a": 1}, [1]], "csv"),
        ([dict.fromkeys(map(str, range(1001)))], "csv"),
        ({"a": 1}, "base64"),
        ("%%%", "base64"),
        ({}, "xml"),
    ],
)
def test_data_that_does_not_fit_the_format_is_invalid_input(data: Any, kind: str) -> None:
    with pytest.raises(InvalidInput):
        encode(data, kind)
