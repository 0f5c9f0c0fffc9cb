"""A whole mesh in one process: router, six kinds of agents, network and store, each agent killed and started at will.

It starts, freezes, kills and starts again; when that happens is the faults' business, what it breaks the checks'.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import structlog

from agents.base import Agent
from amp import crash
from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError
from amp.router import Router
from orchestration import events as ev
from orchestration.contracts import CONTRACTS, EventRecord
from orchestration.definition.plan import Plan
from runtime.clock import SlewedClock
from runtime.settings import Settings, settings_from
from simulation import processes
from simulation.clock import MachineClock
from simulation.lives import CURRENT, Killed, Life
from simulation.loop import VirtualLoop
from simulation.network import SimulatedNetwork
from simulation.store import Plant, SimulatedStore
from simulation.work import Ledger, Subject

Trace = Callable[[float, str, str, dict[str, Any]], None]
"""Takes a log line: time, process, event, facts."""

ROUTER = "router"
CLIENT = "sim-client"
RESTART_AFTER_FAILURE_SECONDS = 1.0
MAX_FAILURES = 10
"""How many ends of agents that nobody caused are told."""


@dataclass(slots=True)
class Process:
    """One process of the mesh, over all its lives. `life` is None while it is down."""

    name: str
    build: Callable[["Process"], Agent] | None
    clock: MachineClock
    random: Random
    life: Life | None = None
    agent: Agent | None = None
    lives: int = 0


def settings_of(data_dir: Path) -> Settings:
    """Return the settings of simulated agents."""
    return settings_from(
        {
            "data_dir": str(data_dir),
            "workflow_engine": {"load_workflows_on_start": False},
            "database": {"sqlite_path": ":memory:", "backup_interval_hours": 0},
        }
    )


class SimulatedMesh:
    """Everything that runs, and what it can be subjected to.

    Args:
        seed: What every draw of this mesh is made from.
        executors, engines: How many of them there are.
        plant: A bug to plant into the store.
        trace: Called with each log line: time, process, event, facts.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        seed: str,
        settings: Settings,
        plans: Mapping[str, Plan],
        *,
        executors: int = 2,
        engines: int = 1,
        plant: Plant = "",
        skew_seconds: float = 0.0,
        trace: Trace | None = None,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.store = SimulatedStore(Random(f"{seed}:disk"), plant)
        self.ledger = Ledger(_subjects(plans.values()))
        self.ledger.begun = self._latest_attempt
        capabilities = {task.capability for plan in plans.values() for task in plan.tasks.values()}
        self._foreign = sorted(capabilities - set(CONTRACTS))
        self.lives: list[Life] = []
        self.failures: list[str] = []
        """Ends of agents that nobody caused: their own background tasks failed."""
        self.seen: dict[int, EventRecord] = {}
        """What the log has shown to a reader, by offset."""
        self.reasons: dict[str, str] = {}
        self.frames = 0
        self._sealed = ""
        self._digest = hashlib.blake2b(digest_size=16)
        self.network = SimulatedNetwork(loop, seed, self._note_frame)
        self._seed = seed
        self._skew_seconds = skew_seconds
        self._trace = trace
        self._monitor_database = processes.new_monitor_database()
        self.processes: dict[str, Process] = {}
        self._add(ROUTER, None)
        self._add(CLIENT, None)
        self._add("state-manager", self._state_manager)
        for number in range(1, engines + 1):
            name = "workflow-engine" if number == 1 else f"workflow-engine-{number}"
            self._add(name, partial(self._plain, processes.WorkflowEngine))
        for number in range(1, executors + 1):
            self._add(f"task-executor-{number}", self._executor)
        self._add("condition-evaluator", partial(self._plain, processes.ConditionEvaluator))
        self._add("error-handler", partial(self._plain, processes.ErrorHandler))
        self._add("monitor-agent", self._monitor)

    def _add(self, name: str, build: Callable[[Process], Agent] | None) -> None:
        random = Random(f"{self._seed}:{name}")
        skew = (random.random() * 2 - 1) * self._skew_seconds
        self.processes[name] = Process(name, build, MachineClock(self.loop, skew), random)

    # --- how each is made ----------------------------------------------------------------------------------

    def _options(self, process: Process) -> dict[str, Any]:
        return {
            "transport": self.network.transport_of(process.name),
            "clock": SlewedClock(process.clock),
            "random": process.random,
            "agent_id": process.name,
            "serve_http": False,
        }

    def _plain(self, kind: type[Agent], process: Process) -> Agent:
        return kind(self.settings, **self._options(process))

    def _state_manager(self, process: Process) -> Agent:
        return processes.SimulatedStateManager(self.settings, store=self.store, **self._options(process))

    def _executor(self, process: Process) -> Agent:
        return processes.SimulatedExecutor(
            self.settings, ledger=self.ledger, foreign=self._foreign, **self._options(process)
        )

    def _monitor(self, process: Process) -> Agent:
        return processes.SimulatedMonitor(
            self.settings, database=self._monitor_database, seen=self.seen, **self._options(process)
        )

    def client(self) -> MeshClient:
        """Return a client of the mesh that was not started yet."""
        process = self.processes[CLIENT]
        return MeshClient(
            AgentIdentity(id=CLIENT, name="client", framework="simulation", session_id="client"),
            self.network.transport_of(CLIENT),
            now=process.clock.now,
            random=process.random,
        )

    # --- lives ---------------------------------------------------------------------------------------------

    def start_all(self) -> None:
        """Start every process."""
        for name in self.processes:
            self.start(name)

    def start(self, name: str) -> None:
        """Begin a life of a process that is down."""
        process = self.processes[name]
        if process.life is not None:
            return
        process.lives += 1
        life = process.life = Life(f"{name}#{process.lives}")
        self.lives.append(life)
        if name == ROUTER:
            life.enter(self._start_router, process)
        elif process.build is not None:
            life.enter(self._start_agent, process)

    def _start_router(self, process: Process) -> None:
        router = Router(now=process.clock.now, random=process.random)
        router.serve_memory(self.network)

    def _start_agent(self, process: Process) -> None:
        assert process.build is not None
        process.agent = process.build(process)
        self.loop.create_task(self._live(process, process.agent), name=f"life of {process.name}")

    async def _live(self, process: Process, agent: Agent) -> None:
        """What the process's `main` does: start, and end when the agent has failed."""
        life = process.life
        try:
            await agent.start()
            await agent.failed.wait()
            reason = self.reasons.get(life.name if life else "", "a background task of it failed")
        except AmpError as error:
            reason = f"it did not start: {error.code}: {error.message}"
        except Exception as error:  # boundary: told as a finding
            reason = f"it did not start: {error!r}"
        if life is process.life and len(self.failures) < MAX_FAILURES:
            self.failures.append(f"{self.loop.time():.3f} s: {process.name} ended by itself: {reason}")
        if life is process.life:
            in_world(self.loop, self.kill, process.name, RESTART_AFTER_FAILURE_SECONDS)

    def kill(self, name: str, down_seconds: float) -> None:
        """End a process now, without a last word, and start it again after a time."""
        process = self.processes[name]
        life = process.life
        if life is None:
            return
        life.kill()
        if isinstance(process.agent, processes.SimulatedExecutor):
            process.agent.release()
        process.life = process.agent = None
        if name == ROUTER:
            self.network.serve(None)
            for line in self.network.lines.values():
                line.die(process.random)
        else:
            self.network.line(name).die(process.random)
        self.note(f"kill {name}")
        in_world(self.loop, self.loop.call_later, down_seconds, self.start, name)

    def stall(self, name: str, seconds: float) -> None:
        """Freeze a process, as SIGSTOP would."""
        life = self.processes[name].life
        if life is None or life.frozen:
            return
        life.freeze()
        self.note(f"stall {name}")
        in_world(self.loop, self.loop.call_later, seconds, self._thaw, life)

    def _thaw(self, life: Life) -> None:
        if life.frozen:
            self.loop.resume(life.thaw())

    def heal(self) -> None:
        """End every fault that lasts; what is down is started by its timer."""
        self.network.heal()
        for process in self.processes.values():
            if process.life is not None:
                self._thaw(process.life)

    # --- what is known about a run -------------------------------------------------------------------------

    def _latest_attempt(self, instance_id: str, task_id: str, asked_by: str) -> int:
        """Return a task's latest attempt, or the latest before the one that asks about it was started."""
        latest = asked = 0
        for event in self.store.events:
            if event.instance_id != instance_id or event.type != "task.started":
                continue
            fact = ev.decode(event.data)
            assert isinstance(fact, ev.TaskStarted)
            if fact.task_id == task_id:
                latest = fact.attempt
            elif fact.task_id == asked_by:
                asked = latest
        return asked if asked_by else latest

    def note(self, text: str) -> None:
        """Make something part of the run's hash, and of its trace."""
        self._digest.update(f"{self.loop.time():.9f} {text}\n".encode())
        if self._trace is not None:
            self._trace(self.loop.time(), "world", text, {})

    def _note_frame(self, direction: str, frame: bytes) -> None:
        self.frames += 1
        self._digest.update(f"{self.loop.time():.9f} {direction}\n".encode())
        self._digest.update(frame)

    def seal(self) -> None:
        """Take nothing more into the hash: what follows is tidying up."""
        self._sealed = self.digest()

    def digest(self) -> str:
        """Return the hash over every frame and fault so far, and the whole log."""
        if self._sealed:
            return self._sealed
        digest = self._digest.copy()
        for event in self.store.events:
            digest.update(f"{event.offset} {event.instance_id} {event.seq}".encode())
            digest.update(bytes(event.data))
        return digest.hexdigest()


