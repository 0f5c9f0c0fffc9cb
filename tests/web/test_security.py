"""What other sites' pages, rebound names and odd requests get: nothing."""

import asyncio

import aiohttp
import pytest

from tests.web.fake_mesh import FakeMesh
from web.server.application import WebApplication
from web.server.routes import ROUTES
from web.server.security import HEADERS, InsecureBindError, require_loopback

CONCRETE = {
    "{workflow_id}": "small",
    "{instance_id}": "ins_1",
    "{task_id}": "a",
    "{digest}": "x",
    "{name:.+}": "icon.svg",
}


def paths() -> list[tuple[str, str]]:
    found = []
    for route in ROUTES:
        path = route.path
        for name, value in CONCRETE.items():
            path = path.replace(name, value)
        found.append((route.method, path))
    return found


@pytest.mark.parametrize(("method", "path"), paths())
async def test_no_route_answers_a_strange_name(
    http: aiohttp.ClientSession, mesh: FakeMesh, method: str, path: str
) -> None:
    asked = len(mesh.requests)
    async with http.request(method, path, headers={"Host": "evil.example"}) as response:
        assert response.status == 421
    assert not [one for one in mesh.requests[asked:] if one[0] != "log-read"]


@pytest.mark.parametrize(("method", "path"), paths())
async def test_no_route_answers_another_sites_script(
    http: aiohttp.ClientSession, method: str, path: str
) -> None:
    headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    async with http.request(method, path, headers=headers) as response:
        assert response.status == 403
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Origin": "https://127.0.0.1"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({}, 202),
    ],
)
async def test_changes_need_our_own_origin(
    http: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    async with http.post("/api/workflows/ins_1/pause", headers=headers) as response:
        assert response.status == status


async def test_own_origin_may_change(http: aiohttp.ClientSession, app: WebApplication) -> None:
    own = f"http://127.0.0.1:{app.port}"  # type: ignore[attr-defined]
    async with http.post("/api/workflows/ins_1/pause", headers={"Origin": own}) as response:
        assert response.status == 202


async def test_a_link_from_another_site_opens_the_page(http: aiohttp.ClientSession) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with http.get("/instances", headers=headers) as response:
        assert response.status in (200, 503)


@pytest.mark.parametrize("path", ["/api/ws", "/ws"])
async def test_another_site_cannot_open_the_socket(http: aiohttp.ClientSession, path: str) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(path, headers=headers)
        assert caught.value.status in (403, 421)


@pytest.mark.parametrize("path", ["/", "/api/workflows", "/nope", "/api/instances/nope", "/healthz"])
async def test_every_answer_has_the_headers(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as response:
        for name, value in HEADERS.items():
            assert response.headers[name] == value
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert "aiohttp" not in response.headers["Server"]


@pytest.mark.parametrize(
    "target",
    [
        "/assets/x/../../../pyproject.toml", "/assets/x/..%2f..%2f..%2fpyproject.toml", "/assets/x/.hidden",
        "/assets/x//etc/passwd", "/assets/x/index.html", "/assets/x/js/", "/assets/x/js/none.js", "/static/js/main.js",
    ],
)  # fmt: skip
async def test_every_miss_is_the_same_404(app: WebApplication, target: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)  # type: ignore[attr-defined]
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = (await asyncio.wait_for(reader.read(), 5)).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 404")
    assert "there is nothing at this address" in answer


async def test_assets_keep_for_ever_under_their_digest(
    http: aiohttp.ClientSession, app: WebApplication
) -> None:
    digest = app.services.assets._digest
    async with http.get(f"/assets/{digest}/js/main.js", headers={"Accept-Encoding": "gzip"}) as response:
        assert response.status == 200
        assert "immutable" in response.headers["Cache-Control"]
    async with http.get("/assets/older/js/main.js") as response:
        assert response.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_loopback_addresses_are_served(host: str) -> None:
    require_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_other_addresses_are_refused_without_login(host: str) -> None:
    with pytest.raises(InsecureBindError, match="no login"):
        require_loopback(host)
