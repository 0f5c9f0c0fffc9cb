"""The general key-value store and the view of instances' variables: what the `state-*` capabilities do.

An id that names an instance belongs to that instance: its variables are read from the log, and changing them goes
through its inbox, so that one order, the inbox's, holds for all that happens to it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from agents.state_manager.cache import StateCache
from agents.state_manager.errors import InstanceNotWritable, InvalidRequest, StateExists, StateNotFound
from agents.state_manager.fencing import check_id
from agents.state_manager.state_values import (
    StateFilter,
    change_keys,
    check_size,
    cut,
    drop_keys,
    project,
    put_whole,
)
from agents.state_manager.storage.base import MAX_PAGE_BYTES, DecideState, Storage, StoredState
from agents.state_manager.variables import Change, Folded, Variables
from orchestration.contracts import (
    ContextIsolateRequest,
    ContextMergeRequest,
    InboxPutReply,
    InboxPutRequest,
    InstanceRow,
    StateDeleteRequest,
    StateGetReply,
    StateGetRequest,
    StateListRequest,
    StateQueryRequest,
    StateSetRequest,
    StateUpdateRequest,
)

MAX_KEYS = 1000
MAX_SCANNED_STATES = 100_000
MAX_EVENT_KEYS = 100
"""Most keys that a `state.updated` event names."""
INBOX_KIND = "state_update"

Announce = Callable[[str, str, int, Collection[str]], Awaitable[None]]
PutInbox = Callable[[InboxPutRequest], Awaitable[InboxPutReply]]


class States:
    """What the `state-*` capabilities do, and the merge and isolation of states.

    Args:
        put_inbox: Puts an order for a live instance and hints its owner.
        announce: Tells the mesh about a change: id, action, version, keys. It must not raise.
    """

    def __init__(
        self,
        storage: Storage,
        cache: StateCache,
        *,
        put_inbox: PutInbox,
        announce: Announce,
        new_id: Callable[[], str],
        max_bytes: int,
    ) -> None:
        self._storage = storage
        self._cache = cache
        self._variables = Variables(storage)
        self._put_inbox = put_inbox
        self._announce = announce
        self._new_id = new_id
        self._max_bytes = max_bytes
        self._scans = asyncio.Semaphore(1)

    # --- reading -------------------------------------------------------------------------------------------

    async def get(self, request: StateGetRequest) -> StateGetReply:
        """Return a state, or of an instance its variables; version 0 when there is neither."""
        state_id = request.workflow_instance_id
        check_id(state_id, "workflow_instance_id")
        _check_keys(request.keys)
        row, stored = await self._look_up(state_id)
        if row is not None:
            folded = await self._variables.of(row)
            history = _instance_history(folded) if request.include_history else []
            return StateGetReply(
                state=_chosen(folded.variables, request.keys), version=folded.seq, history=history
            )
        if stored is None:
            return StateGetReply(state={}, version=0)
        history = await self._history(state_id) if request.include_history else []
        return StateGetReply(
            state=_chosen(stored.state, request.keys), version=stored.version, history=history
        )

    async def _look_up(self, state_id: str) -> tuple[InstanceRow | None, StoredState | None]:
        """Return the instance of that id, else the state of that id. Cached states are never instances."""
        found: list[InstanceRow] = []

        async def load() -> StoredState | None:
            row = await self._storage.get_instance(state_id)
            if row is not None:
                found.append(row)
                return None
            return await self._storage.get_state(state_id)

        stored = await self._cache.get(state_id, load)
        return (found[0] if found else None), stored

    def instance_created(self, instance_id: str) -> None:
        """Note that an id names an instance from now on, whatever state was kept under it."""
        self._cache.changed(instance_id, None)

    def instances_purged(self, ids: Collection[str]) -> None:
        """Forget what was kept of instances that are gone: their ids may be used again."""
        for instance_id in ids:
            self._cache.changed(instance_id, None)
            self._variables.forget(instance_id)

    async def _history(self, state_id: str) -> list[dict[str, Any]]:
        return [
            {
                "version": entry.version,
                "timestamp": entry.at,
                "change_description": entry.description,
                "state_data": entry.state,
            }
            for entry in await self._storage.state_history(state_id)
        ]

    async def list_all(self, request: StateListRequest) -> tuple[list[dict[str, Any]], int]:
        """Return what states there are, newest change first, and how many."""
        if request.prefix:
            check_id(request.prefix, "prefix")
        states, total = await self._storage.list_states(request.prefix, request.limit)
        listed = [
            {
                "workflow_instance_id": state.workflow_instance_id,
                "version": state.version,
                "created_at": state.created_at,
                "updated_at": state.updated_at,
            }
            for state in states
        ]
        return listed, total

    async def query(self, request: StateQueryRequest) -> tuple[list[dict[str, Any]], int]:
        """Return the states that match, newest change first, and how many match."""
        wanted = StateFilter(request.filters)
        _check_keys(request.projection)
        found: list[dict[str, Any]] = []
        total = scanned = size = 0
        async with self._scans, aclosing(self._storage.scan_states(wanted.equal_texts())) as states:
            async for stored in states:
                scanned += 1
                if scanned > MAX_SCANNED_STATES:
                    raise InvalidRequest(
                        f"the query would look at more than {MAX_SCANNED_STATES} states; "
                        "filter by a text value at top level, which is indexed"
                    )
                if not wanted.matches(stored.state):
                    continue
                total += 1
                if len(found) < request.limit and size <= MAX_PAGE_BYTES:
                    state = project(stored.state, request.projection)
                    size += len(msgspec.json.encode(state))
                    found.append(
                        {
                            "workflow_instance_id": stored.workflow_instance_id,
                            "version": stored.version,
                            "updated_at": stored.updated_at,
                            "state": state,
                        }
                    )
        return found, total

    # --- changing ------------------------------------------------------------------------------------------

    async def put(self, request: StateSetRequest) -> int:
        """Put a whole state; return the version written (of an instance: the one it has now)."""
        state_id = request.workflow_instance_id
        check_id(state_id, "workflow_instance_id")
        _check_keys(request.state)
        row = await self._storage.get_instance(state_id)
        if row is not None:
            if not request.overwrite:
                raise StateExists(
                    f"{state_id!r} is an instance and has variables; set overwrite to true to replace them",
                    version=row.seq,
                )
            await self._tell_instance(row, request.state, "replace", request.description)
            return row.seq
        decide = put_whole(
            request.state,
            overwrite=request.overwrite,
            description=request.description,
            max_bytes=self._max_bytes,
        )
        return await self._change(state_id, decide, "set", request.state)

    async def update(self, request: StateUpdateRequest) -> tuple[int, list[str]]:
        """Change keys or replace all; return the version written and the keys it touched."""
        state_id = request.workflow_instance_id
        check_id(state_id, "workflow_instance_id")
        keys = sorted(request.updates)
        _check_keys(keys)
        row = await self._storage.get_instance(state_id)
        if row is not None:
            await self._tell_instance(row, request.updates, request.merge_strategy, request.description)
            return row.seq, keys
        decide = change_keys(
            request.updates,
            replace=request.merge_strategy == "replace",
            description=request.description,
            max_bytes=self._max_bytes,
        )
        return await self._change(state_id, decide, "update", keys), keys

    async def delete(self, request: StateDeleteRequest) -> list[str]:
        """Delete a state, or keys of it; return the keys that are gone."""
        state_id = request.workflow_instance_id
        check_id(state_id, "workflow_instance_id")
        _check_keys(request.keys)
        await self._refuse_instance(
            state_id, "its variables cannot be deleted; set them to null with state-update"
        )
        before: list[str] = []
        decide_drop = drop_keys(request.keys)

        def decide(stored: StoredState | None) -> Any:
            before[:] = [] if stored is None else list(stored.state)
            return decide_drop(stored)

        await self._change(state_id, decide, "delete", request.keys)
        return sorted(key for key in before if not request.keys or key in request.keys)

    async def restore(self, state_id: str, state: Mapping[str, Any], source: str) -> bool:
        """Put a state back as its next version; False when the id names an instance, which only its log restores."""
        if await self._storage.get_instance(state_id) is not None:
            return False
        decide = change_keys(
            dict(state), replace=True, description=f"restored from {source}", max_bytes=self._max_bytes
        )
        await self._change(state_id, decide, "restore", list(state))
        return True

    async def merge(self, request: ContextMergeRequest) -> list[str]:
        """Copy keys of one state (or instance) into another; return the keys written."""
        if not request.source_instance_id or not request.target_instance_id:
            raise InvalidRequest(
                "give source_instance_id and target_instance_id, or context_id and source_context_ids"
            )
        source = await self._existing(request.source_instance_id, request.keys)
        update = StateUpdateRequest(
            workflow_instance_id=request.target_instance_id,
            updates=source,
            merge_strategy=request.merge_strategy,
            description=f"merged from {request.source_instance_id}",
        )
        _, keys = await self.update(update)
        return keys

    async def isolate(self, request: ContextIsolateRequest) -> tuple[str, int, list[str]]:
        """Copy a state (or an instance's variables) under a new id; return the id, version and keys of the copy."""
        state = await self._existing(request.workflow_instance_id, request.keys)
        isolated_id = request.isolated_id or self._new_id()
        copy = StateSetRequest(
            workflow_instance_id=isolated_id,
            state=state,
            description=f"isolated from {request.workflow_instance_id}",
        )
        return isolated_id, await self.put(copy), sorted(state)

    async def _existing(self, state_id: str, keys: list[str]) -> dict[str, Any]:
        reply = await self.get(StateGetRequest(workflow_instance_id=state_id, keys=keys))
        if reply.version == 0:
            raise StateNotFound(f"there is no state and no instance {state_id!r}")
        return reply.state

    async def _change(self, state_id: str, decide: DecideState, action: str, keys: Collection[str]) -> int:
        stored = await self._storage.change_state(state_id, decide)
        self._cache.changed(state_id, stored)
        version = 0 if stored is None else stored.version
        await self._announce(state_id, action, version, sorted(keys)[:MAX_EVENT_KEYS])
        return version

    async def _refuse_instance(self, state_id: str, reason: str) -> None:
        if await self._storage.get_instance(state_id) is not None:
            raise InstanceNotWritable(f"{state_id!r} is an instance: {reason}")

    async def _tell_instance(
        self, row: InstanceRow, updates: dict[str, Any], strategy: str, description: str
    ) -> None:
        """Put the change into the instance's inbox; its engine applies it in the inbox's order."""
        check_size(updates, self._max_bytes)
        data = {"updates": updates, "merge_strategy": strategy, "description": cut(description)}
        reply = await self._put_inbox(
            InboxPutRequest(instance_id=row.instance_id, kind=INBOX_KIND, data=data)
        )
        if not reply.open:
            status = reply.status or row.status
            raise InstanceNotWritable(
                f"instance {row.instance_id!r} is {status}; its variables can no longer change",
                status=str(status),
            )


def _check_keys(keys: Collection[str]) -> None:
    if len(keys) > MAX_KEYS:
        raise InvalidRequest(f"{len(keys)} keys; at most {MAX_KEYS}")


def _chosen(state: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return the wanted top-level keys that are there, all without a wish."""
    return dict(state) if not keys else {key: state[key] for key in keys if key in state}


def _instance_history(folded: Folded) -> list[dict[str, Any]]:
    """Return the changes of an instance's variables, newest first, within the bounds of a reply."""
    entries: list[dict[str, Any]] = []
    size = 0
    for change in reversed(folded.changes):
        entry = _history_entry(change)
        size += len(msgspec.json.encode(entry))
        if entries and size > MAX_PAGE_BYTES:
            break
        entries.append(entry)
    return entries


def _history_entry(change: Change) -> dict[str, Any]:
    return {
        "version": change.seq,
        "timestamp": change.at,
        "change_description": change.description,
        "state_data": change.state,
    }
