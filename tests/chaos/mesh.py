"""A mesh of real processes in which anything may die: what ends is started again at once, and every end is noted.

One life is one process from its start to its end. A life can be armed to die at a named place, be killed, be frozen,
or be kept from being followed by another. A life that ends without any of that was no part of the plan and is told.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from amp import crash
from orchestration import contracts
from tests.chaos import handlers
from tests.chaos.workload import DEFINITIONS, HANDLERS_PATH
from tests.ports import free_port
from tests.processes import JOIN_SECONDS, ROOT, Processes

LOOK_SECONDS = 0.02
"""How often the supervisor looks whether a process has ended."""
FAILED_START_SECONDS = 0.5
"""Wait before a process that ended by itself is started again, so that a broken one does not spin."""
MAX_LIVES = 10_000
TAIL_LINES = 25

SETTINGS = """\
task_executor:
  custom_handlers_path: {handlers}
  subprocess: {{allowed_commands: [echo, sleep]}}
workflow_engine: {{lease_seconds: {lease_seconds}}}
monitor_agent: {{alert_check_interval: 5, health_check_interval: 5}}
state_manager: {{use_redis: {use_redis}, redis_url: "{redis_url}"}}
database: {{backup_interval_hours: 0, reserve_megabytes: 1}}
web: {{request_timeout_seconds: 10}}
"""


@dataclass(slots=True)
class Life:
    """One process from its start to its end."""

    name: str
    process: subprocess.Popen[bytes]
    point: str
    """The place where it is to die, empty for none."""
    killed: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def wanted_end(self) -> bool:
        """Whether it ended as the test meant it to."""
        return self.killed or (bool(self.point) and self.process.returncode == -signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Death:
    """A life that has ended: whose, when (monotonic and wall seconds), with which exit code, at which place."""

    name: str
    at: float
    wall: float
    returncode: int
    point: str
    wanted: bool


class ChaosMesh(Processes):
    """Router, agents and dashboard as processes, each followed by a new one when it ends.

    Args:
        lease_seconds: How long an engine may be silent before it loses its instances.
        redis_url: The cache's address; empty for none.
        first_router_url: What the first executor takes for the router, for a test that stands between.
        first_orders: What the first lives of processes are armed with, by name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engines: int = 2,
        executors: int = 2,
        lease_seconds: float = 5.0,
        redis_url: str = "",
        log_level: str = "INFO",
        first_router_url: Callable[[str], str] | None = None,
        first_orders: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, host_router=False)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = folder / "data"
        self.database = self.data / "workflow_state.db"
        self.ledger = folder / "ledger"
        self.lives: dict[str, Life] = {}
        self.deaths: list[Death] = []
        self.restarts = 0
        self._held: set[str] = set()
        self._supervisor: asyncio.Task[None] | None = None
        self._first_router_url = first_router_url
        self._first_orders = dict(first_orders or {})
        settings = SETTINGS.format(
            handlers=HANDLERS_PATH,
            lease_seconds=lease_seconds,
            use_redis=str(bool(redis_url)).lower(),
            redis_url=redis_url or "redis://127.0.0.1:1",
        )
        (folder / "agent_config.yaml").write_text(settings)
        self.environment |= {
            handlers.VARIABLE: str(self.ledger),
            "AMP_LOGGING__LEVEL": log_level,
            "AMP_WEB__PORT": str(self.port),
        }
        self.environment.pop(crash.VARIABLE, None)
        self.commands = _commands(self.router_port, self.port, engines, executors)

    # --- life ------------------------------------------------------------------------------------------

    async def start_all(self) -> None:
        """Start everything, and return when it is ready and knows the workflows."""
        for name in self.commands:
            self._begin(name, self._first_orders.get(name, ""))
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name="supervisor")
        await self.client.start(wait_seconds=JOIN_SECONDS)
        await self.joined()
        await self.dashboard_answers()
        for definition in DEFINITIONS:
            await self.client.request(
                contracts.WORKFLOW_CREATE.id,
                contracts.WorkflowCreateRequest(definition=definition, overwrite=True),
                patience_seconds=JOIN_SECONDS,
                resend=True,
            )

    async def dashboard_answers(self) -> None:
        """Return when the dashboard is ready."""
        async with aiohttp.ClientSession() as session, asyncio.timeout(JOIN_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.url}/readyz") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End everything."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        for life in self.lives.values():
            if life.process.poll() is None:
                life.process.send_signal(signal.SIGCONT)
        self.running = {name: life.process for name, life in self.lives.items() if not life.ended.is_set()}
        await super().stop()

    # --- faults ----------------------------------------------------------------------------------------

    def kill(self, name: str, *, hold: bool = False) -> Life:
        """Kill a process the hard way; another follows at once, unless `hold` keeps it back until `release`."""
        life = self.lives[name]
        if hold:
            self._held.add(name)
        life.killed = True
        life.process.send_signal(signal.SIGKILL)
        return life

    def release(self, name: str) -> None:
        """Let a process that was held back start again."""
        self._held.discard(name)

    async def rearm(self, name: str, order: str) -> Life:
        """Replace a process by one that obeys an order such as `store.commit.before:1`, and return its life."""
        self._held.add(name)
        life = self.kill(name)
        await life.ended.wait()
        self._held.discard(name)
        return self._begin(name, order)

    def freeze(self, name: str) -> Life:
        """Stop a process where it stands."""
        life = self.lives[name]
        life.process.send_signal(signal.SIGSTOP)
        return life

    def thaw(self, name: str) -> None:
        """Let a frozen process go on."""
        self.lives[name].process.send_signal(signal.SIGCONT)

    @property
    def surprises(self) -> list[Death]:
        """The deaths that nobody ordered."""
        return [death for death in self.deaths if not death.wanted]

    # --- the supervisor --------------------------------------------------------------------------------

    def _begin(self, name: str, order: str = "") -> Life:
        environment = {crash.VARIABLE: order} if order else {}
        if name == "executor-1" and self._first_router_url is not None:
            environment["AMP_MESH__ROUTER_URL"] = self._first_router_url(self.router_url)
        process = self.launch(name, self.commands[name], **environment)
        life = self.lives[name] = Life(name, process, order.partition(":")[0])
        return life

    async def _supervise(self) -> None:
        while True:
            for life in list(self.lives.values()):
                if not life.ended.is_set() and life.process.poll() is not None:
                    self._note_end(life)
                if life.ended.is_set() and life.name not in self._held and self.lives[life.name] is life:
                    await self._follow(life)
            await asyncio.sleep(LOOK_SECONDS)

    def _note_end(self, life: Life) -> None:
        returncode = life.process.returncode
        self.deaths.append(
            Death(life.name, time.monotonic(), time.time(), returncode, life.point, life.wanted_end)
        )
        assert len(self.deaths) < MAX_LIVES, "processes die faster than anybody kills them"
        life.ended.set()

    async def _follow(self, life: Life) -> None:
        if not life.wanted_end:
            await asyncio.sleep(FAILED_START_SECONDS)
        self.restarts += 1
        self._begin(life.name)

    # --- what is left ----------------------------------------------------------------------------------

    def tails(self) -> str:
        """Return the last lines of every process."""
        return "\n".join(
            f"--- {name}\n" + "\n".join(self.log_of(name).splitlines()[-TAIL_LINES:])
            for name in self.commands
            if (self.folder / f"{name}.log").exists()
        )


