"""The error handler, the monitor and the condition evaluator beside a real engine and a real log."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.error_handler import ErrorHandler
from agents.workflow_engine import WorkflowEngine
from orchestration import contracts
from tests.agent_bench import until
from tests.mesh import ALL_AGENTS, Mesh, running_mesh

QUICK: dict[str, Any] = {
    "error_handler": {"retry_delay_seconds": 0.01, "max_retry_attempts": 2},
    "workflow_engine": {"load_workflows_on_start": False, "question_timeout_seconds": 2},
}
NO_RETRY = {"strategy": "none", "max_attempts": 1}


def failing(**on_error: Any) -> dict[str, Any]:
    """Return a workflow whose first task fails for good, and a task after it."""
    first: dict[str, Any] = {
        "id": "first",
        "type": "data_transform",
        "parameters": {
            "input_data": [1],
            "transformations": [{"type": "map", "config": {"expression": "item / 0"}}],
        },
        "outputs": ["value"],
        "retry_config": NO_RETRY,
    }
    if on_error:
        first["on_error"] = on_error
    spare = transform("spare", "'spare'")
    after = transform("after", "1", depends_on=["first"])
    tasks = [first, after, *([spare] if on_error.get("fallback") else [])]
    return {"id": "failing", "name": "Failing", "tasks": tasks}


def transform(task_id: str, expression: str, **more: Any) -> dict[str, Any]:
    steps = [{"type": "custom", "config": {"expression": expression}}]
    parameters = {"input_data": 0, "transformations": steps}
    return {
        "id": task_id,
        "type": "data_transform",
        "parameters": parameters,
        "outputs": [f"{task_id}_out"],
        **more,
    }


async def events_of(mesh: Mesh, instance_id: str, kind: str) -> list[dict[str, Any]]:
    reply = await mesh.client.request(
        contracts.LOG_READ.id,
        contracts.LogReadRequest(instance_id=instance_id, types=[kind]),
        reply_type=contracts.LogReadReply,
    )
    return [msgspec.json.decode(record.data) for record in reply.events]


@pytest.mark.parametrize(
    ("on_error", "action", "status", "first"),
    [
        ({}, "abort", "failed", "failed"),
        ({"action": "skip"}, "skip", "completed", "skipped"),
        ({"action": "fallback", "fallback": "spare"}, "fallback", "completed", "completed"),
        ({"action": "abort"}, "abort", "failed", "failed"),
    ],
)
async def test_engine_really_asks_and_obeys(
    tmp_path: Path, on_error: dict[str, Any], action: str, status: str, first: str
) -> None:
    async with running_mesh(tmp_path, **QUICK) as mesh:
        document = await mesh.run(failing(**on_error))
        assert document.instance["status"] == status
        assert document.tasks["first"]["status"] == first
        [handled] = await events_of(mesh, document.instance["id"], "error.handled")
        assert handled["action"] == action
        assert handled.get("decided_by", "error-handler") == "error-handler"
        assert handled["error_id"].startswith("err_")


async def test_pause_holds_the_instance_until_somebody_resumes(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, **QUICK) as mesh:
        name = await mesh.start(await mesh.define(failing(action="pause")))
        await mesh.until(name, "paused")
        await mesh.client.request(contracts.WORKFLOW_STOP.id, {"instance_id": name})
        assert (await mesh.until(name)).instance["status"] == "cancelled"


async def test_engine_decides_alone_while_there_is_no_error_handler(tmp_path: Path) -> None:
    others = tuple(each for each in ALL_AGENTS if each is not ErrorHandler)
    quick = {"workflow_engine": {"load_workflows_on_start": False, "question_timeout_seconds": 0.2}}
    async with running_mesh(tmp_path, agents=others, **quick) as mesh:
        document = await mesh.run(failing(action="skip"))
        assert document.instance["status"] == "completed"
        [handled] = await events_of(mesh, document.instance["id"], "error.handled")
        assert (handled["action"], handled["decided_by"]) == ("skip", "workflow-engine")


async def test_conditions_and_decisions_are_tasks(tmp_path: Path) -> None:
    tree = {"condition": "amount > 10", "true_branch": "large", "false_branch": "small"}
    definition = {
        "id": "deciding",
        "name": "Deciding",
        "input_schema": {"type": "object", "properties": {"amount": {"type": "number"}}},
        "tasks": [
            {
                "id": "check",
                "type": "conditional",
                "capability": "condition-evaluate",
                "parameters": {"expression": "amount > 5", "context": "{workflow_context}"},
                "outputs": ["large_enough"],
            },
            {
                "id": "size",
                "type": "decision",
                "capability": "decision-tree",
                "parameters": {"tree": tree, "context": {"amount": "{amount}"}},
                "outputs": ["size"],
                "depends_on": ["check"],
                "condition": {"expression": "large_enough == True"},
            },
        ],
        "output_schema": {"type": "object", "properties": {"size": {"type": "string"}}},
    }
    async with running_mesh(tmp_path, **QUICK) as mesh:
        name = await mesh.define(definition)
        large = await mesh.until(await mesh.start(name, {"amount": 20}))
        assert large.instance["outputs"] == {"size": "large"}
        small = await mesh.until(await mesh.start(name, {"amount": 1}))
        assert small.tasks["size"]["status"] == "skipped"


async def test_monitor_counts_what_the_log_says(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, **QUICK) as mesh:
        good = await mesh.define({"id": "good", "name": "Good", "tasks": [transform("only", "1")]})
        bad = await mesh.define(failing())
        ids = [await mesh.start(name) for name in (good, good, bad, good)]
        for each in ids:
            await mesh.until(each)
        reply = await mesh.client.request(
            contracts.LOG_READ.id, contracts.LogReadRequest(limit=1000), reply_type=contracts.LogReadReply
        )
        counted = Counter(record.type for record in reply.events)
        monitor = next(agent for agent in mesh.agents if agent.section_name == "monitor_agent")
        await until(lambda: monitor.health()["log_offset"] >= reply.next)
        metrics = (await mesh.client.request("metrics-get", {"metric_type": "workflow"}))["metrics"]
        for field, kind in (
            ("started_executions", "workflow.started"),
            ("successful_executions", "workflow.completed"),
            ("failed_executions", "workflow.failed"),
        ):
            assert sum(each[field] for each in metrics.values()) == counted[kind]
        tasks = (await mesh.client.request("metrics-get", {"metric_type": "task"}))["metrics"]
        assert sum(each["attempts"] for each in tasks.values()) == counted["task.started"]
        alerts = (await mesh.client.request("alert-list", {}))["alerts"]
        assert "workflow_failure" in [alert["type"] for alert in alerts]
        health = await mesh.client.request("health-check", {})
        assert (health["status"], health.get("missing_roles", [])) == ("healthy", [])


async def test_operator_retries_and_skips_through_the_error_handler(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, **QUICK) as mesh:
        name = await mesh.start(await mesh.define(failing(action="pause")))
        await mesh.until(name, "paused")
        about = {"workflow_instance_id": name, "task_id": "first"}
        order = {"recovery_action": "skip", "error_context": about}
        reply = await mesh.client.request("error-recover", order)
        assert (reply["success"], reply["result"]["action"]) == (True, "skipped")
        document = await mesh.until(name)
        assert document.instance["status"] == "completed"
        again = await mesh.client.request("error-recover", order)
        assert (again["success"], again["next_action"]) == (False, "escalate")


async def test_lost_engine_is_noticed_by_the_monitor(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, **QUICK) as mesh:
        engine = next(agent for agent in mesh.agents if isinstance(agent, WorkflowEngine))
        await engine.stop()
        health = await mesh.client.request("health-check", {})
        assert (health["status"], health["missing_roles"]) == ("unhealthy", ["workflow-engine"])
        monitor = next(agent for agent in mesh.agents if agent.section_name == "monitor_agent")
        await until(lambda: monitor.roster.agents["workflow-engine"].status == "left")
