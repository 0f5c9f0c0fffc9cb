"""The attempts that this engine has under way: where each is as far as the engine itself knows. Values only.

Time comes in. It never sends anything and decides nothing.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agents.workflow_engine.driver import Driver
from orchestration import contracts
from orchestration.definition.plan import TaskPlan
from orchestration.surroundings import Place
from orchestration.turn import is_current


@dataclass(slots=True, eq=False)
class Flight:
    """An attempt under way.

    `driver` is who wants its result; another one takes its place when the instance is taken up anew. `held`: it waits
    here for a place. `awaited_until`: its agent was lost, and its result may still come through the inbox; `cut_short`
    ends that wait.
    It was sent over the engine's connection number `generation`, -1 while it was not. `last_sign_at` and `progress`
    are what its agent said last.
    """

    driver: Driver
    task: TaskPlan
    token: str
    attempt: int
    work: asyncio.Task[None] | None = None
    held: bool = False
    generation: int = -1
    awaited_until: datetime | None = None
    cut_short: asyncio.Event | None = None
    last_sign_at: datetime | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_wanted(self) -> bool:
        """Whether the result is still wanted by the driver that this engine has for the instance."""
        run = self.driver.instance.runs[self.task.id]
        return not self.driver.instance.status.is_final and is_current(run, self.token)


class Flights:
    """The flights by token."""

    def __init__(self) -> None:
        self.by_token: dict[str, Flight] = {}

    def place_of(self, token: str) -> Place | None:
        """Return where an attempt is as far as this engine alone knows; None when the mesh must be asked."""
        flight = self.by_token.get(token)
        if flight is None:
            return None
        if flight.awaited_until is not None:
            return Place(state="awaited", until=flight.awaited_until, last_sign_at=flight.last_sign_at)
        if flight.held:
            line = [
                each.token
                for each in self.by_token.values()
                if each.held and each.task.capability == flight.task.capability
            ]
            return Place(state="held", place=line.index(token) + 1, of=len(line))
        if flight.last_sign_at is not None:
            return Place(state="assigned", last_sign_at=flight.last_sign_at)
        return None

    def unwanted(self) -> list[Flight]:
        """Return the flights whose result nobody wants any more."""
        return [flight for flight in self.by_token.values() if not flight.is_wanted]

    def hear(self, beats: list[contracts.TaskBeat], now: datetime) -> None:
        """Note that agents said that attempts are alive."""
        for beat in beats:
            flight = self.by_token.get(beat.token)
            if flight is not None:
                flight.last_sign_at = now
                if beat.progress:
                    flight.progress = beat.progress
