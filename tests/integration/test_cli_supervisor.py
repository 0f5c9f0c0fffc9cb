"""Supervision of real processes: order, restarts, the end, and nobody left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import psutil
import pytest

from runtime.children import ChildSpec, RestartPolicy
from runtime.clock import SystemClock
from runtime.errors import ChildFailed
from runtime.supervisor import Supervisor

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 30.0
QUICK = RestartPolicy(first_delay_seconds=0.01, max_delay_seconds=0.05, max_failed_starts=3)

SERVER = """
import http.server, json, signal, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *args): pass

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
def stop(*args):
    print("stopping", flush=True)
    threading.Thread(target=server.shutdown).start()
signal.signal(signal.SIGTERM, stop)
url = f"http://127.0.0.1:{server.server_port}"
print(json.dumps({"event": "health_listening", "url": url}), file=sys.stderr, flush=True)
server.serve_forever(poll_interval=0.01)
"""
STUBBORN = SERVER.replace("threading.Thread(target=server.shutdown).start()", "pass")


class Lines:
    """Collects what children say and lets a test wait for a line."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def emit(self, name: str, line: str) -> None:
        self.all.append((name, line))
        self._changed.set()

    async def until(self, name: str, text: str, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while sum(who == name and text in line for who, line in self.all) < times:
                self._changed.clear()
                await self._changed.wait()


def child(name: str, code: str, **more: object) -> ChildSpec:
    return ChildSpec(name=name, command=(sys.executable, "-c", code), **more)  # type: ignore[arg-type]


def supervisor(lines: Lines, *specs: ChildSpec, policy: RestartPolicy = QUICK) -> Supervisor:
    return Supervisor(specs, emit=lines.emit, clock=SystemClock(), random=Random(1), policy=policy)


async def nothing() -> None:
    pass


async def test_stages_start_in_order_and_stop_in_theirs() -> None:
    lines, stopping = Lines(), asyncio.Event()
    mesh = supervisor(
        lines,
        child("second", SERVER, stage=1, stop_stage=0),
        child("first", SERVER, stage=0, stop_stage=1),
    )

    async def ready() -> None:
        assert all(one.ready.is_set() for one in mesh.children)
        stopping.set()

    await asyncio.wait_for(mesh.run(stopping, ready), PATIENCE_SECONDS)
    assert [name for name, line in lines.all if "health_listening" in line] == ["first", "second"]
    assert [name for name, line in lines.all if line == "stopping"] == ["second", "first"]


async def test_killed_child_is_started_again() -> None:
    lines, stopping = Lines(), asyncio.Event()
    mesh = supervisor(lines, child("one", SERVER))

    async def ready() -> None:
        (one,) = mesh.children
        first = one.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await lines.until("one", "it was ended by signal SIGKILL; starting it again")
        await lines.until("one", "health_listening", times=2)
        await asyncio.wait_for(one.ready.wait(), PATIENCE_SECONDS)
        assert one.pid != first
        assert one.starts == 2
        stopping.set()

    await asyncio.wait_for(mesh.run(stopping, ready), PATIENCE_SECONDS)


async def test_child_that_never_starts_is_given_up_with_its_last_words() -> None:
    lines = Lines()
    mesh = supervisor(lines, child("one", "import sys; sys.exit('no such thing')"))
    with pytest.raises(
        ChildFailed, match=r"one cannot start: it ended with exit code 1; .*\n  no such thing"
    ):
        await asyncio.wait_for(mesh.run(asyncio.Event(), nothing), PATIENCE_SECONDS)
    assert mesh.children[0].starts == QUICK.max_failed_starts


async def test_wrong_usage_is_not_tried_twice_and_stops_the_others() -> None:
    lines = Lines()
    mesh = supervisor(lines, child("good", SERVER), child("bad", "raise SystemExit(2)", stage=1))
    with pytest.raises(ChildFailed, match="bad cannot start"):
        await asyncio.wait_for(mesh.run(asyncio.Event(), nothing), PATIENCE_SECONDS)
    assert mesh.children[1].starts == 1
    assert ("good", "stopping") in lines.all


async def test_child_that_is_not_ready_in_time_is_ended() -> None:
    lines = Lines()
    mesh = supervisor(lines, child("slow", "import time; time.sleep(600)", ready_timeout_seconds=0.05))
    with pytest.raises(ChildFailed, match="slow cannot start"):
        await asyncio.wait_for(mesh.run(asyncio.Event(), nothing), PATIENCE_SECONDS)
    assert ("slow", "not ready after 0.05 s") in lines.all


async def test_child_that_ignores_the_request_to_stop_is_killed() -> None:
    lines, stopping = Lines(), asyncio.Event()
    mesh = supervisor(lines, child("one", STUBBORN, stop_timeout_seconds=0.2))

    async def ready() -> None:
        stopping.set()

    await asyncio.wait_for(mesh.run(stopping, ready), PATIENCE_SECONDS)
    assert ("one", "still running after 0.2 s; killed") in lines.all


async def test_stop_during_the_start_ends_everything() -> None:
    lines, stopping = Lines(), asyncio.Event()
    mesh = supervisor(lines, child("one", SERVER), child("never", "import time; time.sleep(600)", stage=1))
    running = asyncio.ensure_future(mesh.run(stopping, nothing))
    await lines.until("one", "health_listening")
    stopping.set()
    await asyncio.wait_for(running, PATIENCE_SECONDS)
    assert all(one.pid is None for one in mesh.children)


async def test_cancelling_kills_at_once() -> None:
    lines = Lines()
    mesh = supervisor(lines, child("one", STUBBORN, stop_timeout_seconds=600))
    running = asyncio.ensure_future(mesh.run(asyncio.Event(), nothing))
    await lines.until("one", "health_listening")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, PATIENCE_SECONDS)
    assert mesh.children[0].pid is None


async def test_long_and_broken_lines_are_passed_on_in_bounds() -> None:
    lines, stopping = Lines(), asyncio.Event()
    noise = (
        "import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\\n\\xff\\xfe end\\n'); sys.stdout.flush()\n"
    )
    mesh = supervisor(lines, child("one", noise + SERVER))

    async def ready() -> None:
        await lines.until("one", "end")
        stopping.set()

    await asyncio.wait_for(mesh.run(stopping, ready), PATIENCE_SECONDS)
    assert sum(len(line) for _, line in lines.all if line.startswith("x")) == 300_000
    assert max(len(line) for _, line in lines.all) <= 65_536


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_children_die_with_a_supervisor_that_is_killed() -> None:
    program = textwrap.dedent(
        """
        import asyncio, sys
        from random import Random
        from runtime.children import ChildSpec
        from runtime.clock import SystemClock
        from runtime.process import run
        from runtime.supervisor import Supervisor

        async def main(stopping):
            spec = ChildSpec(name="one", command=(sys.executable, "-c", sys.argv[1]))
            mesh = Supervisor([spec], emit=lambda *_: None, clock=SystemClock(), random=Random())
            async def ready():
                print(mesh.children[0].pid, flush=True)
            await mesh.run(stopping, ready)
            return 0

        run(main)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, SERVER], stdout=subprocess.PIPE, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait(PATIENCE_SECONDS)
        _, alive = psutil.wait_procs([orphan], timeout=PATIENCE_SECONDS)
    assert not alive or all(one.status() == psutil.STATUS_ZOMBIE for one in alive)
