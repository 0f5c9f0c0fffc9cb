"""What of a value may be shown, and how much."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from web.server import values

SCHEMA = {
    "properties": {
        "token": {"type": "string", "writeOnly": True},
        "login": {
            "properties": {"password": {"type": "string", "format": "password"}, "user": {"type": "string"}}
        },
    }
}
INPUTS = {"token": "tok_1234", "login": {"password": "pa55word", "user": "ada"}, "other": "tok"}


def test_secrets_are_found_at_any_depth_of_the_schema() -> None:
    assert values.secret_values(SCHEMA, INPUTS) == {"tok_1234", "pa55word"}
    assert values.secret_values(None, INPUTS) == frozenset()


def test_secrets_are_masked_wherever_they_occur() -> None:
    secrets = values.secret_values(SCHEMA, INPUTS)
    shown = values.shown({"inputs": INPUTS, "error": {"message": "bad token tok_1234!"}}, secrets)
    assert "tok_1234" not in str(shown)
    assert "pa55word" not in str(shown)
    assert shown["inputs"]["login"]["user"] == "ada"


def test_short_secrets_hide_only_themselves() -> None:
    assert values.masked({"pin": "12", "year": "2012"}, frozenset({"12"})) == {
        "pin": values.MASK,
        "year": "2012",
    }


def test_large_values_become_previews_and_small_ones_stay() -> None:
    large = ["x" * 100] * 1000
    shown = values.shown({"outputs": {"large": large, "small": [1]}, "primary": large}, frozenset())
    assert shown["outputs"]["small"] == [1]
    assert shown["outputs"]["large"][values.TRUNCATED]["bytes"] > values.MAX_VALUE_BYTES
    assert values.TRUNCATED in shown["primary"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=2000),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=8), inner, max_size=20),
    max_leaves=60,
)


@given(json_values)
def test_what_is_shown_of_a_value_is_bounded(value: object) -> None:
    assert (
        len(msgspec.json.encode(values.cut(value))) <= values.MAX_VALUE_BYTES + 4 * values.PREVIEW_CHARACTERS
    )


@given(json_values)
def test_without_secrets_nothing_is_masked(value: object) -> None:
    assert values.masked(value, frozenset()) == value
