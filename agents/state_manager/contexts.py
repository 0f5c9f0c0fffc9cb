"""AMP context objects: created, read, changed, merged, forked. An agent never sees another agent's private memory."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from agents.state_manager.errors import ContextUnknown, InvalidRequest
from agents.state_manager.fencing import check_id, encoded
from agents.state_manager.storage.base import DecideContext, Storage, StoredContext
from agents.state_manager.store_clock import StoreClock
from orchestration.contracts import (
    ContextCreateRequest,
    ContextForkRequest,
    ContextMergeRequest,
    ContextUpdateRequest,
)

MAX_TTL_SECONDS = 365 * 24 * 3600.0
MAX_MERGED_CONTEXTS = 100
MAX_CONTEXT_AGENTS = 100
"""Most agents that keep private memory in one context."""


class Contexts:
    """The context operations, each on behalf of the agent that asked.

    Args:
        new_id: Returns a fresh context id.
        max_bytes: The most that one context may hold.
    """

    def __init__(
        self, storage: Storage, clock: StoreClock, new_id: Callable[[], str], max_bytes: int
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._new_id = new_id
        self._max_bytes = max_bytes

    async def create(self, request: ContextCreateRequest, agent_id: str) -> StoredContext:
        """Return a new context. Raises InvalidRequest when its id is taken."""
        context_id = request.context_id or self._new_id()
        check_id(context_id, "context_id")
        if request.session_id:
            check_id(request.session_id, "session_id")
        ttl = request.ttl_seconds
        if ttl is not None and not 0 < ttl <= MAX_TTL_SECONDS:
            raise InvalidRequest(f"ttl_seconds must be above 0 and at most {MAX_TTL_SECONDS:g}")
        now = self._clock.now()
        return await self._add(
            StoredContext(
                context_id=context_id,
                session_id=request.session_id,
                created_at=now,
                expires_at=None if ttl is None else now + timedelta(seconds=ttl),
                shared_memory=request.shared_memory,
                agent_memory={agent_id: request.agent_memory} if request.agent_memory else {},
                root_context=context_id,
            )
        )

    async def get(self, context_id: str) -> StoredContext:
        """Return a context. Raises ContextUnknown."""
        context = await self._storage.get_context(context_id)
        if context is None:
            raise _unknown(context_id)
        return context

    async def update(self, request: ContextUpdateRequest, agent_id: str) -> StoredContext:
        """Change the shared memory and the agent's own, key by key or as a whole."""
        replaces = request.merge_strategy == "replace"

        def decide(context: StoredContext) -> StoredContext:
            own = context.agent_memory.get(agent_id, {})
            if request.agent_memory or replaces:
                own = request.agent_memory if replaces else {**own, **request.agent_memory}
            shared = request.shared_memory if replaces else {**context.shared_memory, **request.shared_memory}
            return _with(context, shared, {**context.agent_memory, agent_id: own})

        return await self._change(request.context_id, decide)

    async def merge(self, request: ContextMergeRequest) -> tuple[StoredContext, list[str]]:
        """Bring the shared memory of other contexts into one, later ones over earlier; return it and the keys."""
        if not request.source_context_ids or len(request.source_context_ids) > MAX_MERGED_CONTEXTS:
            raise InvalidRequest(f"source_context_ids must name 1 to {MAX_MERGED_CONTEXTS} contexts")
        merged: dict[str, Any] = {}
        for source_id in request.source_context_ids:
            merged.update((await self.get(source_id)).shared_memory)
        if request.keys:
            merged = {key: value for key, value in merged.items() if key in request.keys}

        def decide(context: StoredContext) -> StoredContext:
            kept = {} if request.merge_strategy == "replace" else context.shared_memory
            return _with(context, {**kept, **merged}, context.agent_memory)

        return await self._change(request.context_id, decide), sorted(merged)

    async def fork(self, request: ContextForkRequest) -> StoredContext:
        """Return a child that starts with the parent's shared memory and lives no longer than it."""
        parent = await self.get(request.context_id)
        if request.session_id:
            check_id(request.session_id, "session_id")
        return await self._add(
            StoredContext(
                context_id=self._new_id(),
                session_id=request.session_id or parent.session_id,
                created_at=self._clock.now(),
                expires_at=parent.expires_at,
                shared_memory=parent.shared_memory,
                parent_context=parent.context_id,
                root_context=parent.root_context,
            )
        )

    async def _add(self, context: StoredContext) -> StoredContext:
        self._check(context)

        def decide(stored: StoredContext | None) -> StoredContext:
            if stored is not None:
                raise InvalidRequest(f"a context {context.context_id!r} exists already; use context-update")
            return context

        return await self._storage.change_context(context.context_id, decide)

    async def _change(
        self, context_id: str, change: Callable[[StoredContext], StoredContext]
    ) -> StoredContext:
        def decide(stored: StoredContext | None) -> StoredContext:
            if stored is None:
                raise _unknown(context_id)
            changed = change(stored)
            self._check(changed)
            return changed

        decision: DecideContext = decide
        return await self._storage.change_context(context_id, decision)

    def _check(self, context: StoredContext) -> None:
        size = len(encoded((context.shared_memory, context.agent_memory), "the context"))
        if size > self._max_bytes:
            raise InvalidRequest(
                f"the context would have {size} bytes; state_manager.max_state_bytes is {self._max_bytes}"
            )
        if len(context.agent_memory) > MAX_CONTEXT_AGENTS:
            raise InvalidRequest(f"more than {MAX_CONTEXT_AGENTS} agents keep memory in one context")


def _with(
    context: StoredContext, shared: Mapping[str, Any], memories: Mapping[str, Mapping[str, Any]]
) -> StoredContext:
    return StoredContext(
        context_id=context.context_id,
        session_id=context.session_id,
        created_at=context.created_at,
        expires_at=context.expires_at,
        shared_memory=shared,
        agent_memory={agent_id: memory for agent_id, memory in memories.items() if memory},
        parent_context=context.parent_context,
        root_context=context.root_context,
    )


def _unknown(context_id: str) -> ContextUnknown:
    return ContextUnknown(f"there is no context {context_id!r}, or it has expired", context_id=context_id)


def shown(context: StoredContext, agent_id: str) -> dict[str, Any]:
    """Return a context object as this agent may see it: all that is shared, and its own memory only."""
    own = context.agent_memory.get(agent_id)
    return {
        "id": context.context_id,
        "session_id": context.session_id,
        "created_at": context.created_at,
        "expires_at": context.expires_at,
        "shared_memory": context.shared_memory,
        "agent_memory": {agent_id: own} if own else {},
        "lineage": {"parent_context": context.parent_context, "root_context": context.root_context},
    }
