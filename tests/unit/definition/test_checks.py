"""What the checks say about definitions that can be read: each problem once, at its place, with its cure."""

from typing import Any

import pytest

from orchestration import contracts
from orchestration.definition.errors import DefinitionError, Problem, did_you_mean, pointer, quoted
from orchestration.definition.graph import MAX_CYCLES, draw_cycle, order_tasks, unreachable_tasks
from orchestration.definition.models import MAX_TASKS
from orchestration.definition.parse import ParsedDefinition, parse_object, parse_text
from orchestration.definition.tasks import is_offered_to_tasks


def task(id: str = "a", **fields: Any) -> dict[str, Any]:
    return {"id": id, "type": "subprocess", "parameters": {"command": "ls"}, **fields}


def workflow(*tasks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "w", "tasks": list(tasks) or [task()], **fields}


def problems_of(definition: object) -> list[Problem]:
    with pytest.raises(DefinitionError) as raised:
        parse_object(definition)
    return raised.value.problems


def codes_of(definition: object) -> list[tuple[str, str]]:
    return [(problem.code, problem.path) for problem in problems_of(definition)]


def warnings_of(definition: object) -> list[tuple[str, str, str]]:
    return [(problem.code, problem.path, problem.hint) for problem in parse_object(definition).warnings]


def test_the_smallest_workflow_is_accepted() -> None:
    parsed = parse_object(workflow())
    assert isinstance(parsed, ParsedDefinition)
    assert parsed.warnings == []


EVERYTHING = """
id: everything
name: Everything
version: 2.10
description: All fields at once
tags: [one, two]
global_timeout_seconds: 60
global_retry_config: {strategy: fixed_delay, max_attempts: 2, initial_delay_seconds: 1, max_delay_seconds: 5,
                      backoff_multiplier: 2, retry_on_codes: [TIMEOUT], non_retryable_codes: [INVALID_INPUT]}
on_error: {action: auto}
metadata: {owner: me}
input_schema: {type: object, properties: {x: {type: integer, default: 1}}}
output_schema: {type: object, properties: {y: {type: integer}}}
tasks:
  - id: first
    name: First
    description: The first
    type: custom
    agent_id: task-executor-1
    capability: task-custom
    parameters: {task_name: n, parameters: {x: "{x}"}}
    depends_on: []
    condition: {expression: x > 0 and z, variables: {z: true}, required_outputs: [x], condition_type: python}
    timeout_seconds: 1.5
    schedule_to_start_seconds: 5
    heartbeat_seconds: 0.5
    total_timeout_seconds: 10
    retry_config: {strategy: none}
    outputs: [y]
    effects: idempotent
    on_error: {action: fallback, fallback: other}
    metadata: {note: 1}
  - id: other
    type: custom
    parameters: {task_name: n}
    reconcile: look
  - id: look
    type: custom
    parameters: {task_name: n}
    effects: read
"""


def test_every_field_is_accepted() -> None:
    parsed = parse_text(EVERYTHING)
    assert parsed.warnings == []
    assert parsed.definition.version == "2.10"
    assert parsed.definition.tasks[0].effects == "idempotent"


