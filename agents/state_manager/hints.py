"""The hints after a commit. A hint may be lost; nobody learns from it more than that looking again pays."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

GAP_SECONDS = 0.01
"""At most one hint is sent in this time; the first one at once."""
UNREAD_SECONDS = 0.05
"""As long as nobody has read what the last hint told of, nobody waits for another; one is sent after this time anyway,
for those who were told and look elsewhere."""


class LogHints:
    """Tells that the log grew: one hint for all commits of a moment, as long as somebody reads on.

    Args:
        publish: Sends the newest offset; it must not raise.
    """

    def __init__(self, publish: Callable[[int], Awaitable[None]]) -> None:
        self._publish = publish
        self._offset = 0
        self._grown = asyncio.Event()
        self._read = asyncio.Event()
        self._read.set()

    def advanced(self, offset: int) -> None:
        """Note a committed offset."""
        if offset > self._offset:
            self._offset = offset
            self._grown.set()

    def was_read(self) -> None:
        """Note that somebody has read to the end, and waits for the next hint."""
        self._read.set()

    async def repeat(self) -> None:
        """Say the newest offset again: hints were lost while the mesh was away."""
        if self._offset:
            self._grown.set()
            self._read.set()

    async def run(self) -> None:
        """Send hints for ever."""
        while True:
            await self._grown.wait()
            if not self._read.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(UNREAD_SECONDS):
                        await self._read.wait()
            self._grown.clear()
            self._read.clear()
            await self._publish(self._offset)
            await asyncio.sleep(GAP_SECONDS)
