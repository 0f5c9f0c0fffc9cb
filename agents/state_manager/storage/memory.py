"""The storage that forgets: for tests and for embedded runs without persistence. Same contract, no file.

Everything happens between two awaits, so every change is a transaction by itself.
"""

import asyncio
import bisect
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from agents.state_manager.errors import BackupNotFound, InvalidRequest, StoreBusy, StoreFailed
from agents.state_manager.fencing import (
    MAX_CLAIMED_ROWS,
    MAX_INBOX_ITEMS,
    Position,
    check_batches,
    check_definition,
    check_id,
    check_inbox,
    check_lease_seconds,
    check_number,
    encoded,
    judge_append,
    judge_definition,
    refused,
    stored_row,
)
from agents.state_manager.orphans import Suspect
from agents.state_manager.room import Room
from agents.state_manager.storage.base import (
    MAX_CONTEXTS,
    MAX_HISTORY_ENTRIES,
    MAX_PAGE_BYTES,
    MAX_PURGED_EVENTS,
    MAX_PURGED_INSTANCES,
    NO_ROOM,
    DecideContext,
    DecideState,
    LeaseStanding,
    LeaseSweep,
    Purged,
    StateVersion,
    StoredContext,
    StoredState,
)
from agents.state_manager.storage.listing import Listing
from agents.state_manager.store_clock import StoreClock
from orchestration.contracts import (
    AppendBatch,
    AppendOutcome,
    DefinitionGetRequest,
    DefinitionListReply,
    DefinitionListRequest,
    DefinitionPutReply,
    DefinitionPutRequest,
    DefinitionRecord,
    EventRecord,
    InboxItem,
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

MEMORY_PATH = ":memory:"
"""With this `database.sqlite_path` nothing is written to disk and nothing survives the process."""


class _MemoryLog:
    """The log, the instances' rows, the inboxes, leases and claims."""

    def __init__(self, clock: StoreClock) -> None:
        self.clock = clock
        self.trouble = ""
        self.room = Room()
        self.queued_writes = 0
        self.created_at = clock.now()
        self._is_open = False
        self._last_offset = 0
        self._events: list[EventRecord] = []
        self._logs: defaultdict[str, list[EventRecord]] = defaultdict(list)
        self._rows: dict[str, InstanceRow] = {}
        self._inbox: dict[int, InboxItem] = {}
        self._last_inbox_id = 0
        self._inbox_keys: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._leases: dict[str, tuple[str, datetime]] = {}

    @property
    def last_offset(self) -> int:
        """The newest offset of the log."""
        return self._last_offset

    async def start(self) -> None:
        """Open the store."""
        self._is_open = True

    async def stop(self) -> None:
        """Close the store. What it holds stays until the object goes."""
        self._is_open = False

    async def check(self) -> None:
        """There is nothing to check."""

    async def probe(self) -> None:
        """There is always room."""
        self._check_open()

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreFailed("the store is not open")

    # --- the log -------------------------------------------------------------------------------------------

    async def append(self, batches: Sequence[AppendBatch]) -> list[AppendOutcome]:
        """Store the batches; each succeeds or conflicts by itself. Repeats are known as such."""
        refusals = check_batches(batches)
        self._check_open()
        return [
            refused(batch, refusal) if refusal else self._append(batch)
            for batch, refusal in zip(batches, refusals, strict=True)
        ]

    def _append(self, batch: AppendBatch) -> AppendOutcome:
        stored = self._rows.get(batch.instance_id)
        position = None if stored is None else Position(stored.owner, stored.epoch, stored.seq)
        verdict = judge_append(position, batch)
        if verdict == "create" and self.room.is_full:
            return AppendOutcome(instance_id=batch.instance_id, status="full", seq=0, reason=NO_ROOM)
        seq = 0 if stored is None else stored.seq
        if verdict in ("create", "extend"):
            return self._appended(batch, stored_row(batch, stored, self.clock.now()))
        if verdict == "stale_owner":
            return AppendOutcome(instance_id=batch.instance_id, status=verdict, seq=seq)
        if verdict == "repeat?":
            last = batch.expected_seq + len(batch.events)
            same = self._logs[batch.instance_id][batch.expected_seq : last]
            if all(
                (old.type, bytes(old.data)) == (new.type, bytes(new.data))
                for old, new in zip(same, batch.events, strict=True)
            ):
                offset = same[-1].offset
                return AppendOutcome(instance_id=batch.instance_id, status="ok", seq=last, offset=offset)
        return AppendOutcome(instance_id=batch.instance_id, status="conflict", seq=seq)

    def _appended(self, batch: AppendBatch, row: InstanceRow) -> AppendOutcome:
        log = self._logs[batch.instance_id]
        for event in batch.events:
            self._last_offset += 1
            record = EventRecord(
                offset=self._last_offset,
                instance_id=batch.instance_id,
                seq=len(log) + 1,
                type=event.type,
                at=event.at,
                data=event.data.copy(),
            )
            self._events.append(record)
            log.append(record)
        self._rows[batch.instance_id] = row
        for inbox_id in batch.consumed_inbox_ids:
            if (item := self._inbox.get(inbox_id)) is not None and item.instance_id == batch.instance_id:
                del self._inbox[inbox_id]
        if row.status.is_final:
            self._inbox = {
                key: item for key, item in self._inbox.items() if item.instance_id != batch.instance_id
            }
            self._inbox_keys.pop(batch.instance_id, None)
        offset = len(self._events) if batch.events else 0
        return AppendOutcome(instance_id=batch.instance_id, status="ok", seq=row.seq, offset=offset)

    async def read_log(self, request: LogReadRequest) -> LogReadReply:
        """Return events after an offset, or of one instance after a seq."""
        check_number(request.after, "after")
        self._check_open()
        of_instance = request.instance_id is not None
        source = self._logs.get(request.instance_id or "", []) if of_instance else self._events
        found: list[EventRecord] = []
        size = 0
        first = request.after
        if not of_instance:
            first = bisect.bisect_right(source, request.after, key=lambda event: event.offset)
        for event in source[first:]:
            if request.types and event.type not in request.types:
                continue
            size += len(event.data)
            if len(found) == request.limit or (found and size > MAX_PAGE_BYTES):
                last = found[-1].seq if of_instance else found[-1].offset
                return LogReadReply(events=found, next=last, end=False)
            found.append(event)
        if of_instance:
            return LogReadReply(events=found, next=found[-1].seq if found else request.after, end=True)
        return LogReadReply(events=found, next=max(request.after, self._last_offset), end=True)

    async def get_instance(self, instance_id: str) -> InstanceRow | None:
        """Return an instance's row."""
        self._check_open()
        return self._rows.get(instance_id)

    async def list_instances(self, request: InstanceListRequest) -> InstanceListReply:
        """Return matching rows, newest first, and how many match by status."""
        self._check_open()
        return Listing(request).page(self._rows.values())

    # --- inboxes -------------------------------------------------------------------------------------------

    async def put_inbox(self, request: InboxPutRequest) -> tuple[InboxPutReply, str]:
        """Store an entry for an open instance, once for each dedupe key; return the reply and the owner to tell."""
        data = encoded(request.data, "data")
        check_inbox(request, data)
        self._check_open()
        row = self._rows.get(request.instance_id)
        if row is None:
            return InboxPutReply(inbox_id=0, found=False, open=False), ""
        if row.status.is_final:
            return InboxPutReply(inbox_id=0, found=True, open=False, status=row.status), row.owner
        keys = self._inbox_keys[request.instance_id]
        if request.dedupe_key is not None and request.dedupe_key in keys:
            known = keys[request.dedupe_key]
            return InboxPutReply(inbox_id=known, found=True, open=True, status=row.status), row.owner
        waiting = sum(item.instance_id == request.instance_id for item in self._inbox.values())
        if waiting >= MAX_INBOX_ITEMS:
            raise StoreBusy(f"{waiting} entries wait in the inbox of {request.instance_id!r} already")
        self._last_inbox_id += 1
        self._inbox[self._last_inbox_id] = InboxItem(
            inbox_id=self._last_inbox_id,
            instance_id=request.instance_id,
            kind=request.kind,
            data=msgspec.json.decode(data),
            at=self.clock.now(),
        )
        if request.dedupe_key is not None:
            keys[request.dedupe_key] = self._last_inbox_id
        reply = InboxPutReply(inbox_id=self._last_inbox_id, found=True, open=True, status=row.status)
        return reply, row.owner

    async def read_inbox(self, request: InboxReadRequest) -> InboxReadReply:
        """Return what waits for the instances of an owner, oldest first."""
        self._check_open()
        found: list[InboxItem] = []
        size = 0
        for item in self._inbox.values():
            if request.instance_ids and item.instance_id not in request.instance_ids:
                continue
            if self._rows[item.instance_id].owner != request.owner:
                continue
            size += len(msgspec.json.encode(item.data))
            if len(found) == request.limit or (found and size > MAX_PAGE_BYTES):
                break
            found.append(item)
        return InboxReadReply(items=found)

    # --- ownership -----------------------------------------------------------------------------------------

    async def keep_lease(self, owner: str, agent_id: str, lease_seconds: float) -> LeaseStanding:
        """Begin or renew a lease; an older one of the same agent ends. Return how the engine stands then."""
        check_id(owner, "owner")
        check_id(agent_id, "agent_id")
        check_lease_seconds(lease_seconds)
        self._check_open()
        now = self.clock.now()
        had_one = owner in self._live_owners(now)
        self._leases = {held: lease for held, lease in self._leases.items() if lease[0] != agent_id}
        self._leases[owner] = (agent_id, now + timedelta(seconds=lease_seconds))
        rows = [row for row in self._rows.values() if not row.status.is_final]
        return LeaseStanding(
            claimable=len(self._claimable()),
            held=sum(row.owner == owner for row in rows),
            open=len(rows),
            engines=len(self._live_owners(now)),
            begun=not had_one,
        )

    async def end_lease(self, owner: str) -> int:
        """End a lease now. Return how many instances may be claimed."""
        self._check_open()
        self._leases.pop(owner, None)
        return len(self._claimable())

    async def sweep_leases(self) -> LeaseSweep:
        """End the leases whose time is over."""
        self._check_open()
        now = self.clock.now()
        ended = tuple(sorted(owner for owner, (_, expiry) in self._leases.items() if expiry <= now))
        for owner in ended:
            del self._leases[owner]
        next_expiry = min((expiry for _, expiry in self._leases.values()), default=None)
        return LeaseSweep(ended=ended, claimable=len(self._claimable()), next_expiry=next_expiry)

    async def claim(self, owner: str, limit: int) -> list[InstanceRow]:
        """Give unfinished instances without a live owner to this one, oldest first, each with its next epoch."""
        check_id(owner, "owner")
        self._check_open()
        free = [row for row in self._claimable() if row.owner != owner]
        free.sort(key=lambda row: (row.created_at, row.instance_id))
        claimed = [
            msgspec.structs.replace(row, owner=owner, epoch=row.epoch + 1)
            for row in free[: min(limit, MAX_CLAIMED_ROWS)]
        ]
        self._rows.update((row.instance_id, row) for row in claimed)
        return claimed

    def _claimable(self) -> list[InstanceRow]:
        live = self._live_owners(self.clock.now())
        return [row for row in self._rows.values() if not row.status.is_final and row.owner not in live]

    def _live_owners(self, now: datetime) -> frozenset[str]:
        return frozenset(owner for owner, (_, expiry) in self._leases.items() if expiry > now)


class _MemoryUpkeep(_MemoryLog):
    """Suspects for the sweeper, and the removal of what is old."""

    async def suspects(self, due_before: datetime, limit: int) -> list[Suspect]:
        """Return unfinished instances without a live owner, without a wake reason, or due before that time."""
        self._check_open()
        ownerless = {row.instance_id for row in self._claimable()}
        found = [
            Suspect(
                instance_id=row.instance_id,
                workflow_id=row.workflow_id,
                status=row.status,
                owner=row.owner,
                wake_at=row.wake_at,
                wake_reason=row.wake_reason,
                owner_lives=row.instance_id not in ownerless,
            )
            for row in self._rows.values()
            if not row.status.is_final
            and (
                row.instance_id in ownerless
                or row.wake_at is None
                or row.wake_at <= due_before
                or not row.wake_reason
            )
        ]
        return found[:limit]

    async def unread_inboxes(self, put_before: datetime, limit: int) -> list[tuple[str, str]]:
        """Return instances with an entry in their inbox that is older than that, each with its owner."""
        self._check_open()
        found = dict.fromkeys(item.instance_id for item in self._inbox.values() if item.at <= put_before)
        return [(instance_id, self._rows[instance_id].owner) for instance_id in found][:limit]

    async def count_ended(self, ended_before: datetime) -> Purged:
        """Return what `purge` would remove in all, without the ids."""
        self._check_open()
        found = self._ended(ended_before)
        return Purged(instances=len(found), events=sum(row.seq for row in found))

    async def purge(self, ended_before: datetime) -> Purged:
        """Remove some instances that ended before that time with all that is theirs; nothing when none is left."""
        self._check_open()
        ids: list[str] = []
        events = 0
        for row in self._ended(ended_before)[:MAX_PURGED_INSTANCES]:
            if ids and events + row.seq > MAX_PURGED_EVENTS:
                break
            ids.append(row.instance_id)
            events += row.seq
        for instance_id in ids:
            self._remove(instance_id)
        gone = set(ids)
        self._events = [event for event in self._events if event.instance_id not in gone]
        return Purged(instances=len(ids), events=events, instance_ids=tuple(ids))

    def _ended(self, before: datetime) -> list[InstanceRow]:
        ended = [
            (row.completed_at, row)
            for row in self._rows.values()
            if row.status.is_final and row.completed_at is not None and row.completed_at < before
        ]
        return [row for _, row in sorted(ended, key=lambda item: item[0])]

    def _remove(self, instance_id: str) -> None:
        del self._rows[instance_id]
        self._logs.pop(instance_id, None)
        self._inbox_keys.pop(instance_id, None)
        self._inbox = {key: item for key, item in self._inbox.items() if item.instance_id != instance_id}


class MemoryStorage(_MemoryUpkeep):
    """Everything of one store, in this process's memory. See `storage.base.Storage`."""

    def __init__(self, clock: StoreClock) -> None:
        super().__init__(clock)
        self._definitions: dict[str, DefinitionRecord] = {}
        self._versions: dict[tuple[str, str], tuple[int, str]] = {}
        self._revision = 0
        self._states: dict[str, StoredState] = {}
        self._history: defaultdict[str, list[StateVersion]] = defaultdict(list)
        self._contexts: dict[str, StoredContext] = {}

    def _remove(self, instance_id: str) -> None:
        super()._remove(instance_id)
        self._states.pop(instance_id, None)
        self._history.pop(instance_id, None)

    # --- definitions ---------------------------------------------------------------------------------------

    async def put_definition(self, request: DefinitionPutRequest) -> DefinitionPutReply:
        """Store a definition."""
        definition = request.definition
        check_definition(definition, encoded(definition.content, "definition.content"))
        self._check_open()
        key = (definition.workflow_id, definition.version)
        in_force = self._versions.get(key)
        status = judge_definition(
            definition.hash,
            None if in_force is None else in_force[1],
            known=any(workflow_id == definition.workflow_id for workflow_id, _ in self._versions),
            overwrite=request.overwrite,
        )
        if status in ("created", "updated"):
            self.room.refuse_new()
            self._definitions.setdefault(
                definition.hash, msgspec.structs.replace(definition, created_at=self.clock.now())
            )
            self._revision += 1
            self._versions[key] = (self._revision, definition.hash)
        return DefinitionPutReply(status=status)

    async def get_definition(self, request: DefinitionGetRequest) -> DefinitionRecord | None:
        """Return a workflow's newest definition, or the one with a hash."""
        self._check_open()
        content_hash = request.hash or self._newest().get(request.workflow_id, "")
        return self._definitions.get(content_hash)

    async def list_definitions(self, request: DefinitionListRequest) -> DefinitionListReply:
        """Return every workflow's newest definition."""
        self._check_open()
        found: list[DefinitionRecord] = []
        size = 0
        for workflow_id, content_hash in sorted(self._newest().items()):
            if workflow_id <= request.after:
                continue
            record = self._definitions[content_hash]
            size += len(msgspec.json.encode(record.content)) + len(record.source)
            if len(found) == request.limit or (found and size > MAX_PAGE_BYTES):
                return DefinitionListReply(definitions=found, next=found[-1].workflow_id)
            found.append(record)
        return DefinitionListReply(definitions=found)

    def _newest(self) -> dict[str, str]:
        by_revision = sorted(
            (revision, workflow_id, content_hash)
            for (workflow_id, _), (revision, content_hash) in self._versions.items()
        )
        return {workflow_id: content_hash for _, workflow_id, content_hash in by_revision}

    # --- states --------------------------------------------------------------------------------------------

    async def get_state(self, state_id: str) -> StoredState | None:
        """Return a state."""
        self._check_open()
        return self._states.get(state_id)

    async def change_state(self, state_id: str, decide: DecideState) -> StoredState | None:
        """Replace a state by what `decide` makes of it, as the next version; None deletes it with its history."""
        self._check_open()
        stored = self._states.get(state_id)
        change = decide(stored)
        if change is None:
            self._states.pop(state_id, None)
            self._history.pop(state_id, None)
            return None
        self.room.refuse_new()
        now = self.clock.now()
        changed = StoredState(
            workflow_instance_id=state_id,
            state=_copied(change.state),
            version=1 if stored is None else stored.version + 1,
            created_at=now if stored is None else stored.created_at,
            updated_at=now,
        )
        self._states[state_id] = changed
        history = self._history[state_id]
        history.insert(
            0,
            StateVersion(
                state=changed.state, version=changed.version, description=change.description, at=now
            ),
        )
        del history[MAX_HISTORY_ENTRIES:]
        return changed

    async def list_states(self, prefix: str, limit: int) -> tuple[list[StoredState], int]:
        """Return states whose id begins with `prefix`, newest change first, without values; and how many there are."""
        self._check_open()
        found = [state for state in self._by_change() if state.workflow_instance_id.startswith(prefix)]
        return [replace(state, state={}) for state in found[:limit]], len(found)

    async def state_history(self, state_id: str) -> list[StateVersion]:
        """Return a state's versions, newest first, `MAX_HISTORY_ENTRIES` and `MAX_PAGE_BYTES` at most."""
        self._check_open()
        found: list[StateVersion] = []
        size = 0
        for version in self._history.get(state_id, []):
            size += len(msgspec.json.encode(version.state))
            if found and size > MAX_PAGE_BYTES:
                break
            found.append(version)
        return found

    async def scan_states(self, equal_texts: Mapping[str, str]) -> AsyncGenerator[StoredState]:
        """Return at least all states that hold these texts at top level; all states when none is given."""
        self._check_open()
        for state in self._by_change():
            if all(state.state.get(key) == text for key, text in equal_texts.items()):
                yield state

    def _by_change(self) -> list[StoredState]:
        return sorted(
            self._states.values(),
            key=lambda state: (state.updated_at, state.workflow_instance_id),
            reverse=True,
        )

    # --- contexts ------------------------------------------------------------------------------------------

    async def get_context(self, context_id: str) -> StoredContext | None:
        """Return a context that has not expired."""
        self._check_open()
        context = self._contexts.get(context_id)
        expired = (
            context is not None and context.expires_at is not None and context.expires_at <= self.clock.now()
        )
        return None if expired else context

    async def change_context(self, context_id: str, decide: DecideContext) -> StoredContext:
        """Replace a context by what `decide` makes of it. Expired contexts count as absent and are removed."""
        self._check_open()
        now = self.clock.now()
        live = {
            key: context
            for key, context in self._contexts.items()
            if context.expires_at is None or context.expires_at > now
        }
        context = decide(live.get(context_id))
        self.room.refuse_new()
        if context_id not in live and len(live) >= MAX_CONTEXTS:
            raise StoreBusy(f"{MAX_CONTEXTS} contexts are stored already; give them a time to live")
        self._contexts = {**live, context_id: context}
        return context

    # --- copies --------------------------------------------------------------------------------------------

    async def back_up(self, target: Path) -> int:
        """Write the states to a new file; return its bytes."""
        self._check_open()
        content = msgspec.json.encode(self._by_change()[::-1])
        return await asyncio.to_thread(_write_new, target, content)

    async def scan_backup(self, source: Path) -> AsyncGenerator[StoredState]:
        """Return the states in a copy, oldest change first. Raises BackupNotFound when the file is none."""
        self._check_open()
        try:
            content = await asyncio.to_thread(source.read_bytes)
            states = msgspec.json.decode(content, type=list[StoredState])
        except (OSError, msgspec.MsgspecError) as error:
            raise BackupNotFound(f"{source.name!r} is not a backup: {error}") from error
        for state in states:
            yield state


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy as the wire would make it, so that nobody shares what is stored."""
    copied: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(state))
    return copied


def _write_new(target: Path, content: bytes) -> int:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(target.open("xb"))
            return file.write(content)
    except FileExistsError:
        raise InvalidRequest(f"a backup {target.name!r} exists already; choose another name") from None
