"""One agent on a real router over memory, with a client to ask it and a log to read: for tests of single agents."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from agents.base import Agent
from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.router import Router
from amp.transports.memory import MemoryNetwork
from orchestration import contracts, events
from orchestration.contracts import EventRecord
from runtime.settings import settings_from

WAIT_SECONDS = 10.0
START = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)


class ManualClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, **length: float) -> None:
        step = timedelta(**length)
        self.at += step
        self.seconds += step.total_seconds()


async def until(true: Callable[[], object]) -> None:
    """Wait until something is true of an agent that tells nobody: look again after each turn of the loop."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not true():
            await asyncio.sleep(0.001)


class FakeLog:
    """A log in memory that answers `log-read` as the state manager does."""

    def __init__(self) -> None:
        self.records: list[EventRecord] = []
        self.newest = 0
        self.reads = 0

    def add(self, instance_id: str, event: events.Event) -> EventRecord:
        self.newest += 1
        record = EventRecord(
            offset=self.newest,
            instance_id=instance_id,
            seq=1 + sum(1 for each in self.records if each.instance_id == instance_id),
            type=events.type_of(event),
            at=event.at,
            data=msgspec.Raw(events.encode(event)),
        )
        self.records.append(record)
        return record

    async def read(self, incoming: Incoming) -> contracts.LogReadReply:
        request: contracts.LogReadRequest = incoming.parameters
        self.reads += 1
        scanned = [each for each in self.records if each.offset > request.after][: request.limit]
        found = [each for each in scanned if not request.types or each.type in request.types]
        reached = scanned[-1].offset if len(scanned) == request.limit else max(request.after, self.newest)
        return contracts.LogReadReply(events=found, next=reached, end=reached >= self.newest)


def offer(contract: contracts.Contract, handler: Callable[[Incoming], Awaitable[object]]) -> Offer:
    return Offer(capability=Capability(id=contract.id), handler=handler, parameters_type=contract.request)


class Bench:
    """The router, the agent, a client named `tester`."""

    def __init__(self, network: MemoryNetwork, client: MeshClient, clock: ManualClock) -> None:
        self.network = network
        self.client = client
        self.clock = clock
        self.agent: Any = None

    async def ask(self, capability: str, parameters: Mapping[str, Any], **more: Any) -> Any:
        return await self.client.request(capability, parameters, timeout_seconds=WAIT_SECONDS, **more)


def peer(network: MemoryNetwork, agent_id: str, *offers: Offer) -> MeshClient:
    identity = AgentIdentity(id=agent_id, name=agent_id, version="1", framework="tests")
    return MeshClient(identity, network.transport(), offers=offers, random=Random(3))


@asynccontextmanager
async def running_agent(
    agent_class: type[Agent], folder: Path, *offers: Offer, clock: ManualClock | None = None, **settings: Any
) -> AsyncIterator[Bench]:
    """Run an agent beside a client that offers what the other agents would."""
    clock = clock or ManualClock()
    network = MemoryNetwork()
    router = Router(random=Random(1))
    router.serve_memory(network)
    client = peer(network, "tester", *offers)
    await client.start(wait_seconds=WAIT_SECONDS)
    agent = agent_class(
        settings_from({"data_dir": str(folder), **settings}),
        transport=network.transport(),
        clock=clock,
        random=Random(2),
        serve_http=False,
    )
    bench = Bench(network, client, clock)
    bench.agent = agent
    try:
        await agent.start(wait_seconds=WAIT_SECONDS)
        yield bench
        assert not agent.failed.is_set()
    finally:
        await agent.stop()
        await client.stop()
        await router.stop()
