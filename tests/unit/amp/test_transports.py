"""The contract of a transport: whole frames, in order, and an end that is noticed. Memory and WebSocket both pass."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import websockets.asyncio.server as ws

from amp.errors import LocalProtocolError
from amp.transports.base import ConnectFailed, Connection, ConnectionClosed, Transport
from amp.transports.memory import (
    MAX_QUEUED_FRAMES,
    DirectMemoryConnection,
    MemoryConnection,
    MemoryNetwork,
)
from amp.transports.websocket import WebSocketTransport

LARGE = 300_000


@dataclass
class Pair:
    client: Connection
    server: Connection


class _Peer:
    """The far end of a WebSocket, spoken by the library's own server."""

    def __init__(self, socket: ws.ServerConnection) -> None:
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        await self._socket.send(frame, text=True)

    async def receive(self) -> bytes:
        try:
            return await self._socket.recv(decode=False)
        except Exception:
            raise ConnectionClosed from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._socket.close(code, reason)


@pytest.fixture(params=["memory", "direct memory", "websocket"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    if request.param != "websocket":
        network = MemoryNetwork(direct=request.param == "direct memory")
        accepted: list[MemoryConnection] = []
        network.serve(accepted.append)
        client = await network.transport().connect()
        yield Pair(client, accepted[0])
        await client.close()
        return
    arrived: asyncio.Queue[ws.ServerConnection] = asyncio.Queue()
    done = asyncio.Event()

    async def serve(socket: ws.ServerConnection) -> None:
        arrived.put_nowait(socket)
        await done.wait()

    async with ws.serve(serve, "127.0.0.1", 0, compression=None, max_size=LARGE * 2) as server:
        port = server.sockets[0].getsockname()[1]
        transport: Transport = WebSocketTransport(
            f"ws://127.0.0.1:{port}/ws", api_key="k", max_frame_bytes=LARGE
        )
        client = await transport.connect()
        peer = await arrived.get()
        assert peer.request is not None
        assert peer.request.headers["Authorization"] == "Bearer k"
        yield Pair(client, _Peer(peer))
        done.set()
        await client.close()


async def test_frames_arrive_whole_and_in_order_both_ways(pair: Pair) -> None:
    frames = [b"[%d]" % number + b" " * size for number, size in enumerate((0, 100, 200, 70_000, LARGE, 5))]
    for sender, receiver in ((pair.client, pair.server), (pair.server, pair.client)):
        sending = asyncio.create_task(_send_all(sender, frames))
        assert [await receiver.receive() for _ in frames] == frames
        await sending


async def _send_all(sender: Connection, frames: list[bytes]) -> None:
    for frame in frames:
        await sender.send(frame)


async def test_end_is_noticed_by_a_waiting_reader(pair: Pair) -> None:
    waiting = asyncio.create_task(pair.client.receive())
    await asyncio.sleep(0)
    await pair.server.close()
    with pytest.raises(ConnectionClosed):
        await waiting
    with pytest.raises(ConnectionClosed):
        await pair.client.send(b"{}")


async def test_closing_works_twice_and_ends_the_other_side(pair: Pair) -> None:
    await pair.client.close()
    await pair.client.close()
    with pytest.raises(ConnectionClosed):
        await pair.server.receive()


async def test_memory_sender_waits_for_a_slow_reader() -> None:
    client, server = MemoryConnection.pair()
    sending = asyncio.create_task(_send_all(client, [b"{}"] * (MAX_QUEUED_FRAMES + 10)))
    await asyncio.sleep(0)
    assert not sending.done()
    for _ in range(MAX_QUEUED_FRAMES + 10):
        await server.receive()
    await sending


async def test_memory_network_without_router_refuses_and_a_cut_breaks_everything() -> None:
    network = MemoryNetwork()
    with pytest.raises(ConnectFailed):
        await network.transport().connect()
    accepted: list[MemoryConnection] = []
    network.serve(accepted.append)
    client = await network.transport().connect()
    await accepted[0].send(b"lost")
    network.cut()
    with pytest.raises(ConnectionClosed):
        await client.receive()


@pytest.mark.parametrize("url", ["http://127.0.0.1/ws", "ws://", "nonsense"])
def test_address_that_is_no_websocket_is_refused_at_once(url: str) -> None:
    with pytest.raises(LocalProtocolError):
        WebSocketTransport(url)


async def test_connecting_to_nobody_fails_and_to_a_refusal_fails_for_good() -> None:
    async with ws.serve(lambda socket: socket.close(), "127.0.0.1", 0, process_request=_refuse) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectFailed) as refused:
            await WebSocketTransport(f"ws://127.0.0.1:{port}/").connect()
        assert refused.value.permanent
    with pytest.raises(ConnectFailed) as nobody:
        await WebSocketTransport(f"ws://127.0.0.1:{port}/").connect()
    assert not nobody.value.permanent


def _refuse(connection: ws.ServerConnection, request: object) -> object:
    return connection.respond(401, "no\n")


@pytest.mark.parametrize("chunk", [1, 3, 1000, 1_000_000])
async def test_direct_reading_reassembles_frames_cut_anywhere(chunk: int) -> None:
    """Text, ping, fragments and large frames, in pieces of any size."""
    frames = [b'{"a":1}', b"x" * 130, b"y" * 70_000, b"", b"z"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        key = next(
            line.split(b": ")[1]
            for line in request.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        )
        from websockets.utils import accept_key

        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n\r\n"
        )
        await writer.drain()
        await reader.readexactly(1)
        stream = (
            b"".join(_text(each) for each in frames[:3])
            + b"\x89\x02hi"
            + b"".join(_text(each) for each in frames[3:])
        )
        stream += b"\x01\x03abc\x80\x03def"  # a fragmented text
        for start in range(0, min(len(stream), 300) if chunk < 10 else len(stream), chunk):
            writer.write(stream[start : start + chunk])
            if chunk < 10:
                await writer.drain()
                await asyncio.sleep(0)
        if chunk < 10:
            writer.write(
                stream[300 // chunk * chunk :] if 300 % chunk == 0 else stream[(300 // chunk + 1) * chunk :]
            )
        await writer.drain()
        writer.write(b"\x88\x02\x03\xe8")
        await writer.drain()
        await reader.readexactly(8)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = await WebSocketTransport(f"ws://127.0.0.1:{port}/ws").connect()
        got: list[bytes | str] = []
        await connection.send(b"go")
        with pytest.raises(ConnectionClosed):
            await connection.listen(got.append)  # type: ignore[attr-defined]
        assert got == [*frames, b"abcdef"]
        assert connection.write(b"{}") is False  # type: ignore[attr-defined]
        await connection.close()


def _text(payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes((0x81, length)) + payload
    if length < 65536:
        return bytes((0x81, 126)) + length.to_bytes(2, "big") + payload
    return bytes((0x81, 127)) + length.to_bytes(8, "big") + payload


async def test_direct_memory_takes_frames_at_once_until_the_peer_does_not_keep_up() -> None:
    client, server = DirectMemoryConnection.pair()
    numbers = range(MAX_QUEUED_FRAMES + 3)
    taken = [client.write(b"%d" % number) for number in numbers]
    assert taken == [True] * MAX_QUEUED_FRAMES + [False] * 3
    heard: list[bytes | str] = []
    listening = asyncio.create_task(server.listen(heard.append))
    for number in numbers[MAX_QUEUED_FRAMES:]:
        await client.send(b"%d" % number)
    assert client.write(b"last")
    heard_before = len(heard)
    await client.close()
    with pytest.raises(ConnectionClosed):
        await listening
    assert heard == [b"%d" % number for number in numbers] + [b"last"]
    assert heard_before < len(heard), "a frame is never handled within the call that wrote it"
    assert not client.write(b"late")
