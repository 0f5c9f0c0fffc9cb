"""What is no clean death: who stands still and comes back, a cut wire, a router and a cache that keep dying."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos.checker import Store
from tests.chaos.link import Link
from tests.chaos.mesh import eventually
from tests.chaos.scene import Scene, running_scene
from tests.chaos.workload import DEFINITIONS, Start
from tests.ports import free_port

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

LEASE_SECONDS = 5.0
SILENCE_SECONDS = 14.0
"""Longer than the router and the engines wait for a sign of life."""
PAUSE_SECONDS = 4.0
ROUTER_KILLS = 4
WAVES = 3
ONCE = ("once", "parcel")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Redis]":
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server on this machine")
    redis = Redis(program, tmp_path_factory.mktemp("redis"))
    with redis.running():
        yield redis


class Redis:
    """A cache of our own that can be killed and started again, always empty."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._command = [
            *(program, "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it; nothing is left behind."""
        self.start()
        try:
            yield
        finally:
            self.kill()

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            self._command, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """Kill it the hard way."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def flush(self) -> None:
        """Take everything out of it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"FLUSHALL\r\n")
        assert (await reader.readline()).startswith(b"+OK")
        writer.close()
        await writer.wait_closed()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def link() -> AsyncIterator[Link]:
    link = Link()
    await link.start()
    yield link
    await link.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory, redis: Redis, link: Link) -> AsyncIterator[Scene]:
    async with running_scene(
        tmp_path_factory.mktemp("faults"),
        lease_seconds=LEASE_SECONDS,
        redis_url=f"redis://127.0.0.1:{redis.port}/0",
        first_router_url=link.url,
    ) as scene:
        yield scene


def wave(label: str, *, without: tuple[str, ...] = ()) -> list[Start]:
    names = [each["id"] for each in DEFINITIONS if each["id"] not in without]
    return [Start(name, number % 4, f"{label}-{name}") for number, name in enumerate(names)]


async def test_an_executor_that_stood_still_changes_nothing_when_it_comes_back(scene: Scene) -> None:
    # What it was about to do when it froze it does when it thaws, so no effect that must happen once is among it.
    async with scene.work_of(wave("executor", without=ONCE)):
        await asyncio.sleep(0.2)
        scene.mesh.freeze("executor-2")
        await asyncio.sleep(SILENCE_SECONDS)
        scene.mesh.thaw("executor-2")


async def test_an_engine_that_stood_still_cannot_write_over_its_successor(scene: Scene) -> None:
    async with scene.work_of(wave("engine")) as under_way:
        await asyncio.sleep(0.2)
        scene.mesh.freeze("engine-1")
        under_way.begin(wave("meanwhile"))
        await asyncio.sleep(LEASE_SECONDS + PAUSE_SECONDS)
        scene.mesh.thaw("engine-1")
    with Store(scene.mesh.database) as store:
        rows = [store.row(instance_id) for instance_id in scene.instances]
    assert any(row is not None and row.epoch > 1 for row in rows), "nothing was taken over"


async def test_a_state_manager_that_stood_still_goes_on(scene: Scene) -> None:
    async with scene.work_of(wave("state")):
        await asyncio.sleep(0.2)
        scene.mesh.freeze("state")
        await asyncio.sleep(PAUSE_SECONDS)
        scene.mesh.thaw("state")


async def test_a_router_that_keeps_dying_holds_up_nothing_for_long(scene: Scene) -> None:
    async with scene.work_of(wave("router")) as under_way:
        for number in range(ROUTER_KILLS):
            await asyncio.sleep(1.0)
            scene.mesh.kill("router")
            under_way.begin(wave(f"router-{number}"))


async def test_an_executor_behind_a_cut_wire_is_done_without(scene: Scene, link: Link) -> None:
    async with scene.work_of(wave("wire")) as under_way:
        await asyncio.sleep(0.2)
        link.cut()
        under_way.begin(wave("cut"))
        await asyncio.sleep(SILENCE_SECONDS)
        await link.heal()
        under_way.begin(wave("healed"))


async def test_a_cache_may_die_come_back_and_be_emptied(scene: Scene, redis: Redis) -> None:
    async with scene.work_of(wave("cache")) as under_way:
        for number in range(WAVES):
            redis.kill()
            under_way.begin(wave(f"without-{number}"))
            await asyncio.sleep(0.5)
            redis.start()
            under_way.begin(wave(f"with-{number}"))
            await asyncio.sleep(0.5)
            await redis.flush()


async def test_everything_may_die_at_once(scene: Scene) -> None:
    async with scene.work_of(wave("all")):
        await asyncio.sleep(0.3)
        lives = [scene.mesh.kill(name) for name in list(scene.mesh.lives)]
        await eventually(lambda: all(life.ended.is_set() for life in lives), 10, "all have died")
