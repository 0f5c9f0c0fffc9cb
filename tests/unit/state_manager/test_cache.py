"""The caches: bounds, races between a read and a write, and a Redis that comes and goes."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from agents.state_manager import cache as cache_module
from agents.state_manager import redis_level
from agents.state_manager.cache import StateCache
from agents.state_manager.redis_level import REDIS_RETRY_SECONDS, RedisLevel
from agents.state_manager.storage.base import StoredState
from tests.unit.state_manager.store_values import START, ManualClock, until

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
REDIS_URL = os.environ.get("AMP_TEST_REDIS", "redis://127.0.0.1:6379") + f"/{8 + WORKER % 8}"
"""A database for each test process, since each empties its own."""
NOWHERE = "redis://127.0.0.1:1/0"


def make_state(state_id: str = "s", version: int = 1, **state: Any) -> StoredState:
    return StoredState(
        workflow_instance_id=state_id, state=state, version=version, created_at=START, updated_at=START
    )


class Loader:
    """A slow store that counts."""

    def __init__(self, state: StoredState | None) -> None:
        self.state = state
        self.calls = 0
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self) -> StoredState | None:
        self.calls += 1
        state = self.state
        await self.go.wait()
        return state


async def test_second_read_comes_from_memory() -> None:
    cache, load = StateCache(10), Loader(make_state())
    assert await cache.get("s", load) == load.state
    assert await cache.get("s", load) == load.state
    assert (load.calls, cache.hits, cache.misses) == (1, 1, 1)


async def test_absence_is_not_remembered() -> None:
    cache, load = StateCache(10), Loader(None)
    assert await cache.get("s", load) is None
    load.state = make_state()
    assert await cache.get("s", load) == load.state


async def test_read_that_a_write_overtook_is_not_remembered() -> None:
    cache, load = StateCache(10), Loader(make_state(version=1))
    load.go.clear()
    reading = asyncio.ensure_future(cache.get("s", load))
    await asyncio.sleep(0)
    cache.changed("s", make_state(version=2))
    cache.changed("s", None)
    load.go.set()
    await reading
    load.state = None
    assert await cache.get("s", load) is None


async def test_older_version_never_replaces_a_newer() -> None:
    cache = StateCache(10)
    cache.changed("s", make_state(version=3, n=3))
    cache.changed("s", make_state(version=2, n=2))
    stored = await cache.get("s", Loader(None))
    assert stored is not None
    assert stored.version == 3


async def test_memory_is_bounded_by_entries_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MAX_CACHE_BYTES", 200)
    cache = StateCache(3)
    for number in range(4):
        cache.changed(f"s{number}", make_state(f"s{number}"))
    load = Loader(None)
    assert [await cache.get(f"s{number}", load) is not None for number in range(4)] == [
        False,
        True,
        True,
        True,
    ]
    cache.changed("big", make_state("big", text="x" * 195))
    assert [await cache.get(f"s{number}", load) for number in range(4)] == [None] * 4
    cache.changed("huge", make_state("huge", text="x" * 500))
    assert await cache.get("huge", load) is None


def make_redis_level(clock: ManualClock, url: str = REDIS_URL, ttl_seconds: float = 300) -> RedisLevel:
    numbers = itertools.count(id(clock))
    return RedisLevel(url, ttl_seconds, clock, lambda: f"g{next(numbers)}")


@pytest.fixture
async def server() -> AsyncIterator[Any]:
    client: Any = Redis.from_url(REDIS_URL, socket_connect_timeout=1, socket_timeout=1)
    try:
        await client.flushdb()
    except (OSError, RedisError) as error:
        await client.aclose()
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have a Redis at {REDIS_URL}: {error}")
        pytest.skip(f"no Redis at {REDIS_URL} (AMP_TEST_REDIS names another server)")
    yield client
    await client.flushdb()
    await client.aclose()


@pytest.fixture
async def level(server: Any, clock: ManualClock) -> AsyncIterator[RedisLevel]:
    made = make_redis_level(clock)
    worker = asyncio.ensure_future(made.run())
    yield made
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await made.close()


async def written(level: RedisLevel) -> None:
    await until(lambda: not level._pending)


async def test_redis_keeps_state_version_and_time_to_live(server: Any, level: RedisLevel) -> None:
    state = make_state("s", 7, a=[1, "ü"])
    level.put("s", state)
    assert await level.get("s") == state
    await written(level)
    assert await level.get("s") == state
    assert await server.get("workflow_state:s") == '{"a":[1,"ü"]}'.encode()
    assert await server.get("workflow_version:s") == b"7"
    assert 0 < await server.ttl("workflow_state:s") <= 300
    level.put("s", None)
    await written(level)
    assert await server.exists("workflow_state:s", "workflow_version:s", "workflow_meta:s") == 0


async def test_cache_finds_in_redis_what_memory_dropped(server: Any, level: RedisLevel) -> None:
    cache, load = StateCache(1, level), Loader(None)
    cache.changed("a", make_state("a"))
    cache.changed("b", make_state("b"))
    await written(level)
    assert await cache.get("a", load) == make_state("a")
    assert load.calls == 0


async def test_values_of_another_process_are_not_believed(
    server: Any, level: RedisLevel, clock: ManualClock
) -> None:
    level.put("s", make_state("s", 7))
    await written(level)
    other = make_redis_level(ManualClock())
    assert await other.get("s") is None
    await other.close()


@pytest.mark.parametrize("junk", [b"\xff\xfe", b"[]", b"{", b""])
@pytest.mark.parametrize("key", ["state", "version", "meta"])
async def test_junk_in_redis_is_a_miss(server: Any, level: RedisLevel, key: str, junk: bytes) -> None:
    level.put("s", make_state())
    await written(level)
    await server.set(f"workflow_{key}:s", junk)
    assert await level.get("s") is None


async def test_absent_redis_is_said_once_and_tried_again_later(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    level = make_redis_level(clock, NOWHERE)
    worker = asyncio.ensure_future(level.run())
    cache, load = StateCache(10, level), Loader(make_state())
    assert await cache.get("s", load) == load.state
    cache.changed("t", make_state("t"))
    assert level.trouble
    clock.advance(REDIS_RETRY_SECONDS + 1)
    assert await level.get("u") is None
    assert [record.message for record in caplog.records].count("redis_unavailable") == 1
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await level.close()


async def test_what_redis_missed_during_an_outage_is_not_believed_after_it(
    server: Any, level: RedisLevel, clock: ManualClock
) -> None:
    level.put("s", make_state("s", 1))
    await written(level)
    level._failed(OSError("gone"))
    level.put("s", make_state("s", 2))
    clock.advance(REDIS_RETRY_SECONDS + 1)
    assert await level.get("s") is None
    level.put("s", make_state("s", 3))
    await written(level)
    assert await level.get("s") == make_state("s", 3)
    assert level.trouble == ""


async def test_too_many_waiting_writes_count_as_an_outage(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_level, "MAX_PENDING_WRITES", 2)
    level = make_redis_level(clock, NOWHERE)
    for name in ("a", "b", "c"):
        level.put(name, make_state(name))
    assert "2 writes wait" in level.trouble
    assert level._pending == {}
    await level.close()
