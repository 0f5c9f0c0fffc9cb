"""Attempts whose end must not be lost: what this executor took on, what it began, and how that ended.

An attempt that must not be repeated is noted before its effect and its ending after it, both on the disk before the
next step. A successor reads from the states what can be said of it: accepted - it never began; begun - nobody knows;
result - this is how it ended. This module never decides what follows from that.

Each step waits for the disk once. Of an intent the name has to be there, for it is what says "begun"; were its content
lost with the power, nothing would be told of the attempt, and its outcome would count as unknown all the same. Of an
ending the content has to be there; were its name lost, the intent would still be found.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
import structlog

from agents.task_executor.attempts import Ending
from agents.task_executor.compute import Compute
from agents.task_executor.errors import SpoolFull
from agents.task_executor.spool_folder import ACCEPTED, BEGUN, PARTIAL, RESULT, SpoolFolder, record_name
from amp import crash
from amp.errors import AmpError
from orchestration.contracts import Attempt
from runtime.clock import Clock

DISK_THREADS = 8
"""Waits for the disk at the same time; the file system makes one of those that meet."""
HEAD_BYTES = 16 * 1024
"""What a record takes besides its result, at most."""
BUSY_SECONDS = 1.0
"""How long an attempt waits before it tries a full spool again."""

logger = structlog.stdlib.get_logger(__name__)
_ENCODER = msgspec.json.Encoder()


class State(enum.IntEnum):
    """How far an attempt is known to have come."""

    ACCEPTED = 1
    BEGUN = 2
    ENDED = 3


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt as it lies in the spool. Without `result` and `error` it has not ended."""

    token: str
    engine_id: str
    instance_id: str
    task_id: str
    attempt: int
    at: datetime
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: dict[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        """True when the record says how the attempt ended."""
        return self.result is not msgspec.UNSET or self.error is not None


@dataclass(slots=True)
class Entry:
    """A record's place: its file, its state, what it weighs, since when, and from whom."""

    name: str
    state: State
    bytes: int
    since: float
    engine_id: str


_SUFFIXES: Mapping[State, str] = {State.ACCEPTED: ACCEPTED, State.BEGUN: BEGUN, State.ENDED: RESULT}
_STATES: Mapping[str, State] = {suffix: state for state, suffix in _SUFFIXES.items()}


class Spool:
    """The spool of one executor. Before `open` it takes nothing.

    Args:
        max_bytes, max_files: Bounds of everything in it.
        record_bytes: The largest record there can be; so much is kept free for each attempt until it ends.
    """

    def __init__(self, clock: Clock, *, max_bytes: int, max_files: int, record_bytes: int) -> None:
        self.bytes = 0
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._record_bytes = record_bytes + HEAD_BYTES
        self._entries: dict[str, Entry] = {}
        self._folder: SpoolFolder | None = None
        self._disk = Compute(DISK_THREADS)

    # --- life ------------------------------------------------------------------------------------------

    async def open(self, folder: SpoolFolder) -> None:
        """Work in a folder from now on, with everything that lies in it. Raises: OSError; the folder is closed then."""
        try:
            found = await self._disk.run(partial(self._scan, folder))
        except OSError:
            folder.close()
            raise
        self._folder = folder
        for token, entry in found:
            self._enter(token, entry)

    def close(self) -> None:
        """Let go of the folder and the threads."""
        self._disk.close()
        if self._folder is not None:
            self._folder.close()

    def __len__(self) -> int:
        return len(self._entries)

    def state_of(self, token: str) -> State | None:
        """Return how far an attempt came that is in the spool."""
        entry = self._entries.get(token)
        return None if entry is None else entry.state

    def tokens(
        self, *, state: State | None = None, engine_id: str | None = None, before: float | None = None
    ) -> list[str]:
        """Return the attempts in a state, of an engine, that are in the spool since before a moment of the clock."""
        return [
            token
            for token, entry in self._entries.items()
            if state in (None, entry.state)
            and engine_id in (None, entry.engine_id)
            and (before is None or entry.since < before)
        ]

    # --- one attempt -----------------------------------------------------------------------------------

    async def accept(self, attempt: Attempt) -> None:
        """Note that an attempt was taken on, and keep room for how it ends.

        Raises: SpoolFull when there is no room, or nothing can be written: the effect must not happen then.
        """
        folder = self._folder
        if folder is None:
            raise SpoolFull("the spool cannot be used; the executor's log says why", BUSY_SECONDS)
        if self.bytes + self._record_bytes > self._max_bytes or len(self) >= self._max_files:
            raise SpoolFull(
                f"the spool holds {len(self)} results with {self.bytes} bytes (task_executor.spool)",
                BUSY_SECONDS,
            )
        name = record_name(attempt.token)
        self._enter(
            attempt.token,
            Entry(name, State.ACCEPTED, self._record_bytes, self._clock.monotonic(), attempt.engine_id),
        )
        content = self._encoded(attempt)
        try:
            free = await self._disk.run(partial(_note, folder, name, content))
        except OSError as error:
            await self.remove([attempt.token])
            raise SpoolFull(f"the spool cannot be written: {error.strerror}", BUSY_SECONDS) from None
        if free < self._record_bytes:
            await self.remove([attempt.token])
            raise SpoolFull(f"the disk of the spool has {free} bytes left", BUSY_SECONDS)

    async def begin(self, token: str) -> None:
        """Note on the disk that the effect of an attempt begins now. Raises: SpoolFull; it must not begin then."""
        entry, folder = self._entries[token], self._folder
        assert folder is not None
        try:
            await self._disk.run(
                partial(folder.put, entry.name, before=ACCEPTED, after=BEGUN, sync_name=True)
            )
        except OSError as error:
            raise SpoolFull(f"the spool cannot be written: {error.strerror}", BUSY_SECONDS) from None
        entry.state = State.BEGUN

    async def keep(self, attempt: Attempt, ending: Ending, *, engine_id: str, sync: bool) -> bool:
        """Keep how an attempt ended that an engine waits for, on the disk when `sync`; return whether it was kept."""
        folder = self._folder
        content = self._encoded(attempt, ending)
        before = self._entries.get(attempt.token)
        size = self.bytes + len(content) - (before.bytes if before is not None else 0)
        if folder is None or (before is None and (size > self._max_bytes or len(self) >= self._max_files)):
            return False
        name = record_name(attempt.token)
        try:
            await self._disk.run(partial(folder.write, name, content))
            crash.reach("executor.spool.written")
            await self._disk.run(partial(_conclude, folder, name, sync))
        except OSError as error:
            logger.error(
                "result_not_spooled", instance_id=attempt.workflow_instance_id, task_id=attempt.task_id,
                reason=error.strerror,
            )  # fmt: skip
            return False
        crash.reach("executor.spool.synced")
        self._enter(
            attempt.token,
            Entry(name, State.ENDED, len(content), self._clock.monotonic(), engine_id),
        )
        return True

    async def remove(self, tokens: list[str]) -> int:
        """Forget attempts; return how many of them were here."""
        entries = [entry for token in tokens if (entry := self._leave(token)) is not None]
        folder = self._folder
        if entries and folder is not None:
            try:
                await self._disk.run(partial(folder.remove, [entry.name for entry in entries]))
            except OSError as error:
                logger.warning("spool_not_cleared", reason=error.strerror)
        return len(entries)

    async def record(self, token: str) -> Record | None:
        """Return what is known of an attempt, or None when it cannot be read."""
        entry, folder = self._entries.get(token), self._folder
        if entry is None or folder is None:
            return None
        suffix = _SUFFIXES[entry.state]
        content = await self._disk.run(partial(folder.read, entry.name, suffix, self._record_bytes))
        return _decoded(content)

    def _encoded(self, attempt: Attempt, ending: Ending | None = None) -> bytes:
        error = None
        if isinstance(ending, AmpError):
            error = {"code": ending.code, "message": ending.message, "details": ending.details}
        return _ENCODER.encode(
            Record(
                token=attempt.token,
                engine_id=attempt.engine_id,
                instance_id=attempt.workflow_instance_id,
                task_id=attempt.task_id,
                attempt=attempt.attempt,
                at=self._clock.now(),
                result=ending if isinstance(ending, msgspec.Raw) else msgspec.UNSET,
                error=error,
            )
        )

    def _enter(self, token: str, entry: Entry) -> None:
        self._leave(token)
        self._entries[token] = entry
        self.bytes += entry.bytes

    def _leave(self, token: str) -> Entry | None:
        entry = self._entries.pop(token, None)
        if entry is not None:
            self.bytes -= entry.bytes
        return entry

    # --- what an earlier life left ---------------------------------------------------------------------

    def _scan(self, folder: SpoolFolder) -> list[tuple[str, Entry]]:
        """Return the records in a folder, each in the last state it reached; what cannot be read is set aside."""
        for file in folder.strangers():
            _set_aside(folder, file, "is none of the spool's")
        found: dict[str, tuple[str, Entry]] = {}
        for name, suffix in list(folder.records()):
            content = folder.read(name, suffix, self._record_bytes)
            record = _decoded(content)
            state = _state_of(record, suffix)
            if record is None or state is None or record_name(record.token) != name:
                if suffix == PARTIAL:
                    (folder.path / f"{name}{suffix}").unlink(missing_ok=True)
                else:
                    _set_aside(folder, f"{name}{suffix}", "is no record")
                continue
            if suffix == PARTIAL:
                folder.put(name, after=RESULT)
            if name not in found or found[name][1].state < state:
                entry = Entry(name, state, len(content or b""), self._clock.monotonic(), record.engine_id)
                found[name] = (record.token, entry)
        return list(found.values())


def _note(folder: SpoolFolder, name: str, content: bytes) -> int:
    """Write a new record and return how much room is left after it."""
    folder.write(name, content)
    folder.put(name, after=ACCEPTED)
    return folder.free_bytes()


def _conclude(folder: SpoolFolder, name: str, sync: bool) -> None:
    """Make a written ending what is known of an attempt."""
    folder.put(name, after=RESULT, sync_content=sync)
    for suffix in (BEGUN, ACCEPTED):
        (folder.path / f"{name}{suffix}").unlink(missing_ok=True)


def _decoded(content: bytes | None) -> Record | None:
    try:
        return None if content is None else msgspec.json.decode(content, type=Record)
    except (msgspec.DecodeError, RecursionError):
        return None


def _state_of(record: Record | None, suffix: str) -> State | None:
    """Return what a record says in its place; a whole ending counts although it was not put into place."""
    if record is None:
        return None
    if suffix == PARTIAL:
        return State.ENDED if record.has_ended else None
    state = _STATES[suffix]
    return state if record.has_ended == (state is State.ENDED) else None


def _set_aside(folder: SpoolFolder, file: str, reason: str) -> None:
    try:
        folder.set_aside(file)
    except OSError as error:
        reason = f"{reason}, and cannot be moved: {error.strerror}"
    logger.warning("spool_file_set_aside", path=str(folder.path / file), reason=reason)
