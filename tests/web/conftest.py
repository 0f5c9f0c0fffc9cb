"""A dashboard over a fake mesh, on a free port."""

from collections.abc import AsyncIterator
from random import Random

import aiohttp
import pytest

from runtime.clock import SystemClock
from runtime.settings import WebSettings
from tests.web import scenes
from tests.web.fake_mesh import FakeMesh
from web.server.application import WebApplication

SMALL: dict[str, object] = {
    "id": "small",
    "name": "Small",
    "input_schema": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "pin": {"type": "string", "writeOnly": True}},
        "required": ["name"],
    },
    "tasks": [{"id": "a", "outputs": ["x"]}, {"id": "b", "depends_on": ["a"]}],
}


@pytest.fixture
def mesh() -> FakeMesh:
    mesh = FakeMesh()
    mesh.define(SMALL)
    mesh.create("small", "ins_1", {"name": "Ada", "pin": "secret-pin"})
    return mesh


@pytest.fixture
async def app(mesh: FakeMesh) -> AsyncIterator[WebApplication]:
    settings = WebSettings(port=0, max_body_bytes=64 * 1024, max_live_clients=3)
    app = WebApplication(settings, mesh, clock=SystemClock(), random=Random(1))
    app.port = await app.start(install_libraries=False)  # type: ignore[attr-defined]
    yield app
    await app.stop()


@pytest.fixture
async def http(app: WebApplication) -> AsyncIterator[aiohttp.ClientSession]:
    address = f"http://127.0.0.1:{app.port}"  # type: ignore[attr-defined]
    async with aiohttp.ClientSession(address) as session:
        yield session


@pytest.fixture
def stage(mesh: FakeMesh) -> type[scenes.Stage]:
    return scenes.Stage
