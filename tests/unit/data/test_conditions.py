"""Conditions of each type, batches, decision trees and rule sets."""

import copy
from datetime import UTC, datetime

import pytest

from orchestration.conditions import (
    ConditionSettings,
    batch,
    check,
    decision_tree,
    evaluate,
    names_of,
    rule_engine,
)
from orchestration.expressions import ConditionError, ExpressionError, Limits

NOW = ConditionSettings(now=datetime(2024, 1, 15, tzinfo=UTC), declared=frozenset({"later"}))
CONTEXT = {
    "amount": 1500,
    "status": "active",
    "name": "Ada",
    "nothing": None,
    "flag": True,
    "tags": ["a", "b"],
    "user": {"name": "Ada", "verified": True, "roles": ["admin"], "e-mail": "ada@example.org"},
    "order": {
        "items": [{"sku": "x1", "price": 5, "qty": 0}, {"sku": "y2", "price": 50, "qty": 2, "tags": ["hot"]}],
        "note": "",
    },
    "created": "2024-01-01",
}

CASES = [
    ("python", "amount > 1000 and user.verified == True", True),
    ("python", "amount > 1000 and name == 'Bob'", False),
    ("python", "tags", True),
    ("python", "later is None", True),
    ("python", "re.match('A', name)", True),
    ("python", "days_ago(created, 7)", True),
    # simple
    ("simple", "amount == 1500", True),
    ("simple", "amount != 1500", False),
    ("simple", "amount >= 1500", True),
    ("simple", "amount <= 1e3", False),
    ("simple", "amount > -5", True),
    ("simple", "amount < 1500.5", True),
    ("simple", "status == 'active'", True),
    ("simple", 'status == "active"', True),
    ("simple", "status == active", True),
    ("simple", "status==active", True),
    ("simple", "user.name == Ada", True),
    ("simple", "user.name == name", True),
    ("simple", "user.missing == null", True),
    ("simple", "user.missing == none", True),
    ("simple", "missing == 'missing'", True),
    ("simple", "flag == true", True),
    ("simple", "flag != False", True),
    ("simple", "nothing == None", True),
    ("simple", "status in ['active', 'new']", True),
    ("simple", "status in [active, new]", True),
    ("simple", "status not in ['active']", False),
    ("simple", "'a' in tags", True),
    ("simple", "'z'  not   in  tags", True),
    ("simple", "x in nothing", False),
    ("simple", "tags contains b", True),
    ("simple", "name contains 'd'", True),
    ("simple", "name contains nothing", False),
    ("simple", "amount == []", False),
    ("simple", "'15' in '1500'", True),
    ("simple", "15 in '1500'", True),
    ("simple", "name startswith A", True),
    ("simple", "name endswith 'da'", True),
    ("simple", "nothing startswith 'a'", False),
    ("simple", "nothing endswith 'a'", False),
    ("simple", "amount startswith 15", True),
    ("simple", "name matches '^A.a$'", True),
    ("simple", "name matches 'd'", False),
    ("simple", "nothing matches 'd'", False),
    ("simple", "name == 'a == b'", False),
    ("simple", "'x > y' == 'x > y'", True),
    ("simple", "user.e-mail endswith '.org'", True),
    ("simple", "order.items.1.sku == 'y2'", True),
    ("simple", "order.items.9.sku == null", True),
    ("simple", "created < '2024-02-01'", True),
    ("simple", "flag contains x", None),
    ("simple", "amount > nothing", None),
    ("simple", "amount > 'a'", None),
    ("simple", "tags > 1", None),
    ("simple", "tags startswith a", None),
    ("simple", "amount", None),
    ("simple", "amount ==", None),
    ("simple", "== 5", None),
    ("simple", "a == b == c", None),
    ("simple", "amount == (1)", None),
    ("simple", "", None),
    ("simple", "name matches '(a+)+$'", None),
    ("simple", "a.__class__ == x", None),
    # regex
    ("regex", "name ~ ^A", True),
    ("regex", "name ~ 'd'", True),
    ("regex", "name !~ ^A", False),
    ("regex", "user.name ~ ada|Ada", True),
    ("regex", "amount ~ ^15", True),
    ("regex", "missing ~ x", False),
    ("regex", "user.missing !~ x", True),
    ("regex", "flag ~ true", True),
    ("regex", "name", None),
    ("regex", "~ x", None),
    ("regex", "name ~ (", None),
    ("regex", "name ~ (a+)+$", None),
    ("regex", "tags ~ a", None),
    # custom
    ("custom", "is_empty(nothing)", True),
    ("custom", "is_not_empty(tags)", True),
    ("custom", "between(amount, 1000, 2000)", True),
    ("custom", "not_between(amount, 1000, 2000)", False),
    ("custom", "contains_any(tags, ['b', 'z'])", True),
    ("custom", "contains_all(user.roles, ['admin', 'x'])", False),
    ("custom", " regex_search( name , 'd' ) ", True),
    ("custom", "date_after(created, '2023-12-31')", True),
    ("custom", "amount > 5", None),
    ("custom", "len(tags)", None),
    ("custom", "is_empty(nothing) or True", None),
    ("custom", "between(amount)", None),
    # json_path
    ("json_path", "$.user.verified", True),
    ("json_path", "$.user.nope", False),
    ("json_path", "$.order.note", False),
    ("json_path", "$['user']['e-mail']", True),
    ("json_path", "$.order.items[0].qty", False),
    ("json_path", "$.order.items[-1].qty", True),
    ("json_path", "$.order.items[7]", False),
    ("json_path", "$.order.items[*].qty", True),
    ("json_path", "$.order.items[0:1].qty", False),
    ("json_path", "$.order.items[1:].qty", True),
    ("json_path", "$.user.*", True),
    ("json_path", "$..sku", True),
    ("json_path", "$..nope", False),
    ("json_path", "$..*", True),
    ("json_path", "$.order.items[?(@.price > 10)]", True),
    ("json_path", "$.order.items[?(@.price > 100)]", False),
    ("json_path", "$.order.items[?@.tags]", True),
    ("json_path", "$.order.items[?(@.price > 10 && @.sku == 'y2')].qty", True),
    ("json_path", "$.tags[?(@ == 'b')]", True),
    ("json_path", "$", True),
    ("json_path", "$.user[0]", False),
    ("json_path", "$.user[0:1]", False),
    ("json_path", "user.name", None),
    ("json_path", "$.user..", None),
    ("json_path", "$[?(price > 1)]", None),
    ("json_path", "$[?(@.price >)]", None),
    ("json_path", "$" + ".a" * 51, None),
    # no such type
    ("sql", "1 = 1", None),
    ("python", "amount > ", None),
    ("python", "unknown > 1", None),
]


