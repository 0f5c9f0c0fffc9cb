"""The cache in front of the states: this process's memory, and a second level behind it when one is configured.

The state manager is the only writer of a store, so its memory is never stale.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from agents.state_manager.storage.base import StoredState

if TYPE_CHECKING:
    from agents.state_manager.redis_level import RedisLevel

MAX_CACHE_BYTES = 64 * 1024 * 1024


class StateCache:
    """The first level, bounded by entries and by bytes, in front of an optional second one."""

    def __init__(self, max_entries: int, redis: "RedisLevel | None" = None) -> None:
        self.redis = redis
        self.hits = 0
        self.misses = 0
        self._max_entries = max_entries
        self._entries: OrderedDict[str, tuple[StoredState, int]] = OrderedDict()
        self._bytes = 0
        self._loading: dict[str, set[object]] = {}

    async def get(
        self, state_id: str, load: Callable[[], Awaitable[StoredState | None]]
    ) -> StoredState | None:
        """Return the state from memory, from Redis, or from `load`, and remember it."""
        entry = self._entries.get(state_id)
        if entry is not None:
            self.hits += 1
            self._entries.move_to_end(state_id)
            return entry[0]
        self.misses += 1
        load_mark = object()
        self._loading.setdefault(state_id, set()).add(load_mark)
        try:
            state = await self.redis.get(state_id) if self.redis is not None else None
            from_redis = state is not None
            if state is None:
                state = await load()
        finally:
            marks = self._loading.get(state_id, set())
            is_current = load_mark in marks
            marks.discard(load_mark)
            if not marks:
                self._loading.pop(state_id, None)
        if state is not None and is_current:
            self._remember(state)
            if self.redis is not None and not from_redis:
                self.redis.put(state_id, state)
        return state

    def changed(self, state_id: str, state: StoredState | None) -> None:
        """Note what was just committed under an id; None when nothing is left there."""
        self._loading.pop(state_id, None)
        entry = self._entries.get(state_id)
        if state is None:
            self._forget(state_id)
        elif entry is None or entry[0].version <= state.version:
            self._remember(state)
        if self.redis is not None:
            self.redis.put(state_id, state)

    def _remember(self, state: StoredState) -> None:
        self._forget(state.workflow_instance_id)
        size = len(msgspec.json.encode(state.state))
        self._entries[state.workflow_instance_id] = (state, size)
        self._bytes += size
        while len(self._entries) > self._max_entries or self._bytes > MAX_CACHE_BYTES:
            _, (_, dropped) = self._entries.popitem(last=False)
            self._bytes -= dropped

    def _forget(self, state_id: str) -> None:
        entry = self._entries.pop(state_id, None)
        if entry is not None:
            self._bytes -= entry[1]
