"""Before an effect that must not be repeated the engine is asked, and an old answer counts for nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.task_executor.errors import NotBegun, SpoolFull
from agents.task_executor.permission import FRESH_SECONDS, MAX_QUESTIONS, Permission
from agents.task_executor.spool import Spool, State
from amp.errors import AgentNotFound, AmpError, CapabilityNotFound, RequestTimeout
from orchestration import contracts
from tests.unit.executor.test_spool import attempt, spool


class Engine:
    """Plays the mesh with one engine behind it, which takes its time."""

    def __init__(self, *, fails: AmpError | None = None, unwanted: bool = False) -> None:
        self.asked: list[State | None] = []
        self.spool: Spool | None = None
        self.before_answer: Callable[[int], None] = lambda number: None
        self._fails = fails
        self._unwanted = unwanted

    async def request(
        self, capability: str, request: contracts.TaskHeartbeatRequest, **options: Any
    ) -> contracts.TaskHeartbeatReply:
        assert (capability, options["agent_id"]) == (contracts.TASK_HEARTBEAT.id, "engine")
        assert self.spool is not None
        (beat,) = request.beats
        assert not beat.begun
        self.asked.append(self.spool.state_of(beat.token))
        self.before_answer(len(self.asked))
        if self._fails is not None:
            raise self._fails
        return contracts.TaskHeartbeatReply(unwanted=[beat.token] if self._unwanted else [])


async def asked(folder: Path, engine: Engine) -> tuple[Permission, Spool]:
    engine.spool = made = await spool(folder)
    await made.accept(attempt())
    return Permission(lambda: engine, made), made  # type: ignore[arg-type, return-value]


async def test_a_wanted_attempt_is_noted_as_begun_after_the_answer(tmp_path: Path) -> None:
    engine = Engine()
    permission, kept = await asked(tmp_path, engine)
    await permission.begin(attempt())
    assert engine.asked == [State.ACCEPTED]
    assert kept.state_of("t") is State.BEGUN
    kept.close()


async def test_an_engine_that_cannot_be_asked_is_none_of_ours_and_its_work_begins(tmp_path: Path) -> None:
    permission, kept = await asked(tmp_path, Engine(fails=CapabilityNotFound("no such capability")))
    await permission.begin(attempt())
    assert kept.state_of("t") is State.BEGUN
    kept.close()


@pytest.mark.parametrize("error", [AgentNotFound("gone"), RequestTimeout("silent")])
async def test_without_an_answer_the_effect_does_not_begin(tmp_path: Path, error: AmpError) -> None:
    permission, kept = await asked(tmp_path, Engine(fails=error))
    with pytest.raises(NotBegun) as caught:
        await permission.begin(attempt())
    assert caught.value.retryable
    assert kept.state_of("t") is State.ACCEPTED
    kept.close()


async def test_an_unwanted_attempt_does_not_begin(tmp_path: Path) -> None:
    permission, kept = await asked(tmp_path, Engine(unwanted=True))
    with pytest.raises(NotBegun, match="does not want"):
        await permission.begin(attempt())
    assert kept.state_of("t") is State.ACCEPTED
    kept.close()


class StoppedNow:
    """The running loop's time, which jumps as for a process that is stopped and wakes up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.ahead, real = 0.0, loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self.ahead)

    def stop(self) -> None:
        self.ahead += FRESH_SECONDS + 1


async def test_after_a_stop_between_question_and_answer_it_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, stopped = Engine(), StoppedNow(monkeypatch)
    engine.before_answer = lambda number: stopped.stop() if number == 1 else None
    permission, kept = await asked(tmp_path, engine)
    await permission.begin(attempt())
    assert engine.asked == [State.ACCEPTED, State.BEGUN]
    kept.close()


async def test_answers_that_are_always_old_begin_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, stopped = Engine(), StoppedNow(monkeypatch)
    engine.before_answer = lambda number: stopped.stop()
    permission, kept = await asked(tmp_path, engine)
    with pytest.raises(NotBegun, match="too old"):
        await permission.begin(attempt())
    assert len(engine.asked) == MAX_QUESTIONS
    kept.close()


async def test_an_intent_that_cannot_be_written_begins_nothing(tmp_path: Path) -> None:
    permission, kept = await asked(tmp_path, Engine())
    (tmp_path / "executor").rename(tmp_path / "moved")
    with pytest.raises(SpoolFull):
        await permission.begin(attempt())
    kept.close()
