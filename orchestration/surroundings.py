"""What an engine knows about an instance beside its facts: where attempts are, who could take them, who holds it.

Values only. What nobody knows is left out, never guessed: `why` then says less, not something else.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running attempt is.

    `held`: it waits in the engine, `place` of `of`, because too many attempts for its capability are on their way.
    `queued`: it waits in the mesh, at `place` of `of`, until an agent has room.
    `assigned`: `agent_id` has it. `awaited`: its agent was lost, and its result may still come until `until`.
    `last_sign_at` is when its agent last said that it is alive.
    """

    state: Literal["held", "queued", "assigned", "awaited"]
    agent_id: str = ""
    place: int = 0
    of: int = 0
    until: datetime | None = None
    last_sign_at: datetime | None = None


class Offerer(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that offers a capability, and how full it is. `max_in_flight` is None when it takes any number."""

    agent_id: str
    in_flight: int = 0
    max_in_flight: int | None = None

    @property
    def has_room(self) -> bool:
        """Whether it would get another request now."""
        return self.max_in_flight is None or self.in_flight < self.max_in_flight


class Slots(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's slots for running instances; `place` is the instance's in the line of `waiting`, 0 if unknown."""

    running: int
    limit: int
    waiting: int = 0
    place: int = 0


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `why` is told besides the facts.

    `offers` holds the capabilities that were looked up, and only those. `owner` is the engine's agent id; without one
    that lives, `claimable_at` says when another engine may take over at the latest. `inbox` counts orders and results
    that are stored and not yet taken up. `unreadable` says why no engine of this release can go on with it.
    """

    places: Mapping[str, Place] = {}
    offers: Mapping[str, tuple[Offerer, ...]] = {}
    slots: Slots | None = None
    owner: str = ""
    owner_lives: bool = True
    claimable_at: datetime | None = None
    store_answers: bool = True
    inbox: int = 0
    unreadable: str = ""
