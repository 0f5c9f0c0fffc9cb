"""Files below one root, reached by walking from the root's descriptor and never through a link.

Every component is opened relative to its parent with O_NOFOLLOW, so neither `..`, nor a symlink, nor a directory
swapped while we walk can lead outside. All functions block: run them off the loop. This module must never open
anything that is not a regular file or a directory.
"""

import contextlib
import errno
import fcntl
import fnmatch
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from agents.task_executor.errors import InvalidInput, NotFound, NotPermitted, ResultTooLarge, TaskFailed
from amp import crash

MAX_PATH_CHARACTERS = 4096
MAX_DEPTH = 64
MAX_GLOB_MATCHES = 10_000
MAX_ENTRIES_SEEN = 100_000
"""How many directory entries one glob looks at."""
PARTIAL_FOLDER = ".amp-partial"
"""Below the root, where files are written before they are renamed into place."""
STALE_PARTIAL_SECONDS = 10.0
"""How old a file must be before it counts as left behind; whoever still writes it holds its lock."""
FILE_MODE = 0o600
FOLDER_MODE = 0o700
READ_STEP_BYTES = 256 * 1024

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OUTSIDE = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)


class FileRoot:
    """The files that tasks may touch."""

    def __init__(self, root: Path, *, max_file_bytes: int) -> None:
        self.root = root.absolute()
        self._max_bytes = max_file_bytes

    def prepare(self, now_seconds: float) -> None:
        """Create the root when it is missing and remove what crashed writers left behind."""
        self.root.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        with self._opened_root() as root, self._opened_folder(root, (PARTIAL_FOLDER,), create=True) as folder:
            for name in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if _is_left_behind(name, folder, now_seconds):
                        os.unlink(name, dir_fd=folder)

    # --- paths -----------------------------------------------------------------------------------------

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the components of a path below the root.

        Raises: InvalidInput for an empty or overlong path, NotPermitted for one that leaves the root.
        """
        if not path or len(path) > MAX_PATH_CHARACTERS or "\0" in path:
            raise InvalidInput(f"a path must have 1 to {MAX_PATH_CHARACTERS} characters and no NUL")
        relative = path
        if path.startswith("/"):
            base = f"{self.root}/"
            if not path.startswith(base):
                raise _outside(path)
            relative = path[len(base) :]
        parts = tuple(part for part in relative.split("/") if part not in ("", "."))
        if ".." in parts or parts[:1] == (PARTIAL_FOLDER,):
            raise _outside(path)
        if len(parts) > MAX_DEPTH:
            raise InvalidInput(f"a path may be {MAX_DEPTH} folders deep")
        return parts

    @contextlib.contextmanager
    def opened_folder(self, path: str) -> Iterator[int]:
        """Yield the descriptor of an existing folder; an empty path is the root."""
        parts = self.parts(path) if path else ()
        with self._opened_root() as root, _explained(path), self._opened_folder(root, parts) as folder:
            yield folder

    @contextlib.contextmanager
    def _opened_root(self) -> Iterator[int]:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _opened_folder(self, root: int, parts: tuple[str, ...], *, create: bool = False) -> Iterator[int]:
        current = os.dup(root)
        try:
            for part in parts:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, FOLDER_MODE, dir_fd=current)
                below = os.open(part, _FOLDER_FLAGS, dir_fd=current)
                os.close(current)
                current = below
            yield current
        finally:
            os.close(current)

    def _file_parts(self, path: str) -> tuple[tuple[str, ...], str]:
        parts = self.parts(path)
        if not parts or path.endswith("/"):
            raise InvalidInput(f"{path!r} names a folder, not a file")
        return parts[:-1], parts[-1]

    # --- operations ------------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """Return the content of a file. Raises NotFound, NotPermitted, ResultTooLarge."""
        folders, name = self._file_parts(path)
        with self._opened_root() as root, _explained(path), self._opened_folder(root, folders) as folder:
            descriptor = os.open(name, os.O_RDONLY | _FILE_FLAGS, dir_fd=folder)
            try:
                size = _regular_size(descriptor, path)
                if size > self._max_bytes:
                    raise self._too_large(path)
                return self._read_all(descriptor, path)
            finally:
                os.close(descriptor)

    def _read_all(self, descriptor: int, path: str) -> bytes:
        content = bytearray()
        while step := os.read(descriptor, READ_STEP_BYTES):
            content += step
            if len(content) > self._max_bytes:
                raise self._too_large(path)
        return bytes(content)

    def write(self, path: str, content: bytes) -> None:
        """Put a whole file in place: after a crash there is the old one or the new one, never a part."""
        if len(content) > self._max_bytes:
            raise self._too_large(path)
        folders, name = self._file_parts(path)
        with (
            self._opened_root() as root,
            _explained(path),
            self._opened_folder(root, (PARTIAL_FOLDER,), create=True) as partial,
            self._opened_folder(root, folders, create=True) as folder,
        ):
            _refuse_special(name, folder, path)
            temporary = f"{secrets.token_hex(12)}.tmp"
            try:
                with _written(temporary, content, partial):
                    crash.reach("executor.file.before_rename")
                    os.rename(temporary, name, src_dir_fd=partial, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=partial)
                raise
            os.fsync(folder)

    def append(self, path: str, content: bytes) -> None:
        """Add to the end of a file, which is created when it is missing."""
        folders, name = self._file_parts(path)
        with (
            self._opened_root() as root,
            _explained(path),
            self._opened_folder(root, folders, create=True) as folder,
        ):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FILE_FLAGS
            descriptor = os.open(name, flags, FILE_MODE, dir_fd=folder)
            try:
                if _regular_size(descriptor, path) + len(content) > self._max_bytes:
                    raise self._too_large(path)
                _write_all(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def copy(self, path: str, destination: str) -> int:
        """Put a copy of a file in place atomically and return its size in bytes."""
        content = self.read(path)
        self.write(destination, content)
        return len(content)

    def delete(self, pattern: str) -> int:
        """Delete the files that a path or a pattern (`*`, `?`, `[...]`, `**`) names; return how many. None is fine."""
        parts = self.parts(pattern)
        if not parts:
            raise InvalidInput(f"{pattern!r} names the root, not a file")
        seen = [0]
        with self._opened_root() as root:
            matches = dict.fromkeys(self._matches(root, (), parts, seen, pattern))
            if len(matches) > MAX_GLOB_MATCHES:
                raise InvalidInput(f"{pattern!r} matches more than {MAX_GLOB_MATCHES} files")
            deleted = 0
            for folders, name in matches:
                with (
                    contextlib.suppress(NotFound),
                    _explained(pattern),
                    self._opened_folder(root, folders) as folder,
                ):
                    os.unlink(name, dir_fd=folder)
                    deleted += 1
        return deleted

    def _matches(
        self, root: int, folders: tuple[str, ...], parts: tuple[str, ...], seen: list[int], pattern: str
    ) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield (folders, name) of each regular file below `folders` that `parts` match."""
        first, rest = parts[0], parts[1:]
        if first == "**":
            yield from self._matches(root, folders, rest or ("*",), seen, pattern)
        names = self._listed(root, folders, seen, pattern)
        for name, mode in names:
            if not folders and name == PARTIAL_FOLDER:
                continue
            is_folder = stat.S_ISDIR(mode)
            if first == "**":
                if is_folder and len(folders) < MAX_DEPTH:
                    yield from self._matches(root, (*folders, name), parts, seen, pattern)
            elif fnmatch.fnmatchcase(name, first):
                if rest and is_folder:
                    yield from self._matches(root, (*folders, name), rest, seen, pattern)
                elif not rest and stat.S_ISREG(mode):
                    yield folders, name

    def _listed(
        self, root: int, folders: tuple[str, ...], seen: list[int], pattern: str
    ) -> list[tuple[str, int]]:
        entries: list[tuple[str, int]] = []
        try:
            with self._opened_folder(root, folders) as folder, os.scandir(folder) as scan:
                for entry in scan:
                    seen[0] += 1
                    if seen[0] > MAX_ENTRIES_SEEN:
                        raise InvalidInput(f"{pattern!r} looks at more than {MAX_ENTRIES_SEEN} entries")
                    with contextlib.suppress(FileNotFoundError):
                        entries.append((entry.name, entry.stat(follow_symlinks=False).st_mode))
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_OUTSIDE):
                raise
        return sorted(entries)

    def _too_large(self, path: str) -> ResultTooLarge:
        return ResultTooLarge(
            f"{path!r} has more than {self._max_bytes} bytes (task_executor.files.max_file_bytes)"
        )


