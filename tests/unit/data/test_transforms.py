"""Transformations: what each does to lists, to single records and to groups."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.expressions import TransformError
from orchestration.transforms import MAX_STEPS, apply, check, size_of, steps_for

PEOPLE = [
    {"name": "Ada", "team": "a", "age": 36, "address": {"city": "London"}},
    {"name": "Bob", "team": "b", "age": None, "address": {"city": "Paris"}},
    {"name": "Cy", "team": "a", "age": 20},
]


def transform(data, *transformations, names=None, registered=None):
    before = copy.deepcopy((data, transformations, names))
    result, applied = apply(data, list(transformations), names or {}, registered)
    assert (data, transformations, names) == before, "transformations must not change what they are given"
    assert [entry["type"] for entry in applied] == [step["type"] for step in transformations]
    return result


def step(kind, **config):
    return {"type": kind, "config": config}


def test_filter_keeps_what_holds():
    assert transform([1, 2, 3], step("filter", condition="item > 1")) == [2, 3]
    assert transform(
        PEOPLE, step("filter", condition="team == 'a' and age > minimum"), names={"minimum": 30}
    ) == [PEOPLE[0]]
    assert transform(PEOPLE, step("filter", condition="item['team'] == 'b'")) == [PEOPLE[1]]
    assert transform([1, 2, 3], step("filter", condition="item == max(data)")) == [3]


def test_filter_of_one_record_is_itself_or_null():
    record = {"a": 1}
    assert transform(record, step("filter", condition="a == 1")) == record
    assert transform(record, step("filter", condition="a == 2")) is None


def test_map_makes_one_of_each():
    assert transform([1, 2], step("map", expression="item * factor"), names={"factor": 10}) == [10, 20]
    assert transform(
        PEOPLE[:1], step("map", expression="{'id': item['age'], 'name': item['name'].upper()}")
    ) == [{"id": 36, "name": "ADA"}]
    assert transform({"a": 2}, step("map", expression="a + 1")) == 3


def test_names_are_found_in_the_item_before_the_context():
    assert transform([{"x": 1}], step("map", expression="x"), names={"x": 2}) == [1]
    assert transform([{"item": 1}], step("map", expression="item"), names={"item": 2}) == [{"item": 1}]


def test_reduce_folds():
    assert transform([1, 2, 3], step("reduce", expression="acc + item")) == 6
    assert transform([1, 2, 3], step("reduce", expression="acc * item", initial=1)) == 6
    assert transform([], step("reduce", expression="acc + item", initial=5)) == 5
    assert transform({"a": 4}, step("reduce", expression="acc + a")) == 4


def test_group_makes_lists_by_key():
    grouped = transform(PEOPLE, step("group", group_by="team"))
    assert grouped == {"a": [PEOPLE[0], PEOPLE[2]], "b": [PEOPLE[1]]}
    assert transform(PEOPLE, step("group", group_by="address.city")).keys() == {"London", "Paris", "null"}
    assert transform([1, 2, 3], step("group", group_by="item % 2 == 0")) == {"false": [1, 3], "true": [2]}
    assert transform({"k": 1}, step("group", group_by="k")) == {"1": [{"k": 1}]}


def test_after_group_items_are_the_groups():
    group = step("group", group_by="team")
    assert transform(PEOPLE, group, step("filter", condition="len(item) > 1")).keys() == {"a"}
    assert transform(PEOPLE, group, step("map", expression="{'team': key, 'size': len(item)}")) == [
        {"team": "a", "size": 2},
        {"team": "b", "size": 1},
    ]
    assert transform(
        PEOPLE, group, step("map", expression="len(item)"), step("filter", condition="item > 1")
    ) == [2]
    assert transform(PEOPLE, group, step("reduce", expression="acc + len(item)")) == 3
    assert transform(PEOPLE, group, step("sort", key="age"))["a"] == [PEOPLE[2], PEOPLE[0]]
    assert transform(PEOPLE, group, step("aggregate", operations=[{"type": "count"}])) == {
        "a": {"count": 2},
        "b": {"count": 1},
    }
    assert len(transform(PEOPLE, group, step("join", join_data=[], left_key="team", right_key="t"))["a"]) == 0


def test_sort_puts_nulls_last_whichever_way():
    assert [p["name"] for p in transform(PEOPLE, step("sort", key="age"))] == ["Cy", "Ada", "Bob"]
    assert [p["name"] for p in transform(PEOPLE, step("sort", key="age", reverse=True))] == [
        "Ada",
        "Cy",
        "Bob",
    ]
    assert [p["name"] for p in transform(PEOPLE, step("sort", key="address.city"))] == ["Ada", "Bob", "Cy"]
    assert [p["name"] for p in transform(PEOPLE, step("sort", key="len(item.name)"))] == ["Cy", "Ada", "Bob"]
    assert transform([3, "a", None, 1.5, True], step("sort")) == [True, 1.5, 3, "a", None]


def test_aggregate_leaves_nulls_out():
    operations = [
        {"type": "sum", "field": "age"},
        {"type": "avg", "field": "age", "result_key": "mean"},
        {"type": "min", "field": "name"},
        {"type": "max", "field": "age"},
        {"type": "count", "field": "age"},
        {"type": "count"},
    ]
    assert transform(PEOPLE, step("aggregate", operations=operations)) == {
        "sum_age": 56, "mean": 28.0, "min_name": "Ada", "max_age": 36, "count_age": 2, "count": 3,
    }  # fmt: skip
    assert transform([], step("aggregate", operations=operations[:4])) == {
        "sum_age": 0, "mean": None, "min_name": None, "max_age": None,
    }  # fmt: skip
    assert transform({"age": 5}, step("aggregate", operations=operations[:1])) == {"sum_age": 5}


def test_join_lets_the_right_record_win():
    right = [{"id": "a", "name": "Team A"}, {"id": "a", "name": "Team A2"}, {"id": None}, {"id": ["x"]}]
    joined = transform(PEOPLE, step("join", join_data=right, left_key="team", right_key="id"))
    assert [(p["name"], p["id"], p["age"]) for p in joined] == [("Team A2", "a", 36), ("Team A2", "a", 20)]
    left = transform(PEOPLE, step("join", join_data=right, left_key="team", right_key="id", type="left"))
    assert [p["name"] for p in left] == ["Team A2", "Bob", "Team A2"]
    one = step("join", join_data={"k": True, "v": 1}, left_key="k", right_key="k")
    assert transform([{"k": 1}, {"k": True}, {"k": None}], one) == [{"k": True, "v": 1}]


def test_join_keys_that_share_a_hash_take_no_longer():
    big = [{"k": number * (2**61 - 1)} for number in range(20_000)]
    joined = transform(big, step("join", join_data=big, left_key="k", right_key="k"))
    assert len(joined) == 20_000


def test_custom_is_evaluated_once_or_registered():
    assert transform([1, 2], step("custom", expression="len(data) + len(item)")) == 4
    assert transform({"a": 1}, step("custom", expression="a + b"), names={"b": 2}) == 3

    def double(data, config, context):
        data.append("changed")
        return {"n": tuple(data), "by": config["by"], "who": context["who"]}

    result = transform(
        [1], step("custom", operation="double", by=2), names={"who": "me"}, registered={"double": double}
    )
    assert result == {"n": [1, "changed"], "by": 2, "who": "me"}


def test_config_may_stand_next_to_the_type():
    assert apply([1, 2], [{"type": "filter", "condition": "item > 1"}], {}) == (
        [2], [{"type": "filter", "config": {"condition": "item > 1"}, "result_size": 1}],
    )  # fmt: skip


def test_applied_steps_tell_their_sizes():
    _, applied = apply(PEOPLE, [step("group", group_by="team"), step("custom", expression="None")], {})
    assert [entry["result_size"] for entry in applied] == [2, 0]
    assert size_of("text") == 1


WRONG = [
    ([1], "x", "INVALID_INPUT"),
    ([1], ["x"], "INVALID_INPUT"),
    ([1], [{}], "INVALID_INPUT"),
    ([1], [{"type": "fitler"}], "INVALID_INPUT"),
    ([1], [{"type": "map", "config": []}], "INVALID_INPUT"),
    ([1], [step("map")], "INVALID_INPUT"),
    ([1], [step("map", expression="")], "INVALID_INPUT"),
    ([1], [step("map", expression=5)], "INVALID_INPUT"),
    ([1], [step("map", expression="item +")], "EXPRESSION_ERROR"),
    ([1], [step("map", expression="itme")], "EXPRESSION_ERROR"),
    ([None], [step("filter", condition="item > 1")], "EXPRESSION_ERROR"),
    (None, [step("map", expression="item")], "EXPRESSION_ERROR"),
    ("text", [step("filter", condition="item")], "EXPRESSION_ERROR"),
    ([1], [step("sort", key="item", reverse="yes")], "INVALID_INPUT"),
    ([[1]], [step("sort")], "EXPRESSION_ERROR"),
    ([1], [step("aggregate", operations=[])], "INVALID_INPUT"),
    ([1], [step("aggregate", operations=[{"type": "median"}])], "INVALID_INPUT"),
    ([1], [step("aggregate", operations=[{"type": "sum"}])], "INVALID_INPUT"),
    ([{"a": "x"}], [step("aggregate", operations=[{"type": "sum", "field": "a"}])], "EXPRESSION_ERROR"),
    (
        [{"a": "x"}, {"a": 1}],
        [step("aggregate", operations=[{"type": "min", "field": "a"}])],
        "EXPRESSION_ERROR",
    ),
    ([{"a": []}], [step("aggregate", operations=[{"type": "max", "field": "a"}])], "EXPRESSION_ERROR"),
    (
        [{"a": 10**30}] * 2,
        [step("aggregate", operations=[{"type": "sum", "field": "a"}])],
        "EXPRESSION_LIMIT",
    ),
    ([1], [step("join", left_key="a", right_key="b")], "INVALID_INPUT"),
    ([1], [step("join", join_data=[], left_key="a", right_key="b")], "EXPRESSION_ERROR"),
    ([1], [step("join", join_data=[], left_key="a", right_key="b", type="outer")], "INVALID_INPUT"),
    ([1], [step("custom")], "INVALID_INPUT"),
    ([1], [step("custom", operation="nope")], "INVALID_INPUT"),
    ([{"a": 1}], [step("group", group_by="a"), step("group", group_by="a")], "INVALID_INPUT"),
    ([1], [step("filter", condition="item")] * 101, "EXPRESSION_LIMIT"),
    ([1] * 10, [step("map", expression="[x for x in range(60000)]")], "EXPRESSION_LIMIT"),
]


@pytest.mark.parametrize(
    ("data", "transformations", "code"), WRONG, ids=[str(case[1])[:60] for case in WRONG]
)
def test_wrong_transformation_is_named(data, transformations, code):
    with pytest.raises(TransformError) as failure:
        apply(data, transformations, {})
    assert failure.value.code == code


def test_message_names_the_transformation():
    with pytest.raises(TransformError, match=r"transformation 2: .*did you mean 'filter'"):
        apply([1], [step("filter", condition="item"), {"type": "fliter"}], {})


def test_check_finds_all_problems_before_any_data():
    assert check([step("filter", condition="item > 1"), step("sort"), step("custom", operation="x")]) == []
    found = check([step("map"), {"type": "x"}, step("map", expression="1 +"), step("join", left_key="a"), 5])
    assert [index for index, _ in found] == [0, 1, 2, 3, 4]
    assert check("x") == [(0, "transformations are a list of {type, config}")]
    assert check([step("sort")] * 101)[-1][0] == 100


def test_steps_grow_with_the_data():
    assert steps_for(None) < steps_for([{"a": 1}] * 1000) < steps_for([0] * 200_000) == MAX_STEPS


RECORDS = st.lists(
    st.fixed_dictionaries({"k": st.sampled_from(["x", "y", "z"]), "v": st.none() | st.integers(-50, 50)}),
    max_size=30,
)


@given(RECORDS)
def test_transformations_do_what_plain_python_does(records):
    known = [r for r in records if r["v"] is not None]
    assert transform(records, step("filter", condition="v is not None and v > 0")) == [
        r for r in known if r["v"] > 0
    ]
    assert transform(records, step("map", expression="item.k + '!'")) == [r["k"] + "!" for r in records]
    assert transform(known, step("reduce", expression="acc + v")) == sum(r["v"] for r in known)
    groups: dict[str, list] = {}
    for r in records:
        groups.setdefault(r["k"], []).append(r)
    assert transform(records, step("group", group_by="k")) == groups
    ordered = sorted(known, key=lambda r: r["v"]) + [r for r in records if r["v"] is None]
    assert transform(records, step("sort", key="v")) == ordered
    backwards = sorted(known, key=lambda r: r["v"], reverse=True) + [r for r in records if r["v"] is None]
    assert transform(records, step("sort", key="v", reverse=True)) == backwards
    values = [r["v"] for r in known]
    operations = [{"type": kind, "field": "v"} for kind in ("sum", "avg", "min", "max", "count")]
    assert transform(records, step("aggregate", operations=operations)) == {
        "sum_v": sum(values),
        "avg_v": sum(values) / len(values) if values else None,
        "min_v": min(values, default=None),
        "max_v": max(values, default=None),
        "count_v": len(values),
    }
    right = {"x": {"id": "x", "w": 1}, "y": {"id": "y", "v": 2}}
    inner = step("join", join_data=list(right.values()), left_key="k", right_key="id")
    assert transform(records, inner) == [{**r, **right[r["k"]]} for r in records if r["k"] in right]
    left = step("join", join_data=list(right.values()), left_key="k", right_key="id", type="left")
    assert transform(records, left) == [{**r, **right.get(r["k"], {})} for r in records]
