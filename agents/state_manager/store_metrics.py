"""What /metrics shows of the store."""

from collections.abc import Callable

from agents.state_manager.cache import StateCache
from agents.state_manager.storage.base import Storage
from agents.state_manager.sweeper import Sweeper
from runtime.lean_prometheus import CollectorRegistry, Counter, Gauge, Histogram

APPEND_SECONDS = (0.0003, 0.0006, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)


class StoreMetrics:
    """The counters that the hot path counts up, and gauges that are read when somebody asks."""

    def __init__(
        self, registry: CollectorRegistry, storage: Storage, cache: StateCache, sweeper: Sweeper
    ) -> None:
        self.appends = Counter(
            "amp_store_appends", "Batches appended, by outcome", ["status"], registry=registry
        )
        self.append_seconds = Histogram(
            "amp_store_append_seconds",
            "Time from a state-append's arrival to its commit",
            registry=registry,
            buckets=APPEND_SECONDS,
        )
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("amp_store_last_offset", "The newest committed offset", lambda: storage.last_offset),
            ("amp_store_queued_writes", "Writes that wait or run", lambda: storage.queued_writes),
            ("amp_store_full", "1 while new work is refused", lambda: float(storage.room.is_full)),
            ("amp_orphaned_instances", "Unfinished instances that nothing will wake", lambda: sweeper.count),
            ("amp_state_cache_hits", "States found in memory", lambda: cache.hits),
            ("amp_state_cache_misses", "States not found in memory", lambda: cache.misses),
        )
        for name, text, value in gauges:
            Gauge(name, text, registry=registry).set_function(value)
