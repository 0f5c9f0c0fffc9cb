"""The client against a real router, over memory and over WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import msgspec
import pytest

from amp.capability import Capability, Incoming, Offer, Reply
from amp.client import AgentIdentity, MeshClient
from amp.connector import MAX_DELAY_SECONDS, backoff_seconds
from amp.errors import (
    AgentIdInUse,
    AgentLost,
    AgentNotFound,
    AmpError,
    AuthenticationFailed,
    CapabilityNotFound,
    Disconnected,
    ExecutionError,
    InsufficientResources,
    InvalidParameters,
    InvalidSchema,
    LocalProtocolError,
    NetworkError,
    RequestTimeout,
)
from amp.router import Router, RouterLimits
from amp.routing import RoutingLimits
from amp.security import Credentials
from amp.subscriptions import Event
from amp.transports.base import ConnectFailed, Connection, ConnectionClosed, Transport
from amp.transports.memory import MemoryNetwork
from amp.transports.websocket import WebSocketTransport

Handler = Callable[[Incoming], Awaitable[object]]


class Mesh:
    """A router, a way to it, and clients that are stopped at the end."""

    def __init__(self, kind: str) -> None:
        self.router = Router(
            random=Random(1), limits=RouterLimits(routing=RoutingLimits(max_queued_requests=3))
        )
        self.network = MemoryNetwork()
        self.kind = kind
        self.clients: list[MeshClient] = []

    async def open(self) -> None:
        self.router.serve_memory(self.network)
        if self.kind == "websocket":
            await self.router.start_http("127.0.0.1", 0)

    def transport(self) -> Transport:
        if self.kind == "websocket":
            return WebSocketTransport(f"ws://127.0.0.1:{self.router.port}/amp/v1/ws")
        return self.network.transport()

    def make(self, agent_id: str, *offers: Offer, **options: Any) -> MeshClient:
        transport = options.pop("transport", None) or self.transport()
        client = MeshClient(AgentIdentity(id=agent_id), transport, offers=offers, **options)
        self.clients.append(client)
        return client

    async def join(self, agent_id: str, *offers: Offer, **options: Any) -> MeshClient:
        client = self.make(agent_id, *offers, **options)
        await client.start(wait_seconds=5)
        return client

    async def break_connections(self) -> None:
        """Break every connection and wait until each client has noticed."""
        clients = [client for client in self.clients if client.connected]
        lost = [asyncio.Event() for _ in clients]
        for client, event in zip(clients, lost, strict=True):
            client.on_disconnected.append(_setter(event))
        self.network.cut()
        for member in list(self.router._members.values()):
            transport = getattr(member.outbox.connection, "_transport", None)  # type: ignore[attr-defined]
            if transport is not None:
                transport.abort()
        await asyncio.gather(*(asyncio.wait_for(event.wait(), 5) for event in lost))

    async def close(self) -> None:
        for client in self.clients:
            await client.stop(drain_seconds=0.1)
        await self.router.stop()


def _setter(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def notice() -> None:
        event.set()

    return notice


@pytest.fixture(params=["memory", "websocket"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    mesh = Mesh(request.param)
    await mesh.open()
    yield mesh
    await mesh.close()


@pytest.fixture
async def memory_mesh() -> AsyncIterator[Mesh]:
    mesh = Mesh("memory")
    await mesh.open()
    yield mesh
    await mesh.close()


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cloth: str
    pieces: int = 2


def make_offer(handler: Handler, name: str = "cut", **options: Any) -> Offer:
    return Offer(capability=Capability(id=name, **options.pop("announced", {})), handler=handler, **options)


async def echo(incoming: Incoming) -> object:
    return {"got": incoming.parameters, "context": incoming.context}


async def test_request_brings_back_the_handlers_result(mesh: Mesh) -> None:
    await mesh.join("worker", make_offer(echo))
    asker = await mesh.join("asker")
    assert await asker.request("cut", {"a": 1}, context={"k": [1]}) == {
        "got": {"a": 1},
        "context": {"k": [1]},
    }
    answer = await asker.request_full("cut", {}, agent_id="worker")
    assert (answer.agent_id, answer.status) == ("worker", "success")


async def test_parameters_and_results_can_be_structs(mesh: Mesh) -> None:
    async def cut(incoming: Incoming) -> object:
        return Reply(Cut(incoming.parameters.cloth, incoming.parameters.pieces + 1), metadata={"m": 1})

    await mesh.join("worker", make_offer(cut, parameters_type=Cut))
    asker = await mesh.join("asker")
    answer = await asker.request_full("cut", Cut("silk"), reply_type=Cut)
    assert (answer.result, answer.metadata) == (Cut("silk", 3), {"m": 1})
    with pytest.raises(InvalidParameters) as wrong:
        await asker.request("cut", {"cloth": "silk", "pieces": "two"})
    assert wrong.value.details["path"] == "$.pieces"
    with pytest.raises(InvalidParameters):
        await asker.request("cut", {"cloth": "silk", "colour": "red"})
    with pytest.raises(InvalidSchema):
        await asker.request("cut", Cut("silk"), reply_type=int)


async def test_handlers_failures_reach_the_caller_as_what_they_are(memory_mesh: Mesh, caplog: Any) -> None:
    async def fail(incoming: Incoming) -> object:
        match incoming.parameters["how"]:
            case "own":
                raise AmpError("OUT_OF_CLOTH", "no cloth", {"left": 0}, retryable=True)
            case "bug":
                raise KeyError("secret internals")
            case "unencodable":
                return object()
            case "large":
                return "x" * 9_000_000
            case "failed":
                return Reply({}, status="failed")
            case _:
                raise TimeoutError

    await memory_mesh.join("worker", make_offer(fail))
    asker = await memory_mesh.join("asker")
    with pytest.raises(AmpError) as own:
        await asker.request("cut", {"how": "own"})
    assert (own.value.code, own.value.details["left"], own.value.retryable) == ("OUT_OF_CLOTH", 0, True)
    for how in ("bug", "unencodable", "failed", "timeout"):
        with pytest.raises(ExecutionError) as failed:
            await asker.request("cut", {"how": how})
        assert "secret" not in str(failed.value)
    with pytest.raises(InsufficientResources):
        await asker.request("cut", {"how": "large"})


async def test_missing_agents_and_capabilities_are_errors_at_once(mesh: Mesh) -> None:
    asker = await mesh.join("asker", make_offer(echo))
    with pytest.raises(AgentNotFound):
        await asker.request("cut", {}, agent_id="nobody")
    with pytest.raises(CapabilityNotFound):
        await asker.request("sew", {})


async def test_patient_request_waits_for_the_agent_to_join(mesh: Mesh) -> None:
    asker = await mesh.join("asker")
    waiting = asyncio.create_task(asker.request("cut", {}, patience_seconds=10))
    pressed = asyncio.create_task(asker.request("cut", {}, patience_seconds=0.05))
    with pytest.raises(CapabilityNotFound):
        await pressed
    await mesh.join("worker", make_offer(echo))
    assert (await waiting)["got"] == {}


async def test_caller_gives_up_when_the_time_is_over(mesh: Mesh) -> None:
    async def hang(incoming: Incoming) -> object:
        await asyncio.sleep(60)
        return None

    await mesh.join("worker", make_offer(hang))
    asker = await mesh.join("asker")
    with pytest.raises(RequestTimeout):
        await asker.request("cut", {}, timeout_seconds=0.05)


async def test_request_under_way_fails_when_the_connection_breaks(mesh: Mesh) -> None:
    started = asyncio.Event()

    async def hang(incoming: Incoming) -> object:
        started.set()
        await asyncio.sleep(60)
        return None

    await mesh.join("worker", make_offer(hang))
    asker = await mesh.join("asker")
    asked = asyncio.create_task(asker.request("cut", {}, patience_seconds=5))
    await started.wait()
    await mesh.break_connections()
    with pytest.raises(Disconnected) as broken:
        await asked
    assert broken.value.details["sent"] is True


async def test_idempotent_request_survives_and_is_performed_once(mesh: Mesh) -> None:
    performed = 0
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(incoming: Incoming) -> object:
        nonlocal performed
        performed += 1
        started.set()
        await go_on.wait()
        return {"performed": performed}

    await mesh.join("worker", make_offer(slow))
    asker = await mesh.join("asker")
    asked = asyncio.create_task(asker.request("cut", {}, resend=True, patience_seconds=5))
    await started.wait()
    await mesh.break_connections()
    go_on.set()
    assert await asked == {"performed": 1}
    again = await asker.request("cut", {}, resend=True, message_id="fixed")
    assert await asker.request("cut", {}, resend=True, message_id="fixed") == again == {"performed": 2}


async def test_subscriptions_and_callbacks_survive_a_reconnect(mesh: Mesh) -> None:
    got: asyncio.Queue[Event] = asyncio.Queue()
    reconnected = asyncio.Event()
    listener = await mesh.join("listener")
    talker = await mesh.join("talker")
    await listener.subscribe("log.*", got.put)
    await talker.publish("log.first", {"n": 1}, subscribers_only=True)
    assert (await asyncio.wait_for(got.get(), 5)).data == {"event_type": "log.first", "n": 1}
    listener.on_connected.append(_setter(reconnected))
    await mesh.break_connections()
    await asyncio.wait_for(reconnected.wait(), 5)
    while not talker.connected:
        await asyncio.sleep(0.01)
    await talker.publish("other", {})
    await talker.publish("log.second", Cut("x"), agent_id="listener")
    event = await asyncio.wait_for(got.get(), 5)
    assert (event.event_type, event.source_agent_id) == ("log.second", "talker")


async def test_failing_event_handler_does_not_end_its_subscription(memory_mesh: Mesh, caplog: Any) -> None:
    got: asyncio.Queue[Event] = asyncio.Queue()

    def handle(event: Event) -> None:
        if event.data["n"] == 1:
            raise ValueError
        got.put_nowait(event)

    listener = await memory_mesh.join("listener")
    talker = await memory_mesh.join("talker")
    await listener.subscribe("n", handle)
    for number in (1, 2):
        await talker.publish("n", {"n": number})
    assert (await asyncio.wait_for(got.get(), 5)).data["n"] == 2


async def test_event_without_a_connection_is_dropped_and_counted(memory_mesh: Mesh) -> None:
    client = memory_mesh.make("asker")
    await client.publish("x", {})
    assert client.events_dropped == 1
    with pytest.raises(Disconnected) as absent:
        await client.request("cut", {})
    assert absent.value.details["sent"] is False


async def test_second_agent_with_the_same_id_is_told_so(mesh: Mesh) -> None:
    await mesh.join("worker")
    with pytest.raises(AgentIdInUse):
        await mesh.join("worker")


async def test_router_that_is_not_there_is_reported_in_time() -> None:
    client = MeshClient(AgentIdentity(id="a"), MemoryNetwork().transport())
    with pytest.raises(NetworkError):
        await client.start(wait_seconds=0.05)
    await client.stop()
    unstarted = MeshClient(AgentIdentity(id="a"), MemoryNetwork().transport())
    await unstarted.stop()
    with pytest.raises(LocalProtocolError):
        await client.start()


async def test_refused_key_ends_the_start() -> None:
    router = Router(credentials=Credentials(api_keys={"right": None}))
    await router.start_http("127.0.0.1", 0)
    url = f"ws://127.0.0.1:{router.port}/ws"
    client = MeshClient(AgentIdentity(id="a"), WebSocketTransport(url, api_key="wrong"))
    with pytest.raises(AuthenticationFailed):
        await client.start(wait_seconds=5)
    good = MeshClient(AgentIdentity(id="a"), WebSocketTransport(url, api_key="right"))
    await good.start(wait_seconds=5)
    await good.stop()
    await router.stop()
    await router.stop()


async def test_stopping_drains_and_fails_nothing(mesh: Mesh) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(incoming: Incoming) -> object:
        started.set()
        await go_on.wait()
        return {}

    worker = await mesh.join("worker", make_offer(slow))
    asker = await mesh.join("asker")
    asked = asyncio.create_task(asker.request("cut", {}))
    await started.wait()
    stopping = asyncio.create_task(worker.stop())
    refused = CapabilityNotFound
    while True:
        try:
            await asker.request("cut", {}, timeout_seconds=0.05)
        except refused:
            break
        except RequestTimeout:
            continue
    go_on.set()
    assert await asked == {}
    await stopping
    await worker.stop()


async def test_agent_that_stops_in_the_middle_is_lost_to_its_callers(mesh: Mesh) -> None:
    started = asyncio.Event()

    async def hang(incoming: Incoming) -> object:
        started.set()
        await asyncio.sleep(60)
        return None

    worker = await mesh.join("worker", make_offer(hang))
    asker = await mesh.join("asker")
    asked = asyncio.create_task(asker.request("cut", {}))
    await started.wait()
    await worker.stop(drain_seconds=0)
    with pytest.raises(AgentLost):
        await asked


async def test_work_above_the_credit_waits_in_the_router_then_is_refused(memory_mesh: Mesh) -> None:
    go_on = asyncio.Event()
    most = running = 0

    async def slow(incoming: Incoming) -> object:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        return {}

    await memory_mesh.join("worker", make_offer(slow), max_in_flight=2)
    asker = await memory_mesh.join("asker")
    asked = [asyncio.create_task(asker.request("cut", {})) for _ in range(6)]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(done.pop().exception(), InsufficientResources)
    go_on.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, dict) for each in results].count(True) == 5
    assert most == 2


async def test_discovery_shows_live_agents(mesh: Mesh) -> None:
    await mesh.join("worker", make_offer(echo), make_offer(echo, "sew"))
    asker = await mesh.join("asker")
    assert [each["identity"]["id"] for each in await asker.discover(capabilities=["cut", "sew"])] == [
        "worker"
    ]
    assert await asker.discover(pattern="fly*") == []


async def test_slow_subscriber_is_told_and_subscribes_again(memory_mesh: Mesh) -> None:
    listener = await memory_mesh.join("listener")
    talker = await memory_mesh.join("talker")
    got: asyncio.Queue[Event] = asyncio.Queue()
    await listener.subscribe("n", got.put)
    caught_up = asyncio.Event()
    listener.on_connected.append(_setter(caught_up))
    router = memory_mesh.router
    session = router.routing.registry.agents["listener"]
    outbox = router._members[session.key].outbox
    outbox._max_frames = 1  # type: ignore[attr-defined]
    for _ in range(3):
        router._fan_out((session,), b'{"type":"heartbeat"}')
    assert session.lagging
    outbox._max_frames = 100  # type: ignore[attr-defined]
    await asyncio.wait_for(caught_up.wait(), 5)
    await talker.publish("n", {"n": 1})
    assert (await asyncio.wait_for(got.get(), 5)).data["n"] == 1


class ScriptedConnection:
    """A router that says what the test wants."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []

    async def connect(self) -> Connection:
        return self

    async def send(self, frame: bytes) -> None:
        value = json.loads(frame)
        self.sent.append(value)
        if value.get("type") == "heartbeat":
            return
        message = value["message"]
        if message["destination"].get("agent_id") == "registry":
            self.say(
                "response",
                {"status": "success", "result": {}},
                correlation_id=message["id"],
                source="registry",
            )

    def say(self, kind: str, payload: Any, *, source: str = "router", **headers: Any) -> None:
        message = {
            "id": f"s{len(self.sent)}",
            "type": kind,
            "timestamp": 0,
            "source": {"agent_id": source},
            "destination": {},
            "headers": headers,
            "payload": payload,
        }
        self.frames.put_nowait(json.dumps({"protocol": "AMP/1.0", "message": message}).encode())

    async def receive(self) -> bytes:
        return await self.frames.get()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        return None


