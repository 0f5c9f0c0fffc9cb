"""Waits while the disk is full, and takes new work again when there is room. It asks nothing while there is."""

import asyncio
from collections.abc import Awaitable, Callable

from agents.state_manager.room import RETRY_SECONDS
from agents.state_manager.storage.base import Storage


class RoomWatch:
    """Watches the room of a store.

    Args:
        announce: Called with true when the disk became full, with false when there is room again; it must not raise.
    """

    def __init__(self, storage: Storage, announce: Callable[[bool], Awaitable[None]]) -> None:
        self._storage = storage
        self._announce = announce
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Watch for ever."""
        loop = asyncio.get_running_loop()
        room = self._storage.room

        def became_full() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        room.on_full = became_full
        if room.is_full:
            self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._announce(True)
            await asyncio.sleep(RETRY_SECONDS)
            while not await room.recover(self._storage.probe):  # noqa: ASYNC110 - a disk tells nobody
                await asyncio.sleep(RETRY_SECONDS)
            await self._announce(False)
