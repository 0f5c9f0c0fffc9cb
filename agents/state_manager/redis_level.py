"""The second level of the cache, in Redis. Imported only when it is configured: its library takes its time to load.

What Redis holds counts only when this process wrote it since the last time Redis failed (its generation). Redis is
never waited for by a write, and its absence costs speed only.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from agents.state_manager.storage.base import StoredState
from runtime.clock import Clock

logger = logging.getLogger(__name__)

REDIS_TIMEOUT_SECONDS = 0.25
REDIS_RETRY_SECONDS = 30.0
"""How long Redis is left alone after it failed."""
MAX_PENDING_WRITES = 10_000
MAX_BATCH_WRITES = 200

_STATE_KEY = "workflow_state:{}"
_VERSION_KEY = "workflow_version:{}"
_META_KEY = "workflow_meta:{}"


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a cached state beside its value and version."""

    generation: str
    created_at: datetime
    updated_at: datetime


_object_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_meta_decoder = msgspec.json.Decoder(_Meta)


class RedisLevel:
    """The second level. Every failure is a miss.

    Args:
        new_generation: Returns a fresh text; values of an older generation are not believed.

    Raises: ValueError when the URL is none of Redis.
    """

    def __init__(self, url: str, ttl_seconds: float, clock: Clock, new_generation: Callable[[], str]) -> None:
        self._client: Redis = Redis.from_url(
            url,
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._ttl_milliseconds = max(1, int(ttl_seconds * 1000))
        self._clock = clock
        self._new_generation = new_generation
        self._generation = new_generation()
        self._pending: dict[str, StoredState | None] = {}
        self._wake = asyncio.Event()
        self._down_until: float | None = None
        self.trouble = ""
        """Why Redis is not used now; empty when it is."""

    async def get(self, state_id: str) -> StoredState | None:
        """Return a state that this process put there, or None."""
        if state_id in self._pending:
            return self._pending[state_id]
        if self._is_down():
            return None
        keys = [form.format(state_id) for form in (_STATE_KEY, _VERSION_KEY, _META_KEY)]
        try:
            state, version, meta_bytes = await self._client.mget(keys)
            if state is None or version is None or meta_bytes is None:
                return None
            meta = _meta_decoder.decode(meta_bytes)
            if meta.generation != self._generation:
                return None
            return StoredState(
                workflow_instance_id=state_id,
                state=_object_decoder.decode(state),
                version=int(version),
                created_at=meta.created_at,
                updated_at=meta.updated_at,
            )
        except (RedisError, OSError, TimeoutError, msgspec.MsgspecError, ValueError) as error:
            self._failed(error)
            return None

    def put(self, state_id: str, state: StoredState | None) -> None:
        """Have a state written, or with None removed, by `run`. Never waits."""
        if self._is_down():
            return
        if len(self._pending) >= MAX_PENDING_WRITES:
            self._failed(RedisError(f"{len(self._pending)} writes wait for it"))
            return
        self._pending[state_id] = state
        self._wake.set()

    async def run(self) -> None:
        """Write what was put, for ever; of several states under one id only the last."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending and not self._is_down():
                await self._write_some()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _write_some(self) -> None:
        batch = dict(list(self._pending.items())[:MAX_BATCH_WRITES])
        try:
            async with self._client.pipeline(transaction=True) as pipeline:
                for state_id, state in batch.items():
                    names = [form.format(state_id) for form in (_STATE_KEY, _VERSION_KEY, _META_KEY)]
                    if state is None:
                        pipeline.delete(*names)
                        continue
                    meta = _Meta(
                        generation=self._generation, created_at=state.created_at, updated_at=state.updated_at
                    )
                    values: tuple[bytes | int, ...] = (
                        msgspec.json.encode(state.state),
                        state.version,
                        msgspec.json.encode(meta),
                    )
                    for name, value in zip(names, values, strict=True):
                        pipeline.set(name, value, px=self._ttl_milliseconds)
                await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return
        if self.trouble:
            logger.info("redis_back", extra={"generation": self._generation})
            self.trouble = ""
        for state_id, state in batch.items():
            if self._pending.get(state_id) is state:
                self._pending.pop(state_id, None)

    def _is_down(self) -> bool:
        return self._down_until is not None and self._clock.monotonic() < self._down_until

    def _failed(self, error: Exception) -> None:
        """Leave Redis alone for a while, and believe nothing that is in it now."""
        if not self.trouble:
            logger.warning("redis_unavailable", extra={"reason": str(error) or type(error).__name__})
        self.trouble = str(error) or type(error).__name__
        self._down_until = self._clock.monotonic() + REDIS_RETRY_SECONDS
        self._generation = self._new_generation()
        self._pending.clear()
