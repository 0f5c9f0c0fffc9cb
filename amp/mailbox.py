"""Where frames for somebody without a socket wait: a poller of the HTTP binding, or one synchronous call."""

import asyncio
from collections import deque
from collections.abc import Callable

MAX_MESSAGES = 1000
MAX_BYTES = 16 * 1024 * 1024
MESSAGE_LIFE_SECONDS = 300.0
MAX_TAKEN_BYTES = 1024 * 1024


class Mailbox:
    """A bounded queue of frames with an expiry. `time` gives seconds that only grow."""

    def __init__(self, time: Callable[[], float]) -> None:
        self.batching = False
        self._time = time
        self._frames: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def push(self, frame: bytes, *, reserve: int = 1) -> bool:
        """Queue a frame. Return False when the box is full."""
        self._expire()
        if len(self._frames) >= MAX_MESSAGES * reserve or self._bytes + len(frame) > MAX_BYTES * reserve:
            return False
        self._frames.append((self._time() + MESSAGE_LIFE_SECONDS, frame))
        self._bytes += len(frame)
        return True

    def take(self) -> list[bytes]:
        """Return the oldest frames, up to about 1 MiB of them, and forget them."""
        self._expire()
        taken: list[bytes] = []
        size = 0
        while self._frames and (not taken or size + len(self._frames[0][1]) <= MAX_TAKEN_BYTES):
            frame = self._frames.popleft()[1]
            size += len(frame)
            taken.append(frame)
        self._bytes -= size
        return taken

    def _expire(self) -> None:
        now = self._time()
        while self._frames and self._frames[0][0] <= now:
            self._bytes -= len(self._frames.popleft()[1])

    def end(self) -> None:
        """Forget what waits."""
        self._frames.clear()
        self._bytes = 0

    async def close(self, code: int, reason: str) -> None:
        """End; a poller learns nothing of the code and reason."""
        self.end()


class CallBox:
    """The one frame that answers a synchronous call."""

    def __init__(self) -> None:
        self.batching = False
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def push(self, frame: bytes, *, reserve: int = 1) -> bool:
        """Take the first frame; later ones have nobody to go to."""
        if not self.answer.done():
            self.answer.set_result(frame)
        return True

    def end(self) -> None:
        """Give up waiting."""
        self.answer.cancel()

    async def close(self, code: int, reason: str) -> None:
        """Give up waiting."""
        self.end()
