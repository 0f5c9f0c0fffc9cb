"""The task executor on a real mesh in memory: attempts by token, cancellation, timeouts, results for absent engines."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import pytest

from agents.task_executor import TaskExecutor
from agents.task_executor.agent import OVERCOMMIT
from agents.task_executor.attempts import Attempts, Run, attempt_of
from agents.task_executor.places import files_root, own_ports
from amp.capability import Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError, InvalidParameters
from amp.router import Router
from amp.transports.memory import MemoryNetwork
from orchestration import contracts
from orchestration.status import Effects
from runtime.errors import RuntimeFault
from runtime.settings import FileSettings, Settings, SettingsError, SpoolSettings, TaskExecutorSettings

HANDLERS = """
import asyncio, threading, time
calls = []
gate = asyncio.Event()
release = threading.Event()

async def wait(params, context):
    calls.append(params)
    await gate.wait()
    return {"calls": len(calls), "instance": context.get("workflow_instance_id")}

def blocking(params, context):
    calls.append(params)
    release.wait(10)
    return context["cancelled"]()

async def tell(params, context):
    await context["progress"]({"percent": 50})
    await context["progress"]({"percent": 60})
    return "told"

async def wait_and_tell(params, context):
    calls.append(params)
    await gate.wait()
    await context["progress"]({"percent": 50})
    return "told"

def broken(params, context):
    raise KeyError("no such order")

def big(params, context):
    return "x" * params["size"]

def odd(params, context):
    return object()

def count(params, context):
    calls.append(params)
    return len(calls)

