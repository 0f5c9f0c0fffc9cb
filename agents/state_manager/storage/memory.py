"""The storage that forgets: for tests and for embedded runs without persistence. Same contract, no file.

Everything happens between two awaits, so every change is a transaction by itself.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from agents.state_manager.errors import BackupNotFound, InvalidRequest, StoreBusy
from agents.state_manager.fencing import (
    check_definition,
    encoded,
    judge_definition,
)
from agents.state_manager.storage.base import (
    MAX_CONTEXTS,
    MAX_HISTORY_ENTRIES,
    MAX_PAGE_BYTES,
    DecideContext,
    DecideState,
    StateVersion,
    StoredContext,
    StoredState,
)
from agents.state_manager.storage.memory_log import MemoryUpkeep
from agents.state_manager.store_clock import StoreClock
from orchestration.contracts import (
    DefinitionGetRequest,
    DefinitionListReply,
    DefinitionListRequest,
    DefinitionPutReply,
    DefinitionPutRequest,
    DefinitionRecord,
)

MEMORY_PATH = ":memory:"
"""With this `database.sqlite_path` nothing is written to disk and nothing survives the process."""


class MemoryStorage(MemoryUpkeep):
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
