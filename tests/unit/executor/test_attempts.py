"""What is remembered of attempts, and for how long."""

import asyncio

import msgspec

from agents.task_executor.attempts import Attempts
from amp.errors import AmpError


def ending(size: int = 10) -> msgspec.Raw:
    return msgspec.Raw(b"0" * size)


async def test_run_begins_once_and_later_askers_attach() -> None:
    attempts, started = Attempts(), []

    def start() -> asyncio.Future[msgspec.Raw]:
        started.append(1)
        return asyncio.get_running_loop().create_future()

    first = attempts.begin("t", "e1", start)
    first.abandoned = True
    second = attempts.begin("t", "e2", start)
    assert first is second
    assert (second.abandoned, second.engine_id, len(started)) == (False, "e2", 1)


async def test_ending_answers_duplicates_until_it_is_old() -> None:
    attempts = Attempts(kept_seconds=60)
    attempts.begin("t", "e", asyncio.get_running_loop().create_future)
    assert attempts.finish("t", ending(), 100.0) is not None
    assert attempts.running == {}
    assert attempts.known_ending("t", 159.0) is not None
    assert attempts.known_ending("t", 160.0) is None


def test_remembered_endings_are_bounded_by_count_and_bytes() -> None:
    attempts = Attempts(max_results=3, max_bytes=2000)
    for number in range(5):
        attempts.finish(str(number), ending(), 0.0)
    assert [token for token in map(str, range(5)) if attempts.known_ending(token, 0.0)] == ["2", "3", "4"]
    attempts.finish("big", ending(1995), 0.0)
    assert [token for token in ("2", "3", "4", "big") if attempts.known_ending(token, 0.0)] == ["big"]
    attempts.finish("error", AmpError("X", "x"), 0.0)
    assert attempts.known_ending("big", 0.0) is None


def test_finishing_twice_counts_once() -> None:
    attempts = Attempts(max_bytes=100)
    for _ in range(20):
        attempts.finish("t", ending(), 0.0)
    assert attempts.known_ending("t", 0.0) is not None


async def test_abandon_marks_the_runs_of_one_engine_or_of_all() -> None:
    attempts = Attempts()
    for token, engine in (("a", "e1"), ("b", "e2")):
        attempts.begin(token, engine, asyncio.get_running_loop().create_future)
    assert attempts.abandon("e1") == 1
    assert [run.abandoned for run in attempts.running.values()] == [True, False]
    assert attempts.abandon() == 2
