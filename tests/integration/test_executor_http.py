"""The way out to HTTP against real local servers: policy at the socket, redirects, sizes, times."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from agents.task_executor.errors import (
    InvalidInput,
    NotPermitted,
    ResultTooLarge,
    TaskFailed,
    TimedOut,
    Unreachable,
)
from agents.task_executor.http_client import HttpAnswer, HttpClient, HttpRequest, parse_url
from runtime.settings import HttpSettings, SettingsError
from tests.integration.executor_servers import hello, serving


@asynccontextmanager
async def client(resolver: Any = None, **settings: Any) -> AsyncIterator[HttpClient]:
    settings.setdefault("allowed_networks", ("127.0.0.0/8",))
    options = {"resolver": resolver} if resolver is not None else {}
    made = HttpClient(HttpSettings(**settings), **options)
    try:
        yield made
    finally:
        await made.close()


async def get(http: HttpClient, url: str, *, timeout_seconds: float = 5, **options: Any) -> HttpAnswer:
    request = HttpRequest(method=options.pop("method", "GET"), url=parse_url(url), **options)
    return await http.send(request, timeout_seconds=timeout_seconds)


async def test_answer_has_status_headers_and_body() -> None:
    async with serving(hello) as server, client() as http:
        answer = await get(http, server.url("/x?a=1"), headers={"x-mine": "yes"})
    assert (answer.status, answer.body) == (200, b'{"hello": "world"}')
    assert answer.headers["content-type"].startswith("application/json")
    assert server.requests[0].headers["x-mine"] == "yes"
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.requests[0].path_qs == "/x?a=1"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "127.0.0.1."]
)
async def test_loopback_in_any_spelling_is_refused_without_permission(host: str) -> None:
    async with serving(hello) as server, client(allowed_networks=()) as http:
        with pytest.raises((NotPermitted, Unreachable, InvalidInput)) as caught:
            await get(http, server.url("/", host))
        assert server.requests == []
    assert isinstance(caught.value, NotPermitted) or host in ("127.0.0.1.", "0177.0.0.1")


@pytest.mark.parametrize(
    "host", ["[::ffff:127.0.0.1]", "[::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "0.0.0.0"]
)
async def test_loopback_in_ipv6_clothes_is_refused_without_permission(host: str) -> None:
    async with serving(hello) as server, client(allowed_networks=()) as http:
        with pytest.raises(NotPermitted):
            await get(http, server.url("/", host))
        assert server.requests == []


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "[fd00:ec2::254]", "168.63.129.16", "100.100.100.200"]
)
async def test_metadata_addresses_are_refused_whatever_is_allowed(address: str) -> None:
    async with client(allowed_networks=("0.0.0.0/0", "::/0")) as http:
        with pytest.raises(NotPermitted, match="never reachable"):
            await get(http, f"http://{address}/latest/meta-data/")


async def test_redirect_to_a_forbidden_address_is_refused() -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(request.query["to"])

    async with serving(redirect) as server, client() as http:
        for target in ("http://169.254.169.254/", "http://10.255.255.1/", "http://[::1]:1/"):
            with pytest.raises(NotPermitted):
                await get(http, server.url(f"/?to={target}"))
        for target in ("file:///etc/passwd", "gopher://127.0.0.1/"):
            with pytest.raises(TaskFailed, match="cannot be used"):
                await get(http, server.url(f"/?to={target}"))


async def test_name_that_changes_its_address_is_checked_at_each_connection() -> None:
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    async def rebinding(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async def close(request: web.Request) -> web.StreamResponse:
        response = web.json_response({})
        response.force_close()
        return response

    async with serving(close) as server, client(rebinding) as http:
        await get(http, server.url("/", "rebind.example"))
        with pytest.raises(NotPermitted):
            await get(http, server.url("/", "rebind.example"))
    assert len(server.requests) == 1


async def test_allowed_address_of_a_mixed_answer_is_used() -> None:
    async def mixed(host: str, port: int) -> list[str]:
        return ["169.254.169.254", "127.0.0.1"]

    async with serving(hello) as server, client(mixed) as http:
        assert (await get(http, server.url("/", "mixed.example"))).status == 200


async def test_own_port_is_refused_inside_an_allowed_network() -> None:
    async with serving(hello) as server:
        http = HttpClient(HttpSettings(allowed_networks=("127.0.0.0/8",)), own_ports=[server.port])
        with pytest.raises(NotPermitted, match="belongs to this product"):
            await get(http, server.url())
        await http.close()


async def test_redirects_are_followed_up_to_the_limit() -> None:
    async def count_down(request: web.Request) -> web.StreamResponse:
        left = int(request.query["left"])
        if left:
            raise web.HTTPFound(f"/?left={left - 1}")
        return await hello(request)

    async with serving(count_down) as server, client(max_redirects=3) as http:
        assert (await get(http, server.url("/?left=3"))).status == 200
        with pytest.raises(TaskFailed, match="more than 3 redirects"):
            await get(http, server.url("/?left=4"))
    async with serving(count_down) as server, client(max_redirects=0) as http:
        with pytest.raises(TaskFailed):
            await get(http, server.url("/?left=1"))


SECRETS = {"authorization": "Bearer s3cret", "cookie": "a=b", "x-api-key": "s3cret", "accept": "text/x"}


async def test_credentials_stay_with_their_origin() -> None:
    async with serving(hello) as other:

        async def redirect(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(other.url("/there"))

        async with serving(redirect) as server, client() as http:
            url = server.url().replace("http://", "http://user:pass@")
            await get(http, url, headers=SECRETS, method="POST", body=b"{}")
    arrived = other.requests[0]
    assert server.requests[0].headers["authorization"].startswith("Basic ")
    assert server.requests[0].headers["x-api-key"] == "s3cret"
    assert arrived.method == "POST"
    assert arrived.headers["accept"] == "text/x"
    assert "s3cret" not in str(arrived.headers)
    assert "cookie" not in arrived.headers
    assert "authorization" not in arrived.headers


async def test_credentials_follow_a_redirect_within_the_origin() -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        if request.path == "/":
            raise web.HTTPPermanentRedirect("/there")
        return await hello(request)

    async with serving(redirect) as server, client() as http:
        await get(http, server.url(), headers=SECRETS)
    assert server.requests[1].headers["x-api-key"] == "s3cret"


@pytest.mark.parametrize(
    ("status", "method"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")]
)
async def test_redirect_of_a_post_keeps_or_drops_the_body_by_status(status: int, method: str) -> None:
    bodies: list[bytes] = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.read())
        if request.path == "/":
            return web.Response(status=status, headers={"Location": "/there"})
        return await hello(request)

    async with serving(redirect) as server, client() as http:
        await get(
            http, server.url(), method="POST", body=b'{"a":1}', headers={"content-type": "application/json"}
        )
    assert server.requests[1].method == method
    assert bodies[1] == (b'{"a":1}' if method == "POST" else b"")
    assert ("content-type" in server.requests[1].headers) is (method == "POST")


async def test_cookies_are_never_kept() -> None:
    async def cookie(request: web.Request) -> web.StreamResponse:
        response = web.json_response({})
        response.set_cookie("session", "s3cret")
        return response

    async with serving(cookie) as server, client() as http:
        await get(http, server.url())
        await get(http, server.url())
    assert "cookie" not in server.requests[1].headers


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving(hello) as server, client() as http:
        assert (await get(http, server.url())).status == 200


async def test_answer_larger_than_the_limit_is_refused_while_it_arrives() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(b"x" * 10_000)
            sent += 10_000
        return response

    async with serving(endless) as server, client(max_response_bytes=20_000) as http:
        with pytest.raises(ResultTooLarge, match="max_response_bytes"):
            await get(http, server.url())
    assert sent < 50_000_000


async def test_compressed_bomb_is_refused_and_honest_compression_is_read() -> None:
    async def compressed(request: web.Request) -> web.StreamResponse:
        plain = b"0" * 50_000_000 if request.path == "/bomb" else b'{"a": 1}'
        return web.Response(body=gzip.compress(plain), headers={"Content-Encoding": "gzip"})

    async def odd(request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=b"abc", headers={"Content-Encoding": "br" if request.path == "/br" else "gzip"}
        )

    async with client(max_response_bytes=100_000) as http:
        async with serving(compressed) as server:
            assert (await get(http, server.url())).body == b'{"a": 1}'
            with pytest.raises(ResultTooLarge):
                await get(http, server.url("/bomb"))
        async with serving(odd) as server:
            with pytest.raises(Unreachable, match="damaged"):
                await get(http, server.url())
            with pytest.raises(Unreachable, match="not asked for"):
                await get(http, server.url("/br"))


async def test_slow_answer_is_a_timeout_even_when_it_drips() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x")
            await asyncio.sleep(0.02)
        return response

    async with serving(drip) as server, client() as http:
        with pytest.raises(TimedOut) as caught:
            await get(http, server.url(), timeout_seconds=0.2)
    assert caught.value.retryable


async def test_nobody_listening_is_a_retryable_network_error() -> None:
    async with serving(hello) as server:
        pass
    async with client() as http:
        with pytest.raises(Unreachable) as caught:
            await get(http, server.url("/path?token=s3cret"))
    assert caught.value.retryable
    assert "s3cret" not in str(caught.value) + str(caught.value.details)


async def test_peer_that_hangs_up_is_a_retryable_network_error() -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with serving(hang_up) as server, client() as http:
        with pytest.raises(Unreachable) as caught:
            await get(http, server.url())
    assert caught.value.retryable


async def test_peer_that_speaks_no_http_is_a_network_error() -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with client() as http:
        with pytest.raises(Unreachable):
            await get(http, f"http://127.0.0.1:{port}/")
        with pytest.raises(Unreachable):
            await get(http, f"https://127.0.0.1:{port}/")
    server.close()
    await server.wait_closed()


def test_tls_is_verified_unless_the_setting_says_otherwise() -> None:
    from agents.task_executor.network import client_tls

    assert client_tls(verify=True).verify_mode == ssl.CERT_REQUIRED
    assert client_tls(verify=False).verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize(
    "text",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "//example.com/",
        "example.com",
        "",
        "http://",
        "http:///path",
        "http://exa mple.com/",
        "http://example.com/\r\nX: y",
        "http://example.com\\@evil.example/",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://[::1/",
        "javascript:alert(1)",
        "http://e.example/" + "x" * 9000,
    ],
)
def test_unusable_url_is_invalid_input(text: str) -> None:
    with pytest.raises(InvalidInput, match="url"):
        parse_url(text)


def test_unreadable_allowed_network_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="allowed_networks: 'host:http'"):
        HttpClient(HttpSettings(allowed_networks=("host:http",)))


async def test_a_hundred_requests_at_once_share_the_connections() -> None:
    async with serving(hello) as server, client(max_connections=10) as http:
        answers = await asyncio.gather(*(get(http, server.url()) for _ in range(100)))
    assert {answer.status for answer in answers} == {200}
    assert len({id(request.transport) for request in server.requests}) <= 10
