"""Which names a task sees."""

import msgspec
import pytest

from orchestration.definition.plan import Condition
from orchestration.scope import condition_context, task_variables, variables_for
from tests.builders import Play, at, make_plan, make_task


def play() -> Play:
    made = Play(make_plan(make_task("a"), make_task("b", "a")), {"name": "Ada", "a": "input"})
    made.succeed("a", a_out=[1])
    return made


def test_only_the_names_that_are_used_leave_the_engine() -> None:
    made = play()
    task = msgspec.structs.replace(made.plan.tasks["b"], references=frozenset({"a_out", "b_out", "nowhere"}))
    assert task_variables(made.plan, made.instance, task, at(5)) == {"a_out": [1]}


def test_a_task_without_references_needs_nothing() -> None:
    made = play()
    assert task_variables(made.plan, made.instance, made.plan.tasks["b"], at(5)) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs", {"name": "Ada", "a": "input"}),
        ("user_input", {"name": "Ada", "a": "input"}),
        ("request_data", {"name": "Ada", "a": "input"}),
        ("workflow_context", {"name": "Ada", "a": "input", "a_out": [1]}),
        ("workflow_instance_id", "ins_1"),
        ("workflow_id", "flow"),
        ("task_id", "b"),
        ("timestamp", "20260115T100000Z"),
        ("current_timestamp", "2026-01-15T10:00:05+00:00"),
        ("execution_time", 5.0),
    ],
)
def test_built_in_names(name: str, value: object) -> None:
    made = play()
    assert variables_for(made.plan, made.instance, {name}, task_id="b", now=at(5)) == {name: value}


def test_facts_about_other_tasks() -> None:
    made = play()
    tasks = variables_for(made.plan, made.instance, {"tasks"}, task_id="b", now=at(5))["tasks"]
    assert tasks["a"] == {"status": "completed", "outputs": {"a_out": [1]}, "error": None, "attempt": 1}


def test_a_variable_wins_over_a_built_in_of_the_same_name() -> None:
    made = Play(make_plan(make_task("a")), {"timestamp": "mine"})
    assert variables_for(made.plan, made.instance, {"timestamp"}, task_id="a", now=at(5)) == {
        "timestamp": "mine"
    }


def test_the_whole_context_brings_every_variable() -> None:
    made = play()
    found = variables_for(made.plan, made.instance, set(), task_id="b", now=at(5), whole_context=True)
    assert found == {"name": "Ada", "a": "input", "a_out": [1]}


def test_a_condition_sees_declared_names_as_null_and_its_own_variables_first() -> None:
    made = play()
    condition = Condition(
        expression="e", variables={"name": "own"}, names=frozenset({"b_out", "a_out", "name"})
    )
    task = msgspec.structs.replace(made.plan.tasks["b"], condition=condition)
    assert condition_context(made.plan, made.instance, task, at(5)) == {
        "b_out": None,
        "a_out": [1],
        "name": "own",
    }