@pytest.mark.parametrize(("kind", "source", "expected"), CASES, ids=[f"{c[0]}: {c[1]}"[:70] for c in CASES])
def test_condition_is(kind, source, expected):
    before = copy.deepcopy(CONTEXT)
    outcome = evaluate(kind, source, CONTEXT, NOW)
    assert before == CONTEXT
    assert outcome.result is bool(expected)
    assert outcome.successful is (expected is not None)
    assert outcome.details["evaluation_successful"] is outcome.successful
    assert (outcome.details["error"] is None) is outcome.successful
    assert "user" in outcome.details["context_keys"]


def test_condition_never_raises_whatever_it_is_given():
    for kind in ("python", "simple", "regex", "custom", "json_path", "", None, 5):
        for source in (
            None,
            5,
            "",
            "x" * 20_000,
            "\x00",
            "((((",
            "[" * 500,
            "$" + "[" * 500,
            "a" + " == b" * 900,
        ):
            outcome = evaluate(kind, source, CONTEXT)  # type: ignore[arg-type]
            assert not outcome.successful
            assert not outcome.result
    assert not evaluate("python", "1", []).successful  # type: ignore[arg-type]


def test_condition_may_be_longer_than_other_expressions_up_to_its_setting():
    source = "amount == 1500" + " " * 6000
    assert evaluate("python", source, CONTEXT).result
    assert not evaluate(
        "python", source, CONTEXT, ConditionSettings(limits=Limits(max_source_chars=100))
    ).successful
    for kind in ("simple", "regex", "json_path"):
        outcome = evaluate(kind, "$" * 200, CONTEXT, ConditionSettings(limits=Limits(max_source_chars=100)))
        assert outcome.error is not None
        assert outcome.error.code == "EXPRESSION_LIMIT"


def test_large_lists_and_paths_are_bounded():
    many = "status in [" + ",".join(["1"] * 1500) + "]"
    assert evaluate("simple", many, CONTEXT).error is not None
    wide = {"xs": list(range(20_000))}
    assert evaluate("json_path", "$.xs[*]", wide).error is not None
    assert evaluate("simple", "a == " + "9" * 60, CONTEXT).error is not None
    deep: object = 1
    for _ in range(3000):
        deep = [deep]
    assert not evaluate("simple", "d == e", {"d": deep, "e": [deep]}).successful


def test_names_of_each_type():
    assert names_of("python", "a.b > c") == ({"a", "c"}, False)
    assert names_of("custom", "between(a, b, 5)") == ({"a", "b"}, False)
    assert names_of("simple", "user.name in [x, 'y', 5]") == ({"user", "x"}, False)
    assert names_of("regex", "user.name ~ ^x") == ({"user"}, False)
    assert names_of("json_path", "$.a.b") == ({"a"}, False)
    assert names_of("json_path", "$..b") == (frozenset(), True)
    assert names_of("json_path", "$") == (frozenset(), True)
    with pytest.raises(ExpressionError):
        names_of("sql", "x")


def test_check_knows_that_custom_is_one_call():
    assert check("custom", "is_empty(a)") == ({"a"}, False)
    with pytest.raises(ExpressionError, match="one call"):
        check("custom", "a > 1")


