"""Copies of the store: by order and by the clock, the newest kept. Never touches a file it did not name."""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agents.state_manager.errors import BackupNotFound, InvalidRequest, StateManagerError
from agents.state_manager.storage.base import UNFINISHED_SUFFIX, Storage, StoredState
from runtime.clock import Clock

logger = logging.getLogger(__name__)

BACKUP_FOLDER = "backups"
"""Below `data_dir`."""
SUFFIX = ".db"
LOOK_SECONDS = 3600.0
"""Longest sleep between two looks at the clock, which may jump while the machine sleeps."""
RETRY_SECONDS = 600.0
"""Wait after an automatic backup failed."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_AUTOMATIC = re.compile(r"auto-(\d{8}T\d{6})Z\.db")
_STAMP = "%Y%m%dT%H%M%S"
_UNFINISHED = re.compile(rf"\..+\.(\d+){re.escape(UNFINISHED_SUFFIX)}")


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished copy."""

    name: str
    path: Path
    size_bytes: int
    created_at: datetime


class Backups:
    """The backup folder of one store.

    Args:
        interval_hours: Time between automatic backups; 0 for none.
        kept: How many automatic backups stay.
    """

    def __init__(
        self, storage: Storage, folder: Path, clock: Clock, *, interval_hours: float, kept: int
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._clock = clock
        self._interval = timedelta(hours=interval_hours)
        self._kept = kept
        self._lock = asyncio.Lock()
        self.last: datetime | None = None
        self.trouble = ""
        """Why the last automatic backup failed; empty when it did not."""

    async def create(self, name: str = "") -> Backup:
        """Write a copy now. `name` is a plain file name; without one it is made from the time."""
        now = self._clock.now()
        path = self._path(name or f"state-{now.strftime(_STAMP)}-{now.microsecond:06}Z{SUFFIX}")
        async with self._lock:
            size = await self._storage.back_up(path)
        self.last = now
        logger.info("backup_written", extra={"path": str(path), "bytes": size})
        return Backup(path.name, path, size, now)

    async def restore(
        self, name: str, ids: Collection[str], put: Callable[[StoredState], Awaitable[bool]]
    ) -> int:
        """Give the states of a copy to `put`, all or those wanted; return how many it took.

        Raises: BackupNotFound when there is no such copy, or a wanted id is not in it.
        """
        wanted = set(ids)
        restored = 0
        path = self._path(name)
        async with aclosing(self._storage.scan_backup(path)) as states:
            async for state in states:
                if ids and state.workflow_instance_id not in wanted:
                    continue
                wanted.discard(state.workflow_instance_id)
                restored += await put(state)
        if wanted:
            raise BackupNotFound(
                f"backup {path.name!r} has no state {sorted(wanted)[0]!r}", restored=restored
            )
        return restored

    def remove_unfinished(self) -> None:
        """Remove copies that a process which is gone has begun."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            match = _UNFINISHED.fullmatch(path.name)
            if match is not None and not _lives_elsewhere(int(match[1])):
                path.unlink(missing_ok=True)
                logger.info("backup_removed", extra={"path": str(path)})

    async def run(self) -> None:
        """Back up whenever the interval is over, counted from the newest automatic copy, for ever."""
        while self._interval:
            due_at = await asyncio.to_thread(self._due_at)
            wait_seconds = (due_at - self._clock.now()).total_seconds()
            if wait_seconds > 0:
                await asyncio.sleep(min(wait_seconds, LOOK_SECONDS))
                continue
            try:
                await self.create(f"auto-{self._clock.now().strftime(_STAMP)}Z{SUFFIX}")
                await asyncio.to_thread(self._prune)
                self.trouble = ""
            except (StateManagerError, OSError) as error:
                self.trouble = str(error)
                logger.error("backup_failed", extra={"reason": str(error)})
                await asyncio.sleep(RETRY_SECONDS)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or ".." in name:
            raise InvalidRequest(
                f"{name[:128]!r} is not a plain file name of letters, digits, dots, dashes and underscores"
            )
        return self._folder / (name if name.endswith(SUFFIX) else name + SUFFIX)

    def _automatic(self) -> list[tuple[datetime, Path]]:
        """Return the automatic copies, oldest first."""
        if not self._folder.is_dir():
            return []
        found = ((_AUTOMATIC.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted(
            (datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC), path) for match, path in found if match
        )

    def _due_at(self) -> datetime:
        """Return when the next automatic copy is due: one interval after the newest, or after the store was made."""
        copies = self._automatic()
        return (copies[-1][0] if copies else self._storage.created_at) + self._interval

    def _prune(self) -> None:
        for _, path in self._automatic()[: -self._kept]:
            path.unlink(missing_ok=True)
            logger.info("backup_removed", extra={"path": str(path)})


def _lives_elsewhere(pid: int) -> bool:
    """Return whether another process of that id is there: perhaps an operator's, writing a copy now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid != os.getpid()
