"""One end of a connection with its outbox: frames leave in order, together when the peer takes batches.

Both the router and the client send through a `Link`. The outbox is bounded by frames and bytes; what does not fit is
refused to the caller, never waited for.
"""

import asyncio
from collections import deque
from typing import Protocol

from amp.codec import join_frames
from amp.transports.base import Connection, ConnectionClosed, DirectConnection

MAX_OUTBOX_FRAMES = 20_000
MAX_OUTBOX_BYTES = 64 * 1024 * 1024
MAX_BATCH_BYTES = 256 * 1024
MAX_BATCH_FRAMES = 256


class Outbox(Protocol):
    """Where frames for one member of the mesh go."""

    batching: bool

    def push(self, frame: bytes, *, reserve: int = 1) -> bool:
        """Queue a frame. Return False when there is no room."""
        ...

    def end(self) -> None:
        """Take no more frames."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """End the member's connection."""
        ...


class Cork:
    """Holds back what links are given while one arrival is handled; afterwards each sends its share, together.

    Whoever handles arrivals enters it. It belongs to one event loop and is never entered twice at a time.
    """

    def __init__(self) -> None:
        self.is_in = False
        self._links: list[Link] = []

    def __enter__(self) -> None:
        self.is_in = True

    def __exit__(self, *_: object) -> None:
        self.is_in = False
        links, self._links = self._links, []
        for link in links:
            link.flush_now()

    def hold(self, link: "Link") -> None:
        """Remember a link that has something to send."""
        self._links.append(link)


class Link:
    """A connection that is written in order, from a bounded queue.

    The first frame of a round of the loop is written at once, when the connection can do that; what follows in the same
    round leaves together at its end, for each write is a call of the system. When the peer does not keep up, the task
    that runs `write` waits for it and the queue grows to its bound.
    `batching` may be set once the peer has agreed to arrays of envelopes.

    Args:
        cork: While it is in, nothing is written; all leaves together when it is drawn.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        cork: Cork | None = None,
        max_frames: int = MAX_OUTBOX_FRAMES,
        max_bytes: int = MAX_OUTBOX_BYTES,
    ) -> None:
        self.connection = connection
        self._cork = cork
        self.batching = False
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._direct = connection.write if isinstance(connection, DirectConnection) else None
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._scheduled = False
        self._wake: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._writing = False

    def push(self, frame: bytes, *, reserve: int = 1) -> bool:
        """Queue a frame. Return False when the outbox is full or closed.

        Args:
            reserve: Replies may fill the outbox `reserve` times over before they are refused.
        """
        frames = self._frames
        if (
            self.closed
            or len(frames) >= self._max_frames * reserve
            or self._bytes + len(frame) > self._max_bytes * reserve
        ):
            return False
        if not frames and not self._writing and not self._scheduled:
            if self._cork is not None and self._cork.is_in:
                self._cork.hold(self)
            else:
                self._scheduled = True
                self._loop.call_soon(self.flush_now)
                if self._direct is not None and self._direct(frame):
                    return True
        frames.append(frame)
        self._bytes += len(frame)
        return True

    @property
    def backlog(self) -> int:
        """How many frames wait to be sent."""
        return len(self._frames)

    def flush_now(self) -> None:
        """Write what is queued as far as the peer takes it, and leave the rest to the writing task."""
        self._scheduled = False
        if self._writing:
            return
        direct = self._direct
        while direct is not None and self._frames:
            batch = self._take()
            if not direct(join_frames(batch)):
                self._frames.extendleft(reversed(batch))
                self._bytes += sum(map(len, batch))
                break
        if self._frames:
            self._awake()
        else:
            self._settle()

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def write(self) -> None:
        """Send what could not be written at once, until the connection ends. The owner runs this as a task."""
        try:
            while not (self.closed and not self._frames):
                if not self._frames or self._scheduled:
                    self._wake = self._loop.create_future()
                    await self._wake
                    self._wake = None
                    continue
                self._writing = True
                while self._frames:
                    await self.connection.send(join_frames(self._take()))
                self._writing = False
                self._settle()
        except ConnectionClosed:
            self.closed = True
        finally:
            self._writing = False
            self._settle()

    def _take(self) -> list[bytes]:
        """Take what leaves together next: one frame, or as many as a batch carries."""
        frames = self._frames
        batch = [frames.popleft()]
        size = len(batch[0])
        if self.batching:
            while frames and len(batch) < MAX_BATCH_FRAMES and size + len(frames[0]) <= MAX_BATCH_BYTES:
                size += len(frames[0])
                batch.append(frames.popleft())
        self._bytes -= size
        return batch

    def _settle(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def flush(self, timeout_seconds: float) -> None:
        """Wait until everything queued has been handed to the connection, at most `timeout_seconds`."""
        if not (self._frames or self._writing):
            return
        self._drained = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._drained,), timeout=timeout_seconds)

    def end(self) -> None:
        """Take no more frames, and let the writer finish once the queue is empty."""
        self.closed = True
        self._awake()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        self.end()
        await self.connection.close(code, reason)
