"""What a write-ahead log holds, read from its bytes, to notice damage that SQLite takes for the end of the log.

SQLite ends its recovery at the first frame whose checksum is wrong, silently: right for a commit that power loss cut
short, wrong when a byte in the middle flipped, because whatever was committed after it would be gone without a word.
Every commit is synced before the next one begins, so behind the last good frame there can be one commit of this log
at most; a second one is damage. It only reads; the layout is that of SQLite's file format documentation.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
_MAGIC = (0x377F0682, 0x377F0683)
_VALID_FRAMES_AT = 16
"""Where the shared index (`-shm`) says how many frames of the log are valid and committed."""
MAX_UNFINISHED_COMMITS = 1
PAGE_BYTES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def damage(database: Path) -> str:
    """Return what is wrong with a database's write-ahead log, empty when nothing is.

    SQLite must have recovered the log already, and nobody in this process may have the database open: closing a file
    lets go of all locks that the process holds on it, and whoever comes next would cut the shared index short.
    """
    log, index = Path(f"{database}-wal"), Path(f"{database}-shm")
    try:
        with log.open("rb") as file, index.open("rb") as shared:
            shared.seek(_VALID_FRAMES_AT)
            (valid,) = struct.unpack("=I", shared.read(4))
            lost = commits_after(file, valid)
    except (FileNotFoundError, struct.error):
        return ""
    if lost <= MAX_UNFINISHED_COMMITS:
        return ""
    return f"the write-ahead log is broken after frame {valid}: {lost} commits behind it cannot be read"


def commits_after(file: BinaryIO, valid: int) -> int:
    """Return how many commits of the log's present round lie behind its first `valid` frames."""
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return 0
    page_bytes = int.from_bytes(header[8:12], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    sound = is_sound(header)
    if not sound:
        page_bytes = _page_bytes_of(file)
    frames = list(_frames(file, page_bytes)) if page_bytes else []
    if not frames:
        return 0
    salts = header[16:24] if sound else frames[0][1]
    return sum(1 for is_commit, found in frames[valid:] if is_commit and found == salts)


def is_sound(header: bytes) -> bool:
    """Return whether a log's header is as SQLite wrote it: its magic number and checksum fit."""
    (magic,) = struct.unpack(">I", header[:4])
    if magic not in _MAGIC:
        return False
    first = second = 0
    words = struct.unpack((">" if magic & 1 else "<") + "6I", header[:24])
    for left, right in zip(words[::2], words[1::2], strict=True):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return (first, second) == struct.unpack(">2I", header[24:32])


def _page_bytes_of(file: BinaryIO) -> int:
    """Return the size of a page from where the second frame begins: it repeats the first one's salts. 0: unknown."""
    file.seek(HEADER_BYTES + 8)
    salts = file.read(8)
    for page_bytes in PAGE_BYTES:
        file.seek(HEADER_BYTES + FRAME_HEADER_BYTES + page_bytes + 8)
        if len(salts) == 8 and file.read(8) == salts:
            return page_bytes
    return 0


def _frames(file: BinaryIO, page_bytes: int) -> Iterator[tuple[bool, bytes]]:
    """Return for each frame whether it ends a commit, and its salts."""
    place = HEADER_BYTES
    while True:
        file.seek(place)
        frame = file.read(FRAME_HEADER_BYTES)
        if len(frame) < FRAME_HEADER_BYTES:
            return
        yield any(frame[4:8]), frame[8:16]
        place += FRAME_HEADER_BYTES + page_bytes
