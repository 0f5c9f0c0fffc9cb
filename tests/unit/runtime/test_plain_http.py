"""The small HTTP server: what it reads, what it refuses, and that nothing of it grows or stays."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime import plain_http
from runtime.plain_http import Answer, PlainHttpServer, Request, parse_head


def echo(request: Request) -> Answer:
    if request.path == "/broken":
        raise RuntimeError("broken")
    return Answer(body=request.path.encode())


@asynccontextmanager
async def serving(**bounds: float) -> AsyncIterator[int]:
    server = PlainHttpServer(echo, **bounds)  # type: ignore[arg-type]
    try:
        yield await server.start("127.0.0.1", 0)
    finally:
        await server.stop()


async def exchange(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await reader.read()
    finally:
        writer.close()


def test_head_becomes_a_request() -> None:
    request = parse_head(b"GET /health?full=1 HTTP/1.1\r\nHost: a:1\r\nAccept: x\r\naccept:\ty \r\n\r\n")
    assert request == Request(method="GET", path="/health", headers={"host": "a:1", "accept": "x, y"})


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\nHost: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (plain_http.MAX_HEADERS + 1) + b"\r\n",
    ],
)
def test_head_that_could_be_read_in_two_ways_is_none(head: bytes) -> None:
    assert parse_head(head) is None


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET /a HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"PUT /a HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
        (b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 500 Internal Server Error"),
        (b"GET /a HTTP/1.1\r\nA: " + b"x" * 20_000, b"HTTP/1.1 431 Request Header Fields Too Large"),
    ],
)
async def test_status_says_what_became_of_the_request(sent: bytes, line: bytes) -> None:
    async with serving() as port:
        assert (await exchange(port, sent)).split(b"\r\n", 1)[0] == line


async def test_answer_to_head_has_the_length_and_no_body() -> None:
    async with serving() as port:
        answer = await exchange(port, b"HEAD /abc HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"Content-Length: 4\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_second_request_on_a_connection_is_not_answered() -> None:
    async with serving() as port:
        answer = await exchange(port, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    assert answer.count(b"HTTP/1.1 200 OK") == 1


async def test_slow_client_is_dropped() -> None:
    async with serving(connection_seconds=0.01) as port, asyncio.timeout(5):
        assert await dropped(port, b"GET /a HT")


async def test_connection_beyond_the_bound_is_closed() -> None:
    async with serving(max_connections=1) as port, asyncio.timeout(5):
        _, first = await asyncio.open_connection("127.0.0.1", port)
        assert await dropped(port, b"")
        first.close()


async def test_stop_ends_open_connections_and_works_twice() -> None:
    server = PlainHttpServer(echo)
    await server.stop()
    port = await server.start("127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5):
        await server.stop()
        await server.stop()
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def dropped(port: int, sent: bytes) -> bool:
    """Return whether the server ends the connection without an answer."""
    try:
        return await exchange(port, sent) == b""
    except ConnectionResetError:
        return True
