"""The hints after a commit. A hint may be lost; nobody learns from it more than that looking again pays."""

import asyncio
from collections.abc import Awaitable, Callable

GAP_SECONDS = 0.01
"""At most one hint is sent in this time; the first one at once."""


class LogHints:
    """Tells that the log grew: one hint for all commits of a moment.

    Args:
        publish: Sends the newest offset; it must not raise.
    """

    def __init__(self, publish: Callable[[int], Awaitable[None]]) -> None:
        self._publish = publish
        self._offset = 0
        self._wake = asyncio.Event()

    def advanced(self, offset: int) -> None:
        """Note a committed offset."""
        if offset > self._offset:
            self._offset = offset
            self._wake.set()

    async def repeat(self) -> None:
        """Say the newest offset again: hints were lost while the mesh was away."""
        if self._offset:
            self._wake.set()

    async def run(self) -> None:
        """Send hints for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._publish(self._offset)
            await asyncio.sleep(GAP_SECONDS)