HANDLERS = {
    each.__name__: each for each in (wait, blocking, tell, wait_and_tell, broken, big, odd, count)
}
TRANSFORMS = {"twice": lambda data, config, context: data * config.get("times", 2)}
"""


class Mesh:
    """A router, an executor and clients that play the engine and the state manager."""

    def __init__(self, folder: Path, **section: Any) -> None:
        (folder / "handlers.py").write_text(HANDLERS)
        self.network = MemoryNetwork()
        self.router = Router()
        self.settings = Settings(
            data_dir=str(folder / "data"),
            task_executor=TaskExecutorSettings(custom_handlers_path=str(folder / "handlers.py"), **section),
        )
        self.executor = TaskExecutor(self.settings, transport=self.network.transport(), serve_http=False)
        self.inbox: list[contracts.InboxPutRequest] = []
        self.clients: list[MeshClient] = []

    @property
    def module(self) -> Any:
        import sys

        return sys.modules["amp_custom_handlers"]

    async def client(self, agent_id: str, *offers: Offer) -> MeshClient:
        client = MeshClient(
            AgentIdentity(id=agent_id), self.network.transport(), offers=offers, random=Random(7)
        )
        await client.start(wait_seconds=5)
        self.clients.append(client)
        return client

    async def _put(self, incoming: Incoming) -> contracts.InboxPutReply:
        self.inbox.append(incoming.parameters)
        return contracts.InboxPutReply(inbox_id=len(self.inbox), found=True, open=True)

    def router_gone(self) -> None:
        """Break every connection and let nobody in again."""
        self.network.serve(None)
        self.network.cut()

    async def __aenter__(self) -> "Mesh":
        self.router.serve_memory(self.network)
        await self.executor.start(wait_seconds=5)
        put = self.executor.offer(contracts.INBOX_PUT, self._put)
        await self.client("state-manager", put)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.executor.stop()
        for client in self.clients:
            await client.stop(drain_seconds=0)
        await self.router.stop()


@asynccontextmanager
async def running(folder: Path, **section: Any) -> AsyncIterator[Mesh]:
    async with asyncio.timeout(30), Mesh(folder, **section) as mesh:
        yield mesh


def attempt(token: str = "t1", **more: Any) -> contracts.Attempt:
    values: dict[str, Any] = {
        "token": token,
        "engine_id": "engine",
        "workflow_id": "w",
        "workflow_instance_id": "ins_1",
        "task_id": "task",
        "attempt": 1,
        "timeout_seconds": 20.0,
        "idempotency_key": f"key-{token}",
    }
    return contracts.Attempt(**{**values, **more})


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


CUSTOM = contracts.TASK_CUSTOM.id


async def test_attempt_fills_templates_and_answers_result_outputs_primary_metadata(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        result = await engine.request(
            contracts.TASK_DATA_TRANSFORM.id,
            {
                "input_data": "{rows}",
                "transformations": [
                    {"type": "filter", "config": {"condition": "item['n'] > least"}},
                    {"type": "map", "config": {"expression": "{'n': item.n, 'who': '{x}'}"}},
                ],
            },
            context=attempt(variables={"rows": [{"n": 1}, {"n": 2}], "least": 1}),
            reply_type=contracts.TaskResult,
        )
    assert result.primary == [{"n": 2, "who": "{x}"}]
    assert result.outputs == {"data": result.primary, "transformation_count": 2}
    assert result.result["transformed_data"] == result.primary
    assert [step["result_size"] for step in result.result["applied_transformations"]] == [1, 1]
    assert result.metadata["task_id"] == "task"
    assert result.metadata["task_type"] == "data_transform"
    assert result.metadata["executor_id"] == "task-executor-1"
    assert result.metadata["timestamp"].endswith("+00:00")
    assert result.metadata["execution_time"] >= 0


async def test_stranger_gets_the_plain_reply_and_templates_are_left_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        stranger = await mesh.client("stranger")
        reply = await stranger.request(
            contracts.TASK_DATA_TRANSFORM.id, {"input_data": ["{name}"], "transformations": []}
        )
        foreign = await stranger.request(
            contracts.TASK_DATA_TRANSFORM.id,
            {"input_data": 5, "transformations": []},
            context={"id": "ctx", "session_id": "s", "shared_memory": {}},
        )
    assert reply["transformed_data"] == ["{name}"]
    assert set(reply) == {"transformed_data", "applied_transformations", "execution_time"}
    assert foreign["transformed_data"] == 5


async def test_task_execute_unwraps_every_type(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        stranger = await engine.request(
            "task-execute",
            {
                "task_type": "data_transform",
                "task_config": {
                    "input_data": [1, 2],
                    "transformations": [{"type": "map", "config": {"expression": "item + offset"}}],
                },
                "workflow_context": {"offset": 10},
                "task_id": "mine",
            },
            reply_type=contracts.TaskResult,
        )
        assert stranger.result["transformed_data"] == [11, 12]
        assert stranger.metadata["task_id"] == "mine"
        filled = await engine.request(
            "task-execute",
            {"task_type": "{kind}", "task_config": {"task_name": "count", "parameters": {"a": "{x}"}}},
            context=attempt(variables={"x": [1], "kind": "custom"}),
            reply_type=contracts.TaskResult,
        )
        assert filled.outputs == {"result": 1}
        assert mesh.module.calls == [{"a": [1]}]
        with pytest.raises(AmpError, match="did you mean 'api_call'") as caught:
            await engine.request("task-execute", {"task_type": "api_cal", "task_config": {}})
        assert caught.value.code == "INVALID_INPUT"


async def test_duplicate_dispatch_attaches_and_never_runs_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")

        async def dispatch() -> Any:
            return await engine.request(CUSTOM, {"task_name": "wait"}, context=attempt())

        first = asyncio.ensure_future(dispatch())
        await until(lambda: bool(mesh.module.calls))
        second = asyncio.ensure_future(dispatch())
        await asyncio.sleep(0)
        mesh.module.gate.set()
        answers = [await first, await second, await dispatch()]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["outputs"] == {"calls": 1, "instance": "ins_1"}
    assert len(mesh.module.calls) == 1


async def test_duplicate_of_a_failed_attempt_gets_the_same_error(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        errors = []
        for _ in range(2):
            with pytest.raises(AmpError) as caught:
                await engine.request(CUSTOM, {"task_name": "broken"}, context=attempt())
            errors.append((caught.value.code, caught.value.message, caught.value.details))
    assert errors[0] == errors[1]
    assert errors[0][0] == "TASK_EXECUTION_FAILED"
    assert "raised KeyError: 'no such order'" in errors[0][1]


async def test_cancel_stops_the_work_and_later_dispatches_of_the_token(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        work = asyncio.ensure_future(engine.request(CUSTOM, {"task_name": "wait"}, context=attempt()))
        await until(lambda: bool(mesh.module.calls))
        assert await engine.request(contracts.TASK_CANCEL.id, {"token": "t1"}) == {"found": True}
        with pytest.raises(AmpError) as caught:
            await work
        assert (caught.value.code, caught.value.retryable) == ("TASK_CANCELLED", False)
        assert await engine.request(contracts.TASK_CANCEL.id, {"token": "t2"}) == {"found": False}
        with pytest.raises(AmpError, match="cancelled before it began"):
            await engine.request(CUSTOM, {"task_name": "count"}, context=attempt("t2"))
        assert len(mesh.module.calls) == 1
        assert mesh.executor.health()["running_attempts"] == 0


async def test_cancel_passes_while_every_slot_is_taken(tmp_path: Path) -> None:
    async with running(tmp_path, max_concurrent_tasks=1) as mesh:
        engine = await mesh.client("engine")
        first = asyncio.ensure_future(engine.request(CUSTOM, {"task_name": "wait"}, context=attempt("a")))
        await until(lambda: bool(mesh.module.calls))
        second = asyncio.ensure_future(engine.request(CUSTOM, {"task_name": "count"}, context=attempt("b")))
        assert await engine.request(contracts.TASK_CANCEL.id, {"token": "a"}, timeout_seconds=5) == {
            "found": True
        }
        with pytest.raises(AmpError, match="TASK_CANCELLED"):
            await first
        assert (await second)["outputs"] == {"result": 2}


async def test_attempt_ends_at_its_timeout(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        with pytest.raises(AmpError) as caught:
            await engine.request(CUSTOM, {"task_name": "wait"}, context=attempt(timeout_seconds=0.05))
        assert (caught.value.code, caught.value.retryable) == ("TIMEOUT", True)
        with pytest.raises(AmpError, match="TIMEOUT"):
            await engine.request(CUSTOM, {"task_name": "wait"}, timeout_seconds=0.05)


@pytest.mark.parametrize(
    ("parameters", "more", "code", "begun"),
    [
        ({"task_name": "wait"}, {"timeout_seconds": 0.5}, "TIMEOUT", None),
        ({"task_name": "broken"}, {}, "TASK_EXECUTION_FAILED", None),
        ({"task_name": "{absent}"}, {}, "TEMPLATE_UNRESOLVED", False),
        ({"task_nam": "wait"}, {}, "INVALID_INPUT", False),
    ],
)
async def test_work_that_must_not_be_repeated_says_when_it_never_began(
    tmp_path: Path, parameters: dict[str, Any], more: dict[str, Any], code: str, begun: bool | None
) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        with pytest.raises(AmpError) as caught:
            await engine.request(CUSTOM, parameters, context=attempt(effects=Effects.ONCE, **more))
    assert (caught.value.code, caught.value.details.get("begun")) == (code, begun)


async def test_cancelled_work_that_must_not_be_repeated_says_when_it_never_began(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        once = attempt(effects=Effects.ONCE)
        work = asyncio.ensure_future(engine.request(CUSTOM, {"task_name": "wait"}, context=once))
        await until(lambda: bool(mesh.module.calls))
        for token in ("t1", "t2"):
            await engine.request(contracts.TASK_CANCEL.id, {"token": token})
        with pytest.raises(AmpError) as begun:
            await work
        later = attempt("t2", effects=Effects.ONCE)
        with pytest.raises(AmpError) as never:
            await engine.request(CUSTOM, {"task_name": "count"}, context=later)
    assert [error.value.details.get("begun") for error in (begun, never)] == [None, False]


async def test_thread_of_a_timed_out_handler_learns_that_nobody_waits(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        with pytest.raises(AmpError, match="TIMEOUT"):
            await engine.request(CUSTOM, {"task_name": "blocking"}, context=attempt(timeout_seconds=0.05))
        mesh.module.release.set()


async def test_result_for_an_engine_that_left_goes_to_the_inbox(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        work = asyncio.ensure_future(engine.request(CUSTOM, {"task_name": "wait"}, context=attempt()))
        await until(lambda: bool(mesh.module.calls))
        await engine.stop(drain_seconds=0)
        await asyncio.gather(work, return_exceptions=True)
        await until(lambda: any(run.abandoned for run in mesh.executor._attempts.running.values()))
        mesh.module.gate.set()
        await until(lambda: bool(mesh.inbox))
    (put,) = mesh.inbox
    assert (put.instance_id, put.kind, put.dedupe_key) == ("ins_1", "task_result", "t1")
    assert {key: put.data[key] for key in ("task_id", "attempt", "token")} == {
        "task_id": "task",
        "attempt": 1,
        "token": "t1",
    }
    assert put.data["result"]["outputs"]["calls"] == 1


async def test_error_for_an_engine_that_left_goes_to_the_inbox(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        work = asyncio.ensure_future(
            engine.request(CUSTOM, {"task_name": "wait"}, context=attempt(timeout_seconds=0.5))
        )
        await until(lambda: bool(mesh.module.calls))
        await engine.stop(drain_seconds=0)
        await asyncio.gather(work, return_exceptions=True)
        await until(lambda: bool(mesh.inbox))
    assert mesh.inbox[0].data["error"]["code"] == "TIMEOUT"
    assert mesh.inbox[0].data["error"]["details"]["retryable"] is True


async def test_own_lost_connection_sends_results_to_the_inbox_and_a_new_dispatch_attaches(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        lost = asyncio.ensure_future(engine.request(CUSTOM, {"task_name": "wait"}, context=attempt()))
        await until(lambda: bool(mesh.module.calls))
        mesh.network.cut()
        with pytest.raises(AmpError):
            await lost
        await until(lambda: mesh.executor.mesh.connected and engine.connected)
        again = asyncio.ensure_future(
            engine.request(CUSTOM, {"task_name": "wait"}, context=attempt(), patience_seconds=5)
        )
        await until(lambda: not any(run.abandoned for run in mesh.executor._attempts.running.values()))
        mesh.module.gate.set()
        assert (await again)["outputs"]["calls"] == 1
    assert len(mesh.module.calls) == 1
    assert mesh.inbox == []


async def test_unrepeatable_result_that_may_be_lost_is_delivered_again(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        for token, effects in (("a", Effects.ONCE), ("b", Effects.READ)):
            await engine.request(CUSTOM, {"task_name": "count"}, context=attempt(token, effects=effects))
        await engine.stop(drain_seconds=0)
        await until(lambda: bool(mesh.inbox))
    assert [put.dedupe_key for put in mesh.inbox] == ["a"]


async def test_progress_reaches_subscribers_and_is_throttled(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        told: list[dict[str, Any]] = []
        await engine.subscribe("task.progress", lambda event: told.append(event.data))
        await engine.request(CUSTOM, {"task_name": "tell"}, context=attempt())
        await until(lambda: bool(told))
    assert [event["progress"] for event in told] == [{"percent": 50}]
    assert told[0]["workflow_instance_id"] == "ins_1"


TRANSFORM = contracts.TASK_DATA_TRANSFORM.id


@pytest.mark.parametrize(
    ("capability", "parameters", "code", "message"),
    [
        (
            TRANSFORM,
            {"input_data": "{nam}", "transformations": []},
            "TEMPLATE_UNRESOLVED",
            "did you mean 'name'",
        ),
        (TRANSFORM, {"input_data": "{name + 1}", "transformations": []}, "EXPRESSION_ERROR", "/input_data"),
        (TRANSFORM, {"input_data": 1}, "INVALID_INPUT", "transformations"),
        (
            TRANSFORM,
            {"input_data": 1, "transformatons": []},
            "INVALID_INPUT",
            "did you mean 'transformations'",
        ),
        (
            TRANSFORM,
            {"input_data": [1], "transformations": [{"type": "map", "config": {"expression": "item.x.y()"}}]},
            "EXPRESSION_ERROR",
            "transformation 1",
        ),
        ("task-custom", {"task_name": "coun"}, "RESOURCE_NOT_FOUND", "did you mean 'count'"),
        ("task-custom", {"task_name": "odd"}, "TASK_EXECUTION_FAILED", "cannot be expressed as JSON"),
        (
            "task-custom",
            {"task_name": "big", "parameters": {"size": 5000}},
            "RESULT_TOO_LARGE",
            "max_result_bytes",
        ),
        ("task-api-call", {"url": "http://127.0.0.1:1/"}, "PERMISSION_DENIED", "allowed_networks"),
        ("task-subprocess", {"command": "rm"}, "PERMISSION_DENIED", "allowed_commands"),
        (
            "task-file-operation",
            {"operation": "read", "file_path": "../x"},
            "PERMISSION_DENIED",
            "files root",
        ),
    ],
)
async def test_failure_reaches_the_engine_with_its_code_and_cure(
    tmp_path: Path, capability: str, parameters: dict[str, Any], code: str, message: str
) -> None:
    async with running(tmp_path, max_result_bytes=4096) as mesh:
        engine = await mesh.client("engine")
        with pytest.raises(AmpError) as caught:
            await engine.request(capability, parameters, context=attempt(variables={"name": "Ada"}))
    assert (caught.value.code, caught.value.retryable) == (code, False)
    assert message in caught.value.message


async def test_stranger_must_keep_to_the_schema(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        stranger = await mesh.client("stranger")
        with pytest.raises(InvalidParameters, match="url"):
            await stranger.request("task-api-call", {"url": 5})
        with pytest.raises(InvalidParameters, match="not an attempt"):
            await stranger.request("task-api-call", {"url": "http://x/"}, context={"token": "t"})
        with pytest.raises(InvalidParameters):
            await stranger.request("task-execute", {"task_type": "custom"})


async def test_text_from_templates_may_stand_for_numbers(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        with pytest.raises(AmpError) as caught:
            await engine.request(
                "task-api-call",
                {"url": "http://127.0.0.1:1/", "timeout": "{n}0", "retry_count": "{n}"},
                context=attempt(variables={"n": "1"}),
            )
    assert caught.value.code == "PERMISSION_DENIED"


async def test_template_render_fills_parameters(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        reply = await engine.request(
            contracts.TEMPLATE_RENDER.id,
            {
                "parameters": {"a": "{x}", "b": ["Hi {name}, {unset}!"]},
                "variables": {"x": [1], "name": "Ada"},
                "declared": ["unset"],
            },
        )
        assert reply == {"parameters": {"a": [1], "b": ["Hi Ada, !"]}}
        with pytest.raises(AmpError) as caught:
            await engine.request(contracts.TEMPLATE_RENDER.id, {"parameters": {"a": "{y}"}})
        assert caught.value.code == "TEMPLATE_UNRESOLVED"
        assert caught.value.details["path"] == "/a"


async def test_registered_transformation_is_usable(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        reply = await engine.request(
            contracts.TASK_DATA_TRANSFORM.id,
            {
                "input_data": [1],
                "transformations": [{"type": "custom", "config": {"operation": "twice", "times": 3}}],
            },
        )
    assert reply["transformed_data"] == [1, 1, 1]


async def test_validation_answers_for_good_and_bad_documents(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        result = await engine.request(
            contracts.TASK_VALIDATION.id,
            {
                "data": "{order}",
                "rules": [
                    {"type": "required", "field": "id"},
                    {"type": "range", "field": "amount", "config": {"min": 0, "max": 10}},
                ],
                "schema": {"type": "object", "required": ["id"]},
            },
            context=attempt(variables={"order": {"id": 1, "amount": 50}}),
            reply_type=contracts.TaskResult,
        )
    assert result.result["is_valid"] is False
    assert result.outputs["valid"] is False
    assert result.primary["valid"] is False
    assert len(result.primary["failed_rules"]) == 1


async def test_announced_capabilities_health_and_credit(tmp_path: Path) -> None:
    async with running(tmp_path, max_concurrent_tasks=3) as mesh:
        offers = {offer.capability.id: offer.capability for offer in mesh.executor.offers()}
        assert set(offers) == {
            "task-execute", "task-api-call", "task-data-transform", "task-subprocess", "task-custom",
            "task-validation", "task-file-operation", "template-render", "task-cancel", "task-settled",
        }  # fmt: skip
        assert offers["task-cancel"].constraints == {"credit": 0}
        assert mesh.executor.max_in_flight() == 3
        health = mesh.executor.health()
        assert health["custom_handlers"] == sorted(health["custom_handlers"])
        assert "api_call" in health["task_types"]


def test_own_ports_are_those_of_the_settings() -> None:
    assert {8079, 8080, 8081, 8082, 8083, 8084, 8085, 8090} == set(own_ports(Settings()))


def test_context_that_is_no_object_is_no_attempt() -> None:
    class Bare:
        context_raw = None

    assert attempt_of(Bare()) is None  # type: ignore[arg-type]


async def test_attempts_that_were_given_up_do_not_pile_up(tmp_path: Path) -> None:
    async with running(tmp_path, max_concurrent_tasks=1) as mesh:
        engine = await mesh.client("engine")
        held = [asyncio.get_running_loop().create_future() for _ in range(OVERCOMMIT)]
        for number, future in enumerate(held):
            mesh.executor._attempts.begin(f"held-{number}", "engine", lambda future=future: future)
        with pytest.raises(AmpError) as caught:
            await engine.request(CUSTOM, {"task_name": "count"}, context=attempt())
        assert (caught.value.code, caught.value.retryable) == ("RESOURCE_NOT_AVAILABLE", True)
        mesh.executor._attempts.running.clear()


async def test_attempt_that_is_cancelled_before_its_first_step_is_answered_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        begin = Attempts.begin

        def cancelled_at_once(attempts: Attempts, token: str, *rest: Any) -> Run:
            run = begin(attempts, token, *rest)
            mesh.executor._runner.cancel(token)
            return run

        monkeypatch.setattr(Attempts, "begin", cancelled_at_once)
        with pytest.raises(AmpError, match="TASK_CANCELLED"):
            await engine.request(CUSTOM, {"task_name": "count"}, context=attempt(), timeout_seconds=5)
        assert mesh.executor._attempts.running == {}


async def test_overlong_token_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        with pytest.raises(InvalidParameters, match="512"):
            await engine.request(CUSTOM, {"task_name": "count"}, context=attempt("x" * 513))


async def test_stopping_executor_hands_over_what_its_engine_left_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        work = asyncio.ensure_future(engine.request(CUSTOM, {"task_name": "wait"}, context=attempt()))
        await until(lambda: bool(mesh.module.calls))
        await engine.stop(drain_seconds=0)
        await asyncio.gather(work, return_exceptions=True)
        await until(lambda: any(run.abandoned for run in mesh.executor._attempts.running.values()))
        stopping = asyncio.ensure_future(mesh.executor.stop())
        await asyncio.sleep(0)
        mesh.module.gate.set()
        await stopping
        assert [put.dedupe_key for put in mesh.inbox] == ["t1"]


async def test_attempt_under_way_is_finished_before_the_executor_stops(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        work = asyncio.ensure_future(engine.request(CUSTOM, {"task_name": "wait"}, context=attempt()))
        await until(lambda: bool(mesh.module.calls))
        stopping = asyncio.ensure_future(mesh.executor.stop())
        await asyncio.sleep(0)
        mesh.module.gate.set()
        assert (await work)["outputs"]["calls"] == 1
        await stopping


@pytest.mark.parametrize("root", [".", "..", "/", "../data", "x/.."])
def test_files_root_that_holds_the_products_data_is_refused(tmp_path: Path, root: str) -> None:
    settings = Settings(
        data_dir=str(tmp_path / "data"), task_executor=TaskExecutorSettings(files=FileSettings(root=root))
    )
    with pytest.raises(SettingsError, match="holds the data folder"):
        files_root(settings)
    with pytest.raises(SettingsError, match="holds the data folder"):
        TaskExecutor(settings)


@pytest.mark.parametrize("root", ["spool", "spool/task-executor-1/aside"])
def test_files_root_that_touches_the_spool_is_refused(tmp_path: Path, root: str) -> None:
    settings = Settings(
        data_dir=str(tmp_path / "data"), task_executor=TaskExecutorSettings(files=FileSettings(root=root))
    )
    with pytest.raises(SettingsError, match="keep their results"):
        files_root(settings)


def test_spool_that_could_not_hold_one_result_is_refused(tmp_path: Path) -> None:
    section = TaskExecutorSettings(max_result_bytes=10_000, spool=SpoolSettings(max_bytes=40_000))
    with pytest.raises(SettingsError, match=r"spool\.max_bytes: 40000 .* at least 46384"):
        TaskExecutor(Settings(data_dir=str(tmp_path), task_executor=section))


def test_files_root_is_below_the_data_folder_by_default(tmp_path: Path) -> None:
    assert files_root(Settings(data_dir=str(tmp_path))) == tmp_path / "files"


async def test_result_that_its_requester_gave_up_on_goes_to_the_inbox(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        (offer,) = [each for each in mesh.executor.offers() if each.capability.id == CUSTOM]
        context = msgspec.json.encode(attempt())

        class Given:
            parameters: ClassVar[dict[str, Any]] = {"task_name": "wait"}
            context_raw = context
            message = SimpleNamespace(id="m1")

        handling = asyncio.ensure_future(offer.handler(Given()))  # type: ignore[arg-type]
        await until(lambda: bool(mesh.module.calls))
        handling.cancel()
        await asyncio.gather(handling, return_exceptions=True)
        mesh.module.gate.set()
        await until(lambda: bool(mesh.inbox))
    assert mesh.inbox[0].data["result"]["outputs"]["calls"] == 1


async def test_large_and_looping_templates_are_filled_off_the_loop(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        for parameters in ({"a": "{sum(x for x in rows)}"}, {"a": ["{rows[0]}"] * 300}):
            reply = await engine.request(
                contracts.TEMPLATE_RENDER.id, {"parameters": parameters, "variables": {"rows": [1, 2]}}
            )
            assert reply["parameters"]["a"] in (3, [1] * 300)


async def test_progress_that_cannot_be_told_does_not_fail_the_task(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        work = asyncio.ensure_future(
            engine.request(CUSTOM, {"task_name": "wait_and_tell"}, context=attempt(), patience_seconds=0)
        )
        await until(lambda: bool(mesh.module.calls))
        mesh.router_gone()
        mesh.module.gate.set()
        await asyncio.gather(work, return_exceptions=True)
        await until(lambda: not mesh.executor._attempts.running)
        ending = mesh.executor._attempts.known_ending("t1", mesh.executor.clock.monotonic())
    assert b'"told"' in bytes(ending)  # type: ignore[arg-type]


async def test_unusable_files_root_stops_the_start_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mesh = Mesh(tmp_path, files=FileSettings(root=str(tmp_path / "file")))
    mesh.router.serve_memory(mesh.network)
    with pytest.raises(RuntimeFault, match="cannot be used"):
        await mesh.executor.start(wait_seconds=5)
    await mesh.executor.stop()
    await mesh.router.stop()


async def test_clean_stop_repeats_no_result(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        await engine.request(CUSTOM, {"task_name": "count"}, context=attempt(effects=Effects.ONCE))
        await mesh.executor.stop()
        assert mesh.inbox == []
