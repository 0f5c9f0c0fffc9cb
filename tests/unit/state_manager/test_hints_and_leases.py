"""Hints that are few and never lose the last one; leases that are noticed when they end."""

import asyncio
from collections.abc import Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agents.state_manager import hints as hints_module
from agents.state_manager import leases as leases_module
from agents.state_manager.errors import StoreFull
from agents.state_manager.hints import LogHints
from agents.state_manager.leases import LeaseWatch
from agents.state_manager.storage.base import LeaseSweep, Storage
from tests.unit.state_manager.store_values import ENGINE, ManualClock, make_batch, make_store_clock, until


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> Any:
    task = asyncio.ensure_future(work)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_hints_end_with_the_newest_offset() -> None:
    sent: list[int] = []

    async def publish(offset: int) -> None:
        sent.append(offset)
        if offset < 50:
            hints.advanced(offset + 1)
            hints.advanced(offset - 1)

    hints = LogHints(publish)
    await hints.repeat()
    async with running(hints.run()):
        hints.advanced(40)
        await until(lambda: sent == list(range(40, 51)))
        hints.advanced(50)
        await hints.repeat()
        await until(lambda: sent[-2:] == [50, 50])


def recorded_hints() -> tuple[LogHints, list[int]]:
    sent: list[int] = []

    async def publish(offset: int) -> None:
        sent.append(offset)

    return LogHints(publish), sent


async def test_no_second_hint_before_somebody_has_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints_module, "GAP_SECONDS", 0)
    monkeypatch.setattr(hints_module, "UNREAD_SECONDS", 60)
    hints, sent = recorded_hints()
    async with running(hints.run()):
        hints.advanced(1)
        await until(lambda: sent == [1])
        hints.advanced(2)
        hints.advanced(3)
        await asyncio.sleep(0.05)
        assert sent == [1]
        hints.was_read()
        await until(lambda: sent == [1, 3])
        hints.was_read()
        hints.advanced(4)
        await until(lambda: sent == [1, 3, 4])


async def test_growth_that_nobody_reads_is_told_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints_module, "UNREAD_SECONDS", 0.01)
    hints, sent = recorded_hints()
    async with running(hints.run()):
        for offset in (1, 2, 3):
            hints.advanced(offset)
            await until(lambda offset=offset: sent[-1:] == [offset])  # type: ignore[misc]


async def test_end_of_a_lease_is_announced_once(storage: Storage, clock: ManualClock) -> None:
    announced: list[int] = []

    async def announce() -> None:
        announced.append(1)

    await storage.append([make_batch()])
    watch = LeaseWatch(storage, make_store_clock(clock), announce)
    async with running(watch.run()):
        await storage.keep_lease(ENGINE, "engine", 10)
        watch.kept(10)
        await until(lambda: watch._next is not None)
        clock.advance(11)
        watch._wake.set()
        await until(lambda: bool(announced))
        watch._wake.set()
        await until(lambda: watch._next is None)
    assert announced == [1]


async def test_watch_outlives_a_store_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "RETRY_SECONDS", 0.001)
    sweeps = iter([StoreFull("no room"), StoreFull("no room"), None])
    swept: list[bool] = []

    class Refusing:
        async def sweep_leases(self) -> LeaseSweep:
            error = next(sweeps)
            if error is not None:
                raise error
            swept.append(True)
            return LeaseSweep(ended=(), claimable=3, next_expiry=None)

    async def announce() -> None:
        raise AssertionError("nothing ended")

    store: Any = Refusing()
    async with running(LeaseWatch(store, make_store_clock(), announce).run()):
        await until(lambda: bool(swept))
