"""How soon work goes on after a process was killed: real processes under the supervisor of `amp up`, kill -9.

Run: python -m bench.recovery [--kills N] [--kinds engine,state,...]. Workflows whose tasks wait for a local service
run all the time. After each kill the log is read, straight from the store's file, until it grows again:

- first: the next commit that the kill had kept from happening; all: every instance that was hit has gone on.
- executor: when the service is asked again for what the killed executor had under way.

`engine+1` and `executor+1` have a second one beside them; the others must be started again first.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from aiohttp import web

from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError
from amp.transports.websocket import WebSocketTransport
from cli.layout import MeshOptions, plan_mesh
from cli.up import free_port
from orchestration import contracts
from runtime.children import Child
from runtime.clock import SystemClock
from runtime.supervisor import Supervisor

KINDS = ("engine", "state", "router", "executor", "engine+1", "executor+1")
INSTANCES = 12
STEPS = 60
STEP_SECONDS = 0.1
"""How long the service takes for one step."""
LOOK_SECONDS = 0.003
IN_FLIGHT_SECONDS = 0.1
"""What a killed router or executor had handed over is committed within this; no new one can be there so soon."""
SETTLE_SECONDS = 1.0
STABLE_SECONDS = 6.0
"""A child that lived for so long is started again at once; one that did not is taken for a crash loop."""
MOST_SECONDS = 60.0
OPEN = ("pending", "running", "paused")

Row = tuple[str, str, int, int, str]
"""instance_id, owner, epoch, seq, status."""


@dataclass(slots=True)
class Service:
    """What the tasks call. It notes when each step was asked for, which are under way, and which were cut off."""

    asked: dict[str, list[float]] = field(default_factory=dict)
    under_way: set[str] = field(default_factory=set)
    cut_off: set[str] = field(default_factory=set)
    port: int = 0

    async def answer(self, request: web.Request) -> web.Response:
        step = request.query_string
        self.asked.setdefault(step, []).append(time.monotonic())
        self.under_way.add(step)
        try:
            await asyncio.sleep(STEP_SECONDS)
        except asyncio.CancelledError:
            self.cut_off.add(step)
            raise
        finally:
            self.under_way.discard(step)
        return web.json_response({})


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Service]:
    service = Service()
    application = web.Application()
    application.router.add_get("/", service.answer)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.port = runner.addresses[0][1]
    try:
        yield service
    finally:
        await runner.cleanup()


class Bench:
    """A supervised mesh under steady work."""

    def __init__(self, folder: Path, service: Service, scale: tuple[str, ...]) -> None:
        self.service = service
        self.agent_ids: dict[str, str] = {}
        self.log = (folder / "mesh.log").open("w")
        config = folder / "agent_config.yaml"
        config.write_text("task_executor: {http: {allowed_networks: ['127.0.0.0/8']}}\n")
        port = free_port()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AMP_")},
            "AMP_MESH__ROUTER_URL": f"ws://127.0.0.1:{port}/amp/v1/ws",
            "AMP_WORKFLOW_ENGINE__LOAD_WORKFLOWS_ON_START": "false",
            **{
                f"AMP_{name}__PORT": "0"
                for name in (
                    *("WORKFLOW_ENGINE", "TASK_EXECUTOR", "STATE_MANAGER"),
                    *("CONDITION_EVALUATOR", "ERROR_HANDLER", "MONITOR_AGENT"),
                )
            },
        }
        options = MeshOptions(port=0, data_dir=folder / "data", config=config, scale=scale)
        layout = plan_mesh(options, environment=environment, free_port=free_port)
        os.environ.update(
            {name: value for name, value in environment.items() if name.startswith("AMP_WORKFLOW")}
        )
        self.supervisor = Supervisor(layout.children, emit=self.note, clock=SystemClock(), random=Random())
        self.database = folder / "data" / "workflow_state.db"
        self.client = MeshClient(
            AgentIdentity(id="bench", name="bench", version="1", framework="bench", session_id="s"),
            WebSocketTransport(f"ws://127.0.0.1:{port}/amp/v1/ws"),
        )
        self.started = 0
        self.feeding: asyncio.Task[None] | None = None
        self._reader: sqlite3.Connection | None = None

    def note(self, name: str, line: str) -> None:
        self.log.write(f"{time.time():.3f} {name} {line}\n")
        self.log.flush()
        if '"agent_ready"' in line:
            with contextlib.suppress(ValueError):
                self.agent_ids[name] = json.loads(line).get("agent_id", "")

    def child(self, name: str) -> Child:
        return next(child for child in self.supervisor.children if child.spec.name == name)

    async def begin(self) -> None:
        await self.supervisor.start()
        await self.client.start(wait_seconds=MOST_SECONDS)
        url = f"http://127.0.0.1:{self.service.port}/?{{workflow_instance_id}}"
        tasks = [
            {
                "id": f"t{number}",
                "type": "api_call",
                "parameters": {"url": f"{url}/t{number}"},
                "outputs": [],
                "depends_on": [f"t{number - 1}"] if number else [],
            }
            for number in range(STEPS)
        ]
        await self.client.request(
            contracts.WORKFLOW_CREATE.id,
            contracts.WorkflowCreateRequest(definition={"id": "steps", "name": "Steps", "tasks": tasks}),
            patience_seconds=MOST_SECONDS,
        )
        self.feeding = asyncio.create_task(self.feed())
        while len(self.rows()) < INSTANCES:  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        if self.feeding is not None:
            self.feeding.cancel()
            await asyncio.gather(self.feeding, return_exceptions=True)
        await self.client.stop()
        await self.supervisor.stop()
        if self._reader is not None:
            self._reader.close()
        self.log.close()

    async def feed(self) -> None:
        """Keep so many instances running. A start whose answer is lost is sent again under its key."""
        while True:
            missing = INSTANCES - len(self.rows())
            for _ in range(missing):
                await self.start_one()
            await asyncio.sleep(0.2)

    async def start_one(self) -> None:
        request = contracts.WorkflowStartRequest(workflow_id="steps", idempotency_key=f"start-{self.started}")
        while True:
            try:
                await self.client.request(
                    contracts.WORKFLOW_START.id,
                    request,
                    patience_seconds=MOST_SECONDS,
                    timeout_seconds=10,
                    resend=True,
                )
                self.started += 1
                return
            except AmpError:
                await asyncio.sleep(0.2)

    # --- the store's file ------------------------------------------------------------------------------

    def read(self, statement: str) -> list[tuple[object, ...]]:
        """Read from the store's file, beside its owner; a file that is being opened is read again."""
        until = time.monotonic() + MOST_SECONDS
        while True:
            try:
                if self._reader is None:
                    self._reader = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=1.0)
                return self._reader.execute(statement).fetchall()
            except sqlite3.Error:
                if self._reader is not None:
                    self._reader.close()
                self._reader = None
                if time.monotonic() > until:
                    raise
                time.sleep(LOOK_SECONDS)

    def rows(self) -> list[Row]:
        found = self.read(
            "SELECT instance_id, owner, epoch, seq, status FROM instances"
            " WHERE status IN ('pending', 'running', 'paused')"
        )
        return [(str(a), str(b), int(str(c)), int(str(d)), str(e)) for a, b, c, d, e in found]

    # --- kills -----------------------------------------------------------------------------------------

    async def kill(self, name: str) -> float:
        """Kill a child the hard way, and return when it was dead."""
        child = self.child(name)
        while child.pid is None or not child.ready.is_set():  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.02)
        pid = child.pid
        os.kill(pid, signal.SIGKILL)
        while child.pid == pid and _alive(pid):  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.001)
        return time.monotonic()

    async def gone_on(self, hit: Iterable[Row], killed_at: float, *, taken_over: bool) -> tuple[float, float]:
        """Return after how many seconds the first and the last of the instances were changed again."""
        before = {instance_id: (epoch, seq) for instance_id, _, epoch, seq, _ in hit}
        first = 0.0
        while time.monotonic() - killed_at < MOST_SECONDS:
            now = {row[0]: row for row in self.rows()}
            for instance_id in list(before):
                epoch, seq = before[instance_id]
                row = now.get(instance_id)
                if row is not None and taken_over and row[2] == epoch:
                    before[instance_id] = (epoch, row[3])  # what the killed one had sent was committed still
                if row is None or (row[3] > seq and (row[2] > epoch or not taken_over)):
                    first = first or time.monotonic() - killed_at
                    del before[instance_id]
            if not before:
                return first, time.monotonic() - killed_at
            await asyncio.sleep(LOOK_SECONDS)
        raise SystemExit(f"{sorted(before)} did not go on within {MOST_SECONDS} s")

    async def engine(self, name: str) -> tuple[float, float]:
        owner = f"{self.agent_ids[name]}:"
        hit = [row for row in self.rows() if row[1].startswith(owner)]
        killed_at = await self.kill(name)
        return await self.gone_on(hit, killed_at, taken_over=True) if hit else (0.0, 0.0)

    async def state(self, name: str) -> tuple[float, float]:
        killed_at = await self.kill(name)
        return await self.gone_on(self.rows(), killed_at, taken_over=False)

    async def router(self, name: str) -> tuple[float, float]:
        killed_at = await self.kill(name)
        await asyncio.sleep(IN_FLIGHT_SECONDS)
        return await self.gone_on(self.rows(), killed_at, taken_over=False)

    async def executor(self, name: str) -> tuple[float, float]:
        before = {step: len(self.service.asked[step]) for step in self.service.under_way}
        self.service.cut_off.clear()
        killed_at = await self.kill(name)
        await asyncio.sleep(IN_FLIGHT_SECONDS / 2)
        hit = {step: count for step, count in before.items() if step in self.service.cut_off}
        first = last = 0.0
        while hit:
            for step in [step for step, count in hit.items() if len(self.service.asked[step]) > count]:
                del hit[step]
                last = self.service.asked[step][-1] - killed_at
                first = first or last
            if time.monotonic() - killed_at > MOST_SECONDS:
                raise SystemExit(f"{sorted(hit)} were not asked for again within {MOST_SECONDS} s")
            await asyncio.sleep(LOOK_SECONDS)
        return first, last


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def measure(kinds: list[str], kills: int, *, scale: tuple[str, ...]) -> None:
    """Kill each kind so often, in turn, and print what was seen."""
    seen: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="amp-recovery-", ignore_cleanup_errors=True) as folder:
        async with serving() as service:
            bench = Bench(Path(folder), service, scale)
            ways: dict[str, tuple[Callable[[str], object], str]] = {
                "engine": (bench.engine, "engine"),
                "state": (bench.state, "state"),
                "router": (bench.router, "router"),
                "executor": (bench.executor, "executor"),
                "engine+1": (bench.engine, "engine-1"),
                "executor+1": (bench.executor, "executor-1"),
            }
            killed: dict[str, float] = {}
            try:
                await bench.begin()
                for number in range(kills):
                    for kind in kinds:
                        way, name = ways[kind]
                        await asyncio.sleep(
                            max(SETTLE_SECONDS, killed.get(name, 0.0) + STABLE_SECONDS - time.monotonic())
                        )
                        times = await way(name)  # type: ignore[misc]
                        killed[name] = time.monotonic()
                        if times[1]:
                            seen[kind].append(times)
                        print(
                            f"{number + 1:4d} {kind:<11} first {times[0]:.3f} s  all {times[1]:.3f} s",
                            flush=True,
                        )
            finally:
                await bench.end()
    for kind, found in seen.items():
        for what, values in (("first", [a for a, _ in found]), ("all", [b for _, b in found])):
            if values:
                print(
                    f"{kind:<11} {what:<6} n={len(values):<4} median {statistics.median(values):.3f} s"
                    f"  p99 {percentile(values, 0.99):.3f} s  max {max(values):.3f} s"
                )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recovery")
    parser.add_argument("--kills", type=int, default=50, help="kills of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of " + ", ".join(KINDS))
    options = parser.parse_args()
    wanted = [kind for kind in KINDS if kind in options.kinds.split(",")]
    alone = [kind for kind in wanted if not kind.endswith("+1")]
    beside = [kind for kind in wanted if kind.endswith("+1")]
    for kinds, scale in ((alone, ()), (beside, ("engine=2", "executor=2"))):
        if kinds:
            asyncio.run(measure(kinds, options.kills, scale=scale))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