def test_null_counts_as_absent() -> None:
    nothing = dict.fromkeys(
        ("name", "agent_id", "condition", "depends_on", "outputs", "retry_config", "on_error")
    )
    parsed = parse_object(workflow(task(**nothing), description=None, tags=None, input_schema=None))
    assert parsed.definition.tasks[0].depends_on == []


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ([], [("wrong-type", "")]),
        ("text", [("wrong-type", "")]),
        (None, [("wrong-type", "")]),
        (3, [("wrong-type", "")]),
        (True, [("wrong-type", "")]),
        ({}, [("missing-field", ""), ("missing-field", "")]),
        ({"id": "w", "tasks": None}, [("missing-field", "")]),
        ({"id": "w", "tasks": {}}, [("wrong-type", "/tasks")]),
        ({"id": "w", "tasks": []}, [("task-count", "/tasks")]),
        ({"id": "w", "tasks": ["a"]}, [("wrong-type", "/tasks/0")]),
        ({"id": "w", "tasks": [None]}, [("wrong-type", "/tasks/0")]),
        (workflow(task(), task(id=None)), [("missing-field", "/tasks/1")]),
        (workflow(id=3), [("wrong-type", "/id")]),
        (workflow(id="../x"), [("wrong-value", "/id")]),
        (workflow(id="a..b"), [("wrong-value", "/id")]),
        (workflow(id="-a"), [("wrong-value", "/id")]),
        (workflow(id="ä"), [("wrong-value", "/id")]),
        (workflow(id="a" * 129), [("wrong-value", "/id")]),
        (workflow(id="a\n"), [("wrong-value", "/id")]),
        (workflow(name="a\x1b[2J"), [("wrong-value", "/name")]),
        (workflow(name="\u202eevil"), [("wrong-value", "/name")]),
        (workflow(name=""), [("wrong-value", "/name")]),
        (workflow(version=1.0), [("wrong-type", "/version")]),
        (workflow(tags="a"), [("wrong-type", "/tags")]),
        (workflow(tags=["a", 1]), [("wrong-type", "/tags/1")]),
        (workflow(global_timeout_seconds=0), [("wrong-value", "/global_timeout_seconds")]),
        (workflow(global_timeout_seconds="60"), [("wrong-type", "/global_timeout_seconds")]),
        (workflow(global_timeout_seconds=True), [("wrong-type", "/global_timeout_seconds")]),
        (workflow(global_timeout_seconds=1e12), [("wrong-value", "/global_timeout_seconds")]),
        (
            workflow(global_retry_config={"max_attempts": 0}),
            [("wrong-value", "/global_retry_config/max_attempts")],
        ),
        (
            workflow(global_retry_config={"max_attempts": 1.5}),
            [("wrong-type", "/global_retry_config/max_attempts")],
        ),
        (
            workflow(global_retry_config={"strategy": "exp"}),
            [("wrong-value", "/global_retry_config/strategy")],
        ),
        (
            workflow(global_retry_config={"retry_on_codes": ["a b"]}),
            [("wrong-value", "/global_retry_config/retry_on_codes/0")],
        ),
        (workflow(task(retries=3)), [("unknown-field", "/tasks/0/retries")]),
        (workflow(extra=1), [("unknown-field", "/extra")]),
        (workflow(task(condition="x > 1")), [("wrong-type", "/tasks/0/condition")]),
        (workflow(task(condition={})), [("empty-condition", "/tasks/0/condition")]),
        (workflow(task(condition={"expression": ""})), [("wrong-value", "/tasks/0/condition/expression")]),
        (
            workflow(task(condition={"expresion": "1"})),
            [("unknown-field", "/tasks/0/condition/expresion"), ("empty-condition", "/tasks/0/condition")][
                :1
            ],
        ),
        (
            workflow(task(condition={"expression": "1", "condition_type": "js"})),
            [("wrong-value", "/tasks/0/condition/condition_type")],
        ),
        (workflow(task(depends_on="b")), [("wrong-type", "/tasks/0/depends_on")]),
        (workflow(task(depends_on=[3])), [("wrong-type", "/tasks/0/depends_on/0")]),
        (workflow(task(outputs=["a-b"])), [("wrong-value", "/tasks/0/outputs/0")]),
        (workflow(task(outputs=["_a"])), [("wrong-value", "/tasks/0/outputs/0")]),
        (workflow(task(outputs=["None"])), [("bad-output", "/tasks/0/outputs/0")]),
        (workflow(task(outputs=["x", "x"])), [("duplicate-output", "/tasks/0/outputs/1")]),
        (workflow(task(effects="maybe")), [("wrong-value", "/tasks/0/effects")]),
        (workflow(task(parameters=[])), [("wrong-type", "/tasks/0/parameters")]),
        (workflow(task(on_error="skip")), [("wrong-type", "/tasks/0/on_error")]),
        (workflow(task(on_error={"action": "rollback"})), [("wrong-value", "/tasks/0/on_error/action")]),
        (workflow(task(on_error={})), [("missing-field", "/tasks/0/on_error")]),
        (workflow(task(type="loop")), [("type-not-available", "/tasks/0/type")]),
        (workflow(task(type="manual", capability="x")), [("type-not-available", "/tasks/0/type")]),
        (workflow(task(type="apicall")), [("unknown-type", "/tasks/0/type")]),
        (workflow(task(capability="state-append")), [("capability-refused", "/tasks/0/capability")]),
        (workflow(task(capability="workflow-stop")), [("capability-refused", "/tasks/0/capability")]),
        (workflow(task(capability="a b")), [("wrong-value", "/tasks/0/capability")]),
        (workflow({"id": "a"}), [("no-work", "/tasks/0")]),
        (workflow({"id": "a", "type": "parallel", "parameters": {}}), [("no-work", "/tasks/0")]),
    ],
)
def test_wrong_fields_are_found(definition: object, expected: list[tuple[str, str]]) -> None:
    found = codes_of(definition)
    assert found[: len(expected)] == expected, found
    assert len({path for _, path in found}) <= len(expected) + 1


