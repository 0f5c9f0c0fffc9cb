"""The outside world: what tasks do in a simulation, and the ledger of what was really done.

Effects are noted at the moment at which they happen, whatever becomes of the executor afterwards. Outputs depend on the
task and its inputs alone, so that a run with faults must end as one without.
"""

import asyncio
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.task_executor.errors import NotPermitted, TaskFailed
from agents.task_executor.handlers.base import Outcome, TaskContext
from orchestration.contracts import CustomTaskRequest

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


class Ledger:
    """What was done, in order."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.calls: Counter[str] = Counter()
        """How often something was asked for, by idempotency key."""
        self._void: dict[tuple[str, str], int] = {}

    def performed(self, instance_id: str, task_id: str) -> int:
        """Return how often a task's effect happened."""
        return sum(
            effect.instance_id == instance_id and effect.task_id == task_id for effect in self.effects
        )

    def settle(self, instance_id: str, task_id: str, attempt: int) -> bool:
        """Return whether a task's effect happened; if not, refuse it to this attempt and all before it.

        So does a bank that is asked about a payment it has not seen: who asks must be able to rely on the answer.
        """
        done = self.performed(instance_id, task_id) > 0
        if not done:
            known = self._void.get((instance_id, task_id), 0)
            self._void[instance_id, task_id] = max(known, attempt)
        return done

    def perform(self, effect: Effect) -> None:
        """Note an effect. Raises NotPermitted when it was refused to this attempt."""
        if effect.attempt <= self._void.get((effect.instance_id, effect.task_id), 0):
            raise NotPermitted("this attempt was settled as not done")
        self.effects.append(effect)


def value_of(task_id: str, given: object) -> int:
    """Return the output of a task."""
    return zlib.crc32(repr((task_id, given)).encode()) % VALUES


class SimulatedWork:
    """The handler of tasks that touch the world. It answers `custom` requests and those of a person's own definition.

    Parameters of `custom` tasks: `before`, `after` (seconds around the effect), `fails` (calls that fail first),
    `broken` (it always fails), `given` (what the output depends on); `of` asks whether another task was done.
    """

    request_type = CustomTaskRequest

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def run(self, request: CustomTaskRequest, context: TaskContext) -> Outcome:
        """Do the work and return its outcome. Raises TaskError."""
        attempt = context.attempt
        assert attempt is not None, "only the engine asks for simulated work"
        about = request.parameters
        if "of" in about:
            return self._reconcile(attempt.workflow_instance_id, about)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(_seconds(about, "before"))
        key = attempt.idempotency_key
        self._ledger.calls[key] += 1
        if about.get("broken") or self._ledger.calls[key] <= int(about.get("fails", 0)):
            raise TaskFailed("it fails, as it was told to", retryable=not about.get("broken"))
        self._ledger.perform(
            Effect(
                key=key,
                instance_id=attempt.workflow_instance_id,
                task_id=attempt.task_id,
                attempt=attempt.attempt,
                at=loop.time(),
            )
        )
        await asyncio.sleep(_seconds(about, "after"))
        name = attempt.output_names[0] if attempt.output_names else "value"
        return _outcome({name: value_of(attempt.task_id, about.get("given"))})

    def _reconcile(self, instance_id: str, about: Mapping[str, Any]) -> Outcome:
        task_id, given = str(about["of"]), about.get("given")
        latest = int(about.get("attempts", 1_000))
        if self._ledger.settle(instance_id, task_id, latest):
            outputs = {str(about["name"]): value_of(task_id, given)}
            return _outcome({"outcome": "done", "outputs": outputs})
        return _outcome({"outcome": "not_done"})


def _seconds(about: Mapping[str, Any], name: str) -> float:
    return float(about.get(name, 0.0))


def _outcome(primary: dict[str, Any]) -> Outcome:
    return Outcome(result=primary, outputs=primary, primary=primary)
