"""What a killed executor leaves to the next one, on a real mesh in memory: results, intents, poison, late attempts.

A kill is played: the executor's folder is let go and its work and connection end, with nothing told or cleared.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agents.task_executor import TaskExecutor, recovery
from agents.task_executor.errors import SpoolFull
from agents.task_executor.handlers.api_call import ApiCall
from agents.task_executor.handlers.base import TaskContext
from agents.task_executor.http_client import HttpAnswer, HttpRequest
from agents.task_executor.spool import State
from amp import crash
from amp.capability import Incoming
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts
from orchestration.status import Effects
from runtime.settings import SpoolSettings
from tests.unit.executor.clocks import FixedClock
from tests.unit.executor.test_agent import CUSTOM, Mesh, attempt, running, until

WAIT = {"task_name": "wait"}
COUNT = {"task_name": "count"}


def once(token: str = "t1", **more: Any) -> contracts.Attempt:
    return attempt(token, **{"effects": Effects.ONCE, **more})


async def kill(executor: TaskExecutor) -> None:
    """End an executor as SIGKILL does."""
    executor._recovery.leave = lambda slot: None  # type: ignore[method-assign]
    executor._spool.close()
    executor._spool._folder = None
    tasks = list(executor._tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await executor.mesh._abandon()


async def live_again(mesh: Mesh, **options: Any) -> TaskExecutor:
    """Kill the mesh's executor and begin its next life."""
    await kill(mesh.executor)
    mesh.executor = TaskExecutor(
        mesh.settings, transport=mesh.network.transport(), serve_http=False, **options
    )
    await mesh.executor.start(wait_seconds=5)
    return mesh.executor


@asynccontextmanager
async def dying_at(point: str) -> AsyncIterator[asyncio.Event]:
    """Have the executor's work end at a place, as if the process had."""
    reached = asyncio.Event()

    def stop(here: str) -> None:
        if here == point:
            reached.set()
            raise asyncio.CancelledError

    crash.on_reach(stop)
    try:
        yield reached
    finally:
        crash.on_reach(None)


def begin(engine: MeshClient, parameters: dict[str, Any], context: contracts.Attempt) -> asyncio.Task[Any]:
    return asyncio.ensure_future(engine.request(CUSTOM, parameters, context=context))


