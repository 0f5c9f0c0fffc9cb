import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from agents.condition_evaluator import ConditionEvaluator
from agents.condition_evaluator.answers import AnswerCache
from agents.condition_evaluator.syntax import tree_of
from amp.errors import AmpError, InvalidParameters
from orchestration.contracts import Attempt, ConditionEvaluateReply
from orchestration.expressions import parse
from tests.agent_bench import Bench, ManualClock, running_agent

SLOW = "sum([x * y for x in range(100) for y in range(100)]) > 0"
"""More than what is evaluated at once, less than what is evaluated at all."""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running_agent(ConditionEvaluator, tmp_path) as running:
        yield running


def attempt(**variables: Any) -> Attempt:
    return Attempt(
        token="i/t/1",
        engine_id="engine",
        workflow_id="flow",
        workflow_instance_id="i",
        task_id="t",
        attempt=1,
        timeout_seconds=30,
        idempotency_key="k",
        variables=variables,
        declared=["unset"],
    )


@pytest.mark.parametrize(
    ("condition_type", "expression", "context", "result"),
    [
        (
            "python",
            "amount > 1000 and user.verified == True",
            {"amount": 1500, "user": {"verified": True}},
            True,
        ),
        ("python", "amount > 1000", {"amount": 5}, False),
        ("python", "'a' in None", {}, False),
        ("simple", "status == 'active'", {"status": "active"}, True),
        ("simple", "tags contains red", {"tags": ["red"]}, True),
        ("regex", "mail ~ @example[.]org$", {"mail": "a@example.org"}, True),
        ("regex", "mail !~ @example", {"mail": "a@example.org"}, False),
        ("custom", "between(amount, 1, 10)", {"amount": 5}, True),
        ("custom", "is_empty(items)", {"items": []}, True),
        ("json_path", "$.items[?(@.price > 10)]", {"items": [{"price": 11}]}, True),
        ("json_path", "$.items[?(@.price > 10)]", {"items": [{"price": 9}]}, False),
    ],
)
async def test_every_condition_type_is_evaluated(
    bench: Bench, condition_type: str, expression: str, context: dict[str, Any], result: bool
) -> None:
    reply = await bench.ask(
        "condition-evaluate", {"expression": expression, "context": context, "condition_type": condition_type}
    )
    assert reply["result"] is result
    assert reply["from_cache"] is False
    assert reply["details"]["evaluation_successful"] is True
    assert reply["details"]["condition_type"] == condition_type
    assert reply["evaluation_time_ms"] >= 0


async def test_failed_evaluation_is_an_answer_that_says_why(bench: Bench) -> None:
    reply = await bench.ask("condition-evaluate", {"expression": "nobody > 1"})
    assert reply["result"] is False
    assert reply["details"]["evaluation_successful"] is False
    assert "nobody" in reply["details"]["error"]


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "().__class__",
        "open('/etc/passwd')",
        "10**10**10",
        "'a' * 10**9",
        "lambda: 1",
        "x :=",
    ],
)
async def test_hostile_expressions_are_refused_and_the_agent_lives(bench: Bench, expression: str) -> None:
    reply = await bench.ask("condition-evaluate", {"expression": expression})
    assert reply["details"]["evaluation_successful"] is False
    assert (await bench.ask("condition-evaluate", {"expression": "1 == 1"}))["result"] is True


@pytest.mark.parametrize(
    "parameters",
    [{}, {"expression": 5}, {"expression": "1", "typo": 1}, {"expression": "1", "condition_type": "perl"}],
)
async def test_wrong_parameters_are_named(bench: Bench, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameters):
        await bench.ask("condition-evaluate", parameters)


async def test_answers_are_kept_by_the_callers_key_until_they_are_too_old(bench: Bench) -> None:
    asked = {"expression": "x > 1", "context": {"x": 2}, "cache_key": "k"}
    assert (await bench.ask("condition-evaluate", asked))["from_cache"] is False
    again = await bench.ask("condition-evaluate", {**asked, "context": {"x": 0}})
    assert (again["from_cache"], again["result"]) == (True, True)
    assert (await bench.ask("condition-evaluate", {**asked, "use_cache": False}))["from_cache"] is False
    other = await bench.ask("condition-evaluate", {**asked, "expression": "x > 5"})
    assert (other["from_cache"], other["result"]) == (False, False)
    bench.clock.advance(seconds=60)
    assert (await bench.ask("condition-evaluate", asked))["from_cache"] is False
    with pytest.raises(InvalidParameters):
        await bench.ask("condition-evaluate", {**asked, "cache_key": "k" * 501})


