"""Hostile JSON bodies, each refused with its reason."""

import pytest

from web.server.bodies import MAX_DEPTH, check_value, parse_json
from web.server.problems import ProblemError


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "line 1"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "too large for a float"),
        (b'{"a": ' + b"9" * 30 + b"}", "64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be taken"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"[" * 5000 + b"]" * 5000, "nested deeper"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested deeper"),
        (b"[" * 200_000, "nested deeper"),
        (b"", "not JSON"),
    ],
)
def test_hostile_body_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_json(body)
    assert caught.value.status == 400
    assert reason in caught.value.detail


def test_problem_in_json_has_line_and_column() -> None:
    with pytest.raises(ProblemError) as caught:
        parse_json(b'{\n  "a": ]\n}')
    assert caught.value.errors[0]["line"] == 2
    assert caught.value.errors[0]["column"] == 8


def test_ordinary_values_pass() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\xc3\xa4", null, true]}') == {"a": [1, 2.5, "ä", None, True]}
    check_value({"a": [1] * 1000})


def test_too_many_values_are_refused() -> None:
    with pytest.raises(ProblemError, match="values"):
        check_value([0] * 300_000)
