"""Requests that wait for credit, and deadlines. Pure and bounded: time is given, never read."""

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

from amp.envelope import Envelope
from amp.session import Session

BUCKET_MS = 50.0
FAR_MS = 60_000.0
FAR_BUCKETS = 20
"""A time that is more than `FAR_MS` away is told to this many buckets exactly."""
K = TypeVar("K", bound=Hashable)
COMPACT_FROM = 64
"""Queues shorter than this keep their dead rows until they come to the top."""


@dataclass(slots=True, eq=False, kw_only=True)
class Pending:
    """A request on its way: waiting in `queue`, or with `responder`.

    `origin` is the connection to answer to, `size` the payload's bytes, `digest` tells a resent request from
    another one that reuses its id. It waits in a queue for `queue_ms` at most.
    """

    key: tuple[str, str]
    origin: Session
    capability: str | None
    digest: int
    size: int
    priority: int
    order: int
    queue_ms: float = inf
    free: bool = False
    bucket: int = 0
    envelope: Envelope | None = None
    queue: tuple[str, str] | None = None
    responder: Session | None = None


class RequestQueues:
    """Bounded priority queues, one a capability or agent: priority 10 first, then age."""

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._heaps: dict[tuple[str, str], list[tuple[int, int, Pending]]] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self.count = 0
        self.size = 0

    def put(self, pending: Pending, queue: tuple[str, str]) -> bool:
        """Queue a request. Return False when the queue or the memory for all queues is full."""
        if self._counts.get(queue, 0) >= self._max_requests or self.size + pending.size > self._max_bytes:
            return False
        pending.queue = queue
        heapq.heappush(self._heaps.setdefault(queue, []), (-pending.priority, pending.order, pending))
        self._counts[queue] = self._counts.get(queue, 0) + 1
        self.count += 1
        self.size += pending.size
        return True

    def head(self, queue: tuple[str, str]) -> Pending | None:
        """Return the next request of a queue without taking it."""
        heap = self._heaps.get(queue)
        while heap:
            pending = heap[0][2]
            if pending.queue == queue:
                return pending
            heapq.heappop(heap)
        if heap is not None:
            del self._heaps[queue]
        return None

    def take(self, pending: Pending) -> None:
        """Take a request out of its queue, wherever it stands."""
        queue = pending.queue
        if queue is None:
            return
        pending.queue = None
        self.count -= 1
        self.size -= pending.size
        left = self._counts[queue] - 1
        if left:
            self._counts[queue] = left
            heap = self._heaps[queue]
            if len(heap) > COMPACT_FROM and len(heap) > 2 * left:
                self._heaps[queue] = heap = [row for row in heap if row[2].queue == queue]
                heapq.heapify(heap)
        else:
            del self._counts[queue]
            self._heaps.pop(queue, None)

    def depth(self, queue: tuple[str, str]) -> int:
        """Return how many requests wait in a queue."""
        return self._counts.get(queue, 0)

    def waiting(self, queue: tuple[str, str]) -> Iterator[Pending]:
        """Return everything that waits in a queue, most urgent first."""
        heap = self._heaps.get(queue, [])
        return (pending for _, _, pending in sorted(heap, key=lambda row: row[:2]) if pending.queue == queue)

    def names(self) -> list[tuple[str, str]]:
        """Return the queues in which something waits."""
        return list(self._counts)


class Deadlines(Generic[K]):
    """Keys by the time they are due, in buckets of `BUCKET_MS`: adding and dropping take constant time.

    What is far away shares wider buckets, so that there are never many of them.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, dict[K, None]] = {}
        self._order: list[int] = []

    def add(self, key: K, now_ms: float, wait_ms: float) -> int:
        """Note a key; return the bucket, which `discard` wants back. A bucket is due when all of it is."""
        bucket = int((now_ms + wait_ms) // BUCKET_MS) + 1
        if wait_ms > FAR_MS:
            bucket += -bucket % FAR_BUCKETS
        keys = self._buckets.get(bucket)
        if keys is None:
            self._buckets[bucket] = {key: None}
            heapq.heappush(self._order, bucket)
        else:
            keys[key] = None
        return bucket

    def discard(self, key: K, bucket: int) -> None:
        """Forget a key."""
        keys = self._buckets.get(bucket)
        if keys is not None:
            keys.pop(key, None)

    def next_ms(self) -> float | None:
        """Return when the next bucket with a key is due, or None."""
        while self._order:
            bucket = self._order[0]
            if self._buckets[bucket]:
                return bucket * BUCKET_MS
            heapq.heappop(self._order)
            del self._buckets[bucket]
        return None

    def pop_due(self, now_ms: float) -> list[K]:
        """Return the keys that are due and forget them."""
        due: list[K] = []
        while self._order and self._order[0] * BUCKET_MS <= now_ms:
            due.extend(self._buckets.pop(heapq.heappop(self._order)))
        return due
