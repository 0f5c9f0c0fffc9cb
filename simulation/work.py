"""The outside world: what tasks do in a simulation, and the ledger of what was really done.

Effects are noted at the moment at which they happen, whatever becomes of the executor afterwards. Outputs depend on the
task and its inputs alone, so that a run with faults must end as one without.
"""

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agents.task_executor.errors import NotPermitted, TaskFailed, TimedOut, Unreachable
from agents.task_executor.handlers.base import Outcome, TaskContext
from orchestration.contracts import Attempt, CustomTaskRequest

VALUES = 1000
"""Outputs are numbers below this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Something that was done outside. `key` is its idempotency key."""

    key: str
    instance_id: str
    task_id: str
    attempt: int
    at: float


@dataclass(frozen=True, slots=True)
class Subject:
    """The task that a reconcile task asks about."""

    task_id: str
    output_names: tuple[str, ...]


class Ledger:
    """What was done, in order. `asks` tells for a workflow's reconcile task what it asks about."""

    def __init__(self, asks: Mapping[tuple[str, str], Subject]) -> None:
        self.asks = asks
        self.effects: list[Effect] = []
        self.calls: Counter[str] = Counter()
        """How often something was asked for, by idempotency key."""
        self.begun: Callable[[str, str, str], int] = lambda instance_id, task_id, asked_by: 0
        """Which attempt of a task the log names last, before the one that asks."""
        self._void: dict[tuple[str, str], int] = {}

    def performed(self, instance_id: str, task_id: str) -> int:
        """Return how often a task's effect happened."""
        return sum(effect.instance_id == instance_id and effect.task_id == task_id for effect in self.effects)

    def settle(self, instance_id: str, task_id: str, *, asked_by: str = "") -> bool:
        """Return whether a task's effect happened; if not, refuse it to every attempt that was asked for so far.

        A task that asks, `asked_by`, asks about the attempts before it.

        So does a bank that is asked about a payment it has not seen: who asks must be able to rely on the answer.
        """
        done = self.performed(instance_id, task_id) > 0
        if not done:
            self._void[instance_id, task_id] = self.begun(instance_id, task_id, asked_by)
        return done

    def perform(self, effect: Effect) -> None:
        """Note an effect. Raises NotPermitted when it was refused to this attempt."""
        if effect.attempt <= self._void.get((effect.instance_id, effect.task_id), 0):
            raise NotPermitted("this attempt was settled as not done")
        self.effects.append(effect)


def outputs_of(task_id: str, names: Sequence[str], given: object) -> dict[str, Any]:
    """Return the outputs of a task: numbers that depend on the task, the names and what it was given."""
    return {
        name: zlib.crc32(repr((task_id, number, given)).encode()) % VALUES
        for number, name in enumerate(names or ("value",))
    }


class Anything(msgspec.Struct):
    """Parameters of any task: they are not looked at."""


class SimulatedWork:
    """The handler of tasks that touch the world.

    Generated `custom` tasks say what to do in their parameters: `before`, `after` (seconds around the effect), `fails`
    (calls that fail first), `broken` (it always fails), `unclear` (the first call ends `before` or `after` the effect,
    and does not say which), `given` (what the outputs depend on). Tasks of a person's own definition just take their
    time.
    """

    def __init__(self, ledger: Ledger, request_type: type[msgspec.Struct]) -> None:
        self.request_type = request_type
        self._ledger = ledger

    async def run(self, request: Any, context: TaskContext) -> Outcome:
        """Do the work and return its outcome. Raises TaskError."""
        attempt = context.attempt
        assert attempt is not None, "only the engine asks for simulated work"
        about: Mapping[str, Any] = request.parameters if isinstance(request, CustomTaskRequest) else {}
        subject = self._ledger.asks.get((attempt.workflow_id, attempt.task_id))
        if subject is not None:
            return self._reconcile(attempt, subject, about.get("given"))
        await asyncio.sleep(float(about.get("before", self._usual_seconds(attempt))))
        key = attempt.idempotency_key
        self._ledger.calls[key] += 1
        if about.get("broken") or self._ledger.calls[key] <= int(about.get("fails", 0)):
            raise TaskFailed("it fails, as it was told to", retryable=not about.get("broken"))
        unclear = about.get("unclear") if self._ledger.calls[key] == 1 else None
        if unclear == "before":
            raise Unreachable("no answer, as it was told to")
        self._ledger.perform(
            Effect(
                key=key,
                instance_id=attempt.workflow_instance_id,
                task_id=attempt.task_id,
                attempt=attempt.attempt,
                at=asyncio.get_running_loop().time(),
            )
        )
        await asyncio.sleep(float(about.get("after", 0.0)))
        if unclear == "after":
            raise TimedOut("no answer in time, as it was told to")
        return _outcome(outputs_of(attempt.task_id, attempt.output_names, about.get("given")))

    @staticmethod
    def _usual_seconds(attempt: Attempt) -> float:
        return zlib.crc32(attempt.idempotency_key.encode()) % 2000 / 1000

    def _reconcile(self, asking: Attempt, subject: Subject, given: object) -> Outcome:
        if self._ledger.settle(asking.workflow_instance_id, subject.task_id, asked_by=asking.task_id):
            outputs = outputs_of(subject.task_id, subject.output_names, given)
            return _outcome({"outcome": "done", "outputs": outputs})
        return _outcome({"outcome": "not_done"})


def _outcome(primary: dict[str, Any]) -> Outcome:
    return Outcome(result=primary, outputs=primary, primary=primary)
