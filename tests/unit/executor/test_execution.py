"""From raw parameters to an encoded answer, with handlers made for the test."""

import asyncio
from collections.abc import Mapping
from threading import Event, get_ident
from typing import Any

import msgspec
import pytest

from agents.task_executor.compute import Compute, ForeignCode, has_loops, is_small
from agents.task_executor.errors import Overloaded
from agents.task_executor.execution import Execution, Work
from agents.task_executor.handlers.base import Outcome, TaskContext
from amp.errors import AmpError
from orchestration.contracts import Attempt
from tests.unit.executor.clocks import FixedClock


class Text(msgspec.Struct, forbid_unknown_fields=True):
    value: Any = None


class Fake:
    request_type = Text

    def __init__(self, act: Any) -> None:
        self._act = act

    async def run(self, request: Text, context: TaskContext) -> Outcome:
        value = self._act(request, context)
        return Outcome(result={"value": value}, outputs={"value": value}, primary=value)


async def _nobody(data: Mapping[str, Any]) -> None:
    pass


def execution(act: Any, *, max_result_bytes: int = 1000) -> Execution:
    return Execution(
        handlers={"fake": Fake(act)},
        clock=FixedClock(),
        compute=Compute(),
        executor_id=lambda: "x-1",
        max_result_bytes=max_result_bytes,
    )


def work(parameters: Mapping[str, Any], *, task_type: str | None = "fake", variables: Any = None) -> Work:
    attempt = None
    if variables is not None:
        attempt = Attempt(
            token="t",
            engine_id="e",
            workflow_id="w",
            workflow_instance_id="i",
            task_id="task",
            attempt=1,
            timeout_seconds=5,
            idempotency_key="k",
            variables=variables,
        )
    return Work(
        task_type=task_type, parameters=parameters, attempt=attempt, timeout_seconds=5, progress=_nobody
    )


async def test_envelope_holds_result_outputs_primary_and_metadata() -> None:
    raw = await execution(lambda request, context: request.value).enveloped(
        work({"value": "{a}"}, variables={"a": 5})
    )
    assert msgspec.json.decode(raw) == {
        "result": {"value": 5},
        "outputs": {"value": 5},
        "primary": 5,
        "metadata": {
            "task_id": "task",
            "task_type": "fake",
            "executor_id": "x-1",
            "execution_time": pytest.approx(0, abs=1),
            "timestamp": "2026-01-15T10:00:00+00:00",
        },
    }


async def test_handler_sees_the_parameters_as_written() -> None:
    seen: list[Any] = []
    run = execution(lambda request, context: seen.append((request.value, context.parameters)))
    await run.enveloped(work({"value": "{a}"}, variables={"a": "-x"}))
    inner = {"task_type": "fake", "task_config": {"value": "{a}"}}
    await run.enveloped(work(inner, task_type=None, variables={"a": "-x"}))
    await run.enveloped(work({**inner, "task_config": "{c}"}, task_type=None, variables={"c": {"value": 1}}))
    assert seen == [("-x", {"value": "{a}"}), ("-x", {"value": "{a}"}), (1, {})]


async def test_bug_in_a_handler_shows_no_internals() -> None:
    def act(request: Text, context: TaskContext) -> None:
        raise RuntimeError("s3cret")

    with pytest.raises(AmpError) as caught:
        await execution(act).plain(work({}))
    assert (caught.value.code, caught.value.retryable) == ("EXECUTION_ERROR", False)
    assert "s3cret" not in str(caught.value)


async def test_handlers_own_timeout_error_is_no_task_timeout() -> None:
    def act(request: Text, context: TaskContext) -> None:
        raise TimeoutError

    with pytest.raises(AmpError) as caught:
        await execution(act).plain(work({}))
    assert caught.value.code == "EXECUTION_ERROR"


@pytest.mark.parametrize("value", [object(), {object(): 1}, [b"x", object]])
async def test_result_that_json_cannot_express_fails(value: Any) -> None:
    with pytest.raises(AmpError, match="cannot be expressed as JSON"):
        await execution(lambda request, context: value).plain(work({}))


async def test_result_has_a_limit_and_its_views_three_times_that() -> None:
    run = execution(lambda request, context: "x" * 900)
    assert len(bytes(await run.enveloped(work({})))) < 3000
    with pytest.raises(AmpError) as caught:
        await execution(lambda request, context: "x" * 1000).enveloped(work({}))
    assert caught.value.code == "RESULT_TOO_LARGE"
    assert caught.value.details["limit_bytes"] == 1000


@pytest.mark.parametrize(
    ("values", "small"),
    [
        ([1, "x", None], True),
        ([[1] * 200], True),
        ([[1] * 300], False),
        ([{str(n): n for n in range(300)}], False),
        ([[[1] * 100, [2] * 100, [3] * 100]], False),
        (["x" * 100_000], False),
        ([["x" * 1000] * 100], False),
    ],
)
def test_size_is_judged_without_walking_far(values: list[Any], small: bool) -> None:
    assert is_small(*values) is small


def test_loops_are_seen_at_any_depth() -> None:
    assert has_loops([{"config": {"expression": "sum(x for x in item)"}}])
    assert has_loops({"a": "range(9)"})
    assert not has_loops([{"config": {"expression": "item.platform + before", "n": 5}}])


async def test_compute_runs_small_work_at_once_and_other_work_on_a_thread() -> None:
    compute = Compute()
    assert await compute.run(get_ident, small=True) == get_ident()
    assert await compute.run(get_ident) != get_ident()
    compute.close()


async def test_foreign_code_has_its_own_threads_and_they_count_until_they_end() -> None:
    foreign, release, ended = ForeignCode(1), Event(), Event()

    def hang() -> None:
        release.wait(10)
        ended.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await foreign.run(hang)
    with pytest.raises(Overloaded):
        await foreign.run(get_ident)
    release.set()
    async with asyncio.timeout(10):
        await asyncio.to_thread(ended.wait, 10)
        while foreign.running:
            await asyncio.sleep(0)
    assert await foreign.run(get_ident) != get_ident()


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), StopIteration()])
async def test_foreign_code_that_raises_ends_nothing_but_its_task(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises((ValueError, RuntimeError), match=r"bad|SystemExit|KeyboardInterrupt|StopIteration"):
        await ForeignCode(1).run(fail)
