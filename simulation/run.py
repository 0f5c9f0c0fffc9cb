"""One seed: the run without faults, the run with them, the checks, and what to type to see it again."""

import asyncio
import gc
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.definition.compile import compile_plan
from orchestration.definition.parse import parse_object
from orchestration.definition.plan import Plan
from simulation.checks import Verdict, differences, judge
from simulation.errors import SimulationError
from simulation.faults import KINDS, Kind, Storm, storm_of
from simulation.loop import VirtualLoop
from simulation.mesh import SimulatedMesh, Trace, crash_points, quiet, settings_of
from simulation.store import Plant
from simulation.users import Users
from simulation.workload import Workload, generated, of_definition

START_SECONDS = 8.0
"""Starts are spread over this time."""
REST_SECONDS = 600.0
"""So long after the last fault everything has ended."""
LOOK_SECONDS = 0.5
AFTERMATH_SECONDS = 2.0
"""How long a mesh at rest is watched for what it still does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is simulated: a person's own definition, or, without one, generated workflows."""

    definition: Mapping[str, Any] | None = None
    inputs: Mapping[str, Any] | None = None
    file: str = ""
    values: tuple[str, ...] = ()

    def workload(self, seed: int) -> Workload:
        """Return the workload of a seed."""
        if self.definition is None:
            return generated(seed, over_seconds=START_SECONDS)
        return of_definition(seed, self.definition, self.inputs or {}, over_seconds=START_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedReport:
    """What one seed came to. `digest` is the hash over every frame, fault and event of the run with faults."""

    seed: int
    findings: tuple[str, ...]
    digest: str
    virtual_seconds: float
    frames: int
    events: int
    deaths: int
    excused: int
    kinds: tuple[str, ...]


def run_seed(
    seed: int,
    *,
    folder: Path,
    subject: Subject | None = None,
    faults: Collection[Kind] = KINDS,
    plant: Plant = "",
    trace: Trace | None = None,
) -> SeedReport:
    """Return what a seed came to. The same arguments give the same report, digest included.

    Args:
        folder: Where agents keep what outlives them; it must be empty.
        faults: The kinds of faults that may happen.
        plant: A bug to plant.
        trace: Called with every log line of the run with faults.
    """
    workload = (subject or Subject()).workload(seed)
    plans = _plans(workload)
    calm = _Run(
        seed, workload, plans, folder / "calm", Storm(f"{seed}:calm", frozenset(), 0.0), "", None
    ).result()
    storm = storm_of(seed, faults)
    run = _Run(seed, workload, plans, folder / "storm", storm, plant, trace)
    stormy = run.result()
    found = [f"without any fault: {text}" for text in calm.findings]
    found += stormy.findings
    found += differences(calm, stormy)
    mesh = run.mesh
    return SeedReport(
        seed=seed,
        findings=tuple(found),
        digest=mesh.digest(),
        virtual_seconds=mesh.loop.time(),
        frames=mesh.frames,
        events=len(mesh.store.events),
        deaths=sum(life.dead for life in mesh.lives) or run.deaths,
        excused=len(stormy.excused),
        kinds=tuple(sorted(storm.kinds)),
    )


def command_of(seed: int, subject: Subject, faults: Collection[Kind], plant: Plant) -> str:
    """Return the one command that runs a seed again."""
    words = ["amp", "sim"]
    if subject.file:
        words.append(subject.file)
    for pair in subject.values:
        words += ["-i", pair]
    words += ["--seed", str(seed)]
    if set(faults) != set(KINDS):
        words += ["--faults", ",".join(kind for kind in KINDS if kind in faults) or "none"]
    if plant:
        words += ["--plant", plant]
    return shlex.join(words)


class _Run:
    """One run of a workload under a storm."""

    def __init__(
        self,
        seed: int,
        workload: Workload,
        plans: dict[str, Plan],
        folder: Path,
        storm: Storm,
        plant: Plant,
        trace: Trace | None,
    ) -> None:
        self.loop = VirtualLoop()
        self.storm = storm
        self.trace = trace
        self.deaths = 0
        self.mesh = SimulatedMesh(
            self.loop,
            str(seed),
            settings_of(folder),
            plans,
            executors=workload.executors,
            engines=workload.engines,
            plant=plant,
            skew_seconds=storm.skew_seconds,
            trace=trace,
        )
        self.users = Users(self.mesh, workload, plans)

    def result(self) -> Verdict:
        """Return the verdict about the run, after running it."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            with quiet(self.mesh, self.trace), crash_points(self.storm.crash_hook(self.mesh)):
                try:
                    self.loop.run_until_complete(self._live())
                    verdict = judge(self.mesh, self.users)
                except SimulationError as error:
                    verdict = Verdict(
                        findings=(f"{type(error).__name__}: {error}",), endings={}, excused=frozenset()
                    )
                self.deaths = sum(life.dead for life in self.mesh.lives)
                self.mesh.seal()
                self.loop.end(self.mesh.lives)
        finally:
            if collecting:
                gc.enable()
        return verdict

    async def _live(self) -> None:
        self.mesh.start_all()
        self.storm.arrange(self.mesh)
        users = asyncio.get_running_loop().create_task(self.users.act(), name="users")
        end = self.storm.heal_at + REST_SECONDS
        while self.loop.time() < end and not self._at_rest():
            if users.done():
                users.result()
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.sleep(AFTERMATH_SECONDS)
        users.cancel()

    def _at_rest(self) -> bool:
        rows = self.mesh.store.rows.values()
        return (
            self.loop.time() >= self.storm.heal_at
            and self.users.done
            and all(row.status.is_final for row in rows)
            and not self.mesh.store.inbox
        )


def _plans(workload: Workload) -> dict[str, Plan]:
    """Return the plans of a workload by the hash of their definitions."""
    settings = settings_of(Path())
    plans = [
        compile_plan(
            parse_object(dict(definition)).definition,
            workflow_timeout_seconds=settings.workflow_engine.workflow_timeout_default,
            task_timeout_seconds=settings.task_executor.task_timeout_default,
        )
        for definition in workload.definitions
    ]
    return {plan.definition_hash: plan for plan in plans}
