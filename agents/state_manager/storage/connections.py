"""How a SQLite store is opened for reading only, how it is taken for one process, and its files' permissions."""

import fcntl
import os
from pathlib import Path
from urllib.parse import quote

from agents.state_manager.errors import StoreInUse, StoreUnusable

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def read_only_uri(path: Path, *, immutable: bool = False) -> str:
    """Return the URI that opens a file for reading only."""
    return f"file:{quote(str(path))}?mode=ro" + ("&immutable=1" if immutable else "")


def take_lock(database: Path) -> int:
    """Take a store for this process alone; return the lock's descriptor, which holds it until it is closed.

    The system lets go of it when the process ends, however that happens.

    Raises: StoreInUse when another process has it.
    """
    try:
        lock = os.open(f"{database}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    except OSError as error:
        raise StoreUnusable(f"{database} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StoreInUse(
            f"{database} is in use by another state manager ({error.strerror}); "
            "stop it, or use another data_dir"
        ) from None
    return lock


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
