"""What a task handler is: it takes typed parameters and a context, and returns an outcome or raises a TaskError.

Handlers know nothing of the mesh, of templates or of retries by the engine. A handler must never keep anything of a
task after it returned: the same handler serves all tasks at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from orchestration.contracts import Attempt
from runtime.clock import Clock

Progress = Callable[[Mapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """What a handler may know about the work it does.

    `attempt` is None when a stranger calls the capability directly: nobody else retries then. `deadline` is in the
    running loop's time; the executor cancels the handler when it passes. `names` are the context variables that the
    task's expressions may use, `declared` those that are null when unset. `parameters` are the parameters as the
    definition wrote them, templates unfilled.
    """

    attempt: Attempt | None
    deadline: float
    clock: Clock
    progress: Progress
    names: Mapping[str, Any] = field(default_factory=dict)
    declared: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def remaining_seconds(self) -> float:
        """Return the time left, in seconds, never below zero."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a finished task produced.

    `result` is the public reply of its capability, `outputs` are the values offered to the task's declared outputs by
    name, `primary` is the value from which the others are taken.
    """

    result: msgspec.Struct | Mapping[str, Any]
    outputs: Mapping[str, Any]
    primary: Any


class TaskHandler(Protocol):
    """Performs one type of task."""

    @property
    def request_type(self) -> type[msgspec.Struct]:
        """The contract struct that the parameters are decoded into."""
        ...

    async def run(self, request: Any, context: TaskContext) -> Outcome:
        """Do the work and return the outcome. Cancellation stops it and everything it started.

        Raises: TaskError.
        """
        ...
