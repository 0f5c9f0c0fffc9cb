"""What goes wrong in a run, and when: drawn from the seed, each kind from chance of its own.

Each seed takes some of the kinds that are allowed and its own rates, so that rare combinations come up and calm
runs exist. After `heal_at` nothing goes wrong any more.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from simulation.mesh import CLIENT, SimulatedMesh, in_world
from simulation.network import Direction

Kind = Literal["kill", "crash", "stall", "cut", "partition", "drop", "duplicate", "delay", "reorder", "clock"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FIRST_FAULT_SECONDS = 0.2
MIN_STORM_SECONDS = 5.0
MAX_STORM_SECONDS = 40.0
KIND_TAKEN = 0.55
"""The chance that a seed takes a kind of fault."""
MAX_DOWN_SECONDS = 8.0
MAX_STALL_SECONDS = 20.0
MAX_PARTITION_SECONDS = 20.0
MAX_DELAY_SECONDS = 30.0
MAX_FRAME_RATE = 0.2
MAX_SKEW_SECONDS = 5.0
MAX_JUMP_SECONDS = 86_400.0
"""How far a wall clock is set while nobody has to believe it anew."""
MAX_JUMP_WITH_RESTARTS_SECONDS = 30.0
"""How far it is set when an engine may begin, or take over, in the meantime: what was due is off by as much."""


@dataclass(frozen=True, slots=True)
class Storm:
    """The faults of one seed. `kinds` are those that it takes."""

    seed: str
    kinds: frozenset[Kind]
    heal_at: float

    @property
    def skew_seconds(self) -> float:
        """How far the wall clocks of the machines are apart at most."""
        return MAX_SKEW_SECONDS if "clock" in self.kinds else 0.0

    def _random(self, kind: Kind) -> Random:
        return Random(f"{self.seed}:{kind}")

    def arrange(self, mesh: SimulatedMesh) -> None:
        """Set the mesh's lines, and a timer for each thing that will happen."""
        names = [name for name in mesh.processes if name != CLIENT]
        lines = [name for name in mesh.processes if name != "router"]
        if "kill" in self.kinds:
            self._times("kill", mesh, 6, lambda draw: mesh.kill(draw.choice(names), _down(draw)))
        if "stall" in self.kinds:
            self._times(
                "stall",
                mesh,
                3,
                lambda draw: mesh.stall(draw.choice(names), draw.random() * MAX_STALL_SECONDS),
            )
        if "cut" in self.kinds:
            self._times("cut", mesh, 5, lambda draw: mesh.network.line(draw.choice(lines)).cut())
        if "partition" in self.kinds:
            self._times("partition", mesh, 3, lambda draw: _part(mesh, draw, draw.choice(lines)))
        if "clock" in self.kinds:
            self._times(
                "clock",
                mesh,
                3,
                lambda draw: mesh.processes[draw.choice(names)].clock.jump(
                    (draw.random() * 2 - 1) ** 3 * self._max_jump_seconds(mesh)
                ),
            )
        for name in lines:
            for direction in mesh.network.line(name).directions:
                self._set_rates(direction)
        in_world(mesh.loop, mesh.loop.call_at, self.heal_at, mesh.heal)

    def _max_jump_seconds(self, mesh: SimulatedMesh) -> float:
        engines = sum(name.startswith("workflow-engine") for name in mesh.processes)
        steady = engines == 1 and not self.kinds & {"kill", "crash"}
        return MAX_JUMP_SECONDS if steady else MAX_JUMP_WITH_RESTARTS_SECONDS

    def _times(self, kind: Kind, mesh: SimulatedMesh, most: int, act: Callable[[Random], None]) -> None:
        """Let something happen one to `most` times while the storm lasts."""
        draw = self._random(kind)
        for _ in range(draw.randint(1, most)):
            at = FIRST_FAULT_SECONDS + draw.random() * (self.heal_at - FIRST_FAULT_SECONDS)
            in_world(mesh.loop, mesh.loop.call_at, at, act, draw)

    def _set_rates(self, direction: Direction) -> None:
        """Make a direction as bad as the seed wants it."""
        for kind in ("drop", "duplicate", "delay", "reorder"):
            if kind not in self.kinds:
                continue
            draw = Random(f"{self.seed}:{kind}:{direction.name}")
            rate = draw.random() ** 2 * MAX_FRAME_RATE if draw.random() < 0.5 else 0.0
            if kind == "drop":
                direction.drop_rate = rate
            elif kind == "duplicate":
                direction.duplicate_rate = rate
            elif kind == "delay":
                direction.delay_rate = rate
                direction.max_delay_seconds = draw.random() ** 3 * MAX_DELAY_SECONDS
            else:
                direction.reorder_rate = rate

    def crash_hook(self, mesh: SimulatedMesh) -> Callable[[str, str], bool] | None:
        """Return what decides at each crash point whether the process dies there."""
        if "crash" not in self.kinds:
            return None
        draw = self._random("crash")
        left, rate = draw.randint(1, 5), 0.003 + draw.random() ** 2 * 0.1

        def dies(name: str, point: str) -> bool:
            nonlocal left
            if left <= 0 or mesh.loop.time() >= self.heal_at or draw.random() >= rate:
                return False
            left -= 1
            mesh.note(f"crash {name} at {point}")
            mesh.kill(name, _down(draw))
            return True

        return dies


def storm_of(seed: int, allowed: Collection[Kind]) -> Storm:
    """Return the faults of a seed, of the allowed kinds."""
    draw = Random(f"{seed}:storm")
    heal_at = MIN_STORM_SECONDS + draw.random() * (MAX_STORM_SECONDS - MIN_STORM_SECONDS)
    taken = frozenset(kind for kind in KINDS if draw.random() < KIND_TAKEN)
    return Storm(f"{seed}:storm", taken & frozenset(allowed), heal_at)


def _down(draw: Random) -> float:
    return 0.01 + draw.random() ** 2 * MAX_DOWN_SECONDS


def _part(mesh: SimulatedMesh, draw: Random, name: str) -> None:
    """Cut one or both directions of a line off for a while."""
    line = mesh.network.line(name)
    directions = draw.choice(((line.up,), (line.down,), line.directions))
    blockade: Literal["drop", "hold"] = draw.choice(("drop", "hold"))
    for direction in directions:
        direction.blockade = blockade
    if draw.random() < 0.5:
        line.cut()
    mesh.note(f"partition {name} {blockade} {len(directions)}")
    seconds = draw.random() * MAX_PARTITION_SECONDS
    for direction in directions:
        in_world(mesh.loop, mesh.loop.call_later, seconds, direction.open)
