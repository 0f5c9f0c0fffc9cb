"""The shipped workflows and those of the README: accepted without a warning, and running to the promised end."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from jsonschema import Draft202012Validator

from examples.services import BATCHES, CUSTOMERS, NOTIFICATIONS, make_app
from orchestration.definition.compile import compile_plan, normalize
from orchestration.definition.errors import InputError
from orchestration.definition.inputs import prepare_inputs
from orchestration.definition.models import ConditionConfig, RetryConfig, TaskDefinition, WorkflowDefinition
from orchestration.definition.parse import format_of, parse_object, parse_text
from orchestration.definition.plan import Plan
from orchestration.definition.published import definition_schema
from orchestration.definition.tasks import CAPABILITY_BY_TYPE
from tests.mesh import running_mesh

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path for path in (ROOT / "workflows").iterdir() if path.suffix in (".yaml", ".yml", ".json"))
SIMPLE = ROOT / "workflows/simple_example.yaml"
PIPELINE = ROOT / "workflows/data_pipeline.json"


def plan_of(path: Path) -> Plan:
    return compile_plan(parse_text(path.read_text("utf-8"), format_of(path.name), path.name).definition)


def content_of(path: Path) -> dict[str, Any]:
    return normalize(parse_text(path.read_text("utf-8"), format_of(path.name), path.name).definition)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_workflows_have_no_problem_and_no_warning(path: Path) -> None:
    parsed = parse_text(path.read_text("utf-8"), format_of(path.name), path.name)
    assert parsed.warnings == []
    plan = compile_plan(parsed.definition)
    assert prepare_inputs(plan.input_schema, {}) is not None
    assert list(Draft202012Validator(definition_schema()).iter_errors(normalize(parsed.definition))) == []


def test_both_examples_are_shipped() -> None:
    assert {SIMPLE, PIPELINE} <= set(SHIPPED)
    assert (plan_of(SIMPLE).workflow_id, plan_of(PIPELINE).workflow_id) == (
        "hello-world-workflow",
        "data-pipeline",
    )


BASIC_STRUCTURE = """
id: "my-workflow"
name: "My Workflow"
version: "1.0"
description: "Example workflow description"
tags: ["example", "tutorial"]
global_timeout_seconds: 3600
global_retry_config:
  strategy: "exponential_backoff"
  max_attempts: 3
  initial_delay_seconds: 2.0
input_schema:
  type: object
  properties:
    user_id: { type: string }
    amount: { type: number }
  required: ["user_id"]
output_schema:
  type: object
  properties:
    result: { type: string }
    processed_at: { type: string }
tasks:
  - id: "validate_input"
    name: "Validate Input Data"
    type: "validation"
    agent_id: "task-executor-1"
    capability: "task-validation"
    parameters:
      data: "{user_input}"
      rules:
        - type: "required"
          field: "user_id"
        - type: "range"
          field: "amount"
          config: { min: 0, max: 10000 }
    timeout_seconds: 60
    outputs: ["validation_result"]
    depends_on: []
  - id: "process_data"
    name: "Process Data"
    type: "api_call"
    agent_id: "task-executor-1"
    capability: "task-api-call"
    parameters:
      method: "POST"
      url: "https://api.example.com/process"
      data: "{validated_data}"
    depends_on: ["validate_input"]
    condition:
      expression: "validation_result.valid == True"
      required_outputs: ["validation_result"]
"""

TASKS_OF_THE_README = """
id: tasks
tasks:
  - id: "api_call_example"
    type: "api_call"
    parameters:
      method: "POST"
      url: "https://api.service.com/endpoint"
      headers:
        Authorization: "Bearer {api_token}"
      data:
        field1: "{input_value}"
      timeout: 30
      retry_count: 3
  - id: "transform_data"
    type: "data_transform"
    parameters:
      input_data: "{raw_data}"
      transformations:
        - type: "filter"
          config:
            condition: "item['status'] == 'active'"
        - type: "map"
          config:
            expression: "{'id': item['id'], 'name': item['name'].upper()}"
        - type: "sort"
          config:
            key: "name"
  - id: "conditional_logic"
    type: "conditional"
    agent_id: "condition-evaluator"
    capability: "condition-evaluate"
    parameters:
      expression: "amount > 1000 and user.verified == True"
      context: "{workflow_context}"
      condition_type: "python"
  - id: "parallel_processing"
    type: "parallel"
    parameters:
      task_type: "api_call"
      task_config:
        parallel_requests:
          - name: "service_a"
            url: "https://service-a.com/api"
          - name: "service_b"
            url: "https://service-b.com/api"