def test_types_that_come_later_say_so() -> None:
    (problem,) = problems_of(workflow(task(type="loop")))
    assert problem.message == "task type 'loop' is not available in this release"


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"depend_on": []}, "did you mean 'depends_on'?"),
        ({"timeout": 3}, "did you mean 'timeout_seconds'?"),
        ({"when": "x"}, "did you mean 'condition'?"),
        ({"params": {}}, "did you mean 'parameters'?"),
        ({"zzz": 1}, "known here: agent_id, capability"),
        ({"type": "api_cal"}, "did you mean 'api_call'?"),
        ({"type": "zzz"}, "known here: api_call"),
        ({"effects": "idempotant"}, "did you mean 'idempotent'?"),
        ({"condition": "x > 1"}, "condition: {expression"),
        ({"depends_on": "b"}, "as a list: [b]"),
        ({"name": 3}, 'in quotes: "3"'),
        ({"timeout_seconds": "3"}, "without quotes"),
        ({"retry_config": {"delay": 3}}, "did you mean 'initial_delay_seconds'?"),
        ({"retry_config": {"max_atempts": 3}}, "did you mean 'max_attempts'?"),
        ({"condition": {"type": "regex", "expression": "a ~ b"}}, "did you mean 'condition_type'?"),
    ],
)
def test_mistakes_get_a_cure(fields: dict[str, Any], hint: str) -> None:
    assert hint in problems_of(workflow(task(**fields)))[0].hint


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (workflow(task(timeout_seconds=-5)), "'timeout_seconds' must be more than 0"),
        (workflow(task(retry_config={"max_attempts": 0})), "'max_attempts' must be at least 1"),
        (workflow(task(retry_config={"max_attempts": 101})), "'max_attempts' must be at most 100"),
        (workflow(tags=["x" * 65]), "item 1 must have at most 64 characters"),
        (workflow(tags=["x"] * 51), "'tags' must have at most 50 items"),
        (workflow(name=""), "'name' must not be empty"),
        (workflow(name="a\0"), "the text contains a NUL character"),
        (workflow(name="a\x07"), "'name' must not contain control characters"),
        (workflow(id="a..b"), "'id' must not contain '..'"),
    ],
)
def test_messages_say_what_would_be_right(definition: object, message: str) -> None:
    assert problems_of(definition)[0].message == message


def test_all_problems_are_reported_at_once_with_line_and_column() -> None:
    text = """\
id: w
nmae: typo
tasks:
  - id: a
    type: subprocess
    parameters: {command: ls}
    depends_on: [b]
    timeout_seconds: soon
  - id: b
    type: subprocess
    parameters: {command: "{1 +}", args: ["{x y}", "{open('f')}"]}
    depends_on: [a, pck]
    outputs: [pack]
  - id: c
    type: subprocess
    parameters: {comand: ls}
    condition: {expression: "import os"}
  - id: c
    type: loop
"""
    with pytest.raises(DefinitionError) as raised:
        parse_text(text, "yaml", "broken.yaml")
    found = [(problem.code, problem.line, problem.column) for problem in raised.value.problems]
    assert found == [
        ("unknown-field", 2, 1),
        ("cycle", 7, 18),
        ("wrong-type", 8, 22),
        ("expression", 11, 52),
        ("unknown-dependency", 12, 21),
        ("missing-parameter", 16, 17),
        ("unknown-parameter", 16, 18),
        ("expression", 17, 29),
        ("duplicate-id", 18, 9),
        ("type-not-available", 19, 11),
    ]
    assert raised.value.code == "INVALID_WORKFLOW_DEFINITION"
    first, *_ = str(raised.value).splitlines()
    assert first == "broken.yaml:2:1 error[unknown-field] there is no field 'nmae' here; did you mean 'name'?"


def test_problems_in_json_have_line_and_column_too() -> None:
    text = '{"id": "w", "tasks": [\n  {"id": "a", "type": "subprocess",\n   "parameters": {"command": 3}, "x": 1}]}'
    with pytest.raises(DefinitionError) as raised:
        parse_text(text, "json")
    found = [(problem.code, problem.path, problem.line, problem.column) for problem in raised.value.problems]
    assert found == [
        ("wrong-parameter", "/tasks/0/parameters/command", 3, 30),
        ("unknown-field", "/tasks/0/x", 3, 34),
    ]


def test_forbidden_yaml_and_wrong_content_are_reported_together() -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_text("id: w\nid: v\ntasks: []")
    assert [problem.code for problem in raised.value.problems] == ["duplicate-key", "task-count"]


