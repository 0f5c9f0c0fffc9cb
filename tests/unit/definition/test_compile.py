"""From definitions to plans: defaults, budgets of attempts, effects, references, stored content."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from orchestration.definition.compile import compile_plan, definition_hash, load_plan, normalize
from orchestration.definition.errors import DefinitionError
from orchestration.definition.parse import ParsedDefinition, parse_object, parse_text
from orchestration.definition.plan import OnError, Plan, TaskPlan
from orchestration.definition.published import definition_schema
from orchestration.definition.tasks import CAPABILITY_BY_TYPE
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import Effects, RecoveryAction


def plan_of(*tasks: dict[str, Any], **fields: Any) -> Plan:
    return compile_plan(parse_object({"id": "w", "tasks": list(tasks), **fields}).definition)


def task_plan(type: str = "subprocess", parameters: Any = None, **fields: Any) -> TaskPlan:
    given_parameters = {"command": "ls"} if parameters is None else parameters
    shared = fields.pop("shared", {})
    return plan_of({"id": "a", "type": type, "parameters": given_parameters, **fields}, **shared).tasks["a"]


API: dict[str, Any] = {"url": "http://x"}
TRANSFORM: dict[str, Any] = {"input_data": 1, "transformations": []}


def test_everything_has_a_default() -> None:
    plan = plan_of({"id": "a", "type": "subprocess", "parameters": {"command": "ls"}})
    assert (plan.name, plan.version, plan.global_timeout_seconds) == ("w", "1.0", 3600)
    assert plan.tasks["a"] == TaskPlan(
        id="a",
        name="a",
        type="subprocess",
        agent_id=None,
        capability="task-subprocess",
        parameters={"command": "ls"},
        has_templates=False,
        references=frozenset(),
        whole_context=False,
        depends_on=(),
        dependents=(),
        condition=None,
        timeout_seconds=300,
        retry=RetryPolicy(),
        output_names=(),
        effects=Effects.ONCE,
        on_error=OnError(),
    )


def test_default_times_come_from_the_settings_and_are_not_stored() -> None:
    definition = parse_object(
        {"id": "w", "tasks": [{"id": "a", "type": "custom", "parameters": {"task_name": "n"}}]}
    ).definition
    plan = compile_plan(definition, workflow_timeout_seconds=7, task_timeout_seconds=5)
    assert (plan.global_timeout_seconds, plan.tasks["a"].timeout_seconds) == (7, 5)
    assert "timeout" not in json.dumps(normalize(definition))


@pytest.mark.parametrize(
    ("type", "parameters", "capability"),
    [
        ("api_call", API, "task-api-call"),
        ("data_transform", TRANSFORM, "task-data-transform"),
        ("validation", {"data": 1}, "task-validation"),
        ("file_operation", {"file_path": "x"}, "task-file-operation"),
        ("custom", {"task_name": "n"}, "task-custom"),
        ("conditional", {"expression": "1"}, "condition-evaluate"),
        ("decision", {"tree": {}}, "decision-tree"),
        ("parallel", {"task_type": "api_call", "task_config": API}, "task-execute"),
        ("sequential", {"task_type": "custom", "task_config": {"task_name": "n"}}, "task-execute"),
    ],
)
def test_the_type_picks_the_capability(type: str, parameters: dict[str, Any], capability: str) -> None:
    assert task_plan(type, parameters).capability == capability
    assert task_plan(type, {}, capability="ocr-read").capability == "ocr-read"


def test_every_type_is_covered() -> None:
    work = {"api_call", "data_transform", "subprocess", "validation", "file_operation", "custom"}
    assert set(CAPABILITY_BY_TYPE) == work | {"conditional", "decision", "parallel", "sequential"}


FILES: dict[str, Any] = {"file_path": "x"}


@pytest.mark.parametrize(
    ("type", "parameters", "effects"),
    [
        ("api_call", API, "read"),
        ("api_call", {**API, "method": "GET"}, "read"),
        ("api_call", {**API, "method": "POST"}, "idempotent"),
        ("api_call", {**API, "method": "DELETE"}, "idempotent"),
        ("api_call", {**API, "method": "{inputs}"}, "idempotent"),
        ("api_call", {"parallel_requests": [API, API]}, "read"),
        ("api_call", {"parallel_requests": [API, {**API, "method": "POST"}]}, "idempotent"),
        ("api_call", {"parallel_requests": "{inputs}"}, "idempotent"),
        ("data_transform", TRANSFORM, "none"),
        ("validation", {"data": 1}, "none"),
        ("conditional", {"expression": "1"}, "none"),
        ("decision", {"tree": {}}, "none"),
        ("file_operation", {**FILES, "operation": "read"}, "read"),
        ("file_operation", FILES, "idempotent"),
        ("file_operation", {**FILES, "operation": "delete"}, "idempotent"),
        ("file_operation", {**FILES, "operation": "append"}, "once"),
        ("file_operation", {**FILES, "operation": "{inputs}"}, "once"),
        ("file_operation", {"operations": [{"operation": "write"}, {"operation": "append"}]}, "once"),
        ("file_operation", {"operations": [{"operation": "write"}, {}]}, "idempotent"),
        ("subprocess", {"command": "ls"}, "once"),
        ("custom", {"task_name": "n"}, "once"),
        ("parallel", {"task_type": "api_call", "task_config": API}, "read"),
        ("parallel", {"task_type": "data_transform", "task_config": TRANSFORM}, "none"),
        ("parallel", {"task_type": "{inputs}", "task_config": {}}, "once"),
    ],
)
def test_effects_follow_from_the_work(type: str, parameters: dict[str, Any], effects: str) -> None:
    assert task_plan(type, parameters).effects == effects
    assert task_plan(type, parameters, effects="irreversible").effects is Effects.IRREVERSIBLE


@pytest.mark.parametrize(
    ("capability", "parameters", "effects"),
    [
        ("ocr-read", {}, "once"),
        ("rule-engine", {"rules": []}, "none"),
        ("condition-batch-evaluate", {"conditions": []}, "none"),
        ("condition-validate", {"expression": "1"}, "none"),
        ("state-get", {"workflow_instance_id": "x"}, "read"),
        ("metrics-get", {"metric_type": "task"}, "read"),
        ("state-set", {"workflow_instance_id": "x", "state": {}}, "once"),
    ],
)
def test_effects_of_other_capabilities(capability: str, parameters: dict[str, Any], effects: str) -> None:
    assert task_plan("custom", parameters, capability=capability).effects == effects


EXPONENTIAL = {"strategy": "exponential_backoff"}


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        (None, None, RetryPolicy()),
        ({"max_attempts": 5}, None, RetryPolicy(max_attempts=5)),
        (
            None,
            {"max_attempts": 2, **EXPONENTIAL},
            RetryPolicy(strategy=RetryStrategy.EXPONENTIAL_BACKOFF, max_attempts=2),
        ),
        (
            {"max_attempts": 5},
            {"max_attempts": 2, "max_delay_seconds": 9},
            RetryPolicy(max_attempts=5, max_delay_seconds=9),
        ),
        ({"strategy": "none"}, {"max_attempts": 2}, RetryPolicy(strategy=RetryStrategy.NONE, max_attempts=2)),
        (
            {"retry_on_codes": ["*"], "non_retryable_codes": ["INVALID_INPUT"], "backoff_multiplier": 3},
            {"retry_on_codes": ["TIMEOUT"], "initial_delay_seconds": 0},
            RetryPolicy(
                retry_on_codes=("*",),
                non_retryable_codes=("INVALID_INPUT",),
                backoff_multiplier=3,
                initial_delay_seconds=0,
            ),
        ),
    ],
)
def test_retries_of_the_task_go_over_those_of_the_workflow(
    own: Any, shared: Any, expected: RetryPolicy
) -> None:
    assert task_plan(retry_config=own, shared={"global_retry_config": shared}).retry == expected


@pytest.mark.parametrize(
    ("retry_count", "retry_config", "attempts", "strategy"),
    [
        (None, None, 4, "exponential_backoff"),
        (0, None, 1, "fixed_delay"),
        (2, None, 3, "exponential_backoff"),
        (None, {"max_attempts": 2}, 2, "fixed_delay"),
        (1, {"max_attempts": 2}, 4, "exponential_backoff"),
        (3, {"max_attempts": 3, "strategy": "linear_backoff"}, 12, "linear_backoff"),
        (3, {"strategy": "none"}, 4, "exponential_backoff"),
        (None, {"strategy": "none"}, 1, "none"),
        (99, {"max_attempts": 50}, 100, "exponential_backoff"),
        ("{inputs}", {"max_attempts": 2}, 2, "fixed_delay"),
    ],
)
def test_the_attempts_of_an_api_call_are_one_budget(
    retry_count: Any, retry_config: Any, attempts: int, strategy: str
) -> None:
    parameters = API if retry_count is None else {**API, "retry_count": retry_count}
    policy = task_plan("api_call", parameters, retry_config=retry_config).retry
    assert (policy.max_attempts, policy.strategy) == (attempts, strategy)
    assert "RATE_LIMIT_EXCEEDED" in policy.retry_on_codes


def test_codes_that_the_author_listed_stay_as_they_are() -> None:
    policy = task_plan("api_call", API, retry_config={"retry_on_codes": ["TIMEOUT"]}).retry
    assert policy.retry_on_codes == ("TIMEOUT",)


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        (None, None, set()),
        (None, {"retry_on_codes": ["TIMEOUT"]}, set()),
        ({"max_attempts": 5}, {"retry_on_codes": ["TIMEOUT"]}, set()),
        ({"retry_on_codes": ["*"]}, None, set()),
        ({"retry_on_codes": ["A", "*"], "non_retryable_codes": ["B"]}, None, {"A", "B"}),
    ],
)
def test_only_the_task_itself_names_codes(own: Any, shared: Any, expected: set[str]) -> None:
    given = {} if own is None else {"retry_config": own}
    wide = {} if shared is None else {"global_retry_config": shared}
    assert task_plan("subprocess", {"command": "ls"}, shared=wide, **given).named_codes == expected


@pytest.mark.parametrize(
    ("given", "declared"), [({}, False), ({"effects": "once"}, True), ({"effects": "none"}, True)]
)
def test_effects_are_declared_by_the_author_alone(given: Any, declared: bool) -> None:
    assert task_plan("subprocess", {"command": "ls"}, **given).effects_declared is declared


def test_references_are_what_the_templates_use() -> None:
    schema = {"type": "object", "properties": {"x": {}, "y": {}}}
    shared = {"input_schema": schema}
    found = task_plan("custom", {"task_name": "n", "parameters": {"a": ["{x} and {len(y)}"]}}, shared=shared)
    assert (found.has_templates, found.references, found.whole_context) == (True, {"x", "y"}, False)
    whole = task_plan("custom", {"task_name": "n", "parameters": {"a": "{inputs}"}})
    assert whole.whole_context


def test_a_condition_knows_its_names() -> None:
    condition = {"expression": "x > limit and y", "variables": {"limit": 3}, "required_outputs": ["x"]}
    found = task_plan(
        condition=condition, shared={"input_schema": {"properties": {"x": {}, "y": {}}}}
    ).condition
    assert found is not None
    assert (found.names, found.required_outputs, found.variables) == ({"x", "y"}, ("x",), {"limit": 3})
    only_required = task_plan(condition={"required_outputs": ["x"]}).condition
    assert only_required is not None
    assert (only_required.expression, only_required.names) == ("", frozenset())


def test_the_graph_is_indexed_in_order() -> None:
    plan = plan_of(
        {"id": "c", "type": "custom", "parameters": {"task_name": "n"}, "depends_on": ["a", "b"]},
        {"id": "b", "type": "custom", "parameters": {"task_name": "n"}, "depends_on": ["a"]},
        {"id": "a", "type": "custom", "parameters": {"task_name": "n"}, "outputs": ["r"]},
        input_schema={"properties": {"i": {}}},
        output_schema={"properties": {"r": {}, "s": {}}},
    )
    assert list(plan.tasks) == ["a", "b", "c"]
    assert plan.tasks["a"].dependents == ("c", "b")
    assert plan.tasks["c"].depends_on == ("a", "b")
    assert plan.declared == {"i", "r"}
    assert plan.output_names == ("r", "s")


def test_a_reconcile_task_runs_on_call_only_and_limits_have_defaults() -> None:
    plan = plan_of(
        {
            "id": "a",
            "type": "custom",
            "parameters": {"task_name": "n"},
            "reconcile": "b",
            "heartbeat_seconds": 2,
        },
        {
            "id": "b",
            "type": "custom",
            "parameters": {"task_name": "n"},
            "effects": "read",
            "depends_on": ["a"],
        },
    )
    charge, look = plan.tasks["a"], plan.tasks["b"]
    assert (charge.reconcile, charge.is_on_call, charge.dependents) == ("b", False, ())
    assert (look.is_reconcile, look.is_fallback, look.is_on_call, look.depends_on) == (True, False, True, ())
    assert (charge.schedule_to_start_seconds, charge.heartbeat_seconds, charge.total_timeout_seconds) == (
        3600.0,
        2.0,
        0.0,
    )


def test_a_fallback_does_not_wait_for_the_task_it_stands_in_for() -> None:
    plan = plan_of(
        {
            "id": "a",
            "type": "custom",
            "parameters": {"task_name": "n"},
            "on_error": {"action": "fallback", "fallback": "b"},
        },
        {"id": "b", "type": "custom", "parameters": {"task_name": "n"}, "depends_on": ["a", "c"]},
        {"id": "c", "type": "custom", "parameters": {"task_name": "n"}},
    )
    assert plan.tasks["a"].on_error == OnError(action=RecoveryAction.FALLBACK, fallback="b")
    assert plan.tasks["a"].dependents == ()
    assert (plan.tasks["b"].depends_on, plan.tasks["b"].is_fallback) == (("c",), True)


def test_the_workflows_on_error_is_the_default_of_its_tasks() -> None:
    plan = plan_of(
        {"id": "a", "type": "custom", "parameters": {"task_name": "n"}},
        {"id": "b", "type": "custom", "parameters": {"task_name": "n"}, "on_error": {"action": "skip"}},
        {"id": "c", "type": "custom", "parameters": {"task_name": "n"}},
        on_error={"action": "auto", "fallback": "c"},
    )
    assert plan.tasks["a"].on_error == OnError(action="auto", fallback="c")
    assert plan.tasks["b"].on_error == OnError(action=RecoveryAction.SKIP)
    assert plan.tasks["c"].on_error == OnError()
    assert plan.tasks["c"].is_fallback


# --- stored content ------------------------------------------------------------------------------------------


def test_the_hash_does_not_depend_on_the_order_of_keys_or_the_format() -> None:
    one = parse_text(
        '{"id": "w", "name": "N", "tasks": [{"id": "a", "type": "custom", "parameters": {"task_name": "n"}}]}',
        "json",
    )
    two = parse_text("tasks: [{parameters: {task_name: n}, type: custom, id: a}]\nname: N\nid: w\n")
    other = parse_text("tasks: [{parameters: {task_name: m}, type: custom, id: a}]\nname: N\nid: w\n")
    hashes = [definition_hash(normalize(parsed.definition)) for parsed in (one, two, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 64
    assert compile_plan(one.definition).definition_hash == hashes[0]


def test_numbers_are_stored_in_one_form() -> None:
    texts = ("global_timeout_seconds: 60", "global_timeout_seconds: 60.0", "global_timeout_seconds: 6e1")
    contents = [
        normalize(
            parse_text(
                f"id: w\n{text}\ntasks: [{{id: a, type: custom, parameters: {{task_name: n}}}}]"
            ).definition
        )
        for text in texts
    ]
    assert [json.dumps(content["global_timeout_seconds"]) for content in contents] == ["60", "60", "60"]


def test_stored_content_that_is_no_definition_is_a_definition_error() -> None:
    with pytest.raises(DefinitionError) as raised:
        load_plan({"id": "w", "tasks": [{"id": "a", "nonsense": 1}]})
    assert raised.value.problems[0].path == "/tasks/0/nonsense"


def test_stored_content_that_this_release_does_not_understand_is_a_definition_error() -> None:
    task = {
        "id": "a",
        "type": "custom",
        "parameters": {"task_name": "n"},
        "condition": {"expression": "x :="},
    }
    with pytest.raises(DefinitionError) as raised:
        load_plan({"id": "w", "tasks": [task]})
    assert raised.value.problems[0].code == "stored-content"


ids = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,8}\Z")
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text("abc {}é", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def parsed_or_none(raw: dict[str, Any]) -> ParsedDefinition | None:
    """Return the definition; None for a DefinitionError. Anything else escapes and fails the test."""
    try:
        return parse_object(raw)
    except DefinitionError:
        return None


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    tasks = []
    for index, name in enumerate(names):
        task: dict[str, Any] = {
            "id": name,
            "type": "custom",
            "parameters": {"task_name": "n", "parameters": {"p": draw(json_values)}},
        }
        if index and draw(st.booleans()):
            task["depends_on"] = draw(st.lists(st.sampled_from(names[:index]), unique=True))
        if draw(st.booleans()):
            task["timeout_seconds"] = draw(st.integers(1, 99) | st.floats(0.5, 99))
        if draw(st.booleans()):
            task["retry_config"] = {"max_attempts": draw(st.integers(1, 9))}
        if draw(st.booleans()):
            task["metadata"] = {"m": draw(json_values)}
        tasks.append(task)
    return {"id": draw(ids), "version": "2", "tasks": draw(st.permutations(tasks))}


@given(definitions())
@settings(max_examples=150, deadline=None)
def test_normalized_content_is_stable_and_loads_to_the_same_plan(raw: dict[str, Any]) -> None:
    parsed = parsed_or_none(raw)
    if parsed is None:
        return
    content = normalize(parsed.definition)
    again = parse_object(content)
    assert normalize(again.definition) == content
    assert again.warnings == parsed.warnings
    stored = json.loads(json.dumps(content))
    plan = compile_plan(parsed.definition)
    assert load_plan(stored) == plan
    assert definition_hash(stored) == plan.definition_hash
    place = {task_id: index for index, task_id in enumerate(plan.tasks)}
    for task in plan.tasks.values():
        assert all(place[name] < place[task.id] for name in task.depends_on)
        assert all(task.id in plan.tasks[name].dependents for name in task.depends_on)
    as_text = parse_text(yaml.safe_dump(stored, allow_unicode=True), "yaml")
    assert normalize(as_text.definition) == content


@given(
    st.dictionaries(
        st.sampled_from(["id", "name", "tasks", "input_schema", "on_error", "version", "bad"]), json_values
    )
)
@settings(max_examples=200, deadline=None)
def test_any_object_gives_a_definition_or_a_definition_error(raw: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        parse_object(raw)


fields = st.sampled_from(
    [
        "id",
        "name",
        "type",
        "agent_id",
        "capability",
        "parameters",
        "depends_on",
        "condition",
        "timeout_seconds",
        "retry_config",
        "outputs",
        "effects",
        "on_error",
        "metadata",
    ]
)
field_values = json_values | st.sampled_from(
    ["a", "b", ["a"], {"action": "fallback", "fallback": "a"}, "custom"]
)


@given(st.lists(st.dictionaries(fields, field_values, max_size=6), min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_any_tasks_give_a_definition_or_a_definition_error(tasks: list[dict[str, Any]]) -> None:
    parsed = parsed_or_none({"id": "w", "tasks": tasks})
    if parsed is not None:
        compile_plan(parsed.definition)


def test_the_published_schema_is_a_schema_and_agrees_with_the_models() -> None:
    schema = definition_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    good = {"id": "w", "tasks": [{"id": "a", "type": "custom", "parameters": {"task_name": "n"}}]}
    assert list(validator.iter_errors(good)) == []
    for bad in (
        {"id": "w"},
        {**good, "x": 1},
        {**good, "id": "a b"},
        {"id": "w", "tasks": [{"id": "a", "type": "loop"}]},
    ):
        assert list(validator.iter_errors(bad))
    assert all("description" in field for field in schema["properties"].values())