async def test_failures_are_not_kept(bench: Bench) -> None:
    asked = {"expression": "x > 1", "cache_key": "k"}
    assert (await bench.ask("condition-evaluate", asked))["result"] is False
    answer = await bench.ask("condition-evaluate", {**asked, "context": {"x": 2}})
    assert (answer["result"], answer["from_cache"]) == (True, False)


def test_cache_is_bounded_and_forgets_what_was_unused_longest() -> None:
    clock = ManualClock()
    cache = AnswerCache(2, 60, clock.monotonic)
    reply = ConditionEvaluateReply(result=True, details={}, evaluation_time_ms=0, from_cache=False)
    for name in ("a", "b"):
        cache.put((name,), reply)
    assert cache.get(("a",)) is reply
    cache.put(("c",), reply)
    assert (cache.get(("b",)), len(cache)) == (None, 2)


async def test_long_evaluation_does_not_hold_up_short_ones(bench: Bench) -> None:
    long_one = asyncio.ensure_future(bench.ask("condition-evaluate", {"expression": SLOW}))
    short = await bench.ask("condition-evaluate", {"expression": "1 == 1"})
    assert short["result"] is True
    assert (await long_one)["result"] is True


async def test_evaluation_without_end_meets_its_limit(bench: Bench) -> None:
    endless = "[x for x in range(1000) for y in range(1000) for z in range(1000)] == []"
    reply = await bench.ask("condition-evaluate", {"expression": endless})
    assert reply["details"]["evaluation_successful"] is False


async def test_timeout_ends_the_waiting(tmp_path: Path) -> None:
    section = {"evaluation_timeout": 0.000001}
    async with running_agent(ConditionEvaluator, tmp_path, condition_evaluator=section) as bench:
        with pytest.raises(AmpError) as caught:
            await bench.ask("condition-evaluate", {"expression": SLOW})
        assert caught.value.code == "TIMEOUT"


async def test_batch_joins_results_and_keeps_each(bench: Bench) -> None:
    conditions = [
        {"expression": "x > 1"},
        {"expression": "y == b", "type": "simple", "context": {"y": "b"}},
        {"expression": "missing > 1"},
    ]
    asked = {"conditions": conditions, "context": {"x": 2}}
    every = await bench.ask("condition-batch-evaluate", {**asked, "operator": "and"})
    some = await bench.ask("condition-batch-evaluate", {**asked, "operator": "any"})
    assert (every["overall_result"], some["overall_result"]) == (False, True)
    assert [each["result"] for each in every["individual_results"]] == [True, True, False]
    assert [each["success"] for each in every["individual_results"]] == [True, True, False]
    assert "error" in every["individual_results"][2]


async def test_misdescribed_batch_is_an_error(bench: Bench) -> None:
    with pytest.raises(AmpError) as caught:
        await bench.ask("condition-batch-evaluate", {"conditions": [{"expression": "1"}] * 1001})
    assert caught.value.code == "EXPRESSION_LIMIT"
    assert not caught.value.retryable


TREE = {
    "condition": "score >= 700",
    "true_branch": {
        "condition": "income > 50",
        "true_branch": "approve",
        "false_branch": {"decision": "review"},
    },
    "false_branch": "decline",
}


async def test_decision_tree_walks_to_a_leaf(bench: Bench) -> None:
    reply = await bench.ask("decision-tree", {"tree": TREE, "context": {"score": 710, "income": 5}})
    assert reply["result"] == {"decision": "review"}
    assert reply["path"] == ["true", "false"]
    assert len(reply["evaluations"]) == 2


async def test_decision_tree_ends_with_the_error_branch(bench: Bench) -> None:
    broken = {"condition": "nobody > 1", "true_branch": 1, "false_branch": 2, "error_branch": 3}
    reply = await bench.ask("decision-tree", {"tree": broken})
    assert (reply["result"], reply["path"]) == (3, ["error"])
    del broken["error_branch"]
    assert (await bench.ask("decision-tree", {"tree": broken}))["result"] == 2


async def test_tree_beyond_the_configured_depth_is_refused(tmp_path: Path) -> None:
    section = {"max_tree_depth": 1}
    async with running_agent(ConditionEvaluator, tmp_path, condition_evaluator=section) as bench:
        with pytest.raises(AmpError) as caught:
            await bench.ask("decision-tree", {"tree": TREE, "context": {"score": 710, "income": 5}})
        assert caught.value.code == "EXPRESSION_LIMIT"