def _subjects(plans: Iterable[Plan]) -> dict[tuple[str, str], Subject]:
    return {
        (plan.workflow_id, task.reconcile): Subject(task.id, task.output_names)
        for plan in plans
        for task in plan.tasks.values()
        if task.reconcile
    }


def in_world(loop: VirtualLoop, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `function` returns when it is called outside every life."""
    token = CURRENT.set(None)
    try:
        return function(*arguments)
    finally:
        CURRENT.reset(token)


@contextmanager
def crash_points(hook: Callable[[str, str], bool] | None) -> Iterator[None]:
    """Ask `hook` at every crash point whether the process, named first, dies there."""

    def reach(point: str) -> None:
        life = CURRENT.get()
        if life is None or hook is None:
            return
        if life.dead or hook(life.name.partition("#")[0], point):
            raise Killed

    crash.on_reach(reach if hook is not None else None)
    try:
        yield
    finally:
        crash.on_reach(None)


@contextmanager
def quiet(mesh: SimulatedMesh, trace: Trace | None) -> Iterator[None]:
    """Write no log lines: give them to `trace` when it is there, and the reason of an agent's end to the mesh."""
    structlog_before, disabled_before = structlog.get_config(), logging.root.manager.disable

    def record(logger: Any, method: str, facts: Any) -> Any:
        text, life = str(facts.pop("event", "")), CURRENT.get()
        name = life.name if life is not None else "world"
        if text == "background_task_failed":
            mesh.reasons[name] = f"{facts.get('task')}: {facts.get('exc_info')!r}"
        if trace is not None:
            trace(mesh.loop.time(), name, text, dict(facts))
        raise structlog.DropEvent

    level = logging.DEBUG if trace is not None else logging.ERROR
    structlog.configure(
        processors=[record],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        structlog.configure(**structlog_before)
        logging.disable(disabled_before)


async def sleep_until(loop: VirtualLoop, at: float) -> None:
    """Return at a virtual time."""
    await asyncio.sleep(max(0.0, at - loop.time()))