def test_batch_joins_results():
    conditions = [
        {"expression": "amount > 1000"},
        {"expression": "status == active", "type": "simple"},
        {"expression": "limit > 5", "context": {"limit": 6}},
        {"expression": "nope"},
    ]
    outcome = batch(conditions, "and", CONTEXT)
    assert not outcome.overall_result
    assert [entry["result"] for entry in outcome.individual_results] == [True, True, True, False]
    assert outcome.individual_results[0]["success"] is True
    assert outcome.individual_results[3]["success"] is False
    assert "nope" in outcome.individual_results[3]["error"]
    assert batch(conditions[:3], "all", CONTEXT).overall_result
    assert batch(conditions, "or", CONTEXT).overall_result
    assert batch(conditions[3:], "any", CONTEXT).overall_result is False
    assert batch([], "and", CONTEXT).overall_result
    assert not batch([], "or", CONTEXT).overall_result


def test_conditions_of_a_batch_share_their_steps():
    heavy = {"expression": "sum(x for x in range(30000)) > 0"}
    outcome = batch([heavy] * 60, "and", {})
    assert outcome.individual_results[0]["success"]
    assert "steps" in outcome.individual_results[-1]["error"]
    rules = [{"condition": heavy["expression"]}] * 60
    assert rule_engine(rules, {}, "all_matches").failed_rules


@pytest.mark.parametrize(
    ("conditions", "operator"),
    [([{"expression": "1"}], "xor"), ([{}], "and"), (["1"], "and"), ([{"expression": "1"}] * 1001, "and")],
)
def test_misdescribed_batch_is_an_error(conditions, operator):
    with pytest.raises(ConditionError):
        batch(conditions, operator, CONTEXT)


def test_decision_tree_walks_to_a_leaf():
    tree = {
        "condition": "amount > 1000",
        "true_branch": {
            "condition": "status == inactive",
            "type": "simple",
            "true_branch": "x",
            "false_branch": {"approve": True},
        },
        "false_branch": None,
    }
    outcome = decision_tree(tree, CONTEXT)
    assert outcome.result == {"approve": True}
    assert outcome.path == ["true", "false"]
    assert [entry["result"] for entry in outcome.evaluations] == [True, False]
    assert decision_tree("leaf", CONTEXT).result == "leaf"
    assert decision_tree({"condition": "False"}, CONTEXT).result is None


def test_failing_node_ends_the_walk():
    tree = {"condition": "nope", "true_branch": "t", "false_branch": "f", "error_branch": "e"}
    outcome = decision_tree(tree, CONTEXT)
    assert (outcome.result, outcome.path) == ("e", ["error"])
    assert outcome.evaluations[0]["success"] is False
    del tree["error_branch"]
    assert decision_tree(tree, CONTEXT).result == "f"


def test_trees_are_bounded_also_where_the_walk_does_not_go():
    deep: object = "leaf"
    for _ in range(21):
        deep = {"condition": "True", "false_branch": deep, "true_branch": 1}
    with pytest.raises(ConditionError, match="deep"):
        decision_tree(deep, CONTEXT)
    with pytest.raises(ConditionError, match="nodes"):
        decision_tree({"condition": "True", "true_branch": {"condition": "1"}}, CONTEXT, max_nodes=1)
    with pytest.raises(ConditionError, match="condition"):
        decision_tree({"condition": "True", "false_branch": {"condition": 5}}, CONTEXT)


RULES = [
    {"id": "low", "condition": "amount > 10", "action": "a1", "priority": 1},
    {"id": "top", "condition": "amount > 1000", "action": {"do": "a2"}, "priority": 9},
    {"id": "also", "condition": "status == active", "type": "simple", "action": "a3", "priority": 9},
    {"id": "bad", "condition": "nope > 1", "priority": 99},
    {"id": "no", "condition": "amount < 0", "priority": 50},
    {"condition": "True"},
]


def test_rule_engine_goes_by_priority():
    first = rule_engine(RULES, CONTEXT)
    assert [entry["id"] for entry in first.matched_rules] == ["top"]
    assert first.actions == [{"do": "a2"}]
    assert [entry["id"] for entry in first.failed_rules] == ["bad"]
    every = rule_engine(RULES, CONTEXT, "all_matches")
    assert [entry["id"] for entry in every.matched_rules] == ["top", "also", "low", "rule_6"]
    assert every.actions == [{"do": "a2"}, "a3", "a1", None]
    highest = rule_engine(RULES, CONTEXT, "highest_priority")
    assert [entry["id"] for entry in highest.matched_rules] == ["top", "also"]
    assert set(every.matched_rules[0]) == {"id", "condition", "priority", "details"}


@pytest.mark.parametrize(
    ("rules", "mode"),
    [([], "best"), ([{"id": "x"}], "first_match"), (["x"], "first_match"),
     ([{"condition": "1", "priority": "high"}], "first_match"), ([{"condition": "1"}] * 1001, "first_match")],
)  # fmt: skip
def test_misdescribed_rules_are_an_error(rules, mode):
    with pytest.raises(ConditionError):
        rule_engine(rules, CONTEXT, mode)
