"""What an executor does about its earlier lives: takes their folder, ends what they left running, tells what it knows.

It happens once at start, beside the work, and what could not be told is told again later. Whoever the agent id belonged
to before is gone when the folder's lock is free; folders of executors that will not come back are taken over too.
"""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import structlog

from agents.task_executor.attempts import Attempts, Ending
from agents.task_executor.compute import Compute
from agents.task_executor.errors import NotBegun, OutcomeUnknown, PoisonTask
from agents.task_executor.handover import MAX_AT_ONCE, Handover, put_of_record
from agents.task_executor.program_records import ProgramRecords, end_left_behind
from agents.task_executor.spool import Record, Spool, State
from agents.task_executor.spool_folder import SpoolFolder, orphans, take
from agents.task_executor.under_way import NO_SLOT, Suspects, UnderWay
from amp import crash
from amp.errors import error_from_wire
from orchestration.contracts import Attempt
from runtime.clock import Clock

HOUSEKEEPING_SECONDS = 60.0
"""How often what nobody has confirmed is looked at."""
UNSETTLED_SECONDS = 60.0
"""How long an engine may take to say that it has recorded a result, before the result goes to the inbox too."""

_HANDED_OVER = OutcomeUnknown("how the attempt ended went to its instance's inbox")

logger = structlog.stdlib.get_logger(__name__)


class Recovery:
    """The memory of one executor over its lives.

    Args:
        root: The folder of all executors' folders.
        attempts: Remembers endings of earlier lives too, so that a token that comes again is not begun again.
        slots: How many attempts can be under way at once.
        agent_id: Returns the agent's id of the moment.
    """

    def __init__(
        self,
        root: Path,
        attempts: Attempts,
        spool: Spool,
        handover: Handover,
        programs: ProgramRecords,
        *,
        slots: int,
        clock: Clock,
        agent_id: Callable[[], str],
    ) -> None:
        self.spool = spool
        self._attempts = attempts
        self.suspects = Suspects()
        self._root = root
        self._handover = handover
        self._programs = programs
        self._slots = slots
        self._clock = clock
        self._agent_id = agent_id
        self._table: UnderWay | None = None
        self._earlier: set[str] = set()

    async def open(self, disk: Compute) -> None:
        """Take the folder of this agent's id and learn from it. Without a folder there is no memory, but work."""
        try:
            folder, self._table = await disk.run(partial(self._prepare, self._agent_id()))
            await self.spool.open(folder)
        except OSError as error:
            logger.error("spool_unusable", path=str(self._root), reason=error.strerror or str(error))
            return
        self._earlier = set(self.spool.tokens())

    def close(self) -> None:
        """Let the folder go: a clean end leaves nobody under way."""
        self.spool.close()
        if self._table is not None:
            self._table.close()

    def _prepare(self, agent_id: str) -> tuple[SpoolFolder, UnderWay | None]:
        """Return the folder of an id and a new table of who is under way. Blocks. Raises: OSError."""
        folder = take(self._root, agent_id)
        try:
            self._learn(folder)
            for orphan in orphans(self._root, folder):
                try:
                    self._learn(orphan)
                    taken = folder.adopt(orphan)
                    logger.info("spool_adopted", path=str(orphan.path), records=taken)
                finally:
                    orphan.discard()
            self.suspects.store(folder.path)
            self._programs.open(folder.path)
        except BaseException:
            folder.close()
            raise
        try:
            return folder, UnderWay(folder.path, self._slots)
        except OSError as error:
            logger.warning("deaths_not_remembered", reason=os.strerror(error.errno or 0))
            return folder, None

    def _learn(self, folder: SpoolFolder) -> None:
        killed = end_left_behind(folder.path)
        if killed:
            logger.warning("programs_left_behind", path=str(folder.path), killed=killed)
        under_way = self.suspects.learn(folder.path)
        if under_way:
            logger.warning(
                "killed_with_tasks", path=str(folder.path), tasks=under_way[:10], count=len(under_way)
            )

    # --- poison ----------------------------------------------------------------------------------------

    def enter(self, attempt: Attempt) -> int:
        """Note that an attempt is under way; return what `leave` takes. Costs a microsecond.

        Raises: PoisonTask when executors die of it.
        """
        name = attempt.idempotency_key or attempt.token
        if self.suspects.is_poison(name):
            raise PoisonTask("this executor was killed twice with the task under way, and refuses it now")
        return self._table.enter(name) if self._table is not None else NO_SLOT

    def leave(self, slot: int) -> None:
        """Note that an attempt is under way no more."""
        if self._table is not None:
            self._table.leave(slot)

    # --- results ---------------------------------------------------------------------------------------

    async def known_ending(self, token: str) -> Ending | None:
        """Return how an attempt ended that lies in the spool, as far as that is known; None when it does not."""
        match self.spool.state_of(token):
            case State.ENDED:
                record = await self.spool.record(token)
                return _HANDED_OVER if record is None else ending_of(record)
            case State.BEGUN if token in self._earlier:
                return OutcomeUnknown("an executor was killed after it had begun with this attempt")
            case State.ACCEPTED if token in self._earlier:
                return NotBegun("an executor was killed before it began with this attempt")
            case _:
                return None

    async def deliver_earlier(self) -> None:
        """Tell the inboxes what the earlier lives left, a few at a time; what fails stays for later."""
        self._earlier.intersection_update(self.spool.tokens())
        await self._deliver_all(sorted(self._earlier))

    async def _deliver_all(self, tokens: list[str]) -> None:
        for first in range(0, len(tokens), MAX_AT_ONCE):
            batch = tokens[first : first + MAX_AT_ONCE]
            await asyncio.gather(*(self._deliver_one(token) for token in batch))

    async def _deliver_one(self, token: str) -> None:
        await self.deliver(token)
        crash.reach("executor.recovery.between")

    async def deliver(self, token: str) -> None:
        """Tell an inbox what the spool knows of an attempt. Return when it was told, or could not be."""
        state, record = self.spool.state_of(token), await self.spool.record(token)
        if record is not None:
            if token in self._earlier:
                self._attempts.finish(
                    token, await self.known_ending(token) or _HANDED_OVER, self._clock.monotonic()
                )
            request = put_of_record(record, self._agent_id(), begun=state is not State.ACCEPTED)
            await self._handover.deliver(token, request)

    async def settle(self, tokens: list[str]) -> int:
        """Forget attempts whose ending is recorded or unwanted; return how many were known."""
        self._earlier.difference_update(tokens)
        return await self.spool.remove(tokens)

    async def look_after(self) -> None:
        """Tell once more what the earlier lives left, and what was not confirmed for long."""
        await self.deliver_earlier()
        since = self._clock.monotonic() - UNSETTLED_SECONDS
        await self._deliver_all(self.spool.tokens(state=State.ENDED, before=since))


def ending_of(record: Record) -> Ending | None:
    """Return the ending that a record holds: an error, the encoded result, or None."""
    if record.error is None:
        return record.result if isinstance(record.result, msgspec.Raw) else None
    details = record.error.get("details")
    return error_from_wire(
        str(record.error.get("code", "")),
        str(record.error.get("message", "")),
        details if isinstance(details, dict) else None,
    )
