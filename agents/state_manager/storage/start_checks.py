"""Whether a store may be served: checked when it is opened, and behind the work afterwards. It never repairs.

A finding is written beside the store, so that it is refused at once the next time too, until an operator restores a
copy. A small store is checked before anybody is answered; a larger one, and one that was not closed in order, while
it works, by a connection that can only read.
"""

import contextlib
import logging
import os
import sqlite3
import threading
from pathlib import Path

from agents.state_manager.errors import StoreDamaged, StoreUnusable
from agents.state_manager.storage import wal_file
from agents.state_manager.storage.connections import read_only_uri

logger = logging.getLogger(__name__)

CHECKED_AT_ONCE_BYTES = 64 * 1024 * 1024
"""A store up to this size is checked before it is served; it takes about a millisecond for each mebibyte."""
MAX_FINDING_CHARS = 2000
_PRIVATE_FILE = 0o600


def mark_path(database: Path) -> Path:
    """Return the file that says what is wrong with a store."""
    return Path(f"{database}.damaged")


def mark_damaged(database: Path, finding: str) -> None:
    """Have the store refused from now on. Without room for the mark it is found again by the next check."""
    with contextlib.suppress(OSError):
        file = os.open(mark_path(database), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
        with os.fdopen(file, "w", encoding="utf-8") as mark:
            mark.write(finding[:MAX_FINDING_CHARS])


def refuse_marked(database: Path) -> None:
    """Raise StoreUnusable when damage was found before."""
    try:
        finding = mark_path(database).read_text("utf-8", "replace")[:MAX_FINDING_CHARS]
    except OSError:
        return
    raise StoreUnusable(_refusal(database, finding))


def open_probe(database: Path) -> sqlite3.Connection | None:
    """Return a connection that keeps a log which was left behind where it is, whatever the others do; None without one.

    A last connection that can write moves the log into the database when it closes. One that can only read cannot.

    Raises: StoreUnusable when the log is damaged.
    """
    log = Path(f"{database}-wal")
    if not log.exists() or log.stat().st_size <= wal_file.HEADER_BYTES:
        return None
    _open_to_read(database).close()
    if finding := wal_file.damage(database):
        raise StoreUnusable(_refusal(database, finding))
    return _open_to_read(database)


def _open_to_read(database: Path) -> sqlite3.Connection:
    """Return a connection that has recovered the log and cannot write."""
    probe = sqlite3.connect(read_only_uri(database), uri=True, isolation_level=None)
    try:
        probe.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except BaseException:
        probe.close()
        raise
    return probe


def check_at_once(connection: sqlite3.Connection, database: Path) -> bool:
    """Check a small store; return whether it was small enough. Raises StoreUnusable when it is damaged."""
    if database.stat().st_size > CHECKED_AT_ONCE_BYTES:
        return False
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise StoreUnusable(_refusal(database, finding))
    return True


def _refusal(database: Path, finding: str) -> str:
    return f"{database} is damaged ({finding}); restore a copy with `amp db restore`, or use another data_dir"


class BackgroundCheck:
    """Checks a store that is being served, in a thread of its own, over a connection that can only read."""

    def __init__(self, database: Path, *, full: bool) -> None:
        self._database = database
        self._statement = "PRAGMA integrity_check(1)" if full else "PRAGMA quick_check(1)"
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._is_stopped = False

    def run(self) -> StoreDamaged | None:
        """Check, which may take minutes; return what was found. None when all is well, and when it was stopped."""
        with contextlib.closing(
            sqlite3.connect(read_only_uri(self._database), uri=True, check_same_thread=False)
        ) as connection:
            with self._lock:
                if self._is_stopped:
                    return None
                self._connection = connection
            try:
                (finding,) = connection.execute(self._statement).fetchone()
            except sqlite3.DatabaseError as error:
                finding = str(error)
            finally:
                with self._lock:
                    self._connection = None
        if finding == "ok" or self._is_stopped:
            return None
        return StoreDamaged(f"{self._database} is damaged ({finding})")

    def stop(self) -> None:
        """End the check soon."""
        with self._lock:
            self._is_stopped = True
            if self._connection is not None:
                self._connection.interrupt()