"""


@pytest.mark.parametrize("text", [BASIC_STRUCTURE, TASKS_OF_THE_README], ids=["structure", "tasks"])
def test_the_definitions_of_the_readme_are_accepted_in_yaml_and_json(text: str) -> None:
    from_yaml = parse_text(text, "yaml")
    from_json = parse_text(json.dumps(yaml.safe_load(text)), "json")
    assert normalize(from_yaml.definition) == normalize(from_json.definition)
    assert {problem.code for problem in from_yaml.warnings} <= {"undeclared-name"}
    assert compile_plan(from_yaml.definition).tasks


def test_the_example_of_a_condition_waits_for_its_output() -> None:
    plan = compile_plan(parse_text(BASIC_STRUCTURE).definition)
    condition = plan.tasks["process_data"].condition
    assert condition is not None
    assert (condition.names, condition.required_outputs) == ({"validation_result"}, ("validation_result",))
    assert plan.tasks["process_data"].agent_id == "task-executor-1"


def test_a_start_in_an_unknown_language_is_refused() -> None:
    schema = plan_of(SIMPLE).input_schema
    assert prepare_inputs(schema, {}) == {"name": "World", "language": "en"}
    with pytest.raises(InputError) as raised:
        prepare_inputs(schema, {"name": "", "language": "xx"})
    assert sorted(problem.path for problem in raised.value.problems) == ["/language", "/name"]


async def test_hello_world_greets_in_every_language(tmp_path: Path) -> None:
    expected = {
        "en": "Hello, Ada!",
        "es": "Hola, Ada!",
        "fr": "Bonjour, Ada!",
        "de": "Hallo, Ada!",
        "it": "Ciao, Ada!",
        "pt": "Olá, Ada!",
        "ja": "こんにちは, Ada!",
    }
    async with running_mesh(tmp_path) as mesh:
        workflow_id = await mesh.define(content_of(SIMPLE))
        for language, greeting in expected.items():
            inputs = {"name": " Ada ", "language": language}
            document = await mesh.until(await mesh.start(workflow_id, inputs))
            assert document.instance["status"] == "completed", document
            assert document.instance["outputs"] == {"greeting": greeting, "language": language}
        document = await mesh.until(await mesh.start(workflow_id))
        assert document.instance["outputs"]["greeting"] == "Hello, World!"
        blank = await mesh.until(await mesh.start(workflow_id, {"name": "   "}))
        assert {task_id: task["status"] for task_id, task in blank.tasks.items()} == {
            "validate_input": "completed",
            "transform_data": "skipped",
            "generate_output": "skipped",
        }


@asynccontextmanager
async def running_services() -> AsyncIterator[tuple[str, web.Application]]:
    """Run the example services on a free port; yield their address and the application."""
    app = make_app()
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", app
    finally:
        await runner.cleanup()


async def test_the_data_pipeline_delivers_to_files_and_warehouse(tmp_path: Path) -> None:
    local = {"task_executor": {"http": {"allowed_networks": ["127.0.0.0/8"]}}}
    async with running_services() as (address, app), running_mesh(tmp_path, **local) as mesh:
        workflow_id = await mesh.define(content_of(PIPELINE))
        instance_id = await mesh.start(workflow_id, {"base_url": address})
        document = await mesh.until(instance_id)
        assert document.instance["status"] == "completed", document
        outputs = document.instance["outputs"]
        assert outputs["quality_report"] == {
            "received": len(CUSTOMERS),
            "invalid": 2,
            "duplicates": 2,
            "delivered": 11,
            "complete": 10,
            "score": 0.667,
        }
        assert (outputs["quality_passed"], outputs["loaded"]) == (True, 11)
        assert document.tasks["quarantine"]["status"] == "skipped"
        assert document.tasks["notify"]["status"] == "completed"
        assert app[BATCHES] == {instance_id: 11}
        assert app[NOTIFICATIONS][0]["text"] == f"11 of {len(CUSTOMERS)} customers, quality 0.667"
        files = tmp_path / "data" / mesh.settings.task_executor.files.root / "data_pipeline" / instance_id
        customers = json.loads((files / "customers.json").read_text("utf-8"))
        assert len(customers) == 11
        assert {customer["segment"] for customer in customers} == {"gold", "standard", "unknown"}
        assert json.loads((files / "quality_report.json").read_text("utf-8")) == outputs["quality_report"]
        names = [Path(path).name for path in outputs["written_files"]]
        assert names == ["customers.json", "quality_report.json"]


async def test_the_data_pipeline_puts_poor_data_aside(tmp_path: Path) -> None:
    local = {"task_executor": {"http": {"allowed_networks": ["127.0.0.0/8"]}}}
    async with running_services() as (address, app), running_mesh(tmp_path, **local) as mesh:
        workflow_id = await mesh.define(content_of(PIPELINE))
        instance_id = await mesh.start(workflow_id, {"base_url": address, "minimum_quality": 0.9})
        document = await mesh.until(instance_id)
        assert document.instance["status"] == "completed", document
        assert document.instance["outputs"]["quality_passed"] is False
        statuses = {task_id: task["status"] for task_id, task in document.tasks.items()}
        assert (statuses["write_files"], statuses["load_warehouse"]) == ("skipped", "skipped")
        assert (statuses["quarantine"], statuses["notify"]) == ("completed", "completed")
        assert app[BATCHES] == {}


def test_a_definition_may_come_as_an_object() -> None:
    assert parse_object(content_of(SIMPLE)).warnings == []


def _documented() -> list[str]:
    text = (ROOT / "docs/workflow-definition.md").read_text("utf-8")
    return re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", _documented(), ids=lambda text: text.partition("\n")[0])
def test_every_example_of_the_reference_is_accepted_without_a_warning(text: str) -> None:
    parsed = parse_text(text)
    assert parsed.warnings == []
    assert compile_plan(parsed.definition).tasks


def test_the_reference_lists_every_field() -> None:
    text = (ROOT / "docs/workflow-definition.md").read_text("utf-8")
    for model in (WorkflowDefinition, TaskDefinition, RetryConfig, ConditionConfig):
        assert [name for name in model.model_fields if f"| `{name}` |" not in text] == []
    assert [name for name in CAPABILITY_BY_TYPE if f"`{name}`" not in text] == []


def test_the_reference_lists_every_code() -> None:
    text = (ROOT / "docs/workflow-definition.md").read_text("utf-8")
    sources = [path.read_text("utf-8") for path in (ROOT / "orchestration/definition").glob("*.py")]
    codes = {
        code
        for source in sources
        for code in re.findall(r"(?:\(\s*|code=|return )\"([a-z0-9]+(?:-[a-z0-9]+)+)\",", source)
    }
    internal = {"schema-budget", "stored-content", "utf-8"}
    assert len(codes) > 30
    assert [code for code in sorted(codes - internal) if f"`{code}`" not in text] == []
