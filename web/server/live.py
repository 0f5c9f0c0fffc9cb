"""The hub between the log's tail and everybody who watches. It knows topics and clients, no HTTP."""

import logging
from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Any
from urllib.parse import parse_qs

from amp.subscriptions import Event
from orchestration import contracts
from orchestration.status import InstanceStatus
from web.server.instances import Instances, decode
from web.server.mesh import Mesh
from web.server.overview import Lists
from web.server.problems import ProblemError
from web.server.tail import LogTail
from web.server.topics import InstanceSubscription, ListTopic, Subscriber

logger = logging.getLogger(__name__)

MAX_LIST_TOPICS = 200
MAX_SUBSCRIPTIONS = 20
"""Most topics that one client watches at a time."""
LIST_PAGE_ROWS = 50
INSTANCE_PREFIX = "instance:"
INSTANCES = "instances"

Listener = Callable[[dict[str, Any]], None]


class Hub:
    """Feeds subscriptions from one tail of the log."""

    def __init__(self, mesh: Mesh, instances: Instances, lists: Lists, *, random: Random) -> None:
        self._mesh = mesh
        self._instances = instances
        self._lists = lists
        self._topics: dict[str, ListTopic] = {}
        self._watchers: defaultdict[str, set[InstanceSubscription]] = defaultdict(set)
        self._listeners: set[Listener] = set()
        self._by_client: defaultdict[Subscriber, dict[int, str | InstanceSubscription]] = defaultdict(dict)
        self.source_ok = True
        self._on_source: set[Callable[[bool], None]] = set()
        self._tail = LogTail(
            mesh,
            self._on_records,
            on_state=self._source_changed,
            on_other_log=self._on_other_log,
            watched=lambda: self.is_watched,
            random=random,
        )

    @property
    def is_watched(self) -> bool:
        """Whether any client watches anything."""
        return bool(self._listeners) or any(self._by_client.values())

    async def start(self) -> None:
        """Begin to follow the log and who is on the mesh."""
        await self._mesh.subscribe(contracts.EVENT_LOG_ADVANCED, self._on_hint)
        await self._mesh.subscribe("agent.*", self._on_agents)
        await self._mesh.subscribe(contracts.EVENT_ALERT_CHANGED, self._on_attention)
        await self._mesh.subscribe(contracts.EVENT_ORPHANS_CHANGED, self._on_attention)
        self._mesh.on_connected.append(self._on_connected)
        self._tail.start()

    async def stop(self) -> None:
        """End everything. Works twice."""
        await self._tail.stop()
        for topic in list(self._topics.values()):
            await topic.close()
        self._topics.clear()

    # --- clients ---------------------------------------------------------------------------------------

    async def subscribe(
        self, client: Subscriber, subscription_id: int, topic: str, after: int | None
    ) -> None:
        """Begin to send a topic to a client.

        Raises: ProblemError when there is no such topic, it cannot be read, or the client watches too many.
        """
        await self.unsubscribe(client, subscription_id)
        if len(self._by_client[client]) >= MAX_SUBSCRIPTIONS:
            raise ProblemError(
                400, "too_many_topics", f"one connection watches at most {MAX_SUBSCRIPTIONS} topics"
            )
        if topic.startswith(INSTANCE_PREFIX):
            await self._watch_instance(client, subscription_id, topic.removeprefix(INSTANCE_PREFIX), after)
            return
        listed = self._list_topic(topic)
        self._by_client[client][subscription_id] = topic
        try:
            await listed.join(client, subscription_id)
        except BaseException:
            await self.unsubscribe(client, subscription_id)
            raise

    async def _watch_instance(
        self, client: Subscriber, subscription_id: int, instance_id: str, after: int | None
    ) -> None:
        watch = InstanceSubscription(self._instances, instance_id, client, subscription_id)
        self._watchers[instance_id].add(watch)
        self._by_client[client][subscription_id] = watch
        try:
            await watch.join(after)
        except BaseException:
            await self.unsubscribe(client, subscription_id)
            raise
        self._tail.wake()  # what was appended between the fold and now is found at once

    def _list_topic(self, name: str) -> ListTopic:
        topic = self._topics.get(name)
        if topic is None:
            if len(self._topics) >= MAX_LIST_TOPICS:
                raise ProblemError(
                    503, "too_many_topics", "too many different lists are watched at the moment"
                )
            topic = self._topics[name] = ListTopic(name, self._loader(name))
        return topic

    def _loader(self, name: str) -> Any:
        if name == "overview":
            return self._lists.overview
        if name == "agents":
            return self._lists.agents
        head, _, query = name.partition("?")
        if head == INSTANCES:
            request = list_request(query)
            return lambda: self._lists.instance_page(request)
        known = "overview, agents, instances, instances?status=…&workflow_id=…&text=…, instance:<id>"
        raise ProblemError(404, "topic_not_found", f"there is no topic {name[:100]!r}; known: {known}")

    async def unsubscribe(self, client: Subscriber, subscription_id: int) -> None:
        """Stop sending a topic to a client."""
        watched = self._by_client[client].pop(subscription_id, None)
        client.outbox.forget(subscription_id)
        if isinstance(watched, InstanceSubscription):
            watched.ended = True
            self._forget_watch(watched)
        elif watched is not None and (topic := self._topics.get(watched)) is not None:
            topic.leave(client, subscription_id)
            if not topic.is_watched:
                self._topics.pop(watched, None)
                await topic.close()

    async def leave(self, client: Subscriber) -> None:
        """Forget a client."""
        for subscription_id in list(self._by_client.get(client, ())):
            await self.unsubscribe(client, subscription_id)
        self._by_client.pop(client, None)

    def _forget_watch(self, watch: InstanceSubscription) -> None:
        watchers = self._watchers.get(watch.instance_id)
        if watchers is not None:
            watchers.discard(watch)
            if not watchers:
                del self._watchers[watch.instance_id]

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hand every event of the log to `listener`, as a flat object. Return how to stop that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def on_source(self, told: Callable[[bool], None]) -> Callable[[], None]:
        """Tell `told` when the log becomes unreadable and readable again. Return how to stop that."""
        self._on_source.add(told)
        return lambda: self._on_source.discard(told)

    # --- what comes in ---------------------------------------------------------------------------------

    async def _on_records(self, records: list[contracts.EventRecord]) -> None:
        by_instance: defaultdict[str, list[contracts.EventRecord]] = defaultdict(list)
        for record in records:
            by_instance[record.instance_id].append(record)
        for name, topic in self._topics.items():
            if name != "agents":
                topic.touch()
        for instance_id, own in by_instance.items():
            for watch in list(self._watchers.get(instance_id, ())):
                await self._push(watch, own)
        if self._listeners:
            for record in records:
                event = {**decode(record), "instance_id": record.instance_id}
                for listener in list(self._listeners):
                    listener(event)

    async def _push(self, watch: InstanceSubscription, records: list[contracts.EventRecord]) -> None:
        try:
            await watch.push(records)
        except ProblemError as problem:
            logger.info(
                "watch_not_filled", extra={"instance_id": watch.instance_id, "reason": problem.detail}
            )
            self._end_watch(watch, again=True)
            return
        if watch.ended:
            self._end_watch(watch, again=False)

    def _end_watch(self, watch: InstanceSubscription, *, again: bool) -> None:
        """End a subscription; with `again` the client is told to subscribe anew."""
        watch.ended = True
        if again:
            watch.client.outbox.control({"op": "resync", "id": watch.subscription_id})
            watch.client.notify()
        self._forget_watch(watch)
        self._by_client[watch.client].pop(watch.subscription_id, None)

    def _on_hint(self, event: Event) -> None:
        offset = event.data.get("offset")
        self._tail.wake(offset if isinstance(offset, int) else None)

    def _on_other_log(self) -> None:
        """What was folded belongs to a log that is gone: everybody begins anew."""
        self._instances.forget()
        self._touch_all()
        for watch in [watch for watchers in self._watchers.values() for watch in watchers]:
            self._end_watch(watch, again=True)

    def _on_agents(self, event: Event) -> None:
        self._touch_all()
        self._tail.wake()

    def _on_attention(self, event: Event) -> None:
        if (topic := self._topics.get("overview")) is not None:
            topic.touch()

    async def _on_connected(self) -> None:
        self._touch_all()
        self._tail.wake()

    def _touch_all(self) -> None:
        for topic in self._topics.values():
            topic.touch()

    def _source_changed(self, ok: bool) -> None:
        if ok == self.source_ok:
            return
        self.source_ok = ok
        for told in list(self._on_source):
            told(ok)
        if ok:
            self._touch_all()


def list_request(query: str) -> contracts.InstanceListRequest:
    """Return the list that a topic's query asks for: status (several by comma), workflow_id, text.

    Raises: ProblemError 400 for what is not understood.
    """
    given = {key: found[-1] for key, found in parse_qs(query, max_num_fields=10).items()}
    unknown = set(given) - {"status", "workflow_id", "text", "limit"}
    if unknown:
        raise ProblemError(400, "invalid_topic", f"unknown filter {sorted(unknown)[0]!r}")
    try:
        statuses = [InstanceStatus(status) for status in given.get("status", "").split(",") if status]
        limit = max(1, min(int(given.get("limit", LIST_PAGE_ROWS)), contracts.MAX_PAGE_ROWS))
    except ValueError as error:
        raise ProblemError(400, "invalid_topic", str(error)) from None
    return contracts.InstanceListRequest(
        statuses=statuses,
        workflow_id=given.get("workflow_id"),
        text=given.get("text"),
        limit=limit,
    )
