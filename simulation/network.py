"""The wires between the agents and the router: frames take time, and get lost, doubled, late or out of order.

Every agent has one line to the router with two directions. What happens to a frame is drawn from that direction's own
seeded chance, so that one line's traffic does not change another's fate.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from amp.transports.base import ConnectFailed, Connection, ConnectionClosed
from amp.transports.memory import MemoryConnection, MemoryNetwork
from simulation.lives import CURRENT
from simulation.loop import VirtualLoop

LATENCY_SECONDS = 0.0003
CONNECT_SECONDS = 0.001
MAX_REORDER_SECONDS = 0.05

Blockade = Literal["", "drop", "hold"]
"""What happens to frames while a direction is cut off: lost, or delivered at the end as TCP would."""


@dataclass(slots=True)
class Direction:
    """One direction of an agent's line, and what it does to frames. Rates are shares of all frames."""

    name: str
    random: Random
    drop_rate: float = 0.0
    duplicate_rate: float = 0.0
    reorder_rate: float = 0.0
    delay_rate: float = 0.0
    max_delay_seconds: float = 0.0
    blockade: Blockade = ""
    held: list[Callable[[], None]] = field(default_factory=list)

    def heal(self) -> None:
        """Be a good line again, and deliver what was held back."""
        self.drop_rate = self.duplicate_rate = self.reorder_rate = self.delay_rate = 0.0
        self.open()

    def open(self) -> None:
        """End a blockade."""
        self.blockade = ""
        held, self.held = self.held, []
        for deliver in held:
            deliver()


class Line:
    """What lies between one agent and the router."""

    def __init__(self, name: str, seed: str) -> None:
        self.name = name
        self.up = Direction(f"{name}>router", Random(f"{seed}:up:{name}"))
        self.down = Direction(f"router>{name}", Random(f"{seed}:down:{name}"))
        self.connections: list[WiredConnection] = []

    @property
    def directions(self) -> tuple[Direction, Direction]:
        """Both directions."""
        return self.up, self.down

    def cut(self) -> None:
        """Break the connection; what is under way is lost."""
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.abort()

    def die(self, random: Random) -> None:
        """The agent was killed: what it has sent may still arrive, then the connection ends."""
        connections, self.connections = self.connections, []
        for connection in connections:
            if random.random() < 0.5:
                connection.wire.rush()
            connection.end()


class Wire:
    """One direction of one connection. Frames keep their order unless the line swaps them."""

    def __init__(
        self,
        loop: VirtualLoop,
        direction: Direction,
        arrive: Callable[[bytes], None],
        note: Callable[[str, bytes], None],
    ) -> None:
        self._loop = loop
        self._direction = direction
        self._arrive = arrive
        self._note = note
        self._last = 0.0
        self._under_way: dict[int, bytes] = {}
        self._count = 0
        self._world = copy_context()
        self._world.run(CURRENT.set, None)

    def carry(self, frame: bytes) -> None:
        """Take a frame; it arrives later, perhaps."""
        direction, draw = self._direction, self._direction.random.random
        if direction.blockade:
            if direction.blockade == "hold":
                self._hold(frame)
            return
        if direction.drop_rate and draw() < direction.drop_rate:
            return
        at = self._loop.time() + LATENCY_SECONDS
        if direction.delay_rate and draw() < direction.delay_rate:
            at += draw() * direction.max_delay_seconds
        if direction.reorder_rate and draw() < direction.reorder_rate:
            self._send_at(at + draw() * MAX_REORDER_SECONDS, frame)
        else:
            self._last = max(at, self._last)
            self._send_at(self._last, frame)
        if direction.duplicate_rate and draw() < direction.duplicate_rate:
            self._send_at(self._last + draw() * MAX_REORDER_SECONDS, frame)

    def _hold(self, frame: bytes) -> None:
        number = self._count = self._count + 1
        self._under_way[number] = frame
        self._direction.held.append(lambda: self._deliver(number))

    def _send_at(self, at: float, frame: bytes) -> None:
        number = self._count = self._count + 1
        self._under_way[number] = frame
        self._loop.call_at(at, self._deliver, number, context=self._world)

    def _deliver(self, number: int) -> None:
        frame = self._under_way.pop(number, None)
        if frame is not None:
            self._note(self._direction.name, frame)
            self._arrive(frame)

    def rush(self) -> None:
        """Deliver what is under way now."""
        for number in list(self._under_way):
            self._deliver(number)

    def lose(self) -> None:
        """Lose what is under way."""
        self._under_way.clear()


