"""Filters, projections and changes of states, as tables."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.state_manager.errors import InvalidRequest
from agents.state_manager.state_values import (
    MAX_DESCRIPTION_CHARS,
    StateFilter,
    change_keys,
    indexed_texts,
    project,
)
from agents.state_manager.storage.base import StoredState
from tests.unit.state_manager.store_values import START

STATE = {
    "name": "Ada",
    "age": 36,
    "rate": 0.5,
    "ok": True,
    "none": None,
    "tags": ["a", "b", 1],
    "user": {"name": "Bob", "deep": {"n": 3}},
    "dotted.key": "x",
}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, True),
        ({"name": "Ada"}, True),
        ({"name": "ada"}, False),
        ({"age": 36}, True),
        ({"age": 36.0}, True),
        ({"age": "36"}, False),
        ({"ok": True}, True),
        ({"ok": 1}, False),
        ({"age": {"op": "gt", "value": 35}}, True),
        ({"age": {"op": "gte", "value": 36}}, True),
        ({"age": {"op": "lt", "value": 36}}, False),
        ({"age": {"op": "lte", "value": 36.5}}, True),
        ({"age": {"op": "gt", "value": "1"}}, False),
        ({"name": {"op": "gt", "value": "AA"}}, True),
        ({"ok": {"op": "gt", "value": 0}}, False),
        ({"none": None}, True),
        ({"missing": None}, False),
        ({"missing": {"op": "exists", "value": False}}, True),
        ({"none": {"op": "exists"}}, True),
        ({"missing": {"op": "ne", "value": 1}}, True),
        ({"name": {"op": "in", "value": ["Bob", "Ada"]}}, True),
        ({"name": {"op": "not_in", "value": ["Bob"]}}, True),
        ({"tags": {"op": "contains", "value": "b"}}, True),
        ({"tags": {"op": "contains", "value": True}}, False),
        ({"name": {"op": "contains", "value": "d"}}, True),
        ({"name": {"op": "contains", "value": 1}}, False),
        ({"user": {"op": "contains", "value": "deep"}}, True),
        ({"age": {"op": "contains", "value": 3}}, False),
        ({"user.name": "Bob"}, True),
        ({"user.deep.n": {"op": "eq", "value": 3}}, True),
        ({"user.deep.n.more": 3}, False),
        ({"user": {"name": "Bob", "deep": {"n": 3}}}, True),
        ({"dotted.key": "x"}, True),
        ({"name": "Ada", "age": 1}, False),
    ],
)
def test_filter_matches(filters: dict[str, Any], expected: bool) -> None:
    assert StateFilter(filters).matches(STATE) is expected


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"a": {"op": "like", "value": 1}}, "known: eq, ne"),
        ({"a": {"op": ["eq"], "value": 1}}, "unknown"),
        ({"a": {"op": "in", "value": "text"}}, "must be a list"),
        ({str(n): n for n in range(51)}, "51 filters; at most 50"),
    ],
)
def test_bad_filter_names_the_place(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        StateFilter(filters)


@given(
    st.dictionaries(
        st.text(max_size=5), st.one_of(st.text(max_size=300), st.integers(), st.none()), max_size=6
    )
)
def test_index_never_hides_a_match(state: dict[str, Any]) -> None:
    for key, value in state.items():
        wanted = StateFilter({key: value})
        assert wanted.matches(state)
        index = indexed_texts(state)
        assert all(index.get(name) == text for name, text in wanted.equal_texts().items())


def test_projection_keeps_the_paths_as_written() -> None:
    assert project(STATE, ["name", "user.deep.n", "missing", "dotted.key"]) == {
        "name": "Ada",
        "user.deep.n": 3,
        "dotted.key": "x",
    }
    assert project(STATE, []) == STATE


def test_update_merges_at_top_level_or_replaces() -> None:
    stored = StoredState(
        workflow_instance_id="s", state={"a": {"x": 1}, "b": 1}, version=1, created_at=START, updated_at=START
    )
    merged = change_keys({"a": {"y": 2}}, replace=False, description="d" * 5000, max_bytes=999)(stored)
    replaced = change_keys({"a": 1}, replace=True, description="", max_bytes=999)(stored)
    assert merged is not None
    assert replaced is not None
    assert merged.state == {"a": {"y": 2}, "b": 1}
    assert len(merged.description) == MAX_DESCRIPTION_CHARS
    assert (replaced.state, replaced.description) == ({"a": 1}, "replace")
    assert stored.state == {"a": {"x": 1}, "b": 1}
