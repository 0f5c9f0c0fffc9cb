"""The HTTP side in this process: registry, binding, guards, bounds. What a stranger sees is in tests/interop."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
import httpx
import pytest

from amp import http_binding, mailbox
from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.errors import LocalProtocolError
from amp.link import Link
from amp.mailbox import CallBox, Mailbox
from amp.router import Router, RouterLimits
from amp.security import Credentials
from amp.transports.memory import MemoryConnection, MemoryNetwork


@dataclass
class Site:
    router: Router
    http: httpx.AsyncClient
    network: MemoryNetwork


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    router = Router(limits=RouterLimits(max_frame_bytes=20_000, max_connections=8))
    network = MemoryNetwork()
    router.serve_memory(network)
    await router.start_http("127.0.0.1", 0)
    async with httpx.AsyncClient(base_url=f"http://localhost:{router.port}") as http:
        yield Site(router, http, network)
    await router.stop()


def make_envelope(sender: str, payload: Any, *, kind: str = "request", **destination: Any) -> dict[str, Any]:
    return {
        "protocol": "AMP/1.0",
        "message": {
            "id": f"{sender}-{datetime.now(UTC).timestamp()}",
            "type": kind,
            "timestamp": "2026-01-01T00:00:00Z",
            "source": {"agent_id": sender},
            "destination": destination,
            "headers": {"timeout_ms": 300},
            "payload": payload,
        },
    }


async def worker(site: Site, **options: Any) -> MeshClient:
    async def cut(incoming: Incoming) -> object:
        if incoming.parameters.get("hang"):
            await asyncio.sleep(60)
        return incoming.parameters

    offer = Offer(capability=Capability(id="cut", version="1.2"), handler=cut)
    client = MeshClient(
        AgentIdentity(id="worker", name="W", framework="f"),
        site.network.transport(),
        offers=[offer],
        **options,
    )
    await client.start(wait_seconds=5)
    return client


async def test_registry_shows_updates_and_withdraws_a_live_agent(site: Site) -> None:
    client = await worker(site, exclusive=False)
    shown = (await site.http.get("/agents/worker")).json()
    assert shown["identity"]["framework"] == "f"
    assert shown["capabilities"][0]["version"] == "1.2"
    report = {"status": "degraded", "success_rate": 0.5, "response_time_avg": 20}
    assert (await site.http.put("/agents/worker/health", json=report)).status_code == 200
    for query, found in (
        ("capability=cut", 1),
        ("capability=c*", 1),
        ("capability=sew", 0),
        ("framework=f", 1),
        ("framework=g", 0),
        ("tags=a,b", 0),
        ("min_success_rate=0.9", 0),
        ("max_latency_ms=10", 0),
        ("max_latency_ms=30&min_success_rate=0.4", 1),
    ):
        assert len((await site.http.get(f"/agents/search?{query}")).json()["agents"]) == found, query
    updated = {"agent": {"id": "worker", "tags": ["a", "b"]}, "capabilities": ["cut", "sew"]}
    assert (await site.http.post("/agents", json=updated)).status_code == 201
    assert len((await site.http.get("/agents?tags=a,b&capability=sew")).json()["agents"]) == 1
    assert (await site.http.delete("/agents/worker")).status_code == 200
    assert (await site.http.get("/agents/search")).json() == {"agents": []}
    await client.stop()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/agents/nobody", None, 404),
        ("DELETE", "/agents/nobody", None, 404),
        ("PUT", "/agents/nobody/health", {}, 404),
        ("PUT", "/agents/worker/health", {"status": 5}, 400),
        ("PUT", "/agents/worker/health", {"metadata": {"a": "x" * 17_000}}, 400),
        ("POST", "/agents", {"agent": {}}, 400),
        ("POST", "/agents", {"agent": {"id": "router"}}, 400),
        ("GET", "/agents/search?min_success_rate=much", None, 400),
        ("POST", "/amp/v1/invoke", {"type": "heartbeat"}, 400),
        ("POST", "/amp/v1/invoke", [], 400),
        ("POST", "/amp/v1/messages", {"protocol": "AMP/1.0", "pad": "x" * 21_000}, 413),
        ("GET", "/nowhere", None, 404),
    ],
)
async def test_bad_calls_get_their_status(site: Site, method: str, path: str, body: Any, status: int) -> None:
    client = await worker(site, exclusive=False)
    answer = await site.http.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    await client.stop()


async def test_exclusive_agent_cannot_be_spoken_for(site: Site) -> None:
    client = await worker(site)
    value = make_envelope("worker", {"capability": "cut", "parameters": {}}, capability="cut")
    assert (await site.http.post("/amp/v1/messages", json=value)).status_code == 403
    answer = (await site.http.post("/amp/v1/invoke", json=value)).json()
    assert answer["message"]["payload"]["error"]["code"] == "AUTHENTICATION_FAILED"
    assert (await site.http.delete("/agents/worker")).status_code == 403
    await client.stop()


async def test_call_that_nobody_answers_times_out(site: Site) -> None:
    client = await worker(site)
    value = make_envelope("caller", {"capability": "cut", "parameters": {"hang": True}}, capability="cut")
    answer = (await site.http.post("/amp/v1/invoke", json=value)).json()["message"]
    assert answer["payload"]["error"]["code"] == "TIMEOUT"
    assert answer["headers"]["correlation_id"] == value["message"]["id"]
    await client.stop(drain_seconds=0)


async def test_poller_that_stops_polling_has_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_binding, "POLLER_LIFE_SECONDS", 0.05)
    event = make_envelope("poller", {"event_type": "hello"}, kind="event")
    assert (await site.http.post("/amp/v1/messages", json=event)).status_code == 200
    assert "poller" in site.router.routing.registry.agents
    heartbeat = await site.http.post("/amp/v1/messages", json={"type": "heartbeat", "timestamp": 0})
    assert heartbeat.json() == {"message_id": None}
    async with asyncio.timeout(5):
        while "poller" in site.router.routing.registry.agents:
            await asyncio.sleep(0.01)


async def test_number_of_pollers_and_calls_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_binding, "MAX_POLLERS", 1)
    monkeypatch.setattr(http_binding, "MAX_CALLS", 0)
    answers = [
        await site.http.post(
            "/amp/v1/messages", json=make_envelope(f"p{number}", {"event_type": "x"}, kind="event")
        )
        for number in range(2)
    ]
    assert [each.status_code for each in answers] == [200, 503]
    call = make_envelope("caller", {"capability": "cut"})
    assert (await site.http.post("/amp/v1/invoke", json=call)).status_code == 503


async def test_post_and_socket_of_one_agent_replace_each_other(site: Site) -> None:
    event = make_envelope("same", {"event_type": "x"}, kind="event")
    await site.http.post("/amp/v1/messages", json=event)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{site.router.port}/ws?agent_id=same") as socket,
    ):
        await socket.send_json({**event, "message": {**event["message"], "id": "other"}})
        question = make_envelope("same", {"query": {}}, agent_id="registry", capability="discovery")
        await socket.send_json(question)
        assert (await socket.receive_json())["message"]["type"] == "response"
        assert (await site.http.get("/amp/v1/messages/poll")).status_code == 204
        again = {**event, "message": {**event["message"], "id": "third"}}
        assert (await site.http.post("/amp/v1/messages", json=again)).status_code == 200
        assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSE


async def test_socket_limits_answer_instead_of_breaking(site: Site) -> None:
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{site.router.port}/ws"
        async with session.ws_connect(url) as socket:
            await socket.send_str(" " * 21_000)
            code = (await socket.receive_json())["message"]["payload"]["error"]["code"]
            assert code == "INSUFFICIENT_RESOURCES"
            await socket.send_json([make_envelope("a", {})])
            assert (await socket.receive_json())["message"]["payload"]["error"]["code"] == "INVALID_SCHEMA"
            sockets = [await session.ws_connect(url) for _ in range(7)]
            with pytest.raises(aiohttp.WSServerHandshakeError) as full:
                await session.ws_connect(url)
            assert full.value.status == 503
            for each in sockets:
                await each.close()


async def test_root_without_upgrade_says_where_the_socket_is(site: Site) -> None:
    assert (await site.http.get("/")).json()["websocket"] == "/amp/v1/ws"
    metrics = (await site.http.get("/metrics")).text
    assert "amp_router_errors" in metrics
    assert (await site.http.get("/agents/anybody/health")).json()["status"] == "healthy"


async def test_open_address_demands_a_key() -> None:
    with pytest.raises(LocalProtocolError):
        await Router().start_http("0.0.0.0", 0)
    router = Router(credentials=Credentials(api_keys={"k": None, "bound": "me"}))
    await router.start_http("0.0.0.0", 0)
    headers = {"Host": "router:8079", "Authorization": "Bearer k"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}") as http:
        assert (await http.get("/agents", headers=headers)).status_code == 200
        assert (await http.get("/agents")).status_code == 401
        wrong = await http.get(
            "/agents/other/amp/v1/messages/poll", headers={**headers, "Authorization": "Bearer bound"}
        )
        assert wrong.status_code == 403
    with pytest.raises(OSError):  # the system's own words
        await Router(credentials=router.credentials).start_http("0.0.0.0", router.port)
    await router.stop()


def test_mailbox_is_bounded_and_forgets_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 2)
    now = 0.0
    box = Mailbox(lambda: now)
    assert [box.push(b"1"), box.push(b"2"), box.push(b"3"), box.push(b"4", reserve=2)] == [
        True,
        True,
        False,
        True,
    ]
    assert box.take() == [b"1", b"2", b"4"]
    box.push(b"x" * mailbox.MAX_TAKEN_BYTES)
    box.push(b"y")
    assert [len(box.take()), len(box.take()), len(box.take())] == [1, 1, 0]
    box.push(b"old")
    now = mailbox.MESSAGE_LIFE_SECONDS + 1
    assert box.take() == []


async def test_call_takes_the_first_answer_only() -> None:
    box = CallBox()
    assert box.push(b"1")
    assert box.push(b"2")
    assert await box.answer == b"1"
    await box.close(1000, "")


async def test_outbox_refuses_what_does_not_fit_and_sends_the_rest_together() -> None:
    client, server = MemoryConnection.pair()
    link = Link(server, max_frames=2, max_bytes=20)
    link.batching = True
    accepted = [link.push(b"{1}"), link.push(b"{2}"), link.push(b"{3}"), link.push(b"{4}", reserve=2)]
    assert accepted == [True, True, False, True]
    assert link.backlog == 3
    assert link.push(b"x" * 40, reserve=2) is False
    writer = asyncio.create_task(link.write())
    await link.flush(1)
    assert await client.receive() == b"[{1},{2},{4}]"
    link.end()
    await writer
    assert link.push(b"{5}") is False