async def dropped(work: asyncio.Task[Any]) -> None:
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_a_result_stays_until_the_engine_says_that_it_is_recorded(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        result = await engine.request(CUSTOM, COUNT, context=once(), reply_type=contracts.TaskResult)
        assert result.metadata["spooled"] is True
        assert mesh.executor._spool.state_of("t1") is State.ENDED
        assert mesh.executor.health()["spooled_results"] == 1
        settled = await engine.request(contracts.TASK_SETTLED.id, {"tokens": ["t1", "unknown"]})
        assert settled == {"removed": 1}
        assert (len(mesh.executor._spool), mesh.inbox) == (0, [])


async def test_quick_repeatable_work_leaves_no_trace(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        for effects in (None, Effects.NONE, Effects.READ, Effects.IDEMPOTENT):
            result = await engine.request(
                CUSTOM, COUNT, context=attempt(str(effects), effects=effects), reply_type=contracts.TaskResult
            )
            assert "spooled" not in result.metadata
        assert len(mesh.executor._spool) == 0


async def test_long_repeatable_work_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.task_executor.runner.LONG_SECONDS", 0.0)
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        result = await engine.request(CUSTOM, COUNT, context=attempt(), reply_type=contracts.TaskResult)
        assert result.metadata["spooled"] is True
        assert mesh.executor._spool.state_of("t1") is State.ENDED


async def test_failure_of_what_must_not_be_repeated_is_kept_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        with pytest.raises(AmpError) as caught:
            await engine.request(CUSTOM, {"task_name": "broken"}, context=once())
        assert caught.value.details["spooled"] is True
        await live_again(mesh)
        await until(lambda: bool(mesh.inbox))
    assert mesh.inbox[0].data["error"]["code"] == "TASK_EXECUTION_FAILED"


async def test_the_next_life_delivers_what_was_not_settled_and_then_forgets_it(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        for token in ("a", "b", "c"):
            await engine.request(CUSTOM, COUNT, context=once(token))
        await engine.request(contracts.TASK_SETTLED.id, {"tokens": ["b"]})
        executor = await live_again(mesh)
        await until(lambda: len(mesh.inbox) == 2 and len(executor._spool) == 0)
    assert sorted(str(put.dedupe_key) for put in mesh.inbox) == ["a", "c"]
    assert sorted(put.data["result"]["outputs"]["result"] for put in mesh.inbox) == [1, 3]
    assert {(put.kind, put.instance_id) for put in mesh.inbox} == {("task_result", "ins_1")}


@pytest.mark.parametrize("point", ["executor.task.accepted", "executor.effect.after"])
async def test_what_had_begun_is_told_as_lost_and_its_token_is_refused(tmp_path: Path, point: str) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        async with dying_at(point) as reached:
            work = begin(engine, COUNT, once())
            await reached.wait()
            await dropped(work)
        executor = await live_again(mesh, agent_id="task-executor-1")
        with pytest.raises(AmpError) as caught:
            await engine.request(CUSTOM, COUNT, context=once(), patience_seconds=5)
        await until(lambda: bool(mesh.inbox) and len(executor._spool) == 0)
        calls = len(mesh.module.calls)
    assert caught.value.code == "OUTCOME_UNKNOWN"
    assert mesh.inbox[0].data["lost"]["begun"] is True
    assert mesh.inbox[0].data["lost"]["agent_id"] == "task-executor-1"
    assert calls == 0, "the next life begins nothing"


async def test_a_token_that_comes_again_after_its_ending_was_told_is_not_begun_again(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        first = await engine.request(CUSTOM, COUNT, context=once())
        executor = await live_again(mesh)
        await until(lambda: bool(mesh.inbox) and len(executor._spool) == 0)
        again = await engine.request(CUSTOM, COUNT, context=once(), patience_seconds=5)
        assert again == first
        assert mesh.module.calls == []


async def test_what_had_not_begun_is_told_as_safe_to_do_elsewhere(tmp_path: Path) -> None:
    async def never_answers(incoming: Incoming) -> contracts.TaskHeartbeatReply:
        await asyncio.Event().wait()
        raise AssertionError

    async with running(tmp_path) as mesh:
        offer = mesh.executor.offer(contracts.TASK_HEARTBEAT, never_answers)
        engine = await mesh.client("engine", offer)
        work = begin(engine, COUNT, once())
        await until(lambda: mesh.executor._spool.state_of("t1") is State.ACCEPTED)
        executor = await live_again(mesh)
        await until(lambda: bool(mesh.inbox) and len(executor._spool) == 0)
        await dropped(work)
    assert mesh.inbox[0].data["lost"]["begun"] is False
    assert (mesh.inbox[0].dedupe_key, mesh.inbox[0].data["token"]) == ("t1", "t1")


async def test_an_unwanted_attempt_never_begins(tmp_path: Path) -> None:
    async def unwanted(incoming: Incoming) -> contracts.TaskHeartbeatReply:
        return contracts.TaskHeartbeatReply(unwanted=[beat.token for beat in incoming.parameters.beats])

    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine", mesh.executor.offer(contracts.TASK_HEARTBEAT, unwanted))
        with pytest.raises(AmpError) as caught:
            await engine.request(CUSTOM, COUNT, context=once())
        assert (caught.value.code, mesh.module.calls) == ("NOT_BEGUN", [])
        await live_again(mesh)
        await until(lambda: bool(mesh.inbox))
    assert mesh.inbox[0].data["lost"]["begun"] is False, "it is told until somebody says that it is recorded"


async def test_heartbeats_stop_what_the_engine_gave_up(tmp_path: Path) -> None:
    beats: list[contracts.TaskBeat] = []

    async def hear(incoming: Incoming) -> contracts.TaskHeartbeatReply:
        beats.extend(incoming.parameters.beats)
        return contracts.TaskHeartbeatReply(unwanted=["t1"] if len(beats) > 2 else [])

    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine", mesh.executor.offer(contracts.TASK_HEARTBEAT, hear))
        with pytest.raises(AmpError) as caught:
            await engine.request(CUSTOM, WAIT, context=attempt(heartbeat_seconds=0.3))
        assert caught.value.code == "TASK_CANCELLED"
        await until(lambda: mesh.executor._heartbeats._engines == {})
    assert {beat.token for beat in beats} == {"t1"}


async def test_a_full_spool_refuses_before_the_effect_and_the_token_may_come_again(tmp_path: Path) -> None:
    settings = SpoolSettings(max_files=1)
    async with running(tmp_path, spool=settings) as mesh:
        engine = await mesh.client("engine")
        await engine.request(CUSTOM, COUNT, context=once("a"))
        for _ in range(2):
            with pytest.raises(AmpError) as caught:
                await engine.request(CUSTOM, COUNT, context=once("b"))
            assert caught.value.code == "INSUFFICIENT_RESOURCES"
            assert caught.value.details["retry_after_ms"] == 1000
        assert len(mesh.module.calls) == 1
        await engine.request(contracts.TASK_SETTLED.id, {"tokens": ["a"]})
        await engine.request(CUSTOM, COUNT, context=once("b"))
        assert len(mesh.module.calls) == 2
        assert not mesh.executor.failed.is_set()


async def test_an_attempt_without_room_whose_engine_left_is_told_as_never_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = asyncio.Event()

    async def full(token: str) -> None:
        await held.wait()
        raise SpoolFull("no room", 1.0)

    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        monkeypatch.setattr(mesh.executor._spool, "begin", full)
        work = begin(engine, COUNT, once())
        await until(lambda: mesh.executor._spool.state_of("t1") is State.ACCEPTED)
        await engine.stop(drain_seconds=0)
        await dropped(work)
        await until(lambda: any(run.abandoned for run in mesh.executor._attempts.running.values()))
        held.set()
        await until(lambda: bool(mesh.inbox))
        assert (len(mesh.executor._spool), mesh.module.calls) == (0, [])
    assert mesh.inbox[0].data["lost"]["begun"] is False


async def test_a_spool_that_cannot_be_made_stops_nothing_but_what_needs_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "spool").write_text("in the way")
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        await engine.request(CUSTOM, COUNT, context=attempt("a"))
        with pytest.raises(AmpError) as caught:
            await engine.request(CUSTOM, COUNT, context=once("b"))
        assert caught.value.code == "INSUFFICIENT_RESOURCES"


async def test_a_task_that_two_lives_died_of_is_refused_and_others_are_not(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        for number in range(2):
            work = begin(engine, WAIT, attempt(f"bad/{number}", idempotency_key="bad"))
            await until(lambda: bool(mesh.executor._attempts.running))
            await until(lambda: bool(mesh.module.calls))
            await live_again(mesh)
            mesh.module.calls.clear()
            await dropped(work)
        with pytest.raises(AmpError) as caught:
            await engine.request(
                CUSTOM, COUNT, context=attempt("bad/3", idempotency_key="bad"), patience_seconds=5
            )
        assert (caught.value.code, caught.value.retryable) == ("POISON_TASK", False)
        good = await engine.request(CUSTOM, COUNT, context=attempt("good", idempotency_key="good"))
        assert good["outputs"] == {"result": 1}


async def test_an_executor_that_ended_well_blames_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        for number in range(3):
            work = begin(engine, WAIT, attempt(f"t/{number}", idempotency_key="k", timeout_seconds=0.05))
            await asyncio.gather(work, return_exceptions=True)
            await mesh.executor.stop()
            mesh.executor = TaskExecutor(mesh.settings, transport=mesh.network.transport(), serve_http=False)
            await mesh.executor.start(wait_seconds=5)
        assert await engine.request(
            CUSTOM, COUNT, context=attempt("t/4", idempotency_key="k"), patience_seconds=5
        )


async def test_folders_of_executors_that_are_gone_are_taken_over_at_the_next_start(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        await engine.request(CUSTOM, COUNT, context=once())
        await live_again(mesh, agent_id="another-executor")
        await until(lambda: bool(mesh.inbox))
        names = [folder.name for folder in (tmp_path / "data" / "spool").iterdir()]
    assert mesh.inbox[0].dedupe_key == "t1"
    assert names == ["another-executor"]


async def test_two_living_executors_of_one_machine_never_share_a_folder(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        other = TaskExecutor(mesh.settings, transport=mesh.network.transport(), serve_http=False)
        await other.start(wait_seconds=5)
        engine = await mesh.client("engine")
        await engine.request(CUSTOM, COUNT, context=once(), agent_id="task-executor-1")
        try:
            names = sorted(folder.name for folder in (tmp_path / "data" / "spool").iterdir())
        finally:
            await other.stop()
        assert mesh.inbox == []
    assert names == ["task-executor-1", "task-executor-2"]


async def test_a_result_that_is_never_confirmed_goes_to_the_inbox_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "UNSETTLED_SECONDS", 0.0)
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        await engine.request(CUSTOM, COUNT, context=once())
        await mesh.executor._recovery.look_after()
        assert [put.dedupe_key for put in mesh.inbox] == ["t1"]
        await until(lambda: len(mesh.executor._spool) == 0)


async def test_a_result_nobody_will_want_is_deleted_without_being_stored(tmp_path: Path) -> None:
    class Ended(Mesh):
        async def _put(self, incoming: Incoming) -> contracts.InboxPutReply:
            return contracts.InboxPutReply(inbox_id=0, found=False, open=False)

    async with asyncio.timeout(30), Ended(tmp_path) as mesh:
        engine = await mesh.client("engine")
        await engine.request(CUSTOM, COUNT, context=once())
        executor = await live_again(mesh)
        await until(lambda: len(executor._spool) == 0)


async def test_without_a_state_manager_results_wait_and_work_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        engine = await mesh.client("engine")
        await engine.request(CUSTOM, COUNT, context=once())
        (store,) = [client for client in mesh.clients if client.identity.id == "state-manager"]
        await store.stop(drain_seconds=0)
        executor = await live_again(mesh)
        assert await engine.request(CUSTOM, COUNT, context=attempt("t2"), patience_seconds=5)
        assert executor._spool.state_of("t1") is State.ENDED
        mesh.clients.remove(store)
        await mesh.client("state-manager", executor.offer(contracts.INBOX_PUT, mesh._put))
        await until(lambda: bool(mesh.inbox) and len(executor._spool) == 0)


class Recorded:
    """Plays the HTTP client: notes what would be sent and answers 200."""

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []

    async def send(self, request: HttpRequest, *, timeout_seconds: float) -> HttpAnswer:
        self.requests.append(request)
        return HttpAnswer(status=200, headers={}, body=b"{}", url=request.url)


async def test_the_idempotency_key_of_a_call_depends_on_the_run_alone() -> None:
    """The engine gives every attempt of a run one key; what is sent depends on nothing else."""

    async def nobody(data: Any) -> None:
        pass

    sent = set()
    for number, engine_id in ((1, "engine-1"), (2, "engine-1"), (3, "engine-2")):
        http = Recorded()  # another executor, or another life of one, each time
        handler = ApiCall(http)  # type: ignore[arg-type]
        context = TaskContext(
            attempt=attempt(
                f"ins/pay/{number}", attempt=number, engine_id=engine_id, idempotency_key="ins/pay/0"
            ),
            deadline=asyncio.get_running_loop().time() + 10,
            clock=FixedClock(),
            progress=nobody,
        )
        await handler.run(contracts.ApiCallRequest(method="POST", url="http://127.0.0.1/"), context)
        sent.add(http.requests[0].headers["idempotency-key"])
    assert sent == {"ins/pay/0"}
