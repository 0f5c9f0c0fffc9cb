"""Real processes that are stopped or killed: everybody notices in time, comes back, and nothing is left waiting."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from amp.client import AgentIdentity, MeshClient
from amp.errors import AgentLost, AmpError, Disconnected
from amp.subscriptions import Event
from amp.transports.websocket import WebSocketTransport
from tests.ports import free_port

LOST_AFTER_SECONDS = 1.0
END_SECONDS = 30.0

WORKER = """
import asyncio, sys
from amp.capability import Capability, Offer
from amp.client import AgentIdentity, MeshClient
from amp.hosting import HostingTransport

async def work(incoming):
    with open(sys.argv[3], "a") as ledger:
        ledger.write(str(incoming.parameters["name"]) + "\\n")
    await asyncio.sleep(incoming.parameters.get("seconds", 0))
    return {"pid": __import__("os").getpid(), "name": incoming.parameters["name"]}

async def main():
    host = len(sys.argv) > 4
    transport = HostingTransport(sys.argv[1], host_router=host, lost_after_seconds=1.0)
    offer = Offer(capability=Capability(id="work"), handler=work)
    await MeshClient(AgentIdentity(id=sys.argv[2]), transport, offers=[offer]).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Mesh:
    """A router process, worker processes, and a client in this one."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/amp/v1/ws"
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.joined: asyncio.Queue[str] = asyncio.Queue()
        self.left: asyncio.Queue[str] = asyncio.Queue()
        self.client = MeshClient(
            AgentIdentity(id="tester"),
            WebSocketTransport(self.url, lost_after_seconds=LOST_AFTER_SECONDS),
        )

    def start_router(self) -> subprocess.Popen[bytes]:
        silence = ("--lost-after-seconds", str(LOST_AFTER_SECONDS))
        return self._launch("-m", "amp.router", "--port", str(self.port), *silence)

    def start_worker(self, name: str = "worker", *, host: bool = False) -> subprocess.Popen[bytes]:
        return self._launch("-c", WORKER, self.url, name, str(self.ledger), *(["host"] if host else []))

    def _launch(self, *arguments: str) -> subprocess.Popen[bytes]:
        root = Path(__file__).resolve().parents[2]
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(root)},
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    async def listen(self) -> None:
        """Begin to hear who comes and goes."""

        def hear(event: Event) -> None:
            queue = self.joined if event.event_type == "agent.joined" else self.left
            queue.put_nowait(event.data["agent_id"])

        await self.client.start()
        await self.client.subscribe("agent.*", hear)

    async def until_offered(self) -> None:
        """Return when somebody works."""
        while not await self.client.discover(capabilities=["work"]):
            await self.joined.get()

    def done(self) -> list[str]:
        return self.ledger.read_text().split()

    async def stop(self) -> None:
        await self.client.stop(drain_seconds=0)
        for process in self.processes:
            process.kill()
            await asyncio.to_thread(process.wait)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Mesh]:
    mesh = Mesh(folder)
    try:
        async with asyncio.timeout(END_SECONDS):
            yield mesh
    finally:
        await mesh.stop()


async def test_stopped_agent_is_lost_and_comes_back_when_it_wakes(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        mesh.start_router()
        worker = mesh.start_worker()
        await mesh.listen()
        await mesh.until_offered()
        asking = asyncio.create_task(mesh.client.request("work", {"name": "long", "seconds": 60}))
        while mesh.done() != ["long"]:
            await asyncio.sleep(0.01)
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(AgentLost):
            await asking
        assert await mesh.left.get() == "worker"
        while not mesh.joined.empty():
            mesh.joined.get_nowait()
        os.kill(worker.pid, signal.SIGCONT)
        assert await mesh.joined.get() == "worker"
        answer = await mesh.client.request("work", {"name": "after"}, patience_seconds=END_SECONDS)
        assert answer["pid"] == worker.pid
        assert mesh.done() == ["long", "after"]


async def test_stopped_agent_that_was_replaced_wakes_without_harm(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        mesh.start_router()
        first = mesh.start_worker()
        await mesh.listen()
        await mesh.until_offered()
        os.kill(first.pid, signal.SIGSTOP)
        assert await mesh.left.get() == "worker"
        second = mesh.start_worker()
        await mesh.until_offered()
        os.kill(first.pid, signal.SIGCONT)
        for name in "abc":  # the first keeps asking for its id, the second keeps it
            answer = await mesh.client.request("work", {"name": name, "seconds": 0.5})
            assert answer["pid"] == second.pid
        while not mesh.joined.empty():
            mesh.joined.get_nowait()
        second.kill()
        assert await mesh.left.get() == "worker"
        assert await mesh.joined.get() == "worker"
        assert (await mesh.client.request("work", {"name": "d"}))["pid"] == first.pid


async def test_stopped_router_is_noticed_and_its_clients_come_back(tmp_path: Path) -> None:
    async with running(tmp_path) as mesh:
        router = mesh.start_router()
        mesh.start_worker()
        await mesh.listen()
        await mesh.until_offered()
        lost = asyncio.Event()

        async def note() -> None:
            lost.set()

        mesh.client.on_disconnected.append(note)
        os.kill(router.pid, signal.SIGSTOP)
        with pytest.raises(Disconnected):
            await mesh.client.request("work", {"name": "lost"})
        await lost.wait()
        os.kill(router.pid, signal.SIGCONT)
        answer = await mesh.client.request(
            "work", {"name": "again"}, resend=True, patience_seconds=END_SECONDS, timeout_seconds=END_SECONDS
        )
        assert answer["name"] == "again"


@pytest.mark.parametrize("hosted", [False, True])
async def test_router_killed_under_load_loses_no_request(tmp_path: Path, hosted: bool) -> None:
    async with running(tmp_path) as mesh:
        router = mesh.start_worker("host", host=True) if hosted else mesh.start_router()
        if hosted:
            await mesh.listen()
            await mesh.until_offered()
        for number in range(3):
            mesh.start_worker(f"worker-{number}", host=hosted)
        if not hosted:
            await mesh.listen()
        while len(await mesh.client.discover(capabilities=["work"])) < 3 + hosted:
            await mesh.joined.get()
        told: list[str] = []

        async def ask(name: str, *, resend: bool) -> None:
            try:
                answer = await mesh.client.request(
                    "work",
                    {"name": name, "seconds": 0.02},
                    resend=resend,
                    patience_seconds=END_SECONDS,
                    timeout_seconds=END_SECONDS,
                )
                assert answer["name"] == name
            except (AgentLost, Disconnected):
                told.append(name)

        asking = [asyncio.create_task(ask(f"{n}", resend=n % 2 == 0)) for n in range(400)]
        while len(mesh.done()) < 20:
            await asyncio.sleep(0.01)
        router.kill()
        if not hosted:
            mesh.start_router()
        await asyncio.gather(*asking)
        done = mesh.done()
        assert [name for name in told if int(name) % 2 == 0] == []
        assert set(done) | set(told) == {f"{n}" for n in range(400)}
        assert [name for name in done if int(name) % 2 and done.count(name) > 1] == []


@pytest.mark.parametrize(
    "place", ["router.frame.read:3", "router.registration.before_answer:1", "router.reply.before:1"]
)
async def test_router_that_dies_at_a_named_place_is_survived(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as mesh:
        monkeypatch.setenv("AMP_CRASH", place)
        router = mesh.start_router()
        monkeypatch.delenv("AMP_CRASH")
        mesh.start_worker()
        starting = asyncio.create_task(mesh.listen())
        asking = asyncio.create_task(_ask_for_ever(mesh))
        assert await asyncio.to_thread(router.wait) == -signal.SIGKILL
        mesh.start_router()
        await starting
        assert (await asking)["name"] == "a"


async def _ask_for_ever(mesh: Mesh) -> dict[str, object]:
    while True:
        try:
            return await mesh.client.request(
                "work", {"name": "a"}, resend=True, patience_seconds=END_SECONDS, timeout_seconds=END_SECONDS
            )
        except AmpError:
            await asyncio.sleep(0.05)
