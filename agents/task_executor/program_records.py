"""Which programs run for this executor, noted so that the next one can end what outlived it.

Each running program has a small file, and it and everything it starts inherit that file open. After a kill, whoever
still holds the file open belongs to the program: no process id is ever trusted, so none that was given out anew is
hit. The guard of a program normally does this work at once; the sweep is for when the guard was killed too.
"""

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import structlog

from agents.task_executor.spool_folder import FILE_MODE, FOLDER_MODE, PROGRAMS

SUFFIX = ".program"
KILL_ROUNDS = 50
"""What is killed may have started something just before: it is looked again until nobody is left."""
ROUND_SECONDS = 0.02
MAX_RECORDS = 10_000
PROCESSES = Path("/proc")
NO_RECORD = -1

FileId = tuple[int, int]
"""Device and number: what a file is, whatever it is called."""

logger = structlog.stdlib.get_logger(__name__)


class ProgramRecords:
    """The records of one life's programs; before `open`, and where nothing can be written, programs have none."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def open(self, spool_folder: Path) -> None:
        """Keep records below a folder from now on. Raises: OSError."""
        folder = spool_folder / PROGRAMS
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        self._folder = folder

    @contextmanager
    def record(self) -> Iterator[int]:
        """Yield the descriptor that a program is to inherit; its record is gone when the program has ended."""
        descriptor, path = self._new()
        try:
            yield descriptor
        finally:
            if path is not None:
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    path.unlink()

    def _new(self) -> tuple[int, Path | None]:
        if self._folder is None:
            return NO_RECORD, None
        path = self._folder / f"{secrets.token_hex(8)}{SUFFIX}"
        try:
            return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE), path
        except OSError as error:
            logger.warning("program_not_recorded", reason=os.strerror(error.errno or 0))
            return NO_RECORD, None


def end_left_behind(spool_folder: Path) -> int:
    """Kill what programs of an earlier life left running, and forget their records; return how many were killed.

    The caller holds the folder's lock, so the executor that started them is gone.
    """
    killed: set[int] = set()
    records = {file: path for path in _records(spool_folder) if (file := _file_id(path)) is not None}
    for _ in range(KILL_ROUNDS if records else 0):
        holders = [pid for pid, files in _open_files() if not records.keys().isdisjoint(files)]
        if not holders:
            break
        for pid in holders:
            if _kill(pid, records.keys()):
                killed.add(pid)
        time.sleep(ROUND_SECONDS)
    for path in records.values():
        with contextlib.suppress(OSError):
            path.unlink()
    return len(killed)


def _records(spool_folder: Path) -> list[Path]:
    folder = spool_folder / PROGRAMS
    try:
        return [folder / name for name in sorted(os.listdir(folder))[:MAX_RECORDS] if name.endswith(SUFFIX)]
    except OSError:
        return []


def _file_id(path: Path) -> FileId | None:
    try:
        facts = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _open_files() -> Iterator[tuple[int, set[FileId]]]:
    """Yield every process but this one with the files it holds open, as far as the system shows them."""
    try:
        names = os.listdir(PROCESSES)
    except OSError:
        return
    for name in names:
        if name.isdigit() and int(name) != os.getpid():
            yield int(name), _files_of(int(name))


def _files_of(pid: int) -> set[FileId]:
    files: set[FileId] = set()
    try:
        descriptors = os.listdir(PROCESSES / str(pid) / "fd")
    except OSError:
        return files
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            facts = os.stat(PROCESSES / str(pid) / "fd" / descriptor)
            files.add((facts.st_dev, facts.st_ino))
    return files


def _kill(pid: int, records: Set[FileId]) -> bool:
    """Kill a process when it still holds one of the records open; its id cannot pass to another meanwhile."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if records.isdisjoint(_files_of(pid)):
            return False
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(process)
    return True