def test_values_that_are_no_json_do_not_hide_the_rest() -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_text(
            "id: w\nnmae: x\ntasks:\n  - {id: a, type: custom, parameters: {task_name: 1e999}, timeout_seconds: 1e999}"
        )
    assert [(problem.code, problem.line) for problem in raised.value.problems] == [
        ("unknown-field", 2),
        ("bad-value", 4),
        ("wrong-parameter", 4),
        ("bad-value", 4),
    ]
    found = codes_of(workflow(task(metadata={"a": object(), 3: 4}, bad=(1, 2))))
    assert sorted(found) == [
        ("bad-key", "/tasks/0/metadata"),
        ("bad-value", "/tasks/0/bad"),
        ("bad-value", "/tasks/0/metadata/a"),
        ("unknown-field", "/tasks/0/bad"),
    ]


@pytest.mark.parametrize("keyword", ["multipleOf", "minimum", "default", "enum", "const", "maxLength"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, object(), "\ud800", b"x"])
def test_schemas_with_values_that_are_no_json_are_refused_not_applied(keyword: str, value: object) -> None:
    schema = {"properties": {"a": {"default": 1, keyword: [value] if keyword == "enum" else value}}}
    assert "bad-value" in {code for code, _ in codes_of(workflow(input_schema=schema))}


# --- the graph -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "drawn"),
    [
        ({"a": ["b"], "b": ["a"]}, ["a -> b -> a"]),
        ({"a": ["c"], "b": ["a"], "c": ["b"]}, ["a -> c -> b -> a"]),
        ({"x": [], "b": ["x", "c"], "c": ["b"], "y": ["c"]}, ["b -> c -> b"]),
        ({"a": ["b"], "b": ["a"], "c": ["d"], "d": ["c"]}, ["a -> b -> a", "c -> d -> c"]),
        ({"a": ["b", "c"], "b": ["c"], "c": ["a"]}, ["a -> b -> c -> a"]),
        ({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["b"]}, ["b -> d -> b"]),
    ],
)
def test_cycles_are_drawn(edges: dict[str, list[str]], drawn: list[str]) -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_object(workflow(*(task(name, depends_on=before) for name, before in edges.items())))
    assert raised.value.code == "CIRCULAR_DEPENDENCY"
    assert [problem.message.partition(": ")[2] for problem in raised.value.problems] == drawn


def test_a_long_cycle_is_drawn_short() -> None:
    ids = [f"t{index}" for index in range(100)]
    drawn = draw_cycle([*ids, ids[0]])
    assert (
        drawn
        == "t0 -> t1 -> t2 -> t3 -> t4 -> t5 -> ... 89 more ... -> t95 -> t96 -> t97 -> t98 -> t99 -> t0"
    )


def test_many_cycles_are_cut() -> None:
    edges = {f"t{index}": [f"t{index ^ 1}"] for index in range(100)}
    assert len(order_tasks(edges).cycles) == MAX_CYCLES


def test_tasks_come_in_the_order_they_are_written_where_they_are_free() -> None:
    assert order_tasks({"d": ["b"], "c": [], "b": [], "a": ["c"]}).tasks == ("c", "b", "d", "a")


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([task(depends_on=["a"])], [("self-dependency", "/tasks/0/depends_on/0")]),
        ([task(depends_on=["nope"])], [("unknown-dependency", "/tasks/0/depends_on/0")]),
        ([task(), task("b", depends_on=["a", "a"])], [("duplicate-dependency", "/tasks/1/depends_on/1")]),
        ([task(), task()], [("duplicate-id", "/tasks/1/id")]),
        ([task(on_error={"action": "fallback"})], [("no-fallback", "/tasks/0/on_error")]),
        (
            [task(on_error={"action": "fallback", "fallback": "a"})],
            [("self-fallback", "/tasks/0/on_error/fallback")],
        ),
        (
            [task(on_error={"action": "fallback", "fallback": "b"})],
            [("unknown-fallback", "/tasks/0/on_error/fallback")],
        ),
        (
            [task(on_error={"action": "skip", "fallback": "b"}), task("b")],
            [("unused-fallback", "/tasks/0/on_error/fallback")],
        ),
        (
            [
                task(on_error={"action": "fallback", "fallback": "b"}),
                task("b", on_error={"action": "fallback", "fallback": "a"}),
                task("c", depends_on=["b"]),
                task("d"),
            ],
            [
                ("unreachable-task", "/tasks/0"),
                ("unreachable-task", "/tasks/1"),
                ("unreachable-task", "/tasks/2"),
            ],
        ),
        (
            [
                task(on_error={"action": "fallback", "fallback": "b"}),
                task("b", depends_on=["c"]),
                task("c", depends_on=["d"]),
                task("d", depends_on=["a"]),
            ],
            [("fallback-waits", "/tasks/1/depends_on/0")],
        ),
    ],
)
def test_graphs_that_cannot_run_are_refused(
    tasks: list[dict[str, Any]], expected: list[tuple[str, str]]
) -> None:
    assert codes_of(workflow(*tasks)) == expected


