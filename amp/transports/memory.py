"""Connections inside one process, for embedded runs, tests and simulation.

A frame sent is a frame received, in order, through bounded queues. No thread, no clock, no socket: the simulation
runs it on virtual time.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from amp.transports.base import ConnectFailed, Connection, ConnectionClosed

MAX_QUEUED_FRAMES = 256


class MemoryNetwork:
    """A place where clients find the router that serves it.

    Args:
        direct: Frames are handed over without tasks in between: faster, where no two runs need to be alike.
    """

    def __init__(self, *, direct: bool = False) -> None:
        self._kind = DirectMemoryConnection if direct else MemoryConnection
        self._accept: Callable[[MemoryConnection], None] | None = None
        self._connections: set[MemoryConnection] = set()

    def transport(self) -> "MemoryTransport":
        """Return a transport to this network's router."""
        return MemoryTransport(self)

    def serve(self, accept: Callable[["MemoryConnection"], None] | None) -> None:
        """Hand every new connection to `accept`; None refuses them."""
        self._accept = accept

    def open(self) -> "MemoryConnection":
        """Return the client's end of a new connection. Raises ConnectFailed when nobody serves."""
        if self._accept is None:
            raise ConnectFailed("no router serves this network")
        client, server = self._kind.pair()
        self._connections = {each for each in self._connections if not each.closed}
        self._connections.add(client)
        self._accept(server)
        return client

    def cut(self) -> None:
        """Break every open connection, as a failing network would."""
        for connection in self._connections:
            connection.abort()


class MemoryTransport:
    """A transport to the router of a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network

    async def connect(self) -> Connection:
        """Return a new connection. Raises ConnectFailed."""
        return self._network.open()


class _Pipe:
    """One direction: a bounded queue with an end."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.closed = False
        self.reader: asyncio.Future[None] | None = None
        self.writers: deque[asyncio.Future[None]] = deque()

    def close(self) -> None:
        self.closed = True
        self._wake(self.reader)
        while self.writers:
            self._wake(self.writers.popleft())

    async def put(self, frame: bytes) -> None:
        while len(self.frames) >= MAX_QUEUED_FRAMES and not self.closed:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.writers.append(room)
            await room
        if self.closed:
            raise ConnectionClosed
        self.deliver(frame)

    def deliver(self, frame: bytes) -> None:
        """Hand a frame to the reader, whether there is room or not; nothing arrives after the end."""
        if not self.closed:
            self.frames.append(frame)
            self._wake(self.reader)

    async def get(self) -> bytes:
        while not self.frames:
            if self.closed:
                raise ConnectionClosed
            self.reader = asyncio.get_running_loop().create_future()
            try:
                await self.reader
            finally:
                self.reader = None
        frame = self.frames.popleft()
        if self.writers:
            self._wake(self.writers.popleft())
        return frame

    @staticmethod
    def _wake(future: asyncio.Future[None] | None) -> None:
        if future is not None and not future.done():
            future.set_result(None)


class MemoryConnection:
    """One end of a connection inside the process."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return the two ends of a new connection."""
        there, back = _Pipe(), _Pipe()
        return cls(back, there), cls(there, back)

    @property
    def closed(self) -> bool:
        """Whether this connection has ended."""
        return self._outgoing.closed

    async def send(self, frame: bytes) -> None:
        """Send one frame; wait while the peer's queue is full. Raises ConnectionClosed."""
        await self._outgoing.put(frame)

    async def receive(self) -> bytes:
        """Return the next frame; what was sent before the end is still read. Raises ConnectionClosed."""
        return await self._incoming.get()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close both directions; frames under way are still delivered."""
        self._outgoing.close()
        self._incoming.close()

    def abort(self) -> None:
        """Break both directions and lose what is under way."""
        for pipe in (self._outgoing, self._incoming):
            pipe.frames.clear()
            pipe.close()


class DirectMemoryConnection(MemoryConnection):
    """One end that takes a frame in the call that writes it, as a socket does."""

    def write(self, frame: bytes) -> bool:
        """Hand over one frame at once. Return False, with nothing handed over, when the peer does not keep up."""
        pipe = self._outgoing
        if pipe.closed or len(pipe.frames) >= MAX_QUEUED_FRAMES:
            return False
        pipe.deliver(frame)
        return True

    async def listen(self, on_frame: Callable[[bytes | str], None]) -> None:
        """Call `on_frame` with each frame, never within the call that wrote it. Raises ConnectionClosed at the end."""
        while True:
            on_frame(await self.receive())