class WiredConnection(MemoryConnection):
    """One end of a connection whose frames travel over a `Wire`."""

    wire: Wire
    other: "WiredConnection"

    async def send(self, frame: bytes) -> None:
        """Give a frame to the wire. Raises ConnectionClosed."""
        if self.closed:
            raise ConnectionClosed
        self.wire.carry(frame)

    def arrive(self, frame: bytes) -> None:
        """Have `receive` return a frame."""
        self._incoming.deliver(frame)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close both directions; what was sent is still delivered."""
        self.wire.rush()
        self.end()

    def end(self) -> None:
        """Close both directions; what has arrived can still be read."""
        self.wire.lose()
        self.other.wire.lose()
        self._outgoing.close()
        self._incoming.close()

    def abort(self) -> None:
        """Break both directions and lose what is under way."""
        self.wire.lose()
        self.other.wire.lose()
        super().abort()


class SimulatedNetwork(MemoryNetwork):
    """The network of one simulation.

    Args:
        seed: What the fates of frames are drawn from.
        note: Called with every frame that arrives and the direction's name.
    """

    def __init__(self, loop: VirtualLoop, seed: str, note: Callable[[str, bytes], None]) -> None:
        super().__init__()
        self._loop = loop
        self._seed = seed
        self._note = note
        self._router: Context | None = None
        self.lines: dict[str, Line] = {}

    def line(self, name: str) -> Line:
        """Return the line of an agent."""
        if name not in self.lines:
            self.lines[name] = Line(name, self._seed)
        return self.lines[name]

    def serve(self, accept: Callable[[MemoryConnection], None] | None) -> None:
        """Hand every new connection to `accept`, inside the life that calls this."""
        self._router = copy_context()
        super().serve(accept)

    def transport_of(self, name: str) -> "LineTransport":
        """Return an agent's transport."""
        return LineTransport(self, name)

    def connect(self, name: str) -> WiredConnection:
        """Return the agent's end of a new connection. Raises ConnectFailed."""
        line = self.line(name)
        accept = self._accept
        if accept is None or self._router is None or line.up.blockade or line.down.blockade:
            raise ConnectFailed("the router cannot be reached")
        client, server = WiredConnection.pair()
        assert isinstance(client, WiredConnection)
        assert isinstance(server, WiredConnection)
        client.other, server.other = server, client
        client.wire = Wire(self._loop, line.up, server.arrive, self._note)
        server.wire = Wire(self._loop, line.down, client.arrive, self._note)
        line.connections = [each for each in line.connections if not each.closed]
        line.connections.append(client)
        self._router.copy().run(accept, server)
        return client

    def cut(self) -> None:
        """Break every open connection."""
        for line in self.lines.values():
            line.cut()

    def heal(self) -> None:
        """Make every line a good one."""
        for line in self.lines.values():
            for direction in line.directions:
                direction.heal()


class LineTransport:
    """The way of one agent to the router."""

    def __init__(self, network: SimulatedNetwork, name: str) -> None:
        self._network = network
        self._name = name

    async def connect(self) -> Connection:
        """Return a new connection. Raises ConnectFailed."""
        await asyncio.sleep(CONNECT_SECONDS)
        return self._network.connect(self._name)
