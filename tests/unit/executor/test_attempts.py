"""What is remembered of attempts, and for how long."""

import asyncio

import msgspec

from agents.task_executor.attempts import RECENT_SECONDS, Attempts
from amp.errors import AmpError
from orchestration.contracts import Attempt
from orchestration.status import Effects


def attempt(token: str, *, engine_id: str = "e", effects: Effects | None = None) -> Attempt:
    return Attempt(
        token=token,
        engine_id=engine_id,
        workflow_id="w",
        workflow_instance_id="i",
        task_id="t",
        attempt=1,
        timeout_seconds=1,
        idempotency_key="k",
        effects=effects,
    )


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
    assert attempts.finish(attempt("t"), ending(), 100.0) is not None
    assert attempts.running == {}
    assert attempts.known_ending("t", 159.0) is not None
    assert attempts.known_ending("t", 160.0) is None


def test_remembered_endings_are_bounded_by_count_and_bytes() -> None:
    attempts = Attempts(max_results=3, max_bytes=2000)
    for number in range(5):
        attempts.finish(attempt(str(number)), ending(), 0.0)
    assert [token for token in map(str, range(5)) if attempts.known_ending(token, 0.0)] == ["2", "3", "4"]
    attempts.finish(attempt("big"), ending(1995), 0.0)
    assert [token for token in ("2", "3", "4", "big") if attempts.known_ending(token, 0.0)] == ["big"]
    attempts.finish(attempt("error"), AmpError("X", "x"), 0.0)
    assert attempts.known_ending("big", 0.0) is None


def test_finishing_twice_counts_once() -> None:
    attempts = Attempts(max_bytes=100)
    for _ in range(20):
        attempts.finish(attempt("t"), ending(), 0.0)
    assert attempts.known_ending("t", 0.0) is not None


async def test_abandon_marks_the_runs_of_one_engine_or_of_all() -> None:
    attempts = Attempts()
    for token, engine in (("a", "e1"), ("b", "e2")):
        attempts.begin(token, engine, asyncio.get_running_loop().create_future)
    assert attempts.abandon("e1") == 1
    assert [run.abandoned for run in attempts.running.values()] == [True, False]
    assert attempts.abandon() == 2


def test_only_recent_unrepeatable_endings_are_unconfirmed() -> None:
    attempts = Attempts()
    attempts.finish(attempt("old", effects=Effects.ONCE), ending(), 0.0)
    attempts.finish(attempt("read", effects=Effects.READ), ending(), RECENT_SECONDS + 1)
    attempts.finish(attempt("once", effects=Effects.ONCE), ending(), RECENT_SECONDS + 1)
    attempts.finish(
        attempt("other", effects=Effects.IRREVERSIBLE, engine_id="x"), ending(), RECENT_SECONDS + 1
    )
    now = RECENT_SECONDS + 2
    assert [found.token for found, _ in attempts.unconfirmed(now)] == ["once", "other"]
    assert [found.token for found, _ in attempts.unconfirmed(now, "x")] == ["other"]
