"""Room for work under way when the disk is full: a reserve file that is given up, and a refusal of new work.

When the disk is full the reserve is removed, so that running instances can go on to their ends, and new work is
refused. When the reserve can be made again and a write succeeds, everything is accepted again. Never touches the store.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from agents.state_manager.errors import StateManagerError, StoreFull

logger = logging.getLogger(__name__)

RESERVE_NAME = "reserve"
RETRY_SECONDS = 5.0
"""How often it is tried whether there is room again."""
MIN_MARGIN_BYTES = 1024 * 1024
MARGIN_SHARE = 8
"""Beside the reserve so much must be free before new work is taken again: this part of it, or the minimum."""
_PRIVATE_FILE = 0o600


def free_bytes(folder: Path) -> int:
    """Return how much room there is on the file system of a folder."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


class Room:
    """Whether there is room for new work.

    Args:
        reserve: The reserve file; None for a store that needs no disk.
        size_bytes: Its size; 0 for no reserve: a full disk is then noticed all the same.
        measure: Tells how many bytes are free on the file system of a folder.
    """

    def __init__(
        self, reserve: Path | None = None, size_bytes: int = 0, measure: Callable[[Path], int] = free_bytes
    ) -> None:
        self.is_full = False
        self.on_full: Callable[[], None] | None = None
        """Called once, in the writer's thread, when the disk becomes full."""
        self._reserve = reserve
        self._size_bytes = size_bytes
        self._measure = measure

    def refuse_new(self) -> None:
        """Raise StoreFull when new work is not taken now."""
        if self.is_full:
            raise StoreFull(
                "the disk of the store is full: nothing new is taken until there is room; running work goes on",
                retry_after_ms=int(RETRY_SECONDS * 1000),
            )

    def make(self) -> bool:
        """Make the reserve, unless it is there; return whether it is there now."""
        if self._reserve is None or not self._size_bytes:
            return True
        try:
            if self._reserve.exists() and self._reserve.stat().st_size == self._size_bytes:
                return True
            file = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
            try:
                os.ftruncate(file, 0)
                os.posix_fallocate(file, 0, self._size_bytes)
                os.fsync(file)
            finally:
                os.close(file)
        except OSError:
            with contextlib.suppress(OSError):
                self._reserve.unlink(missing_ok=True)
            return False
        return True

    def open(self) -> None:
        """Make the reserve at the start; without room for it nothing new is taken."""
        if not self.make():
            self._note_full()

    def give(self) -> bool:
        """Refuse new work, and give the reserve up. Return whether trying again may help."""
        before = self.is_full
        self._note_full()
        had_reserve = False
        if self._reserve is not None:
            with contextlib.suppress(OSError):
                self._reserve.unlink()
                had_reserve = True
        return had_reserve or not before

    def _note_full(self) -> None:
        if self.is_full:
            return
        self.is_full = True
        logger.error("store_full", extra={"reserve_bytes": self._size_bytes})
        if self.on_full is not None:
            self.on_full()

    def _has_margin(self) -> bool:
        """Make the reserve; return whether enough is free beside it, so that the next start does not end it again."""
        if not self.make():
            return False
        wanted = max(MIN_MARGIN_BYTES, self._size_bytes // MARGIN_SHARE)
        return self._reserve is None or self._measure(self._reserve.parent) >= wanted

    async def recover(self, probe: Callable[[], Awaitable[object]]) -> bool:
        """Take new work again when there is the reserve, a margin, and `probe`, a write, succeeds; return whether."""
        if not await asyncio.to_thread(self._has_margin):
            return False
        try:
            await probe()
        except StateManagerError:
            return False
        self.is_full = False
        logger.info("store_has_room")
        return True