def _outside(path: str) -> NotPermitted:
    return NotPermitted(f"{path!r} is not below the files root (task_executor.files.root)")


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn the system's refusals into task errors. Links and special files answer like paths outside."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"{path!r} does not exist") from None
    except IsADirectoryError:
        raise InvalidInput(f"{path!r} names a folder, not a file") from None
    except OSError as error:
        if error.errno in _OUTSIDE or error.errno == errno.ENXIO:
            raise _outside(path) from None
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidInput(f"{path!r}: a part of the path is too long") from None
        retryable = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO)
        raise TaskFailed(f"{path!r}: {os.strerror(error.errno or 0)}", retryable=retryable) from None


def _regular_size(descriptor: int, path: str) -> int:
    facts = os.fstat(descriptor)
    if stat.S_ISDIR(facts.st_mode):
        raise InvalidInput(f"{path!r} names a folder, not a file")
    if not stat.S_ISREG(facts.st_mode):
        raise _outside(path)
    return facts.st_size


def _refuse_special(name: str, folder: int, path: str) -> None:
    """Refuse to replace what is no regular file: a link, a folder, a pipe."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise InvalidInput(f"{path!r} names a folder, not a file")
    if not stat.S_ISREG(mode):
        raise _outside(path)


@contextlib.contextmanager
def _written(name: str, content: bytes, folder: int) -> Iterator[None]:
    """Write a new file, and hold its lock until it is in its place."""
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, FILE_MODE, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _write_all(descriptor, content)
        os.fsync(descriptor)
        yield
    finally:
        os.close(descriptor)


def _is_left_behind(name: str, folder: int, now_seconds: float) -> bool:
    """Return whether a partial file is old and nobody writes it any more. Links and special files are not looked at."""
    facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if facts.st_mtime > now_seconds - STALE_PARTIAL_SECONDS:
        return False
    if not stat.S_ISREG(facts.st_mode):
        return not stat.S_ISDIR(facts.st_mode)
    descriptor = os.open(name, os.O_RDONLY | _FILE_FLAGS, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
