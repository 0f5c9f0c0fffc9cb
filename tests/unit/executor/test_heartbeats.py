"""Signs of life: who gets them, when, about what; and what an engine's answer does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agents.task_executor import heartbeats as module
from agents.task_executor.heartbeats import MAX_PROGRESS_BYTES, MIN_INTERVAL_SECONDS, Heartbeats
from amp.errors import AgentNotFound
from orchestration import contracts
from orchestration.contracts import Attempt


def attempt(token: str, seconds: float = 0.03, engine_id: str = "e1") -> Attempt:
    return Attempt(
        token=token,
        engine_id=engine_id,
        workflow_id="w",
        workflow_instance_id="i",
        task_id="t",
        attempt=1,
        timeout_seconds=1,
        idempotency_key="k",
        heartbeat_seconds=seconds,
    )


class Engines:
    """Plays the mesh with every engine behind it."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.unwanted: list[str] = []
        self.gone: set[str] = set()
        self.timeouts: list[float] = []

    async def request(
        self, capability: str, request: contracts.TaskHeartbeatRequest, **options: Any
    ) -> contracts.TaskHeartbeatReply:
        assert capability == contracts.TASK_HEARTBEAT.id
        self.timeouts.append(options["timeout_seconds"])
        self.heard.put_nowait((options["agent_id"], {beat.token: beat.progress for beat in request.beats}))
        if options["agent_id"] in self.gone:
            raise AgentNotFound("gone")
        return contracts.TaskHeartbeatReply(unwanted=self.unwanted)

    async def next(self, engine_id: str) -> dict[str, Any]:
        """Return the tokens and progress of an engine's next message, skipping those of others."""
        while True:
            heard, beats = await self.heard.get()
            if heard == engine_id:
                return beats


@asynccontextmanager
async def beating() -> AsyncIterator[tuple[Heartbeats, Engines, list[str], list[str]]]:
    engines, cancelled, counted = Engines(), [], []
    tasks: list[asyncio.Task[Any]] = []

    def spawn(work: Any, name: str) -> asyncio.Task[Any]:
        tasks.append(asyncio.ensure_future(work))
        return tasks[-1]

    hearts = Heartbeats(
        lambda: engines,  # type: ignore[arg-type, return-value]
        spawn,
        unwanted=cancelled.append,
        count=counted.append,
    )
    async with asyncio.timeout(20):
        yield hearts, engines, cancelled, counted
        for token in ("a", "b", "c"):
            hearts.leave(token)
        await asyncio.gather(*tasks)
    assert hearts._engines == {}


async def test_one_message_an_engine_speaks_for_all_of_its_attempts() -> None:
    async with beating() as (hearts, engines, _, counted):
        for token, engine_id in (("a", "e1"), ("b", "e1"), ("c", "e2")):
            hearts.watch(attempt(token, engine_id=engine_id))
        assert set(await engines.next("e1")) == {"a", "b"}
        assert set(await engines.next("e2")) == {"c"}
        hearts.leave("a")
        while set(await engines.next("e1")) != {"b"}:
            pass
    assert set(counted) == {"told"}
    assert engines.timeouts[0] == MIN_INTERVAL_SECONDS


async def test_attempts_without_a_heartbeat_are_never_heard_of() -> None:
    async with beating() as (hearts, engines, _, _counted):
        hearts.watch(attempt("a", 0.0))
        hearts.progress("a", {"percent": 1})
        assert hearts._engines == {}
        assert engines.heard.empty()


async def test_progress_rides_along_and_the_last_one_counts() -> None:
    async with beating() as (hearts, engines, _, _counted):
        hearts.watch(attempt("a"))
        for percent in (10, 20):
            hearts.progress("a", {"percent": percent})
        assert await engines.next("e1") == {"a": {"percent": 20}}
        hearts.progress("a", {"text": "x" * MAX_PROGRESS_BYTES})
        assert await engines.next("e1") == {"a": {"percent": 20}}


async def test_what_the_engine_does_not_want_is_stopped_and_what_it_never_had_is_not() -> None:
    async with beating() as (hearts, engines, cancelled, _):
        hearts.watch(attempt("a"))
        engines.unwanted = ["a", "stranger"]
        await engines.next("e1")
        await engines.next("e1")
    assert set(cancelled) == {"a"}


async def test_an_engine_that_takes_over_hears_from_then_on_with_the_progress_so_far() -> None:
    async with beating() as (hearts, engines, _, _counted):
        hearts.watch(attempt("a"))
        hearts.progress("a", {"percent": 50})
        await engines.next("e1")
        hearts.watch(attempt("a", engine_id="e2"))
        assert await engines.next("e2") == {"a": {"percent": 50}}
        await engines.next("e2")
        assert engines.heard.empty(), "the first engine hears nothing more"


async def test_an_engine_that_is_gone_does_not_silence_the_others() -> None:
    async with beating() as (hearts, engines, _, counted):
        engines.gone = {"e1"}
        hearts.watch(attempt("a"))
        hearts.watch(attempt("b", engine_id="e2"))
        for _ in range(2):
            await engines.next("e2")
        engines.gone = set()
        await engines.next("e1")
        await engines.next("e1")
    assert set(counted) == {"told", "not_told"}


async def test_a_shorter_wait_is_kept_to_as_soon_as_it_comes() -> None:
    async with beating() as (hearts, engines, _, _counted):
        hearts.watch(attempt("a", 3600.0))
        await asyncio.sleep(0)
        hearts.watch(attempt("b", 0.03))
        assert set(await engines.next("e1")) == {"a", "b"}


async def test_a_held_up_loop_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LATE_SECONDS", -1.0)
    told: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda event, **facts: told.append(event), raising=False)
    async with beating() as (hearts, engines, _, _counted):
        hearts.watch(attempt("a"))
        await engines.next("e1")
    assert told[0] == "heartbeat_late"
