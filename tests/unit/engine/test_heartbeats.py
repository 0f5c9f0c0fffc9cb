"""Which results an engine does not want any more, which effects may begin, and when an agent is silent."""

import asyncio
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from agents.workflow_engine.flights import Flight, Flights
from agents.workflow_engine.heartbeats import unwanted, watch
from orchestration.contracts import TaskBeat
from orchestration.status import Effects
from runtime.clock import SystemClock
from tests.builders import START, Play, make_plan, make_task


def play(task_id: str = "a") -> Play:
    return Play(make_plan(make_task(task_id, effects=Effects.ONCE)))


@pytest.mark.parametrize("begun", [True, False])
def test_the_attempt_under_way_is_wanted(begun: bool) -> None:
    made = play()
    beat = TaskBeat(token=made.token("a"), begun=begun)
    assert unwanted([beat], lambda _: made.instance, {made.instance.id: made.instance}) == []


def test_an_attempt_of_unknown_outcome_may_end_and_must_not_begin() -> None:
    made = play()
    token = made.token("a")
    made.lose("a")
    begun, asks = TaskBeat(token=token), TaskBeat(token=token, begun=False)
    assert unwanted([begun], lambda _: made.instance, {made.instance.id: made.instance}) == []
    assert unwanted([asks], lambda _: made.instance, {made.instance.id: made.instance}) == [token]


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_over_or_was_never_asked_for_is_unwanted(begun: bool) -> None:
    made = play()
    token = made.token("a")
    made.succeed("a")
    tokens = [token, "ins_1/a/9", "ins_1/other/1"]
    beats = [TaskBeat(token=token, begun=begun) for token in tokens]
    assert unwanted(beats, lambda _: made.instance, {made.instance.id: made.instance}) == tokens


@pytest.mark.parametrize("token", ["ins_9/a/1", "", "nonsense", "///"])
def test_of_an_instance_that_is_not_known_here_nothing_is_said(token: str) -> None:
    assert unwanted([TaskBeat(token=token)], lambda _: None, {}) == []


def test_an_attempt_of_an_instance_that_does_not_exist_must_not_begin() -> None:
    asks = TaskBeat(token="ins_9/a/1", begun=False)
    assert unwanted([asks], lambda _: None, {}) == [asks.token]


# --- the watch ----------------------------------------------------------------------------------------------


class FakeMesh:
    """A mesh that says where an attempt is."""

    connected = True

    def __init__(self, *states: str) -> None:
        self.states = list(states)
        self.asked = 0

    async def traffic(self, *, requests: list[str]) -> dict[str, Any]:
        self.asked += 1
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"capabilities": {}, "requests": {requests[0]: {"state": state}} if state else {}}


def flight() -> Flight:
    made = Play(make_plan(make_task("a", heartbeat_seconds=0.05)))
    driver: Any = SimpleNamespace(id="ins_1", instance=made.instance)
    return Flight(driver, made.plan.tasks["a"], made.token("a"), 1)


async def silence(flight: Flight, mesh: Any, *, within_seconds: float = 5.0) -> bool:
    """Return whether the watch ends in that time."""
    try:
        async with asyncio.timeout(within_seconds):
            await watch(flight, mesh, SystemClock())
    except TimeoutError:
        return False
    return True


async def test_an_agent_that_never_gives_a_sign_is_silent() -> None:
    assert await silence(flight(), FakeMesh("assigned"))


async def test_an_attempt_that_waits_for_an_agent_is_not_silent_until_one_has_it() -> None:
    assert not await silence(flight(), FakeMesh("queued"), within_seconds=0.3)
    mesh = FakeMesh("", "queued", "queued", "assigned")
    assert await silence(flight(), mesh)
    assert mesh.asked == 4


async def test_time_without_a_router_counts_for_no_agent() -> None:
    mesh = FakeMesh("assigned")
    mesh.connected = False
    assert not await silence(flight(), mesh, within_seconds=0.3)


class HandClock(SystemClock):
    """A clock that is set by hand."""

    seconds = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


async def test_the_last_sign_counts() -> None:
    attempt, mesh, clock = flight(), FakeMesh("assigned"), HandClock()
    flights = Flights()
    flights.by_token[attempt.token] = attempt
    waiting = asyncio.ensure_future(watch(attempt, mesh, clock))  # type: ignore[arg-type]
    for _ in range(5):
        clock.seconds += 0.04
        flights.hear([TaskBeat(token=attempt.token, progress={"at": 1})], clock.now())
        await asyncio.sleep(0.06)
        assert not waiting.done()
    assert attempt.progress == {"at": 1}
    clock.seconds += 0.05
    async with asyncio.timeout(5):
        await waiting