async def test_nonsense_from_a_peer_does_not_break_the_client() -> None:
    router = ScriptedConnection()
    client = MeshClient(AgentIdentity(id="a"), router, heartbeat_interval_seconds=0.01)
    got: asyncio.Queue[Event] = asyncio.Queue()
    await client.start(wait_seconds=5)
    await client.subscribe("*", got.put)
    router.frames.put_nowait(b"{broken")
    router.say("event", {"no": "type"})
    router.say("event", {"event_type": 5})
    router.say("error", {"error": 5}, correlation_id="unknown")
    router.say("request", {"capability": 7})
    router.say("event", {"event_type": "good"})
    while (await asyncio.wait_for(got.get(), 5)).event_type != "good":
        pass
    while not any(each.get("type") == "heartbeat" for each in router.sent):
        await asyncio.sleep(0.01)
    assert client.connected
    replies = [each["message"] for each in router.sent if each.get("message", {}).get("type") == "error"]
    assert replies[0]["payload"]["error"]["code"] == "INVALID_PARAMETERS"
    await client.stop()


async def test_answer_that_cannot_be_read_is_the_peers_fault() -> None:
    router = ScriptedConnection()
    client = MeshClient(AgentIdentity(id="a"), router)
    await client.start(wait_seconds=5)
    asked = asyncio.create_task(client.request("x", {}, message_id="m1"))
    while not any(each.get("message", {}).get("id") == "m1" for each in router.sent):
        await asyncio.sleep(0.01)
    with pytest.raises(LocalProtocolError):
        await client.request("x", {}, message_id="m1")
    router.say("response", {"status": 5}, correlation_id="m1")
    with pytest.raises(InvalidSchema):
        await asked
    await client.stop()