def look(id: str = "look", **fields: Any) -> dict[str, Any]:
    return task(id, effects="read", **fields)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([task(reconcile="lok"), look()], [("unknown-reconcile", "/tasks/0/reconcile")]),
        ([task(reconcile="a")], [("self-reconcile", "/tasks/0/reconcile")]),
        ([task(effects="read", reconcile="look"), look()], [("unused-reconcile", "/tasks/0/reconcile")]),
        ([task(reconcile="b"), task("b")], [("reconcile-effects", "/tasks/1")]),
        ([task(reconcile="b"), task("b", effects="once")], [("reconcile-effects", "/tasks/1/effects")]),
        (
            [task(reconcile="b"), task("b", reconcile="a")],
            [
                ("reconcile-effects", "/tasks/0"),
                ("reconcile-effects", "/tasks/1"),
                ("unreachable-task", "/tasks/0"),
            ],
        ),
        (
            [task(reconcile="look"), task("b", reconcile="look"), look()],
            [("shared-reconcile", "/tasks/1/reconcile")],
        ),
        (
            [task(reconcile="look"), task("b", depends_on=["look"]), look()],
            [("reconcile-in-flow", "/tasks/1/depends_on/0")],
        ),
        (
            [task(reconcile="look", on_error={"action": "fallback", "fallback": "look"}), look()],
            [("reconcile-in-flow", "/tasks/1")],
        ),
        (
            [task(reconcile="look"), task("b", depends_on=["a"]), look(depends_on=["b"])],
            [("reconcile-waits", "/tasks/2/depends_on/0")],
        ),
        ([task(heartbeat_seconds=0.1)], [("wrong-value", "/tasks/0/heartbeat_seconds")]),
        ([task(schedule_to_start_seconds=0)], [("wrong-value", "/tasks/0/schedule_to_start_seconds")]),
        ([task(total_timeout_seconds="1")], [("wrong-type", "/tasks/0/total_timeout_seconds")]),
    ],
)
def test_reconcile_tasks_and_time_limits_must_make_sense(
    tasks: list[dict[str, Any]], expected: list[tuple[str, str]]
) -> None:
    found = set(codes_of(workflow(*tasks)))
    assert set(expected) <= found
    assert {code for code, _ in found} == {code for code, _ in expected}


def test_a_reconcile_task_may_wait_for_others_and_name_the_task_it_looks_at() -> None:
    tasks = [task("login"), task(reconcile="look"), look(depends_on=["login", "a"])]
    assert parse_object(workflow(*tasks)).warnings == []


def test_a_problem_with_a_reconcile_task_has_its_line_and_cure() -> None:
    text = """
id: w
tasks:
  - id: charge
    type: subprocess
    parameters: {command: ls}
    reconcile: lok
  - {id: look, type: subprocess, parameters: {command: ls}, effects: read}
"""
    with pytest.raises(DefinitionError) as raised:
        parse_text(text)
    (problem,) = raised.value.problems
    assert (problem.code, problem.line, problem.column) == ("unknown-reconcile", 7, 16)
    assert "look" in problem.hint


def test_a_limit_that_another_one_reaches_first_is_warned_of() -> None:
    tasks = [task(timeout_seconds=10, heartbeat_seconds=20, total_timeout_seconds=5)]
    assert [(code, path) for code, path, _ in warnings_of(workflow(*tasks))] == [
        ("useless-limit", "/tasks/0/heartbeat_seconds"),
        ("useless-limit", "/tasks/0/timeout_seconds"),
    ]


def test_a_fallback_of_the_workflow_must_not_wait() -> None:
    definition = workflow(
        task(), task("b", depends_on=["a"]), on_error={"action": "fallback", "fallback": "b"}
    )
    assert codes_of(definition) == [("fallback-waits", "/tasks/1/depends_on")]
    definition = workflow(task(), task("b"), on_error={"action": "fallback", "fallback": "b"})
    assert parse_object(definition).warnings == []
    assert codes_of(workflow(on_error={"action": "fallback", "fallback": "z"})) == [
        ("unknown-fallback", "/on_error/fallback")
    ]


