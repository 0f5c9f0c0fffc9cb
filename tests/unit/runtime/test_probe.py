"""The supervisor's question: 200 is yes, all else is no."""

import asyncio
import contextlib

import pytest

from runtime.probe import answers_ok


async def asked(answer: bytes, timeout_seconds: float = 5.0) -> bool:
    """Return what the probe makes of an answer; an empty one never comes."""

    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:")
        writer.write(answer)
        if not answer:
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        ok = await answers_ok(f"http://127.0.0.1:{port}/health", timeout_seconds=timeout_seconds)
        await closed.wait()
    return ok


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", True),
        (b"HTTP/1.0 200 \r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"HTTP/1.1 2000 Strange\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH 200\r\n", False),
        (b"200 200\r\n", False),
        (b"\r\n", False),
        (b"x" * 5000, False),
    ],
)
async def test_only_200_is_healthy(answer: bytes, ok: bool) -> None:
    assert await asked(answer) is ok


async def test_silence_is_not_healthy() -> None:
    assert not await asked(b"", timeout_seconds=0.01)


async def test_nobody_there_is_not_healthy(unused_tcp_port: int) -> None:
    assert not await answers_ok(f"http://127.0.0.1:{unused_tcp_port}/health", timeout_seconds=1)
