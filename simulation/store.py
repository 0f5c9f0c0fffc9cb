"""The store that outlives the state manager: what is committed stays, what a kill finds uncommitted is gone.

The tables are those of `MemoryStorage`; this adds the disk: a commit takes virtual time, everything that arrived in
the meantime is the next commit, and callers are answered after it. `plant` makes it wrong on purpose.
"""

import asyncio
import copy
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from random import Random
from typing import Any, Literal, TypeVar

from agents.state_manager.storage.base import (
    DecideContext,
    DecideState,
    LeaseStanding,
    LeaseSweep,
    StoredContext,
    StoredState,
)
from agents.state_manager.storage.memory import MemoryStorage
from agents.state_manager.store_clock import StoreClock, to_microseconds
from amp import crash
from orchestration.contracts import (
    AppendBatch,
    AppendOutcome,
    DefinitionPutReply,
    DefinitionPutRequest,
    InboxItem,
    InboxPutReply,
    InboxPutRequest,
    InstanceRow,
)
from simulation.clock import EPOCH

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]

Plant = Literal["", "answer-before-commit"]
COMMIT_SECONDS = 0.001
SLOW_COMMIT_SECONDS = 0.5
PLANTED_SECONDS = 2.0
"""How late the planted bug commits at most."""
SLOW_COMMITS = 0.01
"""The share of commits for which the disk takes its time."""


class _TrueClock:
    """The time at which the store was made."""

    def now(self) -> Any:
        return EPOCH

    def monotonic(self) -> float:
        return 0.0


class SimulatedStore(MemoryStorage):
    """A store whose content is kept between the lives of the state manager."""

    def __init__(self, random: Random, plant: Plant = "") -> None:
        super().__init__(StoreClock(_TrueClock()))
        self._random = random
        self._plant = plant
        self._queue: list[tuple[Work[Any], asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._uncommitted: dict[int, dict[str, Any]] = {}
        self._writes = 0

    def open_for(self, clock: StoreClock) -> None:
        """Begin another life with what was committed in the lives before."""
        if self._uncommitted:
            self.__dict__.update(self._uncommitted[min(self._uncommitted)])
            self._uncommitted.clear()
        self._queue = []
        self._writer = None
        clock.not_before(to_microseconds(self.clock.now()))
        self.clock = clock

    @property
    def rows(self) -> dict[str, InstanceRow]:
        """Every instance's row."""
        return self._rows

    @property
    def inbox(self) -> list[InboxItem]:
        """What lies in the inboxes."""
        return list(self._inbox.values())

    @property
    def events(self) -> list[Any]:
        """The whole log."""
        return self._events

    # --- committing ----------------------------------------------------------------------------------------

    async def _commit(self, work: Work[T]) -> T:
        """Return what `work` returns, once that is durable."""
        crash.reach("store.request.queued")
        if self._plant == "answer-before-commit":
            return self._too_early(work)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((work, future))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write(), name="store-writer")
        return await future

    async def _write(self) -> None:
        while self._queue:
            await asyncio.sleep(self._disk_seconds())
            group, self._queue = self._queue, []
            crash.reach("store.commit.before")
            done = [(future, *_outcome(work)) for work, future in group]
            crash.reach("store.commit.after")
            for future, result, error in done:
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result)
        self._writer = None

    def _disk_seconds(self) -> float:
        slow = self._random.random() < SLOW_COMMITS
        return self._random.random() * (SLOW_COMMIT_SECONDS if slow else COMMIT_SECONDS * 2)

    def _too_early(self, work: Work[T]) -> T:
        """The planted bug: answer now, commit later. What a kill finds in between is gone."""
        number = self._writes = self._writes + 1
        self._uncommitted[number] = self._snapshot()
        wait = self._random.random() * PLANTED_SECONDS
        asyncio.get_running_loop().call_later(wait, self._committed, number)
        result: T
        result, error = _outcome(work)
        if error is not None:
            raise error
        return result

    def _committed(self, number: int) -> None:
        crash.reach("store.commit.before")
        self._uncommitted.pop(number, None)

    def _snapshot(self) -> dict[str, Any]:
        tables = ("_events", "_rows", "_inbox", "_last_inbox_id", "_leases", "_definitions", "_versions",
                  "_revision", "_states", "_contexts")  # fmt: skip
        saved = {name: copy.copy(getattr(self, name)) for name in tables}
        saved["_logs"] = defaultdict(list, {key: list(log) for key, log in self._logs.items()})
        saved["_inbox_keys"] = defaultdict(dict, {key: dict(of) for key, of in self._inbox_keys.items()})
        saved["_history"] = defaultdict(list, {key: list(of) for key, of in self._history.items()})
        return saved

    # --- the writes of a storage ---------------------------------------------------------------------------

    async def append(self, batches: Sequence[AppendBatch]) -> list[AppendOutcome]:
        """Store the batches."""
        return await self._commit(partial(super().append, batches))

    async def put_inbox(self, request: InboxPutRequest) -> tuple[InboxPutReply, str]:
        """Store an inbox entry."""
        return await self._commit(partial(super().put_inbox, request))

    async def keep_lease(self, owner: str, agent_id: str, lease_seconds: float) -> LeaseStanding:
        """Begin or renew a lease."""
        return await self._commit(partial(super().keep_lease, owner, agent_id, lease_seconds))

    async def end_lease(self, owner: str) -> int:
        """End a lease."""
        return await self._commit(partial(super().end_lease, owner))

    async def sweep_leases(self) -> LeaseSweep:
        """End the leases whose time is over."""
        return await self._commit(super().sweep_leases)

    async def claim(self, owner: str, limit: int) -> list[InstanceRow]:
        """Give away what nobody owns."""
        return await self._commit(partial(super().claim, owner, limit))

    async def put_definition(self, request: DefinitionPutRequest) -> DefinitionPutReply:
        """Store a definition."""
        return await self._commit(partial(super().put_definition, request))

    async def change_state(self, state_id: str, decide: DecideState) -> StoredState | None:
        """Change a state."""
        return await self._commit(partial(super().change_state, state_id, decide))

    async def change_context(self, context_id: str, decide: DecideContext) -> StoredContext:
        """Change a context."""
        return await self._commit(partial(super().change_context, context_id, decide))


def _outcome(work: Work[T]) -> tuple[Any, Exception | None]:
    """Return what work that never waits returns, or what it raised."""
    try:
        work().send(None)
    except StopIteration as end:
        return end.value, None
    except Exception as error:  # boundary: raised where the caller waits for the commit
        return None, error
    raise AssertionError("the memory storage waited in the middle of a change")