def _commands(router_port: int, dashboard_port: int, engines: int, executors: int) -> Mapping[str, list[str]]:
    """Return the command of each process by name."""
    python = sys.executable

    def agent(section: str, *more: str) -> list[str]:
        return [python, "-m", f"agents.{section}", "--port", "0", *more]

    return {
        "router": [python, "-m", "amp.router", "--port", str(router_port)],
        "state": agent("state_manager"),
        **{
            f"engine-{number}": agent("workflow_engine", "--agent-id", f"workflow-engine-{number}")
            for number in range(1, engines + 1)
        },
        **{
            f"executor-{number}": agent("task_executor", "--agent-id", f"task-executor-{number}")
            for number in range(1, executors + 1)
        },
        "condition": agent("condition_evaluator"),
        "error": agent("error_handler"),
        "monitor": agent("monitor_agent"),
        "dashboard": [python, str(ROOT / "web" / "app.py"), "--port", str(dashboard_port)],
    }


def processes_below(folder: Path, known: set[int]) -> list[str]:
    """Return the processes that work below a folder and are none of ours: orphans of tasks."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in known:
            continue
        try:
            place = os.readlink(entry / "cwd")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if place.startswith(f"{folder}{os.sep}"):
            found.append(f"{entry.name}: {command}")
    return found


async def eventually(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when the condition holds; fail with `what` when it does not within the time."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}") from None


@asynccontextmanager
async def running_chaos(folder: Path, **options: object) -> AsyncIterator[ChaosMesh]:
    """Run a mesh of processes that are started again when they end; nothing is left behind."""
    mesh = ChaosMesh(folder, **options)  # type: ignore[arg-type]
    try:
        try:
            await mesh.start_all()
        except TimeoutError:
            raise AssertionError(f"not ready in time: {mesh.surprises}\n{mesh.tails()}") from None
        yield mesh
    finally:
        await mesh.stop()
