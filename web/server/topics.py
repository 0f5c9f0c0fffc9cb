"""What a browser can watch: lists that are read again when the log moved, instances that follow it event by event."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from amp import crash
from amp.errors import AmpError
from orchestration import contracts
from web.server import values
from web.server.instances import PAGE_EVENTS, Instances, decode
from web.server.outbox import Outbox
from web.server.problems import ProblemError

logger = logging.getLogger(__name__)

MIN_REFRESH_SECONDS = 0.25
"""Shortest time between two reads of one list, however fast the log grows."""
RETRY_SECONDS = 2.0
MAX_RESUMED_EVENTS = 2000
"""A client that is further behind gets a snapshot instead of events."""

Load = Callable[[], Awaitable[dict[str, Any]]]


class Subscriber(Protocol):
    """A client as a topic sees it."""

    outbox: Outbox

    def notify(self) -> None:
        """There is something in the outbox."""
        ...


class ListTopic:
    """A document {items: {id: row}, ...} that is loaded again when something changed, and sent as differences."""

    def __init__(self, name: str, load: Load) -> None:
        self.name = name
        self._load = load
        self._document: dict[str, Any] | None = None
        self._seq = 0
        self._subscribers: dict[tuple[int, int], Subscriber] = {}
        self._dirty = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loading = asyncio.Lock()

    @property
    def is_watched(self) -> bool:
        """Whether anybody is subscribed."""
        return bool(self._subscribers)

    async def join(self, client: Subscriber, subscription_id: int) -> None:
        """Send the snapshot, then keep sending changes. Raises: ProblemError when it cannot be loaded."""
        async with self._loading:
            if self._document is None or not self._subscribers:
                self._document = await self._load()
                self._seq += 1
            self._subscribers[id(client), subscription_id] = client
            snapshot = {"op": "snapshot", "id": subscription_id, "seq": self._seq, "data": self._document}
            client.outbox.control(snapshot)
        client.notify()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._refresh(), name=f"web:topic:{self.name}"
            )

    def leave(self, client: Subscriber, subscription_id: int) -> None:
        """Stop sending to a subscription."""
        self._subscribers.pop((id(client), subscription_id), None)

    async def close(self) -> None:
        """End the topic's reader."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def touch(self) -> None:
        """What the list shows may have changed."""
        self._dirty.set()

    async def _refresh(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                async with self._loading:
                    self._publish(await self._load())
            except (ProblemError, AmpError) as error:
                logger.info("topic_not_loaded", extra={"topic": self.name, "reason": str(error)})
                self._dirty.set()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            await asyncio.sleep(MIN_REFRESH_SECONDS)

    def _publish(self, document: dict[str, Any]) -> None:
        patch = difference(self._document or {}, document)
        self._document = document
        if not patch:
            return
        self._seq += 1
        for (_, subscription_id), client in self._subscribers.items():
            client.outbox.patch(subscription_id, self._seq, patch)
            client.notify()


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return what turns `old` into `new`: changed members, and of `items` only the changed ones (null: gone)."""
    patch = {key: value for key, value in new.items() if key != "items" and old.get(key) != value}
    before, after = old.get("items", {}), new.get("items", {})
    items: dict[str, Any] = {key: value for key, value in after.items() if before.get(key) != value}
    items.update({key: None for key in before if key not in after})
    if items:
        patch["items"] = items
    return patch


class InstanceSubscription:
    """One client's view of one instance: a snapshot or the missing events first, then every event, without gaps."""

    def __init__(
        self, instances: Instances, instance_id: str, client: Subscriber, subscription_id: int
    ) -> None:
        self.instance_id = instance_id
        self.subscription_id = subscription_id
        self.client = client
        self.ended = False
        self._instances = instances
        self._seq: int | None = None
        self._secrets: frozenset[str] = frozenset()
        self._lock = asyncio.Lock()

    async def join(self, after: int | None) -> None:
        """Bring the client up to date.

        Args:
            after: The last seq the client has; None for a client that has nothing.

        Raises: ProblemError when the instance cannot be read.
        """
        async with self._lock:
            view = await self._instances.view(self.instance_id)
            seq = view.document["seq"]
            self._secrets = view.secrets
            if after is not None and 0 < after <= seq and seq - after <= MAX_RESUMED_EVENTS:
                self._seq = after
                crash.reach("dashboard.live.resync")
                await self._read_up_to(seq)
            else:
                snapshot = {"op": "snapshot", "id": self.subscription_id, "seq": seq, "data": view.document}
                self.client.outbox.control(snapshot)
                self._seq = seq
        self.client.notify()

    async def push(self, records: Sequence[contracts.EventRecord]) -> None:
        """Send events the tail found; what the client has is left out, what is missing is read from the log."""
        async with self._lock:
            if self._seq is None or self.ended:
                return
            fresh = [record for record in records if record.seq > self._seq]
            if not fresh:
                return
            if fresh[0].seq == self._seq + 1:
                self._send(fresh)
            else:
                await self._read_up_to(fresh[-1].seq)

    async def _read_up_to(self, seq: int) -> None:
        while self._seq is not None and self._seq < seq and not self.ended:
            reply = await self._instances.read_log(self.instance_id, after=self._seq, limit=PAGE_EVENTS)
            if not reply.events:
                return
            self._send(reply.events)

    def _send(self, records: Sequence[contracts.EventRecord]) -> None:
        events = [values.shown(decode(record), self._secrets) for record in records]
        self._seq = records[-1].seq
        self.ended = not self.client.outbox.events(self.subscription_id, events)
        self.client.notify()