@pytest.mark.parametrize("attempt", [1, 2, 5, 50])
def test_backoff_grows_to_its_cap(attempt: int) -> None:
    shortest, longest = backoff_seconds(attempt, 0.0), backoff_seconds(attempt, 0.999)
    assert shortest <= longest <= MAX_DELAY_SECONDS
    assert shortest >= min(MAX_DELAY_SECONDS, 0.05 * 2 ** (attempt - 1)) / 2


async def test_connect_failures_are_retried_until_the_router_is_there() -> None:
    network = MemoryNetwork()
    client = MeshClient(AgentIdentity(id="a"), network.transport(), random=Random(1))
    starting = asyncio.create_task(client.start())
    await asyncio.sleep(0.02)
    router = Router()
    router.serve_memory(network)
    await asyncio.wait_for(starting, 5)
    assert client.connected
    await client.stop()
    await router.stop()


def test_errors_of_a_connection_carry_their_facts() -> None:
    assert ConnectionClosed(code=1001).code == 1001
    assert ConnectFailed("x", permanent=True).permanent


async def test_lost_agents_idempotent_request_goes_to_another_at_once(mesh: Mesh) -> None:
    started: list[str] = []
    first_started = asyncio.Event()

    def make(agent_id: str) -> Offer:
        async def cut(incoming: Incoming) -> object:
            started.append(agent_id)
            if len(started) == 1:
                first_started.set()
                await asyncio.sleep(60)
            return agent_id

        return make_offer(cut)

    workers = {name: await mesh.join(name, make(name)) for name in ("one", "two")}
    asker = await mesh.join("asker")
    asked = asyncio.create_task(asker.request("cut", {}, resend=True, patience_seconds=10))
    await first_started.wait()
    await workers[started[0]].stop(drain_seconds=0)
    assert await asyncio.wait_for(asked, 5) == started[1] != started[0]


async def test_stopping_a_client_that_is_still_looking_ends_its_start() -> None:
    client = MeshClient(AgentIdentity(id="a"), MemoryNetwork().transport(), api_key="k")
    starting = asyncio.create_task(client.start())
    await asyncio.sleep(0)
    await client.stop()
    with pytest.raises(Disconnected):
        await starting


async def test_answer_of_the_registry_respects_what_the_client_reads(memory_mesh: Mesh) -> None:
    large = {"type": "object", "description": "x" * 3000}
    offers = [make_offer(echo, f"cut-{number}", announced={"input_schema": large}) for number in range(5)]
    await memory_mesh.join("worker", *offers)
    asker = await memory_mesh.join("asker", max_frame_bytes=4096)
    with pytest.raises(InsufficientResources):
        await asker.discover()
