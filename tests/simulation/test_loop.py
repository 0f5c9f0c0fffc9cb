"""The event loop on virtual time: order, jumps, bounds, and lives that freeze and die."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from simulation.errors import Deadlock, EndlessLoop
from simulation.lives import CURRENT, Killed, Life
from simulation.loop import VirtualLoop


def test_waiting_takes_virtual_time_only() -> None:
    loop = VirtualLoop()

    async def wait() -> float:
        await asyncio.sleep(86_400)
        return loop.time()

    assert loop.run_until_complete(wait()) == 86_400


def test_timers_run_by_time_and_equal_ones_in_the_order_in_which_they_were_set() -> None:
    loop, ran = VirtualLoop(), list[str]()

    async def wait() -> None:
        for name, delay in (("late", 2.0), ("first", 1.0), ("second", 1.0), ("cancelled", 1.0)):
            timer = loop.call_later(delay, ran.append, name)
            if name == "cancelled":
                timer.cancel()
        await asyncio.sleep(3)

    loop.run_until_complete(wait())
    assert ran == ["first", "second", "late"]


def test_work_for_threads_is_done_in_place() -> None:
    loop = VirtualLoop()

    async def work() -> tuple[int, float]:
        with pytest.raises(ValueError, match="invalid literal"):
            await loop.run_in_executor(None, int, "x")
        return await asyncio.to_thread(int, "7"), loop.time()

    assert loop.run_until_complete(work()) == (7, 0.0)


def test_when_nothing_can_happen_any_more_the_waiting_tasks_are_named() -> None:
    loop = VirtualLoop()

    async def wait() -> None:
        task = asyncio.create_task(asyncio.Event().wait(), name="waits for ever")
        await task

    with pytest.raises(Deadlock, match="waits for ever"):
        loop.run_until_complete(wait())
    loop.end()


def test_code_that_repeats_itself_without_waiting_is_stopped() -> None:
    loop = VirtualLoop(max_steps_a_second=1000)

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(EndlessLoop, match="more than 1000 steps"):
        loop.run_until_complete(spin())
    loop.end()


def test_what_a_callback_raises_is_noted() -> None:
    loop = VirtualLoop()

    def fail() -> None:
        raise ValueError("broken")

    async def wait() -> None:
        loop.call_soon(fail)
        await asyncio.sleep(1)

    loop.run_until_complete(wait())
    assert len(loop.failures) == 1
    assert "broken" in loop.failures[0]


async def tick(loop: VirtualLoop, ticks: list[float]) -> None:
    try:
        while True:
            await asyncio.sleep(1)
            ticks.append(loop.time())
    finally:
        ticks.append(-1)


def living(act: Callable[[VirtualLoop, Life], Any]) -> list[float]:
    """Return when a life ticked that `act` did something to at 2.5 s."""
    loop, life, ticks = VirtualLoop(), Life("agent#1"), list[float]()

    async def watch() -> list[float]:
        life.enter(loop.create_task, tick(loop, ticks))
        loop.call_later(2.5, act, loop, life)
        await asyncio.sleep(6.5)
        return list(ticks)

    seen = loop.run_until_complete(watch())
    loop.end([life])
    return seen


def test_a_killed_life_does_nothing_more_not_even_clean_up() -> None:
    assert living(lambda loop, life: life.kill()) == [1, 2]


def test_a_frozen_life_goes_on_late_and_at_once() -> None:
    def freeze(loop: VirtualLoop, life: Life) -> None:
        life.freeze()
        loop.call_later(2.3, lambda: loop.resume(life.thaw()))

    assert living(freeze) == [1, 2, 4.8, 5.8]


def test_a_killed_life_cannot_be_thawed() -> None:
    def kill(loop: VirtualLoop, life: Life) -> None:
        life.freeze()
        life.kill()
        loop.resume(life.thaw())

    assert living(kill) == [1, 2]


def test_whatever_a_life_begins_belongs_to_it() -> None:
    loop, life, names = VirtualLoop(), Life("agent#1"), list[str]()

    def note() -> None:
        current = CURRENT.get()
        names.append(current.name if current else "world")

    async def begin() -> None:
        loop.call_soon(note)
        loop.call_later(1, note)
        await asyncio.create_task(asyncio.sleep(2))
        note()

    async def watch() -> None:
        task = life.enter(loop.create_task, begin())
        await task
        note()

    loop.run_until_complete(watch())
    assert names == ["agent#1", "agent#1", "agent#1", "world"]


def test_a_life_that_dies_in_the_middle_of_a_step_leaves_no_failure() -> None:
    loop, life = VirtualLoop(), Life("agent#1")

    def die() -> None:
        life.kill()
        raise Killed

    async def watch() -> None:
        life.enter(loop.call_soon, die)
        await asyncio.sleep(1)

    loop.run_until_complete(watch())
    assert loop.failures == []
