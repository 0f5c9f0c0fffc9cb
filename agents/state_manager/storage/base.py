"""What a storage must do. One contract suite checks that all storages do it alike.

Every change is one transaction: stored wholly and durably when the call returns, or not at all. A storage decides
nothing: `fencing`, `state_values` and the functions handed in decide. Its errors are those of `errors`.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from agents.state_manager.orphans import Suspect
from agents.state_manager.room import Room
from orchestration.contracts import (
    AppendBatch,
    AppendOutcome,
    DefinitionGetRequest,
    DefinitionListReply,
    DefinitionListRequest,
    DefinitionPutReply,
    DefinitionPutRequest,
    DefinitionRecord,
    InboxPutReply,
    InboxPutRequest,
    InboxReadReply,
    InboxReadRequest,
    InstanceListReply,
    InstanceListRequest,
    InstanceRow,
    LogReadReply,
    LogReadRequest,
)

NO_ROOM = "the disk of the store is full: no new instance is taken until there is room"
MAX_PURGED_INSTANCES = 100
MAX_PURGED_EVENTS = 2000
"""Most that one transaction of a purge removes, unless one instance alone has more."""
UNFINISHED_SUFFIX = ".unfinished"
"""How a copy ends that is being written: `.NAME.PID.unfinished`."""
MAX_PAGE_BYTES = 768 * 1024
"""A page of any listing ends after the row that passes this, however many rows were asked for."""
MAX_HISTORY_ENTRIES = 50
MAX_CONTEXTS = 100_000
MAX_SCANNED_EVENTS = 20_000
"""A filtered read of the log looks at no more offsets than this at once; its `next` moves on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """A state as it is kept. Whoever holds one must not change it: caches share it."""

    workflow_instance_id: str
    state: Mapping[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """What a decision made of a state: the whole new value and how the change is called in the history."""

    state: dict[str, Any]
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateVersion:
    """One entry of a state's history."""

    state: Mapping[str, Any]
    version: int
    description: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredContext:
    """An AMP context object. `agent_memory` is by agent id; each agent may see its own entry only."""

    context_id: str
    session_id: str
    created_at: datetime
    expires_at: datetime | None = None
    shared_memory: Mapping[str, Any] = field(default_factory=dict)
    agent_memory: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parent_context: str | None = None
    root_context: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSweep:
    """What became of the leases: who lost his, how much may be claimed, and when the next one ends."""

    ended: tuple[str, ...]
    claimable: int
    next_expiry: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStanding:
    """How an engine stands after its lease was begun or renewed.

    Counts are of unfinished instances: `claimable` without a live owner, `held` by this engine, `open` all there are.
    `engines` hold a lease. `begun` is true when there was none to renew.
    """

    claimable: int
    held: int
    open: int
    engines: int
    begun: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What was removed, or would be."""

    instances: int
    events: int
    instance_ids: tuple[str, ...] = ()


DecideState = Callable[[StoredState | None], StateChange | None]
"""Gets the stored state, returns the new one, or None to leave nothing. May raise to change nothing."""
DecideContext = Callable[[StoredContext | None], StoredContext]


class Storage(Protocol):
    """Everything durable of one store."""

    @property
    def last_offset(self) -> int:
        """The newest committed offset of the log."""
        ...

    @property
    def trouble(self) -> str:
        """Why writing does not work now; empty when it does."""
        ...

    @property
    def room(self) -> Room:
        """Whether there is room for new work; while there is none, it is refused and running work goes on."""
        ...

    @property
    def queued_writes(self) -> int:
        """How many writes wait or run."""
        ...

    @property
    def created_at(self) -> datetime:
        """When the store was made."""
        ...

    async def start(self) -> None:
        """Open the store. Raises StoreUnusable and leaves it untouched when it cannot be served."""
        ...

    async def stop(self) -> None:
        """Write what is queued and close. Works twice, and before `start`."""
        ...

    async def check(self) -> None:
        """Check, behind the work, what was not checked at the start. A finding is told as the loss of the store."""
        ...

    async def probe(self) -> None:
        """Write a little. Raises StoreFull while there is no room."""
        ...

    # the log

    async def append(self, batches: Sequence[AppendBatch]) -> list[AppendOutcome]:
        """Store the batches in one transaction; each is stored or refused by itself. Repeats are known as such."""
        ...

    async def read_log(self, request: LogReadRequest) -> LogReadReply:
        """Return events after an offset, or of one instance after a seq."""
        ...

    async def get_instance(self, instance_id: str) -> InstanceRow | None:
        """Return an instance's row."""
        ...

    async def list_instances(self, request: InstanceListRequest) -> InstanceListReply:
        """Return matching rows, newest first, and how many match by status."""
        ...

    # inboxes

    async def put_inbox(self, request: InboxPutRequest) -> tuple[InboxPutReply, str]:
        """Store an entry for an open instance, once for each dedupe key; return the reply and the owner to tell."""
        ...

    async def read_inbox(self, request: InboxReadRequest) -> InboxReadReply:
        """Return what waits for the instances of an owner, oldest first."""
        ...

    # ownership

    async def keep_lease(self, owner: str, agent_id: str, lease_seconds: float) -> LeaseStanding:
        """Begin or renew a lease; an older one of the same agent ends. Return how the engine stands then."""
        ...

    async def end_lease(self, owner: str) -> int:
        """End a lease now. Return how many instances may be claimed."""
        ...

    async def sweep_leases(self) -> LeaseSweep:
        """End the leases whose time is over."""
        ...

    async def claim(self, owner: str, limit: int) -> list[InstanceRow]:
        """Give unfinished instances without a live owner to this one, oldest first, each with its next epoch."""
        ...

    # upkeep

    async def suspects(self, due_before: datetime, limit: int) -> list[Suspect]:
        """Return unfinished instances without a live owner, without a wake reason, or due before that time."""
        ...

    async def unread_inboxes(self, put_before: datetime, limit: int) -> list[tuple[str, str]]:
        """Return instances with an entry in their inbox that is older than that, each with its owner."""
        ...

    async def count_ended(self, ended_before: datetime) -> Purged:
        """Return what `purge` would remove in all, without the ids."""
        ...

    async def purge(self, ended_before: datetime) -> Purged:
        """Remove some instances that ended before that time with all that is theirs; nothing when none is left."""
        ...

    # definitions

    async def put_definition(self, request: DefinitionPutRequest) -> DefinitionPutReply:
        """Store a definition."""
        ...

    async def get_definition(self, request: DefinitionGetRequest) -> DefinitionRecord | None:
        """Return a workflow's newest definition, or the one with a hash."""
        ...

    async def list_definitions(self, request: DefinitionListRequest) -> DefinitionListReply:
        """Return every workflow's newest definition."""
        ...

    # states

    async def get_state(self, state_id: str) -> StoredState | None:
        """Return a state."""
        ...

    async def change_state(self, state_id: str, decide: DecideState) -> StoredState | None:
        """Replace a state by what `decide` makes of it, as the next version; None deletes it with its history."""
        ...

    async def list_states(self, prefix: str, limit: int) -> tuple[list[StoredState], int]:
        """Return states whose id begins with `prefix`, newest change first, without values; and how many there are."""
        ...

    async def state_history(self, state_id: str) -> list[StateVersion]:
        """Return a state's versions, newest first, `MAX_HISTORY_ENTRIES` and `MAX_PAGE_BYTES` at most."""
        ...

    def scan_states(self, equal_texts: Mapping[str, str]) -> AsyncGenerator[StoredState]:
        """Return at least all states that hold these texts at top level; all states when none is given."""
        ...

    # contexts

    async def get_context(self, context_id: str) -> StoredContext | None:
        """Return a context that has not expired."""
        ...

    async def change_context(self, context_id: str, decide: DecideContext) -> StoredContext:
        """Replace a context by what `decide` makes of it. Expired contexts count as absent and are removed."""
        ...

    # copies

    async def back_up(self, target: Path) -> int:
        """Write a consistent copy to a new file while the store is in use; return its bytes."""
        ...

    def scan_backup(self, source: Path) -> AsyncGenerator[StoredState]:
        """Return the states in a copy, oldest change first. Raises BackupNotFound when the file is none."""
        ...
