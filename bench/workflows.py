"""How fast whole workflows run on a mesh of real processes: a chain, a fan-out, many instances at once.

    python -m bench.workflows [--rounds N] [--router hosted|alone]

It starts the six agents on free ports of the loopback interface with a data folder of their own, measures, prints
medians with their spread, and ends what it started. First as the README's terminals do it, six processes of which the
first hosts the router; then with the router as a seventh, as under `amp up`.
The reference, measured in the same run, is what no durable orchestrator can avoid: one fsynced SQLite commit a step.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

from amp.client import AgentIdentity, MeshClient
from amp.subscriptions import Event
from amp.transports.websocket import WebSocketTransport
from cli.up import free_port
from orchestration import contracts

AGENTS = (
    "workflow_engine",
    "task_executor",
    "state_manager",
    "condition_evaluator",
    "error_handler",
    "monitor_agent",
)
LAYOUTS = {
    "hosted": "-- six processes, the engine hosts the router",
    "alone": "-- seven processes, the router has one of its own",
}
CHAIN_STEPS = 40
FAN_OUT_TASKS = 100
MANY_INSTANCES = 500
MANY_STEPS = 5
START_SECONDS = 30.0
END_SECONDS = 60.0
GATHER_SECONDS = 0.2
"""The watcher reads the log this long after a hint, so that watching takes no processor from what is watched. The
time of an end is the one that the log has for it, so a late look costs no accuracy."""
READY_CAPABILITIES = [
    "state-append",
    "workflow-start",
    "task-data-transform",
    "condition-evaluate",
    "error-handle",
]


@contextlib.contextmanager
def processes(folder: Path, router_port: int, *, hosted: bool) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the six agents, the first as the router's host or all after a router alone; end them afterwards."""
    environment = {
        **os.environ,
        "AMP_MESH__ROUTER_URL": f"ws://127.0.0.1:{router_port}/amp/v1/ws",
        "AMP_DATA_DIR": str(folder),
        "AMP_LOGGING__LEVEL": "WARNING",
        "AMP_WORKFLOW_ENGINE__LOAD_WORKFLOWS_ON_START": "false",
        "AMP_WORKFLOW_ENGINE__MAX_CONCURRENT_WORKFLOWS": "500",
        "AMP_TASK_EXECUTOR__MAX_CONCURRENT_TASKS": "100",
    }
    commands = [[sys.executable, "-m", f"agents.{name}", "--port", "0"] for name in AGENTS]
    if not hosted:
        commands.insert(0, [sys.executable, "-m", "amp.router", "--port", str(router_port)])
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.extend(
            subprocess.Popen(
                command,
                env={**environment, "AMP_MESH__HOST_ROUTER": str(hosted and command is commands[0]).lower()},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for command in commands
        )
        yield started
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def transform(task_id: str, *depends_on: str) -> dict[str, Any]:
    """Return a trivial task: it maps one small list."""
    return {
        "id": task_id,
        "type": "data_transform",
        "parameters": {
            "input_data": [1, 2, 3],
            "transformations": [{"type": "map", "config": {"expression": "item + 1"}}],
        },
        "outputs": [f"{task_id}_out"],
        "depends_on": list(depends_on),
    }


def chain(name: str, steps: int) -> dict[str, Any]:
    tasks = [transform("t0")] + [transform(f"t{index}", f"t{index - 1}") for index in range(1, steps)]
    return {"id": name, "name": name, "tasks": tasks}


def fan_out(name: str, width: int) -> dict[str, Any]:
    branches = [transform(f"b{index}") for index in range(width)]
    return {
        "id": name,
        "name": name,
        "tasks": [*branches, transform("join", *(task["id"] for task in branches))],
    }


class Watch:
    """Follows the log and tells when an instance has ended."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh
        self._offset = 0
        self._ended: dict[str, contracts.EventRecord] = {}
        self._changed = asyncio.Condition()
        self._hint = asyncio.Event()

    async def begin(self) -> None:
        await self._mesh.subscribe(contracts.EVENT_LOG_ADVANCED, self._on_hint)
        self._task = asyncio.create_task(self._follow())

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _on_hint(self, event: Event) -> None:
        self._hint.set()

    async def _follow(self) -> None:
        types = ["workflow.completed", "workflow.failed", "workflow.cancelled"]
        while True:
            page = await self._mesh.request(
                contracts.LOG_READ.id,
                contracts.LogReadRequest(after=self._offset, limit=1000, types=types),
                reply_type=contracts.LogReadReply,
            )
            self._offset = page.next
            async with self._changed:
                self._ended.update((record.instance_id, record) for record in page.events)
                self._changed.notify_all()
            if page.end:
                await self._hint.wait()
                await asyncio.sleep(GATHER_SECONDS)
                self._hint.clear()

    async def wait(self, instance_ids: list[str]) -> float:
        """Return the wall time at which the last of these instances ended."""
        async with asyncio.timeout(END_SECONDS):
            async with self._changed:
                await self._changed.wait_for(lambda: all(name in self._ended for name in instance_ids))
        ends = [self._ended[name] for name in instance_ids]
        wrong = {end.type for end in ends} - {"workflow.completed"}
        if wrong:
            raise SystemExit(f"instances ended with {wrong}")
        return max(end.at for end in ends).timestamp()


@contextlib.asynccontextmanager
async def client(router_port: int) -> AsyncIterator[MeshClient]:
    mesh = MeshClient(
        AgentIdentity(id="bench", name="bench", version="1", framework="bench", session_id="bench"),
        WebSocketTransport(f"ws://127.0.0.1:{router_port}/amp/v1/ws"),
        random=Random(1),
    )
    await mesh.start(wait_seconds=START_SECONDS)
    try:
        yield mesh
    finally:
        await mesh.stop()


async def ready(mesh: MeshClient) -> None:
    """Return when every agent that a workflow needs has registered."""
    joined = asyncio.Event()
    await mesh.subscribe(contracts.EVENT_AGENT_JOINED, lambda event: joined.set())
    async with asyncio.timeout(START_SECONDS):
        for capability in READY_CAPABILITIES:
            while not await mesh.discover(capabilities=[capability]):
                await joined.wait()
                joined.clear()


async def define(mesh: MeshClient, definition: dict[str, Any]) -> None:
    await mesh.request(
        contracts.WORKFLOW_CREATE.id,
        contracts.WorkflowCreateRequest(definition=definition, overwrite=True),
        patience_seconds=START_SECONDS,
    )


async def start(mesh: MeshClient, workflow_id: str) -> str:
    reply = await mesh.request(
        contracts.WORKFLOW_START.id,
        contracts.WorkflowStartRequest(workflow_id=workflow_id),
        reply_type=contracts.WorkflowStarted,
        timeout_seconds=END_SECONDS,
    )
    return reply.instance_id


async def timed(mesh: MeshClient, watch: Watch, workflow_id: str, count: int = 1) -> float:
    """Return the seconds from the first start's request to the last instance's end, by the same machine's clock."""
    begun = time.time()
    names = await asyncio.gather(*(start(mesh, workflow_id) for _ in range(count)))
    return await watch.wait(list(names)) - begun


def reference(folder: Path, commits: int) -> float:
    """Return the seconds that this many fsynced one-row commits take."""
    connection = sqlite3.connect(folder / "reference.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, data TEXT)")
    begun = time.perf_counter()
    for _ in range(commits):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO events (data) VALUES (?)", ("x" * 300,))
        connection.execute("COMMIT")
    elapsed = time.perf_counter() - begun
    connection.close()
    return elapsed


def say(name: str, seconds: list[float], base: list[float], note: str) -> None:
    middle, floor = statistics.median(seconds), statistics.median(base)
    print(
        f"{name:<28} median {middle * 1000:8.1f} ms   min {min(seconds) * 1000:8.1f}   max {max(seconds) * 1000:8.1f}"
        f"   {middle / floor:6.2f} x reference   {note}"
    )


async def measure(rounds: int, folder: Path, router_port: int) -> None:
    async with client(router_port) as mesh:
        await ready(mesh)
        for definition in (
            chain("chain", CHAIN_STEPS),
            fan_out("fan", FAN_OUT_TASKS),
            chain("many", MANY_STEPS),
            chain("one", 1),
        ):
            await define(mesh, definition)
        watch = Watch(mesh)
        await watch.begin()
        await timed(mesh, watch, "chain")
        base = [reference(folder, CHAIN_STEPS) for _ in range(rounds)]
        print(f"reference: {CHAIN_STEPS} fsynced commits, median {statistics.median(base) * 1000:.1f} ms")
        one = [await timed(mesh, watch, "one") for _ in range(rounds * 3)]
        say("one task end to end", one, base, "")
        steps = [await timed(mesh, watch, "chain") for _ in range(rounds)]
        say(
            f"chain of {CHAIN_STEPS}",
            steps,
            base,
            f"{statistics.median(steps) / CHAIN_STEPS * 1000:.2f} ms a step",
        )
        fans = [await timed(mesh, watch, "fan") for _ in range(rounds)]
        say(f"fan-out of {FAN_OUT_TASKS} and a join", fans, base, "")
        many = [await timed(mesh, watch, "many", MANY_INSTANCES) for _ in range(max(rounds // 2, 1))]
        rate = MANY_INSTANCES * MANY_STEPS / statistics.median(many)
        say(f"{MANY_INSTANCES} instances of {MANY_STEPS}", many, base, f"{rate:.0f} tasks/s")
        await watch.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--router", choices=LAYOUTS, help="measure only with the router placed so")
    options = parser.parse_args()
    for layout in [options.router] if options.router else LAYOUTS:
        print(LAYOUTS[layout])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            port = free_port()
            with processes(folder / "data", port, hosted=layout == "hosted"):
                asyncio.run(measure(options.rounds, folder, port))


if __name__ == "__main__":
    main()
