"""Frames that are lost, doubled or late between clients and the router: nothing hangs and nothing is done twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import msgspec
import pytest

from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.errors import AgentLost
from amp.router import Router
from amp.subscriptions import Event
from amp.transports.base import Connection
from amp.transports.memory import MemoryNetwork

RE_ASK_SECONDS = 0.03
END_SECONDS = 20.0

Fate = Callable[[str, dict[str, Any]], str]
"""Says of a message, by its direction `out` or `in`, whether to `pass`, `drop`, `double` or `delay` it."""


def pass_all(direction: str, message: dict[str, Any]) -> str:
    return "pass"


class Lossy:
    """A way to the router on which each message meets its fate. It is its own connection."""

    def __init__(self, network: MemoryNetwork, fate: Fate) -> None:
        self.fate = fate
        self._network = network
        self._inner: Connection
        self._arrived: list[bytes] = []
        self._late: dict[str, list[bytes]] = {"in": [], "out": []}

    async def connect(self) -> Connection:
        self._inner = await self._network.transport().connect()
        return self

    def _judge(self, direction: str, frame: bytes) -> list[bytes]:
        document = msgspec.json.decode(frame)
        judged: list[bytes] = []
        for part in document if isinstance(document, list) else [document]:
            one = msgspec.json.encode(part)
            match self.fate(direction, part.get("message", part)):
                case "pass":
                    judged.append(one)
                case "double":
                    judged += [one, one]
                case "delay":
                    self._late[direction].append(one)
                    continue
            late, self._late[direction] = self._late[direction], []
            judged += late
        return judged

    async def send(self, frame: bytes) -> None:
        for each in self._judge("out", frame):
            await self._inner.send(each)

    async def receive(self) -> bytes | str:
        while not self._arrived:
            frame = await self._inner.receive()
            assert isinstance(frame, bytes)
            self._arrived += self._judge("in", frame)
        return self._arrived.pop(0)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._inner.close(code, reason)


class Mesh:
    def __init__(self) -> None:
        self.router = Router(random=Random(1))
        self.network = MemoryNetwork()
        self.router.serve_memory(self.network)
        self.done: Counter[str] = Counter()
        self.clients: list[MeshClient] = []

    async def _count(self, incoming: Incoming) -> object:
        self.done[incoming.parameters["name"]] += 1
        return incoming.parameters["name"]

    async def join(self, agent_id: str, fate: Fate = pass_all, *, works: bool = False) -> MeshClient:
        client = MeshClient(
            AgentIdentity(id=agent_id),
            Lossy(self.network, fate),
            offers=[Offer(capability=Capability(id="count"), handler=self._count)] if works else [],
            random=Random(len(self.clients)),
            re_ask_seconds=RE_ASK_SECONDS,
        )
        self.clients.append(client)
        await client.start(wait_seconds=END_SECONDS)
        return client

    async def close(self) -> None:
        for client in self.clients:
            await client.stop(drain_seconds=0.1)
        await self.router.stop()


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    mesh = Mesh()
    async with asyncio.timeout(END_SECONDS):
        yield mesh
        await mesh.close()


def dropping(count: int, direction: str, wanted: Callable[[dict[str, Any]], bool]) -> Fate:
    """Drop the first `count` messages that are wanted."""
    left = count

    def fate(way: str, message: dict[str, Any]) -> str:
        nonlocal left
        if way != direction or not left or not wanted(message):
            return "pass"
        left -= 1
        return "drop"

    return fate


def is_request(message: dict[str, Any]) -> bool:
    return message.get("type") == "request" and message["destination"].get("capability") == "count"


def is_response(message: dict[str, Any]) -> bool:
    return message.get("type") in ("response", "error") and message["source"]["agent_id"] == "worker"


def asks(operation: str) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message.get("destination", {}).get("capability") == operation


@pytest.mark.parametrize("resend", [True, False])
@pytest.mark.parametrize(
    ("whose", "direction", "wanted"),
    [
        ("asker", "out", is_request),
        ("worker", "in", is_request),
        ("worker", "out", is_response),
        ("asker", "in", is_response),
    ],
)
async def test_lost_frame_of_a_request_heals_and_the_work_is_done_once(
    mesh: Mesh, whose: str, direction: str, wanted: Callable[[dict[str, Any]], bool], resend: bool
) -> None:
    losing = dropping(2, direction, wanted)
    await mesh.join("worker", losing if whose == "worker" else pass_all, works=True)
    asker = await mesh.join("asker", losing if whose == "asker" else pass_all)
    assert await asker.request("count", {"name": "a"}, resend=resend) == "a"
    assert mesh.done == {"a": 1}


async def test_word_of_a_lost_agent_is_repeated_until_it_is_heard(mesh: Mesh) -> None:
    started = asyncio.Event()

    async def hang(incoming: Incoming) -> object:
        mesh.done["hang"] += 1
        started.set()
        await asyncio.sleep(END_SECONDS)
        return None

    worker = MeshClient(
        AgentIdentity(id="worker"),
        mesh.network.transport(),
        offers=[Offer(capability=Capability(id="count"), handler=hang)],
    )
    await worker.start()
    asker = await mesh.join("asker", dropping(2, "in", lambda message: message.get("type") == "error"))
    asking = asyncio.create_task(asker.request("count", {"name": "a"}))
    await started.wait()
    member = next(each for each in mesh.router._members.values() if each.session.agent_id == "worker")
    mesh.router.dismiss(member)
    await mesh.join("other", works=True)
    with pytest.raises(AgentLost):
        await asking
    assert mesh.done == {"hang": 1}
    await worker.stop(drain_seconds=0)


async def test_lost_registration_and_subscription_heal(mesh: Mesh) -> None:
    heard = asyncio.Event()
    for direction, operation in (("out", "registration"), ("out", "subscription")):
        await mesh.join(f"loses-{operation}", dropping(2, direction, asks(operation)))
    listener = mesh.clients[-1]
    await listener.subscribe("news", lambda event: heard.set())
    await mesh.clients[0].publish("news", {})
    await heard.wait()


async def test_lost_answer_to_a_registration_heals(mesh: Mesh) -> None:
    from_registry = dropping(2, "in", lambda message: message["source"]["agent_id"] == "registry")
    await mesh.join("worker", from_registry, works=True)
    assert await (await mesh.join("asker")).request("count", {"name": "a"}) == "a"


async def test_lost_discovery_heals(mesh: Mesh) -> None:
    await mesh.join("worker", works=True)
    asker = await mesh.join("asker", dropping(2, "out", asks("discovery")))
    assert [each["identity"]["id"] for each in await asker.discover(capabilities=["count"])] == ["worker"]


async def test_lost_word_that_an_agent_joined_heals(mesh: Mesh) -> None:
    asker = await mesh.join("asker", dropping(99, "in", lambda message: message.get("type") == "event"))
    asking = asyncio.create_task(asker.request("count", {"name": "a"}, patience_seconds=END_SECONDS))
    await asyncio.sleep(0)
    await mesh.join("worker", works=True)
    assert await asking == "a"


@pytest.mark.parametrize("seed", range(12))
async def test_lost_doubled_and_late_frames_do_no_harm(mesh: Mesh, seed: int) -> None:
    chance = Random(seed)
    quiet = False

    def fate(direction: str, message: dict[str, Any]) -> str:
        draw = chance.random()
        if quiet or draw > 0.3:
            return "pass"
        return "drop" if draw < 0.1 else "double" if draw < 0.2 else "delay"

    heard: list[str] = []

    def hear(event: Event) -> None:
        heard.append(event.event_type)

    for number in range(3):
        await mesh.join(f"worker-{number}", fate, works=True)
    askers = [await mesh.join(f"asker-{number}", fate) for number in range(2)]
    for asker in askers:
        await asker.subscribe("news", hear)
    names = [f"{number}" for number in range(40)]
    results = await asyncio.gather(
        *(askers[n % 2].request("count", {"name": name}, resend=n % 3 == 0) for n, name in enumerate(names))
    )
    quiet = True
    assert results == names
    assert mesh.done == dict.fromkeys(names, 1)
    await mesh.clients[0].publish("news", {})
    await asyncio.gather(*(each.discover() for each in askers))
    assert heard == ["news", "news"]
