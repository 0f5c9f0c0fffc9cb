"""What the end of an attempt means, error by error: a failure, a loss, or that nobody ever took it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from agents.workflow_engine import attempts
from agents.workflow_engine.attempts import Attempts
from agents.workflow_engine.driver import Driver, KeptResult
from agents.workflow_engine.flights import Flight
from amp.envelope import ROUTER_ID
from amp.errors import (
    AgentLost,
    AmpError,
    CapabilityNotFound,
    Disconnected,
    ExecutionError,
    InsufficientResources,
    RequestTimeout,
)
from amp.replies import Answer
from orchestration import machine
from orchestration import stimuli as st
from orchestration.status import Effects
from runtime.clock import SystemClock
from tests.builders import START, make_plan, make_task


class FixedClock(SystemClock):
    """Stands still a second after the start."""

    def now(self) -> Any:
        return START + timedelta(seconds=1)


class FakeMesh:
    """A mesh that ends every request in the same way."""

    def __init__(self, ending: AmpError | dict[str, Any]) -> None:
        self.ending = ending
        self.asked: list[dict[str, Any]] = []

    async def request_full(self, capability: str, parameters: object, **more: Any) -> Answer[Any]:
        self.asked.append(more)
        if isinstance(self.ending, AmpError):
            raise self.ending
        return Answer(self.ending, "success", {}, "worker")


class FakeDriver:
    """Takes what is posted."""

    def __init__(self, effects: Effects) -> None:
        self.plan = make_plan(make_task("a", effects=effects, schedule_to_start_seconds=60))
        self.instance = machine.start(self.plan, "ins_1", {}, at=START, admit=True).instance
        self.committed = self.instance
        self.id = "ins_1"
        self.lost = False
        self.posted: list[tuple[st.AnyStimulus, KeptResult | None]] = []

    def post(self, stimulus: st.AnyStimulus, *, kept: KeptResult | None = None) -> None:
        self.posted.append((stimulus, kept))


async def end_of(
    ending: AmpError | dict[str, Any], effects: Effects = Effects.NONE
) -> tuple[st.AnyStimulus, KeptResult | None]:
    """Return what is posted when an attempt of a task with these effects ends so."""
    driver: Any = FakeDriver(effects)
    mesh: Any = FakeMesh(ending)
    performer = Attempts(mesh, engine_id="engine", clock=FixedClock(), random=Random(1), generation=lambda: 0)
    typed: Driver = driver
    async with asyncio.timeout(5):
        await performer.send(Flight(typed, driver.plan.tasks["a"], "ins_1/a/1", 1))
    assert mesh.asked[0]["message_id"] == "ins_1/a/1"
    assert mesh.asked[0]["queue_seconds"] == pytest.approx(59, abs=1)
    posted: list[tuple[st.AnyStimulus, KeptResult | None]] = driver.posted
    assert len(posted) == 1
    return posted[0]


def from_agent(error: AmpError, agent_id: str = "worker") -> AmpError:
    error.from_agent_id = agent_id
    return error


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "UNREPEATABLE_GRACE_SECONDS", 0.01)


NEVER_PLACED: list[Callable[[], AmpError]] = [
    lambda: from_agent(RequestTimeout("late", {"reason": "queued"}), ROUTER_ID),
    lambda: from_agent(CapabilityNotFound("nobody"), ROUTER_ID),
    lambda: InsufficientResources("full", {"retry_after_ms": 100_000}),
    lambda: Disconnected("no router", {"sent": False}),
]


@pytest.mark.parametrize("error", NEVER_PLACED)
@pytest.mark.parametrize("effects", [Effects.READ, Effects.ONCE])
async def test_an_attempt_that_nobody_took_fails_whatever_its_effects(
    error: Callable[[], AmpError], effects: Effects
) -> None:
    stimulus, _ = await end_of(error(), effects)
    assert isinstance(stimulus, st.AttemptErrored)
    assert stimulus.error.code == "SCHEDULE_TO_START_TIMEOUT"


@pytest.mark.parametrize(
    ("error", "effects"),
    [
        (AgentLost("gone", {"agent_id": "worker"}), Effects.READ),
        (AgentLost("gone", {"agent_id": "worker"}), Effects.ONCE),
        (Disconnected("broken", {"sent": True}), Effects.READ),
        (RequestTimeout("no answer"), Effects.IRREVERSIBLE),
        (from_agent(AmpError("OUTCOME_UNKNOWN", "killed in the middle")), Effects.ONCE),
    ],
)
async def test_a_lost_attempt_is_a_loss(error: AmpError, effects: Effects) -> None:
    stimulus, _ = await end_of(error, effects)
    assert isinstance(stimulus, st.AttemptVanished)
    assert stimulus.begun


async def test_an_attempt_that_never_began_says_so() -> None:
    stimulus, _ = await end_of(from_agent(AmpError("NOT_BEGUN", "never")), Effects.ONCE)
    assert isinstance(stimulus, st.AttemptVanished)
    assert (stimulus.begun, stimulus.agent_id) == (False, "worker")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestTimeout("no answer"), "TIMEOUT"),
        (from_agent(RequestTimeout("its own limit")), "TIMEOUT"),
        (from_agent(CapabilityNotFound("the worker's own words")), "CAPABILITY_NOT_FOUND"),
        (from_agent(ExecutionError("broken")), "EXECUTION_ERROR"),
        (from_agent(InsufficientResources("too large")), "INSUFFICIENT_RESOURCES"),
    ],
)
async def test_what_an_agent_answers_is_its_error(error: AmpError, code: str) -> None:
    stimulus, kept = await end_of(error)
    assert isinstance(stimulus, st.AttemptErrored)
    assert (stimulus.error.code, kept) == (code, None)


async def test_kept_results_and_errors_name_who_keeps_them_and_leave_it_out_of_the_log() -> None:
    result = {"result": {}, "primary": 7, "metadata": {"spooled": True, "took": 1}}
    stimulus, kept = await end_of(result, Effects.ONCE)
    assert isinstance(stimulus, st.AttemptSucceeded)
    assert stimulus.metadata == {"agent_id": "worker", "took": 1}
    assert kept == KeptResult("worker", "ins_1/a/1")
    stimulus, kept = await end_of(from_agent(ExecutionError("broken", {"spooled": True, "x": 1})))
    assert isinstance(stimulus, st.AttemptErrored)
    assert (stimulus.error.details, kept) == ({"x": 1}, KeptResult("worker", "ins_1/a/1"))


async def test_an_answer_that_is_no_task_result_fails_the_attempt_only() -> None:
    stimulus, _ = await end_of({"something": "else"})
    assert isinstance(stimulus, st.AttemptErrored)
    assert stimulus.error.code == "INVALID_SCHEMA"
