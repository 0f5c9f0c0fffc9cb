"""The live channel over a fake mesh: snapshots, gap-free events, resuming, coalescing, slow and rude clients."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from amp.errors import NetworkError
from orchestration import events as e
from tests.web.fake_mesh import START, FakeMesh, later
from web.server import sockets, topics
from web.server.application import WebApplication
from web.server.outbox import MAX_EVENTS

WAIT_SECONDS = 5


class Page:
    """A browser's end of the channel."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def say(self, **frame: Any) -> None:
        await self.socket.send_json(frame)

    async def hear(self, *ops: str) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                message = await self.socket.receive()
                assert message.type == aiohttp.WSMsgType.TEXT, message
                frame: dict[str, Any] = json.loads(message.data)
                if frame["op"] in ops:
                    return frame

    async def watch(self, topic: str, number: int = 1, **more: Any) -> dict[str, Any]:
        await self.say(op="sub", id=number, topic=topic, **more)
        return await self.hear("snapshot", "events", "error")


async def connect(http: aiohttp.ClientSession) -> Page:
    return Page(await http.ws_connect("/api/ws", protocols=["amp.ui.v1"]))


def many(count: int, first: int = 0) -> list[e.Event]:
    return [e.VariablesUpdated(at=later(START, first + n), updates={"n": n}) for n in range(count)]


async def test_channel_speaks_its_subprotocol(http: aiohttp.ClientSession) -> None:
    page = await connect(http)
    assert page.socket.protocol == "amp.ui.v1"


async def test_instance_begins_with_a_snapshot_and_goes_on_with_events(
    http: aiohttp.ClientSession, mesh: FakeMesh
) -> None:
    page = await connect(http)
    snapshot = await page.watch("instance:ins_1")
    assert (snapshot["op"], snapshot["seq"], snapshot["data"]["seq"]) == ("snapshot", 1, 1)
    mesh.emit(
        "ins_1", e.InstanceAdmitted(at=START), e.TaskStarted(at=START, task_id="a", attempt=1, token="t")
    )
    frame = await page.hear("events")
    assert (frame["from"], frame["to"]) == (2, 3)
    assert [event["type"] for event in frame["events"]] == ["workflow.admitted", "task.started"]


