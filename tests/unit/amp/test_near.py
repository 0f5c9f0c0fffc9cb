"""The short way to a router on this machine: taken when it is there and belongs to us, never needed."""

import os
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from amp import near
from amp.client import AgentIdentity, MeshClient
from amp.errors import AuthenticationFailed
from amp.near import near_connection, near_listener
from amp.router import Router
from amp.security import Credentials
from amp.transports.websocket import WebSocketTransport

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sockets without a file")


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    router = Router()
    await router.start_http("127.0.0.1", 0)
    yield router
    await router.stop()


async def family_of(url: str) -> int:
    """Return the kind of socket over which the transport reaches a router that lets it in."""
    transport = WebSocketTransport(url)
    client = MeshClient(AgentIdentity(id="asker"), transport)
    await client.start(wait_seconds=5)
    assert client.connected
    await client.stop()
    connection = await transport.connect()
    found: int = connection._socket.transport.get_extra_info("socket").family  # type: ignore[attr-defined]
    await connection.close()
    return found


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_client_on_this_machine_takes_the_short_way(router: Router, name: str) -> None:
    assert await family_of(f"ws://{name}:{router.port}/amp/v1/ws") == socket.AF_UNIX


async def test_a_router_of_another_user_is_reached_by_its_port_only(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "_peer_user", lambda connection: os.geteuid() + 1)
    assert await family_of(f"ws://127.0.0.1:{router.port}/amp/v1/ws") == socket.AF_INET


async def test_the_user_at_the_other_end_is_the_one_who_listens(router: Router) -> None:
    connection = near_connection("127.0.0.1", router.port)
    assert connection is not None
    with connection:
        assert near._peer_user(connection) == os.geteuid()


async def test_a_router_whose_short_name_is_taken_says_so_and_serves_its_port(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    squatter = near_listener("127.0.0.1", port, 1)
    assert squatter is not None
    router = Router()
    with squatter:
        await router.start_http("127.0.0.1", port)
    assert [record.message for record in caplog.records if record.name == "amp.near"] == [
        "short_way_unusable"
    ]
    # The squatter is gone, so nobody answers there, and clients come by the port.
    assert await family_of(f"ws://127.0.0.1:{port}/amp/v1/ws") == socket.AF_INET
    await router.stop()


async def test_whom_the_short_way_has_no_room_for_comes_by_the_port() -> None:
    listener = near_listener("127.0.0.1", 1, 0)
    assert listener is not None
    with listener:
        first = near_connection("127.0.0.1", 1)
        assert first is not None
        with first:
            assert near_connection("127.0.0.1", 1) is None


async def test_the_short_way_asks_for_the_key_as_the_port_does() -> None:
    router = Router(credentials=Credentials(api_keys={"key": None}))
    await router.start_http("127.0.0.1", 0)
    url = f"ws://127.0.0.1:{router.port}/amp/v1/ws"
    stranger = MeshClient(AgentIdentity(id="stranger"), WebSocketTransport(url))
    with pytest.raises(AuthenticationFailed):
        await stranger.start(wait_seconds=5)
    known = MeshClient(AgentIdentity(id="known"), WebSocketTransport(url, api_key="key"))
    await known.start(wait_seconds=5)
    await known.stop()
    await router.stop()


async def test_nothing_is_left_when_the_router_stops() -> None:
    router = Router()
    await router.start_http("127.0.0.1", 0)
    port = router.port
    await router.stop()
    assert near_connection("127.0.0.1", port) is None


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "router.example"])
def test_there_is_no_short_way_to_other_machines(host: str) -> None:
    assert near_listener(host, 8079, 1) is None
    assert near_connection(host, 8079) is None