@pytest.mark.parametrize(
    "tasks",
    [
        [task(on_error={"action": "fallback", "fallback": "b"}), task("b", depends_on=["a"])],
        [task(on_error={"action": "auto", "fallback": "b"}), task("b"), task("c", depends_on=["b"])],
        [
            task(on_error={"action": "fallback", "fallback": "c"}),
            task("b", on_error={"action": "fallback", "fallback": "c"}),
            task("c"),
        ],
        [
            task(on_error={"action": "fallback", "fallback": "b"}),
            task("b", on_error={"action": "fallback", "fallback": "c"}),
            task("c"),
        ],
    ],
)
def test_sensible_fallbacks_are_accepted(tasks: list[dict[str, Any]]) -> None:
    assert parse_object(workflow(*tasks)).warnings == []


def test_unreachable_needs_all_ways_closed() -> None:
    edges = {"a": [], "b": ["x"], "x": [], "c": ["a", "b"]}
    assert unreachable_tasks(("a", "x", "b", "c"), edges, {"x": ["x"]}) == ["x", "b"]


def test_a_bad_id_does_not_make_its_dependants_wrong() -> None:
    found = codes_of(workflow(task("a b"), task("c", depends_on=["a b"])))
    assert ("wrong-value", "/tasks/0/id") in found
    assert not [code for code, _ in found if code == "unknown-dependency"]


def test_limits_of_the_graph() -> None:
    assert codes_of(workflow(*[{}] * (MAX_TASKS + 1))) == [("task-count", "/tasks")]
    ids = [f"t{index}" for index in range(400)]
    tasks = [task(name, depends_on=ids[:index]) for index, name in enumerate(ids)]
    assert codes_of(workflow(*tasks)) == [("too-many-edges", "/tasks")]


def test_a_flood_of_problems_is_cut_and_counted() -> None:
    tasks = [task(f"t{index}", bad=1) for index in range(500)] + [
        task("x", depends_on=["y"]),
        task("y", depends_on=["x"]),
    ]
    found = problems_of(workflow(*tasks))
    assert len(found) <= 101
    assert {"unknown-field", "cycle", "more"} == {problem.code for problem in found}
    assert found[-1].message == "and 475 more of this severity"


# --- capabilities, parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "offered"),
    [
        ("task-api-call", True),
        ("decision-tree", True),
        ("state-get", True),
        ("alert-create", True),
        ("somebody-elses", True),
        ("engine-lease", False),
        ("workflow-start", False),
        ("task-retry", False),
        ("state-restore", False),
        ("circuit-breaker", False),
        ("error-recover", False),
    ],
)
def test_a_definition_reaches_only_capabilities_meant_for_tasks(capability: str, offered: bool) -> None:
    assert is_offered_to_tasks(capability) is offered


def test_no_internal_capability_is_offered_to_tasks() -> None:
    assert [c.id for c in contracts.CONTRACTS.values() if c.internal and is_offered_to_tasks(c.id)] == []