@pytest.mark.parametrize(
    ("mode", "ids"),
    [("first_match", ["b"]), ("all_matches", ["b", "c", "a"]), ("highest_priority", ["b", "c"])],
)
async def test_rule_engine_orders_by_priority(bench: Bench, mode: str, ids: list[str]) -> None:
    rules = [
        {"id": "a", "condition": "x > 0", "action": 1},
        {"id": "b", "condition": "x > 1", "action": {"do": 2}, "priority": 5},
        {"id": "c", "condition": "x > 1", "action": 3, "priority": 5},
        {"id": "broken", "condition": "nobody", "action": 4, "priority": 9},
    ]
    reply = await bench.ask("rule-engine", {"rules": rules, "context": {"x": 2}, "execution_mode": mode})
    assert [each["id"] for each in reply["matched_rules"]] == ids
    assert len(reply["actions"]) == len(ids)


async def test_validate_names_what_is_wrong_without_evaluating(bench: Bench) -> None:
    good = await bench.ask("condition-validate", {"expression": "a > b.c"})
    assert (good["valid"], good["names"], good["errors"]) == (True, ["a", "b"], [])
    bad = await bench.ask("condition-validate", {"expression": "a >"})
    assert bad["valid"] is False
    assert bad["errors"][0]["code"] == "EXPRESSION_SYNTAX"
    forbidden = await bench.ask("condition-validate", {"expression": "a.__class__"})
    assert forbidden["errors"][0]["code"] == "EXPRESSION_NOT_ALLOWED"


async def test_parse_shows_the_tree(bench: Bench) -> None:
    reply = await bench.ask("expression-parse", {"expression": "len(items) > 1"})
    assert reply["valid"] is True
    assert reply["tree"]["type"] == "Compare"
    assert reply["tree"]["ops"] == ["Gt"]
    assert reply["names"] == ["items"]
    assert reply["functions"] == ["len"]
    bad = await bench.ask("expression-parse", {"expression": "("})
    assert (bad["valid"], bad["tree"]) == (False, None)


def test_tree_of_shows_every_kind_of_value() -> None:
    tree = tree_of(parse("not a and {'k': [1, None, b.c[0]]} or -1.5 in [x for x in y]").body)
    assert (tree["type"], tree["op"], tree["position"]) == ("BoolOp", "Or", 0)
    assert tree["values"][0]["values"][0]["op"] == "Not"


async def test_task_attempt_fills_templates_and_answers_a_task_result(bench: Bench) -> None:
    reply = await bench.ask(
        "condition-evaluate",
        {"expression": "amount > limit", "context": {"limit": "{maximum}"}},
        context=attempt(maximum=10, amount=20),
    )
    assert reply["primary"] is True
    assert reply["result"]["result"] is True


async def test_task_attempt_takes_the_whole_context_and_declared_names(bench: Bench) -> None:
    reply = await bench.ask(
        "condition-evaluate",
        {"expression": "amount > 1 and unset == None", "context": "{workflow_context}"},
        context=attempt(workflow_context={"amount": 2}),
    )
    assert reply["primary"] is True


async def test_decision_task_answers_its_leaf(bench: Bench) -> None:
    reply = await bench.ask("decision-tree", {"tree": TREE}, context=attempt(score=1))
    assert reply["primary"] == "decline"
    rules = [{"id": "a", "condition": "score == 1", "action": "{name}"}]
    ruled = await bench.ask("rule-engine", {"rules": rules}, context=attempt(score=1, name="Ada"))
    assert ruled["primary"] == ["Ada"]
    batch = await bench.ask(
        "condition-batch-evaluate", {"conditions": [{"expression": "score == 1"}]}, context=attempt(score=1)
    )
    assert batch["primary"] is True


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"expression": "nobody > 1"}, "CONDITION_EVALUATION_FAILED"),
        ({"expression": "1", "context": {"a": "{nobody}"}}, "TEMPLATE_UNRESOLVED"),
        ({"expression": "1", "context": "text"}, "INVALID_INPUT"),
    ],
)
async def test_failed_condition_fails_the_task_for_good(
    bench: Bench, parameters: dict[str, Any], code: str
) -> None:
    with pytest.raises(AmpError) as caught:
        await bench.ask("condition-evaluate", parameters, context=attempt())
    assert caught.value.code == code
    assert caught.value.retryable is False


async def test_half_an_attempt_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidParameters):
        await bench.ask("condition-evaluate", {"expression": "1"}, context={"token": "t"})


async def test_evaluations_are_counted(bench: Bench) -> None:
    await bench.ask("condition-evaluate", {"expression": "1 == 1", "cache_key": "k"})
    await bench.ask("condition-evaluate", {"expression": "1 == 1", "cache_key": "k"})
    text = generate_latest(bench.agent.metrics).decode()
    assert 'amp_evaluations_total{capability="condition-evaluate",outcome="evaluated"} 1.0' in text
    assert "amp_condition_cache_hits_total 1.0" in text
    assert bench.agent.health() == {"cache_entries": 1}
