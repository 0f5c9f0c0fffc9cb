"""The folder in which one executor keeps what a successor must know: results, intents, and who was under way.

It is `<data_dir>/spool/<agent id>/`, and a lock makes it belong to one living process. Everything here blocks: run it
off the loop. Nothing that lies in the folder is trusted, and nothing in it may keep an executor from starting.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

SPOOL = "spool"
"""The folder of all executors' folders, below `data_dir`."""
LOCK = "lock"
ASIDE = "aside"
"""Where files go that nobody can read; they are never deleted here."""
PROGRAMS = "programs"
UNDER_WAY = "under-way"
DEATHS = "deaths.json"
ACCEPTED, BEGUN, RESULT, PARTIAL = ".accepted", ".begun", ".result", ".partial"
RECORDS = (ACCEPTED, BEGUN, RESULT, PARTIAL)
FOLDER_MODE = 0o700
FILE_MODE = 0o600
MAX_FOLDERS = 100
"""How many folders one id may need at once, and how many of executors that are gone are looked at."""
MAX_NAME_CHARACTERS = 150
LOCK_TRIES = 3
_OWN = frozenset({LOCK, ASIDE, PROGRAMS, UNDER_WAY, DEATHS, f"{DEATHS}{PARTIAL}"})


class SpoolFolder:
    """A folder that this process holds the lock of. `close` lets it go."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """Let another process have the folder. Works twice."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    # --- records ---------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Write a file that nobody looks at yet; `put` gives it its place."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path / f"{name}{PARTIAL}", flags, FILE_MODE)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)

    def put(
        self,
        name: str,
        *,
        before: str = PARTIAL,
        after: str,
        sync_content: bool = False,
        sync_name: bool = False,
    ) -> None:
        """Give a record its new state: it has one name or the other, whenever the process ends.

        Args:
            sync_content: What it says is on the disk before it gets the new name.
            sync_name: The new name is on the disk when this returns.
        """
        old = self.path / f"{name}{before}"
        if sync_content:
            _sync(old, os.O_RDONLY)
        old.rename(self.path / f"{name}{after}")
        if sync_name:
            _sync(self.path, os.O_RDONLY | os.O_DIRECTORY)

    def remove(self, names: list[str]) -> None:
        """Delete everything that is known of these records. A missing file is fine."""
        for name in names:
            for suffix in RECORDS:
                with contextlib.suppress(FileNotFoundError):
                    (self.path / f"{name}{suffix}").unlink()

    def read(self, name: str, suffix: str, limit: int) -> bytes | None:
        """Return a record's content, or None when it is missing, no regular file, or has more than `limit` bytes."""
        return read_file(self.path / f"{name}{suffix}", limit)

    def records(self) -> Iterator[tuple[str, str]]:
        """Yield (name, suffix) of every record."""
        for file in sorted(os.listdir(self.path)):
            name, dot, suffix = file.rpartition(".")
            if name and f"{dot}{suffix}" in RECORDS and file not in _OWN:
                yield name, f"{dot}{suffix}"

    def strangers(self) -> list[str]:
        """Return the names of the files that are none of ours."""
        known = {f"{name}{suffix}" for name, suffix in self.records()} | _OWN
        return sorted(
            entry.name
            for entry in os.scandir(self.path)
            if entry.name not in known and not entry.is_dir(follow_symlinks=False)
        )

    def set_aside(self, file: str) -> None:
        """Move a file away from the records, to be looked at by a person."""
        aside = self.path / ASIDE
        aside.mkdir(mode=FOLDER_MODE, exist_ok=True)
        (self.path / file).rename(aside / file)

    def free_bytes(self) -> int:
        """Return how much room the file system has."""
        facts = os.statvfs(self.path)
        return facts.f_bavail * facts.f_frsize

    def adopt(self, other: "SpoolFolder") -> int:
        """Take over every record of a folder whose executor is gone; return how many."""
        found = list(other.records())
        for name, suffix in found:
            (other.path / f"{name}{suffix}").rename(self.path / f"{name}{suffix}")
        return len(found)

    def discard(self) -> None:
        """Remove the folder, unless something is left in it that is not ours, and let it go."""
        with contextlib.suppress(OSError):
            for name in (UNDER_WAY, DEATHS, f"{DEATHS}{PARTIAL}"):
                (self.path / name).unlink(missing_ok=True)
            for name in (PROGRAMS, ASIDE):
                with contextlib.suppress(FileNotFoundError):
                    (self.path / name).rmdir()
            if os.listdir(self.path) == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()
        self.close()


def take(root: Path, agent_id: str) -> SpoolFolder:
    """Return the folder of an agent id, locked; the next one of its name when a living process holds that.

    Raises: OSError when there is none that can be used.
    """
    root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    name = folder_name(agent_id)
    for number in range(1, MAX_FOLDERS + 1):
        folder = _locked(root / (name if number == 1 else f"{name}+{number}"), create=True)
        if folder is not None:
            return folder
    raise OSError(f"{MAX_FOLDERS} living executors hold the folders of {agent_id!r}")


def orphans(root: Path, own: SpoolFolder) -> Iterator[SpoolFolder]:
    """Yield the folders whose executors are gone, each locked; the caller closes or discards it."""
    names = [entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    for name in sorted(names)[:MAX_FOLDERS]:
        if name != own.path.name:
            with contextlib.suppress(OSError):
                folder = _locked(root / name, create=False)
                if folder is not None:
                    yield folder


def folder_name(agent_id: str) -> str:
    """Return the name of an id's folder: the id itself, made safe where it has to be."""
    name = quote(agent_id, safe="")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if len(name) > MAX_NAME_CHARACTERS:
        name = hashlib.sha256(agent_id.encode()).hexdigest()
    return name


def record_name(token: str) -> str:
    """Return the name of the files about one token."""
    return hashlib.sha256(token.encode()).hexdigest()[:40]


def read_file(path: Path, limit: int) -> bytes | None:
    """Return what a file holds, or None when it is missing, no regular file, or has more than `limit` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > limit:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _locked(path: Path, *, create: bool) -> SpoolFolder | None:
    """Return a folder with its lock held, or None when a living process holds it."""
    for _ in range(LOCK_TRIES):
        if create:
            path.mkdir(mode=FOLDER_MODE, exist_ok=True)
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        descriptor = os.open(path / LOCK, flags, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        if _is_still_there(path / LOCK, descriptor):
            return SpoolFolder(path, descriptor)
        os.close(descriptor)  # whoever held it removed the folder meanwhile
        if not create:
            return None
    return None


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
