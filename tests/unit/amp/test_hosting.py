"""Agents on one machine without a router: the first hosts it, another takes over. Real sockets."""

import asyncio

import pytest

from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.errors import NetworkError
from amp.hosting import HostingTransport
from amp.router import Router
from amp.transports.base import ConnectFailed
from tests.ports import free_port


class Agent:
    def __init__(self, agent_id: str, port: int, *, host_router: bool = True) -> None:
        async def name(incoming: Incoming) -> object:
            return agent_id

        self.transport = HostingTransport(f"ws://127.0.0.1:{port}/amp/v1/ws", host_router=host_router)
        offer = Offer(capability=Capability(id=f"name-{agent_id}"), handler=name)
        self.mesh = MeshClient(AgentIdentity(id=agent_id), self.transport, offers=[offer])

    async def stop(self) -> None:
        await self.mesh.stop(drain_seconds=0.1)
        await self.transport.close()


async def test_one_of_many_hosts_and_another_takes_over_when_it_goes() -> None:
    port = free_port()
    agents = [Agent(name, port) for name in "abcd"]
    await asyncio.gather(*(agent.mesh.start(wait_seconds=10) for agent in agents))
    hosts = [agent for agent in agents if agent.transport.hosting]
    assert len(hosts) == 1
    for gone in range(2):
        host = next(agent for agent in agents if agent.transport.hosting)
        await host.stop()
        agents.remove(host)
        asker, other = agents[0], agents[-1]
        result = await asker.mesh.request(
            f"name-{other.mesh.identity.id}", {}, patience_seconds=10, resend=True, timeout_seconds=10
        )
        assert result == other.mesh.identity.id, gone
        assert [agent.transport.hosting for agent in agents].count(True) == 1
    await asyncio.gather(*(agent.stop() for agent in agents))


async def test_agents_find_a_router_that_starts_later_or_is_there_already() -> None:
    port = free_port()
    early = Agent("early", port, host_router=False)
    starting = asyncio.create_task(early.mesh.start(wait_seconds=10))
    await asyncio.sleep(0)
    router = Router()
    await router.start_http("127.0.0.1", port)
    late = Agent("late", port)
    await asyncio.gather(starting, late.mesh.start(wait_seconds=10))
    assert not late.transport.hosting
    assert await late.mesh.request("name-early", {}) == "early"
    await early.stop()
    await late.stop()
    await router.stop()


async def test_only_loopback_is_hosted() -> None:
    transport = HostingTransport("ws://192.0.2.1:9/ws")
    assert not transport._may_host
    assert not HostingTransport("wss://127.0.0.1:9/ws")._may_host
    assert HostingTransport("ws://localhost:9/ws")._may_host
    assert HostingTransport("ws://[::1]:9/ws")._may_host


async def test_port_held_by_something_else_is_not_mistaken_for_a_router() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        agent = Agent("a", server.sockets[0].getsockname()[1])
        with pytest.raises(NetworkError):
            await agent.mesh.start(wait_seconds=0.2)
        assert not agent.transport.hosting
        await agent.stop()


async def test_closed_transport_hosts_no_more() -> None:
    transport = HostingTransport(f"ws://127.0.0.1:{free_port()}/ws")
    await transport.close()
    with pytest.raises(ConnectFailed):
        await transport.connect()
