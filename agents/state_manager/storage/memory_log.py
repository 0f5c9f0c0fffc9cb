"""The log of the storage that forgets: events, rows, inboxes, leases, and what is looked after in them.

Everything happens between two awaits, so every change is a transaction by itself.
"""

import bisect
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from agents.state_manager.errors import StoreBusy, StoreFailed
from agents.state_manager.fencing import (
    MAX_CLAIMED_ROWS,
    MAX_INBOX_ITEMS,
    Position,
    check_batches,
    check_id,
    check_inbox,
    check_lease_seconds,
    check_number,
    encoded,
    judge_append,
    refused,
    stored_row,
)
from agents.state_manager.orphans import Suspect
from agents.state_manager.room import Room
from agents.state_manager.storage.base import (
    MAX_PAGE_BYTES,
    MAX_PURGED_EVENTS,
    MAX_PURGED_INSTANCES,
    NO_ROOM,
    LeaseStanding,
    LeaseSweep,
    Purged,
)
from agents.state_manager.storage.listing import Listing
from agents.state_manager.store_clock import StoreClock
from orchestration.contracts import (
    AppendBatch,
    AppendOutcome,
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


class MemoryLog:
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


class MemoryUpkeep(MemoryLog):
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
