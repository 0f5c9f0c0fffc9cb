"""Who was under way when an executor was killed, and which tasks do that again and again.

The names of the attempts under way lie in a small table that is mapped into memory: noting one costs a copy and no
call of the system, and the table is there for the next life however this one ends. A task that was under way at two
deaths, and was hardly ever in company, is poison: it is refused here, so that others proceed.
"""

import mmap
import os
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from agents.task_executor.spool_folder import DEATHS, FILE_MODE, PARTIAL, UNDER_WAY, read_file

SLOT_BYTES = 256
"""One name. The first slot says whose table it is."""
MAX_NAME_BYTES = SLOT_BYTES - 2
MAX_REMEMBERED = 1000
"""Tasks that were under way at a death; the longest ago are forgotten."""
MAX_FILE_BYTES = 4 * 1024 * 1024
POISON_DEATHS = 2
POISON_SHARE = 1.0
"""A death is shared alike by all that were under way. Two deaths with one other task each time make a whole one."""
NO_SLOT = -1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

logger = structlog.stdlib.get_logger(__name__)


class Suspect(msgspec.Struct, frozen=True, array_like=True):
    """How many deaths a task was there at, and its share of them."""

    deaths: int
    share: float

    @property
    def is_poison(self) -> bool:
        """True when the task has to be refused."""
        return self.deaths >= POISON_DEATHS and self.share >= POISON_SHARE


class Head(msgspec.Struct, frozen=True):
    """Whose table it is, and since which start of the machine."""

    life: str
    boot: str


class _Deaths(msgspec.Struct):
    suspects: dict[str, Suspect] = {}
    lives: list[str] = []


class UnderWay:
    """The table of one life. `enter` and `leave` are for the hot path."""

    def __init__(self, folder: Path, slots: int, *, life: str = "") -> None:
        """Make the table. Raises: OSError when there is no room for it."""
        size = (1 + slots) * SLOT_BYTES
        path = folder / UNDER_WAY
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            os.posix_fallocate(descriptor, 0, size)
            self._table = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._free = list(range(slots - 1, -1, -1))
        _write(self._table, 0, msgspec.json.encode(Head(life or secrets.token_hex(8), boot_id())))

    def enter(self, name: str) -> int:
        """Note that a task is under way; return its slot, to be left."""
        if not self._free:
            return NO_SLOT
        slot = self._free.pop()
        _write(self._table, (1 + slot) * SLOT_BYTES, name.encode()[:MAX_NAME_BYTES])
        return slot

    def leave(self, slot: int) -> None:
        """Note that a task is under way no more."""
        if slot != NO_SLOT:
            start = (1 + slot) * SLOT_BYTES
            self._table[start : start + 2] = b"\0\0"
            self._free.append(slot)

    def close(self) -> None:
        """Let the table go. What is still under way stays noted."""
        self._table.close()


class Suspects:
    """What is known of tasks that were under way at deaths."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str, Suspect] = OrderedDict()
        self._lives: list[str] = []

    def is_poison(self, name: str) -> bool:
        """Return whether a task has to be refused."""
        suspect = self._by_name.get(_cut(name)) if self._by_name else None
        return suspect is not None and suspect.is_poison

    def learn(self, folder: Path) -> list[str]:
        """Add what an earlier life in `folder` knew and how it ended; return who was under way at its death."""
        known = _known(folder)
        self._lives = (self._lives + [life for life in known.lives if life not in self._lives])[
            -MAX_REMEMBERED:
        ]
        for name, suspect in known.suspects.items():
            self._note(name, suspect.deaths, suspect.share)
        head, names = _read(folder)
        if head is None or head.life in self._lives or head.boot != boot_id():
            return []
        self._lives.append(head.life)
        for name in names:
            self._note(name, 1, 1 / len(names))
        return names

    def store(self, folder: Path) -> None:
        """Keep it for the next life. Raises: OSError."""
        content = msgspec.json.encode(_Deaths(dict(self._by_name), self._lives))
        partial = folder / f"{DEATHS}{PARTIAL}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        partial.rename(folder / DEATHS)

    def _note(self, name: str, deaths: int, share: float) -> None:
        before = self._by_name.pop(name, Suspect(0, 0.0))
        self._by_name[name] = Suspect(before.deaths + deaths, before.share + share)
        while len(self._by_name) > MAX_REMEMBERED:
            self._by_name.popitem(last=False)


def boot_id() -> str:
    """Return what names this start of the machine; when the machine itself went down, no task is to blame."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _cut(name: str) -> str:
    encoded = name.encode()
    return name if len(encoded) <= MAX_NAME_BYTES else encoded[:MAX_NAME_BYTES].decode("utf-8", "replace")


def _write(table: mmap.mmap, start: int, content: bytes) -> None:
    """Put text into a slot; its length comes last, so that half of a text is never read."""
    table[start + 2 : start + 2 + len(content)] = content
    table[start : start + 2] = len(content).to_bytes(2, "big")


def _read(folder: Path) -> tuple[Head | None, list[str]]:
    """Return whose table lies in a folder, and the names in it. A table that makes no sense is none."""
    table = read_file(folder / UNDER_WAY, MAX_FILE_BYTES) or b""
    texts = list(_texts(table))
    if not texts or texts[0] is None:
        return None, []
    try:
        head = msgspec.json.decode(texts[0], type=Head)
    except msgspec.DecodeError:
        return None, []
    return head, [text.decode("utf-8", "replace") for text in texts[1:] if text]


def _texts(table: bytes) -> Iterable[bytes | None]:
    for start in range(0, len(table) - SLOT_BYTES + 1, SLOT_BYTES):
        size = int.from_bytes(table[start : start + 2], "big")
        yield table[start + 2 : start + 2 + size] if 0 < size <= MAX_NAME_BYTES else None


def _known(folder: Path) -> _Deaths:
    content = read_file(folder / DEATHS, MAX_FILE_BYTES)
    if not content:
        return _Deaths()
    try:
        return msgspec.json.decode(content, type=_Deaths)
    except msgspec.DecodeError as error:
        logger.warning("deaths_unreadable", path=str(folder / DEATHS), reason=str(error))
        return _Deaths()