async def test_client_resumes_after_the_seq_it_has(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    mesh.emit("ins_1", *many(5))
    page = await connect(http)
    frame = await page.watch("instance:ins_1", after=2)
    assert (frame["op"], frame["from"], frame["to"]) == ("events", 3, 6)
    mesh.emit("ins_1", *many(1))
    assert (await page.hear("events"))["from"] == 7


async def test_client_that_is_far_behind_or_ahead_gets_a_snapshot(
    http: aiohttp.ClientSession, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "MAX_RESUMED_EVENTS", 3)
    mesh.emit("ins_1", *many(9))
    page = await connect(http)
    assert (await page.watch("instance:ins_1", 1, after=1))["op"] == "snapshot"
    assert (await page.watch("instance:ins_1", 2, after=99))["op"] == "snapshot"


async def test_events_have_no_gaps_though_hints_are_lost(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    page = await connect(http)
    await page.watch("instance:ins_1")
    seen = 1
    for round_number in range(10):
        mesh.emit("ins_1", *many(3), hint=round_number % 2 == 1)
        if round_number % 2:
            frame = await page.hear("events")
            assert frame["from"] == seen + 1
            seen = frame["to"]
    assert seen == 31


async def test_secrets_never_reach_the_channel(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    page = await connect(http)
    snapshot = await page.watch("instance:ins_1")
    mesh.emit("ins_1", e.VariablesUpdated(at=START, updates={"note": "it is secret-pin"}))
    frame = await page.hear("events")
    assert "secret-pin" not in json.dumps([snapshot, frame])


async def test_overview_sends_only_what_changed(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    mesh.create("small", "ins_2")
    page = await connect(http)
    snapshot = await page.watch("overview")
    assert set(snapshot["data"]["items"]) == {"ins_1", "ins_2"}
    assert snapshot["data"]["missing"] == []
    mesh.emit("ins_1", e.InstanceAdmitted(at=START))
    patch = await page.hear("patch")
    assert set(patch["data"]["items"]) == {"ins_1"}
    assert patch["data"]["items"]["ins_1"]["status"] == "running"


async def test_lists_are_filtered_and_rows_leave_them(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    page = await connect(http)
    snapshot = await page.watch("instances?status=pending&workflow_id=small")
    assert snapshot["data"]["order"] == ["ins_1"]
    mesh.emit("ins_1", e.InstanceAdmitted(at=START))
    patch = await page.hear("patch")
    assert (patch["data"]["order"], patch["data"]["items"]) == ([], {"ins_1": None})


async def test_fast_changes_are_coalesced(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    page = await connect(http)
    await page.watch("overview")
    before = sum(capability == "instance-list" for capability, _ in mesh.requests)
    for _ in range(200):
        mesh.emit("ins_1", *many(1))
        await asyncio.sleep(0)
    last = await page.hear("patch")
    while last["data"].get("items", {}).get("ins_1", {}).get("seq") != 201:
        last = await page.hear("patch")
    after = sum(capability == "instance-list" for capability, _ in mesh.requests)
    assert after - before <= 3 * 4


async def test_agents_come_and_go(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    page = await connect(http)
    assert len((await page.watch("agents"))["data"]["items"]) == 6
    del mesh.agents["error-handler"]
    mesh.publish("agent.left", {"agent_id": "error-handler"})
    patch = await page.hear("patch")
    assert patch["data"] == {"items": {"error-handler": None}, "missing": ["Error handler"]}


@pytest.mark.parametrize(("status", "is_well"), [("healthy", True), ("present", True), ("unhealthy", False)])
async def test_agents_are_as_well_as_the_monitor_says(
    http: aiohttp.ClientSession, mesh: FakeMesh, status: str, is_well: bool
) -> None:
    mesh.health["error-handler"] = status
    page = await connect(http)
    agent = (await page.watch("agents"))["data"]["items"]["error-handler"]
    assert (agent["status"], agent["is_well"]) == (status, is_well)


async def test_agents_without_a_monitor_are_present(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    del mesh.agents["monitor-agent"]
    page = await connect(http)
    document = (await page.watch("agents"))["data"]
    assert {agent["status"] for agent in document["items"].values()} == {"present"}
    assert document["missing"] == ["Monitor agent"]


async def test_absent_state_manager_is_told_and_its_return_too(
    http: aiohttp.ClientSession, mesh: FakeMesh
) -> None:
    page = await connect(http)
    assert (await page.hear("status"))["source"] == "ok"
    await page.watch("instance:ins_1")
    mesh.failing["log-read"] = NetworkError("gone")
    mesh.publish("log.advanced", {"offset": 99})
    assert (await page.hear("status"))["source"] == "unavailable"
    mesh.emit("ins_1", *many(2), hint=False)
    del mesh.failing["log-read"]
    for connected in mesh.on_connected:
        await connected()
    frames = [await page.hear("status", "events"), await page.hear("status", "events")]
    assert {frame["op"] for frame in frames} == {"status", "events"}
    assert next(frame for frame in frames if frame["op"] == "events")["to"] == 3


async def test_another_log_makes_everybody_begin_anew(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    page = await connect(http)
    mesh.emit("ins_1", *many(5))
    await page.watch("instance:ins_1")
    mesh.emit("ins_1", *many(1))
    await page.hear("events")
    mesh.log.clear()
    mesh.create("small", "ins_1", {"name": "again"})
    assert (await page.hear("resync"))["id"] == 1
    snapshot = await page.watch("instance:ins_1", 2)
    assert snapshot["data"]["instance"]["inputs"] == {"name": "again"}


async def test_purged_end_of_the_log_is_still_the_same_log(
    http: aiohttp.ClientSession, mesh: FakeMesh
) -> None:
    page = await connect(http)
    mesh.emit("ins_1", *many(5))
    await page.watch("instance:ins_1")
    mesh.emit("ins_1", *many(1))
    await page.hear("events")
    mesh.purged_to = mesh.newest
    mesh.log.clear()
    mesh.publish("log.advanced", {"offset": 1})
    mesh.emit("ins_1", *many(1))
    assert (await page.hear("events", "resync"))["op"] == "events"


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        ("instance:nope", "instance_not_found"),
        ("weather", "topic_not_found"),
        ("instances?colour=red", "invalid_topic"),
        ("instances?status=asleep", "invalid_topic"),
    ],
)
async def test_bad_topic_is_answered_with_an_error(
    http: aiohttp.ClientSession, topic: str, code: str
) -> None:
    page = await connect(http)
    frame = await page.watch(topic, 7)
    assert (frame["op"], frame["id"], frame["code"]) == ("error", 7, code)
    assert (await page.watch("overview", 8))["op"] == "snapshot"


async def test_one_connection_watches_a_bounded_number_of_topics(http: aiohttp.ClientSession) -> None:
    page = await connect(http)
    for number in range(1, 21):
        assert (await page.watch("instance:ins_1", number))["op"] == "snapshot"
    assert (await page.watch("instance:ins_1", 21))["code"] == "too_many_topics"
    await page.say(op="unsub", id=1)
    assert (await page.watch("instance:ins_1", 21))["op"] == "snapshot"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"op": 1}', '{"op": "dance"}', '{"op": "sub", "extra": 1}', '"x"']
)
async def test_bad_frame_is_answered_and_the_channel_lives(http: aiohttp.ClientSession, text: str) -> None:
    page = await connect(http)
    await page.socket.send_str(text)
    assert (await page.hear("error"))["id"] == 0
    await page.say(op="ping", t=1.5)
    assert (await page.hear("pong"))["t"] == 1.5


async def test_rude_client_is_sent_away(http: aiohttp.ClientSession) -> None:
    page = await connect(http)
    for _ in range(sockets.MAX_BAD_FRAMES + 1):
        await page.socket.send_str("{")
    async with asyncio.timeout(WAIT_SECONDS):
        while (await page.socket.receive()).type == aiohttp.WSMsgType.TEXT:
            pass
    assert page.socket.close_code == 1008


@pytest.mark.parametrize("frame", [b"binary", "x" * 100_000])
async def test_binary_and_huge_frames_end_the_channel(
    http: aiohttp.ClientSession, frame: bytes | str
) -> None:
    page = await connect(http)
    await (page.socket.send_bytes(frame) if isinstance(frame, bytes) else page.socket.send_str(frame))
    async with asyncio.timeout(WAIT_SECONDS):
        while (await page.socket.receive()).type == aiohttp.WSMsgType.TEXT:
            pass
    assert page.socket.close_code in (1003, 1009)


async def test_connections_are_bounded_and_free_again(
    http: aiohttp.ClientSession, app: WebApplication
) -> None:
    pages = [await connect(http) for _ in range(3)]
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await connect(http)
    assert caught.value.status == 503
    for page in pages:
        await page.socket.close()
    async with asyncio.timeout(WAIT_SECONDS):
        while app.services.sockets:
            await asyncio.sleep(0)
    await connect(http)


async def test_client_that_falls_behind_resyncs_and_catches_up(
    http: aiohttp.ClientSession, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "FLUSH_SECONDS", 0.5)
    page = await connect(http)
    await page.watch("instance:ins_1")
    mesh.emit("ins_1", *many(MAX_EVENTS + 10))
    frame = await page.hear("resync", "events")
    while frame["op"] == "events":
        frame = await page.hear("resync", "events")
    snapshot = await page.watch("instance:ins_1", 2)
    assert snapshot["seq"] == MAX_EVENTS + 11


async def test_client_that_does_not_read_is_dropped_and_harms_nobody(
    http: aiohttp.ClientSession, mesh: FakeMesh, app: WebApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SEND_TIMEOUT_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port, limit=1024)  # type: ignore[attr-defined]
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    page = await connect(http)
    await page.watch("overview")
    error = e.InstancePaused(at=START, reason="r" * 60_000)
    async with asyncio.timeout(20):
        while len(app.services.sockets) > 1:
            mesh.emit("ins_1", *[error] * 50)
            await asyncio.sleep(0.02)
    mesh.emit("ins_1", e.InstanceAdmitted(at=START))
    while (await page.hear("patch"))["data"].get("items", {}).get("ins_1", {}).get("status") != "running":
        pass
    writer.close()


async def test_older_stream_tells_types_and_echoes(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    socket = await http.ws_connect("/ws")
    await socket.send_str("hello")
    assert (await socket.receive(WAIT_SECONDS)).data == "Echo: hello"
    error = e.ErrorInfo(code="X", message="m")
    mesh.emit(
        "ins_1",
        e.InstanceAdmitted(at=START),
        e.TaskStarted(at=START, task_id="a", attempt=1, token="t"),
        e.TaskCompleted(at=START, task_id="a", attempt=1, outputs={"x": "not sent"}),
        e.InstancePaused(at=START),
        e.InstanceResumed(at=START),
        e.InstanceFailed(at=START, error=error),
    )
    heard = [json.loads((await socket.receive(WAIT_SECONDS)).data) for _ in range(6)]
    assert [message["type"] for message in heard] == [
        "workflow_event", "task_event", "task_completed", "workflow_paused", "workflow_resumed", "workflow_failed",
    ]  # fmt: skip
    assert heard[2]["data"]["task_id"] == "a"
    assert "not sent" not in str(heard)


async def test_tail_finds_the_end_of_a_long_log_quickly(mesh: FakeMesh, app: WebApplication) -> None:
    for _ in range(40):
        mesh.emit("ins_1", *many(50), hint=False)
    before = len(mesh.requests)
    assert await app.services.hub._tail._find_end() == 2001
    assert len(mesh.requests) - before < 40


async def test_stop_works_twice(app: WebApplication, http: aiohttp.ClientSession) -> None:
    page = await connect(http)
    await page.watch("overview")
    await app.stop()
    await app.stop()