def with_parameters(type: str, parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return workflow({"id": "a", "type": type, "parameters": parameters, **fields})


@pytest.mark.parametrize(
    ("type", "parameters", "expected"),
    [
        (
            "api_call",
            {"url": "http://x", "metod": "GET"},
            [("unknown-parameter", "/tasks/0/parameters/metod")],
        ),
        (
            "api_call",
            {"url": "http://x", "method": "FETCH"},
            [("wrong-parameter", "/tasks/0/parameters/method")],
        ),
        (
            "api_call",
            {"url": "http://x", "timeout": "soon"},
            [("wrong-parameter", "/tasks/0/parameters/timeout")],
        ),
        ("api_call", {}, [("missing-parameter", "/tasks/0/parameters")]),
        (
            "api_call",
            {"parallel_requests": [{"name": "a"}]},
            [("missing-parameter", "/tasks/0/parameters/parallel_requests/0")],
        ),
        (
            "api_call",
            {"parallel_requests": 3},
            [("wrong-parameter", "/tasks/0/parameters/parallel_requests")],
        ),
        (
            "api_call",
            {"parallel_requests": [3]},
            [("wrong-parameter", "/tasks/0/parameters/parallel_requests")],
        ),
        (
            "api_call",
            {"parallel_requests": [{"name": "a", "url": "u"}, {"name": "a", "url": "u"}]},
            [("duplicate-name", "/tasks/0/parameters/parallel_requests/1/name")],
        ),
        ("data_transform", {"input_data": 1}, [("missing-parameter", "/tasks/0/parameters")]),
        ("validation", {"data": 1, "rules": {}}, [("wrong-parameter", "/tasks/0/parameters/rules")]),
        (
            "data_transform",
            {"input_data": 1, "transformations": [{"type": "fliter"}]},
            [("wrong-parameter", "/tasks/0/parameters/transformations/0")],
        ),
        (
            "data_transform",
            {"input_data": 1, "transformations": [{"type": "map", "config": {}}]},
            [("wrong-parameter", "/tasks/0/parameters/transformations/0")],
        ),
        (
            "data_transform",
            {"input_data": 1, "transformations": [{"type": "map", "config": {"expression": "x +"}}]},
            [("expression", "/tasks/0/parameters/transformations/0/config/expression")],
        ),
        (
            "validation",
            {"data": 1, "rules": [{"type": "required", "field": "a"}, {"type": "rang"}]},
            [("wrong-parameter", "/tasks/0/parameters/rules/1")],
        ),
        (
            "validation",
            {"data": 1, "rules": [{"type": "range", "field": "a", "config": {"min": "x"}}]},
            [("wrong-parameter", "/tasks/0/parameters/rules/0")],
        ),
        ("file_operation", {"operation": "read"}, [("missing-parameter", "/tasks/0/parameters")]),
        (
            "file_operation",
            {"operations": [{}], "file_path": "a"},
            [("wrong-parameter", "/tasks/0/parameters/file_path")],
        ),
        (
            "api_call",
            {"url": "u", "parallel_requests": [{"url": "u"}]},
            [("wrong-parameter", "/tasks/0/parameters/url")],
        ),
        ("conditional", {}, [("missing-parameter", "/tasks/0/parameters")]),
        ("decision", {"tree": 3}, [("wrong-parameter", "/tasks/0/parameters/tree")]),
        ("custom", {"task_name": "n", "args": 1}, [("unknown-parameter", "/tasks/0/parameters/args")]),
        (
            "parallel",
            {"task_type": "loop", "task_config": {}},
            [("unknown-type", "/tasks/0/parameters/task_type")],
        ),
        (
            "parallel",
            {"task_type": "api_call", "task_config": {"urls": 1}},
            [
                ("missing-parameter", "/tasks/0/parameters/task_config"),
                ("unknown-parameter", "/tasks/0/parameters/task_config/urls"),
            ],
        ),
        (
            "sequential",
            {"task_type": "file_operation", "task_config": {"operation": "read"}},
            [("missing-parameter", "/tasks/0/parameters/task_config")],
        ),
        ("parallel", {"task_type": "api_call"}, [("missing-parameter", "/tasks/0/parameters")]),
    ],
)
def test_parameters_that_would_fail_every_time_are_refused(
    type: str, parameters: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert sorted(codes_of(with_parameters(type, parameters))) == expected


@pytest.mark.parametrize(
    ("type", "parameters"),
    [
        (
            "api_call",
            {
                "method": "POST",
                "url": "{workflow_id}",
                "headers": {},
                "data": None,
                "timeout": 30,
                "retry_count": 3,
            },
        ),
        ("api_call", {"url": "u", "timeout": "{execution_time}", "headers": "{inputs}"}),
        ("api_call", {"parallel_requests": "{inputs}"}),
        ("api_call", {"url": "u", "polling_interval": 1, "max_wait_time": 9, "until": "body.done"}),
        ("file_operation", {"operations": [{"operation": "write", "file_path": "a"}]}),
        ("file_operation", {"file_path": "a", "additional_files": [{"path": "a", "content": "b"}]}),
        (
            "conditional",
            {
                "expression": "amount > 1000 and user.verified == True",
                "context": "{workflow_context}",
                "condition_type": "python",
            },
        ),
        (
            "decision",
            {"tree": {"condition": "x > 1", "true_branch": "a", "false_branch": "b"}, "context": {}},
        ),
        ("parallel", {"task_type": "{inputs}", "task_config": {"anything": 1}}),
        (
            "validation",
            {"data": 1, "rules": [{"type": "range", "field": "a", "config": {"min": "{execution_time}"}}]},
        ),
        ("parallel", {"task_type": "api_call", "task_config": "{inputs}"}),
    ],
)
def test_good_parameters_are_accepted(type: str, parameters: dict[str, Any]) -> None:
    assert parse_object(with_parameters(type, parameters)).warnings == []


def test_parameters_of_a_foreign_capability_are_its_own_business() -> None:
    definition = with_parameters("custom", {"whatever": 1}, capability="ocr-read")
    assert parse_object(definition).warnings == []


# --- templates and conditions --------------------------------------------------------------------------------


def test_undeclared_names_are_warnings_with_a_suggestion() -> None:
    definition = workflow(
        task("make", outputs=["total"]),
        task("use", depends_on=["make"], parameters={"command": "x", "args": ["a", {"deep": ["{totl}"]}]}),
        task(
            "when",
            depends_on=["make"],
            condition={"expression": "amuont > 1", "required_outputs": ["nothing_like_it"]},
        ),
        input_schema={"type": "object", "properties": {"amount": {"type": "number"}}},
    )
    assert sorted(warnings_of(definition)) == [
        ("undeclared-name", "/tasks/1/parameters/args/1/deep/0", "did you mean 'total'?"),
        ("undeclared-name", "/tasks/2/condition/expression", "did you mean 'amount'?"),
        ("undeclared-name", "/tasks/2/condition/required_outputs/0", ""),
    ]


def test_names_set_by_a_task_that_is_not_waited_for_are_warnings() -> None:
    definition = workflow(
        task("make", outputs=["total"]),
        task("use", parameters={"command": "{total}"}),
        task("later", depends_on=["make"], parameters={"command": "{total}"}),
        task("latest", depends_on=["later"], condition={"expression": "total"}),
    )
    assert warnings_of(definition) == [
        ("not-upstream", "/tasks/1/parameters/command", "add 'make' to depends_on")
    ]


def test_a_name_that_is_also_an_input_needs_no_task() -> None:
    schema = {"type": "object", "properties": {"total": {}}}
    definition = workflow(
        task("make", outputs=["total"]), task("use", parameters={"command": "{total}"}), input_schema=schema
    )
    assert warnings_of(definition) == []


def test_outputs_of_a_fallback_are_there_after_the_task_it_stands_in_for() -> None:
    definition = workflow(
        task("try", on_error={"action": "fallback", "fallback": "instead"}),
        task("instead", outputs=["plan_b"]),
        task("use", depends_on=["try"], parameters={"command": "{plan_b}"}),
    )
    assert warnings_of(definition) == []


@pytest.mark.parametrize(
    "text",
    [
        "{inputs}",
        "{user_input['a']}",
        "{secrets.token}",
        "{tasks['a'].status}",
        "{timestamp}",
        "{not an expression",
        "{{literal}}",
        "a{2,3}",
    ],
)
def test_built_in_names_and_literal_braces_need_no_declaration(text: str) -> None:
    assert warnings_of(workflow(task(parameters={"command": text}))) == []


@pytest.mark.parametrize(
    ("condition_type", "expression"),
    [
        ("python", "x >"),
        ("python", "__import__('os')"),
        ("python", "x.__class__"),
        ("python", "(lambda: 1)()"),
        ("python", "nofunction(1)"),
        ("regex", "field ~ ("),
        ("regex", "no operator here"),
        ("custom", "1 + 1"),
        ("json_path", "$["),
    ],
)
def test_conditions_that_cannot_be_parsed_are_refused(condition_type: str, expression: str) -> None:
    definition = workflow(task(condition={"expression": expression, "condition_type": condition_type}))
    assert codes_of(definition) == [("expression", "/tasks/0/condition/expression")]


@pytest.mark.parametrize(
    ("condition_type", "expression"),
    [
        ("simple", "status == active"),
        ("regex", "name ~ ^a"),
        ("custom", "is_empty(name)"),
        ("json_path", "$.orders[*].id"),
    ],
)
def test_other_condition_types_are_accepted(condition_type: str, expression: str) -> None:
    definition = workflow(task(condition={"expression": expression, "condition_type": condition_type}))
    assert warnings_of(definition) == []


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"command": "{x.__class__}"}, "/tasks/0/parameters/command"),
        ({"command": "x", "args": ["{open('f')}"]}, "/tasks/0/parameters/args/0"),
        (
            {"command": "x", "env": {"a/b~": "{(lambda: 1)()}", "A": "{eval('1')}"}},
            "/tasks/0/parameters/env/A",
        ),
    ],
)
def test_templates_that_are_not_allowed_are_refused(parameters: dict[str, Any], path: str) -> None:
    found = codes_of(workflow(task(parameters=parameters)))
    assert ("expression", path) in found


def test_messages_stay_short_and_printable() -> None:
    (problem,) = problems_of(workflow(task(depends_on=["x" * 128]), tags=["t"]))
    assert len(problem.message) < 200
    assert quoted("a\x1b\n" + "b" * 200) == "'a\\u001b\\u000a" + "b" * 77 + "...'"
    assert pointer(("a/b", 0, "c~d")) == "/a~1b/0/c~0d"
    assert did_you_mean("zzzz", ["abc"]) == ""


def test_a_problem_without_a_text_is_described_by_its_pointer() -> None:
    assert Problem(code="c", message="m", path="/a").describe("f") == "f/a error[c] m"
    assert Problem(code="c", message="m", hint="h").describe() == "error[c] m; h"
    assert (
        Problem(code="c", message="m", line=2, column=3, severity="warning").describe()
        == "line:2:3 warning[c] m"
    )
