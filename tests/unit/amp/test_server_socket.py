"""The router's WebSocket, spoken to byte by byte: fragments, control frames, and whatever breaks the protocol."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from amp import crash
from amp.router import Router, RouterLimits
from amp.server_socket import CLOSE_NOT_UTF8, CLOSE_PROTOCOL_ERROR, CLOSE_TOO_BIG, accept_key

END_SECONDS = 10.0
MAX_FRAME_BYTES = 1000
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class Peer:
    """A client that writes whatever bytes it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def frame(
        self, opcode: int, payload: bytes, *, final: bool = True, masked: bool = True, reserved: int = 0
    ) -> bytes:
        head = bytes([(0x80 if final else 0) | reserved | opcode])
        size = bytes([(0x80 if masked else 0) | min(len(payload), 126)])
        if len(payload) > 125:
            size += len(payload).to_bytes(2, "big")
        mask = b"\x01\x02\x03\x04" if masked else b""
        body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if masked else payload
        return head + size + mask + body

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def read(self) -> tuple[int, bytes]:
        first, second = await self.reader.readexactly(2)
        assert not second & 0x80
        length = second & 0x7F
        if length == 126:
            length = int.from_bytes(await self.reader.readexactly(2), "big")
        return first & 0x0F, await self.reader.readexactly(length)

    async def read_error(self) -> str:
        opcode, payload = await self.read()
        assert opcode == TEXT
        code: str = json.loads(payload)["message"]["payload"]["error"]["code"]
        return code


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    router = Router(limits=RouterLimits(max_frame_bytes=MAX_FRAME_BYTES))
    await router.start_http("127.0.0.1", 0)
    async with asyncio.timeout(END_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in answer
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer
        yield Peer(reader, writer)
        writer.close()
        await router.stop()


def test_only_a_websocket_handshake_is_one() -> None:
    good = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert accept_key(good) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    wrong = [
        {"Upgrade": "h2c"},
        {"Connection": "close"},
        {"Sec-WebSocket-Version": "8"},
        {"Sec-WebSocket-Key": "short"},
    ]
    assert [accept_key({**good, **each}) for each in wrong] == [None] * len(wrong)


async def test_text_arrives_whole_in_fragments_and_byte_by_byte(peer: Peer) -> None:
    whole = peer.frame(TEXT, b"{}")
    parts = peer.frame(TEXT, b"{", final=False) + peer.frame(PING, b"p") + peer.frame(0, b"}")
    peer.send(whole, parts)
    answers = sorted([await peer.read() for _ in range(3)])
    assert [opcode for opcode, _ in answers] == [TEXT, TEXT, PONG]
    assert answers[-1][1] == b"p"
    for byte in whole + peer.frame(TEXT, b" " * 500):
        peer.send(bytes([byte]))
        await peer.writer.drain()
    assert [await peer.read_error() for _ in range(2)] == ["INVALID_SCHEMA"] * 2


async def test_binary_and_large_messages_are_refused_and_the_connection_stays(peer: Peer) -> None:
    peer.send(
        peer.frame(BINARY, b"\x00"),
        peer.frame(BINARY, b"\x00", final=False) + peer.frame(0, b"\x00"),
        peer.frame(TEXT, b" " * (MAX_FRAME_BYTES + 1)),
        peer.frame(TEXT, b"{}"),
    )
    codes = [await peer.read_error() for _ in range(4)]
    assert codes == ["INVALID_SCHEMA", "INVALID_SCHEMA", "INSUFFICIENT_RESOURCES", "INVALID_SCHEMA"]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([(TEXT, b"{}", {"masked": False})], CLOSE_PROTOCOL_ERROR),
        ([(TEXT, b"{}", {"reserved": 0x40})], CLOSE_PROTOCOL_ERROR),
        ([(0x3, b"", {})], CLOSE_PROTOCOL_ERROR),
        ([(0xB, b"", {})], CLOSE_PROTOCOL_ERROR),
        ([(PING, b"", {"final": False})], CLOSE_PROTOCOL_ERROR),
        ([(PING, b" " * 126, {})], CLOSE_PROTOCOL_ERROR),
        ([(0, b"", {})], CLOSE_PROTOCOL_ERROR),
        ([(TEXT, b"{", {"final": False}), (TEXT, b"}", {})], CLOSE_PROTOCOL_ERROR),
        ([(TEXT, b"\xff", {})], CLOSE_NOT_UTF8),
        ([(TEXT, b" " * (2 * MAX_FRAME_BYTES + 1), {})], CLOSE_TOO_BIG),
        ([(TEXT, b" " * MAX_FRAME_BYTES, {"final": False}), (0, b" " * (MAX_FRAME_BYTES + 1), {})], CLOSE_TOO_BIG),
        ([(CLOSE, b"\x03\xe8", {})], 1000),
        ([(CLOSE, b"", {})], 1000),
    ],
)  # fmt: skip
async def test_breach_of_the_protocol_ends_the_connection_with_its_code(
    peer: Peer, frames: list[tuple[int, bytes, dict[str, int]]], code: int
) -> None:
    for opcode, payload, options in frames:
        peer.send(peer.frame(opcode, payload, **options))  # type: ignore[arg-type]
    opcode, payload = await peer.read()
    assert (opcode, int.from_bytes(payload[:2], "big")) == (CLOSE, code)
    peer.writer.write_eof()
    assert await peer.reader.read() == b""


async def test_bug_in_the_router_is_an_error_to_the_sender_and_the_connection_stays(peer: Peer) -> None:
    crash.arm("router.registration.before_answer:1:raise")
    try:
        message = {
            "id": "m1",
            "type": "request",
            "timestamp": 0,
            "source": {"agent_id": "a"},
            "destination": {"agent_id": "registry", "capability": "discovery"},
            "headers": {},
            "payload": {"query": {}},
        }
        frame = peer.frame(TEXT, json.dumps({"protocol": "AMP/1.0", "message": message}).encode())
        peer.send(frame)
        assert await peer.read_error() == "INTERNAL_ERROR"
        peer.send(frame, peer.frame(TEXT, b"{}"))
        opcode, payload = await peer.read()
        assert (opcode, json.loads(payload)["message"]["type"]) == (TEXT, "response")
        assert await peer.read_error() == "INVALID_SCHEMA"
    finally:
        crash.arm(None)
