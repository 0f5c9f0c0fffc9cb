"""Whole workflows on a mesh of all six agents: what the parts do together."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from agents.task_executor import TaskExecutor
from agents.workflow_engine import WorkflowEngine
from amp.errors import AmpError
from orchestration import contracts
from tests.mesh import running_mesh

LIST = [{"id": 1, "status": "active"}, {"id": 2, "status": "old"}, {"id": 3, "status": "active"}]


def transform(
    task_id: str, expression: str, *depends_on: str, data: object = 0, **more: Any
) -> dict[str, Any]:
    return {
        "id": task_id,
        "type": "data_transform",
        "parameters": {
            "input_data": data,
            "transformations": [{"type": "custom", "config": {"expression": expression}}],
        },
        "outputs": [task_id],
        "depends_on": list(depends_on),
        **more,
    }


def workflow(*tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "flow", "name": "Flow", "tasks": list(tasks), **more}


async def test_data_flows_from_task_to_task(tmp_path: Path) -> None:
    definition = workflow(
        {
            "id": "select",
            "type": "data_transform",
            "parameters": {
                "input_data": "{rows}",
                "transformations": [
                    {"type": "filter", "config": {"condition": "item['status'] == 'active'"}}
                ],
            },
            "outputs": ["selected"],
        },
        transform("count", "len(data)", "select", data="{selected}"),
        input_schema={"type": "object", "properties": {"rows": {"type": "array"}}, "required": ["rows"]},
        output_schema={"type": "object", "properties": {"count": {"type": "integer"}}},
    )
    async with running_mesh(tmp_path) as mesh:
        document = await mesh.run(definition, {"rows": LIST})
    assert document.instance["status"] == "completed", document
    assert document.instance["outputs"] == {"count": 2}


@pytest.mark.parametrize(("amount", "expected"), [(5, "skipped"), (50, "completed")])
async def test_a_condition_decides_whether_a_task_runs(tmp_path: Path, amount: int, expected: str) -> None:
    definition = workflow(
        transform("double", "data * 2", data="{amount}"),
        transform("big", "data", "double", data="{double}", condition={"expression": "double > 20"}),
        transform("small", "data", "double", data="{double}", condition={"expression": "double <= 20"}),
        transform("end", "data", "big", "small"),
        input_schema={"type": "object", "properties": {"amount": {"type": "integer"}}},
    )
    async with running_mesh(tmp_path) as mesh:
        document = await mesh.run(definition, {"amount": amount})
    assert document.instance["status"] == "completed"
    assert document.tasks["big"]["status"] == expected
    assert document.tasks["end"]["status"] == "completed"


async def test_a_failed_task_asks_the_error_handler_and_fails_the_instance(tmp_path: Path) -> None:
    definition = workflow(
        transform("broken", "1 / 0"), transform("after", "1", "broken"), transform("beside", "2")
    )
    async with running_mesh(tmp_path) as mesh:
        instance_id = await mesh.start(await mesh.define(definition))
        document = await mesh.until(instance_id)
        log = await mesh.client.request(
            contracts.LOG_READ.id,
            contracts.LogReadRequest(instance_id=instance_id),
            reply_type=contracts.LogReadReply,
        )
    assert document.instance["status"] == "failed"
    assert document.instance["failed_task"] == "broken"
    assert {task: facts["status"] for task, facts in document.tasks.items()} == {
        "broken": "failed",
        "after": "skipped",
        "beside": "completed",
    }
    handled = [record for record in log.events if record.type == "error.handled"]
    assert len(handled) == 1
    assert b'"decided_by":"workflow-engine"' not in bytes(handled[0].data)


async def test_a_log_line_about_a_task_says_which_task_of_which_instance(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.define(workflow(transform("broken", "1 / 0")))
        with capture_logs(processors=[merge_contextvars]) as lines:
            instance_id = await mesh.start("flow")
            await mesh.until(instance_id)
    (line,) = [line for line in lines if line["event"] == "task_failed"]
    assert (line["instance_id"], line["task_id"], line["attempt"]) == (instance_id, "broken", 1)
    assert line["correlation_id"] == f"{instance_id}/broken/1"


async def test_on_error_skip_lets_the_workflow_complete(tmp_path: Path) -> None:
    definition = workflow(
        transform("broken", "1 / 0", on_error={"action": "skip"}),
        transform("fine", "1"),
        transform("end", "3", "broken", "fine"),
    )
    async with running_mesh(tmp_path) as mesh:
        document = await mesh.run(definition)
    assert document.instance["status"] == "completed"
    assert document.tasks["broken"]["status"] == "skipped"
    assert document.tasks["end"]["outputs"] == {"end": 3}


async def test_on_error_fallback_stands_in(tmp_path: Path) -> None:
    definition = workflow(
        {
            **transform("main", "1 / 0", on_error={"action": "fallback", "fallback": "spare"}),
            "outputs": ["price"],
        },
        {**transform("spare", "42"), "outputs": ["price"]},
        transform("end", "data + 1", "main", data="{price}"),
    )
    async with running_mesh(tmp_path) as mesh:
        document = await mesh.run(definition)
    assert document.instance["status"] == "completed", document
    assert document.tasks["end"]["outputs"] == {"end": 43}


async def test_without_an_error_handler_the_engine_decides_by_the_same_rules(tmp_path: Path) -> None:
    async with running_mesh(
        tmp_path, workflow_engine={"load_workflows_on_start": False, "question_timeout_seconds": 0.2}
    ) as mesh:
        handler = next(agent for agent in mesh.agents if agent.section_name == "error_handler")
        await handler.stop()
        document = await mesh.run(workflow(transform("broken", "1 / 0")))
    assert document.instance["status"] == "failed"


async def test_pause_resume_and_stop(tmp_path: Path) -> None:
    waiting = {"id": "wait", "type": "custom", "capability": "held", "outputs": ["held"], "effects": "none"}
    async with running_mesh(tmp_path) as mesh:
        instance_id = await mesh.start(await mesh.define(workflow(waiting, transform("end", "1", "wait"))))
        for order, expected in (
            (contracts.WORKFLOW_PAUSE, "paused"),
            (contracts.WORKFLOW_RESUME, "running"),
            (contracts.WORKFLOW_STOP, "cancelled"),
        ):
            reply = await mesh.client.request(
                order.id,
                contracts.WorkflowControlRequest(instance_id=instance_id, reason="test"),
                reply_type=contracts.WorkflowControlled,
            )
            assert reply.status == expected
        with pytest.raises(AmpError, match="cannot change any more") as refused:
            await mesh.client.request(
                contracts.WORKFLOW_PAUSE.id, contracts.WorkflowControlRequest(instance_id=instance_id)
            )
    assert refused.value.code == "ILLEGAL_STATE"
    assert refused.value.details["current_state"] == "cancelled"


async def test_the_same_instance_id_starts_once(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.define(workflow(transform("a", "1")))
        names = await asyncio.gather(*(mesh.start("flow", instance_id="order-7") for _ in range(20)))
        document = await mesh.until("order-7")
        listed = await mesh.client.request(
            contracts.INSTANCE_LIST.id,
            contracts.InstanceListRequest(),
            reply_type=contracts.InstanceListReply,
        )
    assert set(names) == {"order-7"}
    assert document.instance["status"] == "completed"
    assert [row.instance_id for row in listed.rows] == ["order-7"]


async def test_instances_beyond_the_limit_wait_for_a_slot_and_all_end(tmp_path: Path) -> None:
    async with running_mesh(
        tmp_path, workflow_engine={"load_workflows_on_start": False, "max_concurrent_workflows": 2}
    ) as mesh:
        await mesh.define(workflow(transform("a", "1"), transform("b", "2", "a")))
        names = await asyncio.gather(*(mesh.start("flow") for _ in range(30)))
        documents = await asyncio.gather(*(mesh.until(name) for name in names))
    assert {document.instance["status"] for document in documents} == {"completed"}


async def test_what_an_engine_leaves_behind_another_finishes(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.define(
            workflow(
                transform("a", "1"),
                {"id": "wait", "capability": "held", "depends_on": ["a"], "effects": "none"},
            )
        )
        first = next(agent for agent in mesh.agents if isinstance(agent, WorkflowEngine))
        second = await mesh.add(WorkflowEngine)
        instance_id = await mesh.start("flow")
        owner, other = (first, second) if instance_id in first._drivers else (second, first)
        await owner.stop()
        await mesh.add(_Held)
        document = await mesh.until(instance_id)
    assert document.instance["status"] == "completed"
    assert other.owner != owner.owner


async def test_two_executors_share_the_work_and_a_lost_one_is_replaced(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        second = await mesh.add(TaskExecutor)
        assert second.agent_id == "task-executor-2"
        await mesh.define(workflow(*(transform(f"t{index}", "1") for index in range(40))))
        names = await asyncio.gather(*(mesh.start("flow") for _ in range(5)))
        documents = [await mesh.until(name) for name in names]
        log = await mesh.client.request(
            contracts.LOG_READ.id,
            contracts.LogReadRequest(types=["task.completed"], limit=1000),
            reply_type=contracts.LogReadReply,
        )
    assert {document.instance["status"] for document in documents} == {"completed"}
    workers = {
        agent
        for agent in ("task-executor-1", "task-executor-2")
        if any(f'"{agent}"'.encode() in bytes(r.data) for r in log.events)
    }
    assert workers == {"task-executor-1", "task-executor-2"}


async def test_everything_is_still_there_after_a_restart(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        document = await mesh.run(workflow(transform("a", "1")))
        instance_id = document.instance["id"]
    async with running_mesh(tmp_path) as mesh:
        again = await mesh.status(instance_id)
    assert again.instance == document.instance
    assert again.tasks == document.tasks


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        ({"id": "x", "tasks": []}, "INVALID_WORKFLOW_DEFINITION"),
        (workflow(transform("a", "1", "b"), transform("b", "1", "a")), "CIRCULAR_DEPENDENCY"),
        (workflow(transform("a", "1", "nowhere")), "INVALID_WORKFLOW_DEFINITION"),
        (workflow(transform("a", "__import__('os')")), "INVALID_WORKFLOW_DEFINITION"),
    ],
)
async def test_a_bad_definition_is_refused_and_not_stored(
    tmp_path: Path, definition: dict[str, Any], code: str
) -> None:
    async with running_mesh(tmp_path) as mesh:
        with pytest.raises(AmpError) as refused:
            await mesh.define(definition)
        listed = await mesh.client.request(contracts.WORKFLOW_LIST.id, {}, reply_type=contracts.WorkflowList)
    assert refused.value.code == code
    assert refused.value.details["problems"]
    assert listed.workflows == {}


async def test_a_start_uses_the_definition_that_was_stored_last(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        for value in (1, 1, 2, 1):
            document = await mesh.run(
                workflow(
                    transform("a", str(value)),
                    output_schema={"type": "object", "properties": {"a": {"type": "integer"}}},
                )
            )
            assert document.instance["outputs"] == {"a": value}


async def test_a_conditional_task_sees_the_names_its_expression_uses(tmp_path: Path) -> None:
    definition = workflow(
        transform("doubled", "data * 2", data=4),
        {
            "id": "decide",
            "type": "conditional",
            "parameters": {"expression": "doubled > 5"},
            "outputs": ["large"],
            "depends_on": ["doubled"],
        },
        output_schema={"type": "object", "properties": {"large": {"type": "boolean"}}},
    )
    async with running_mesh(tmp_path) as mesh:
        document = await mesh.run(definition)
    assert document.instance["outputs"] == {"large": True}


async def test_bad_inputs_are_refused_and_no_instance_exists(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with running_mesh(tmp_path) as mesh:
        await mesh.define(workflow(transform("a", "1"), input_schema=schema))
        with pytest.raises(AmpError) as refused:
            await mesh.start("flow", {"n": "text"})
        listed = await mesh.client.request(
            contracts.INSTANCE_LIST.id,
            contracts.InstanceListRequest(),
            reply_type=contracts.InstanceListReply,
        )
    assert refused.value.code == "INVALID_INPUT"
    assert refused.value.details["problems"][0]["path"] == "/n"
    assert listed.rows == []


class _Held(TaskExecutor):
    """An agent that offers the capability `held`, which other tests leave without one."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{**named, "agent_id": "holder"})

    def offers(self) -> list[Any]:
        from amp.capability import Capability, Offer

        async def held(request: Any) -> dict[str, Any]:
            return {"held": True}

        return [Offer(capability=Capability(id="held"), handler=held)]
