"""The long run: thousands of instances while a process is killed every second or three, and a report at the end.

    python -m tests.chaos.soak --instances 10000 --kills 300 --seed 1

The seed decides who is killed when and what is started in which order; how the processes answer is up to them. The
exit code is 1 when anything that was promised did not hold.
"""

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from sqlite3 import OperationalError

import structlog

from tests.chaos.checker import Store, Verdict, check_leftovers, describe
from tests.chaos.customer import Customer
from tests.chaos.mesh import ChaosMesh, processes_below, running_chaos
from tests.chaos.scene import Scene
from tests.chaos.workload import Start, expected_ends, mixed

KINDS = ("router", "state", "engine", "executor", "condition", "error", "monitor", "dashboard")
MIN_GAP_SECONDS, MAX_GAP_SECONDS = 1.0, 3.0
QUIET_SECONDS = 60.0
"""How long everything may take to end after the last kill."""
MAX_OPEN = 300
"""No more is started while so many instances have not ended: what is left must end within QUIET_SECONDS."""
MAX_BEING_STARTED = 40
OBSERVE_SECONDS = 0.1
TELL_SECONDS = 15.0
MAX_SHOWN = 40


@dataclass(slots=True)
class Course:
    """How the run goes, as the store's file shows it."""

    began: float
    open: int = 0
    offset: int = 0
    moved: float = 0.0
    longest_pause: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    done_starting: bool = False

    def see(self, open_: int, offset: int, now: float) -> None:
        """Take a look: when the log does not move although something is open, that is a pause."""
        if offset != self.offset or not self.open:
            self.moved = now
        self.open, self.offset = open_, offset
        self.longest_pause = max(self.longest_pause, now - self.moved)


async def soak(instances: int, kills: int, seed: int, folder: Path, say: Callable[[str], None]) -> int:
    """Return 0 when everything that was promised held, else 1; `say` gets the report."""
    ends = await expected_ends(folder / "fault-free")
    place = folder / "mesh"
    place.mkdir()
    lease = {"lease_seconds": 15.0}
    async with (
        running_chaos(place, engines=2, executors=2, log_level="WARNING", **lease) as mesh,
        Customer(mesh.url) as customer,
    ):
        scene = Scene(mesh, customer, ends)
        course = Course(began=time.monotonic(), moved=time.monotonic())
        observing = asyncio.create_task(_observe(mesh, course, say))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_start(customer, course, instances, kills, seed))
                group.create_task(_kill(mesh, course, kills, seed))
            faults_seconds = time.monotonic() - course.began
            quiet_seconds = await _come_to_rest(course)
        finally:
            observing.cancel()
            await asyncio.gather(observing, return_exceptions=True)
        verdict = await _judge(scene, quiet_seconds)
        for line in _report(scene, course, verdict, faults_seconds, quiet_seconds):
            say(line)
        return 1 if verdict.violations else 0


async def _start(customer: Customer, course: Course, instances: int, kills: int, seed: int) -> None:
    """Start all instances, spread over the time that the kills take."""
    starts = list(mixed(instances, f"soak-{seed}"))
    Random(seed).shuffle(starts)
    gap = kills * (MIN_GAP_SECONDS + MAX_GAP_SECONDS) / 2 / max(instances, 1)
    room = asyncio.Semaphore(MAX_BEING_STARTED)

    async def serve(start: Start) -> None:
        try:
            await customer.serve(start)
            course.acknowledged += 1
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        for number, start in enumerate(starts):
            while course.open >= MAX_OPEN or time.monotonic() < course.began + number * gap:
                await asyncio.sleep(OBSERVE_SECONDS / 5)
            await room.acquire()
            group.create_task(serve(start))
    course.done_starting = True


async def _kill(mesh: ChaosMesh, course: Course, kills: int, seed: int) -> None:
    """Kill one process after another until there were enough and nothing is left to start."""
    random = Random(seed + 1)
    while course.kills.total() < kills or not course.done_starting:
        await asyncio.sleep(random.uniform(MIN_GAP_SECONDS, MAX_GAP_SECONDS))
        kind = random.choice(KINDS)
        names = [name for name in mesh.lives if name.startswith(kind)]
        mesh.kill(random.choice(names))
        course.kills[kind] += 1


async def _observe(mesh: ChaosMesh, course: Course, say: Callable[[str], None]) -> None:
    """Look at the store now and then, and say how far it is."""
    told = time.monotonic()
    store: Store | None = None
    while True:
        try:
            store = store or Store(mesh.database)
            course.see(store.count_open(), store.last_offset(), time.monotonic())
        except OperationalError:
            store = None
        if time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            say(
                f"  {told - course.began:6.0f} s: {course.acknowledged} started, {course.open} open, "
                f"{course.offset} events, {course.kills.total()} kills"
            )
        await asyncio.sleep(OBSERVE_SECONDS)


async def _come_to_rest(course: Course) -> float:
    """Return how many seconds it took until everything had ended, or QUIET_SECONDS when something did not."""
    began = time.monotonic()
    await asyncio.sleep(2 * OBSERVE_SECONDS)
    with suppress(TimeoutError):
        async with asyncio.timeout(QUIET_SECONDS):
            while course.open:
                await asyncio.sleep(OBSERVE_SECONDS)
    return time.monotonic() - began


async def _judge(scene: Scene, quiet_seconds: float) -> Verdict:
    """Return everything that is wrong."""
    mesh = scene.mesh
    verdict = scene.check(None)
    for death in mesh.surprises:
        verdict.add("broken", "", f"{death.name} ended by itself with exit code {death.returncode}")
    left = check_leftovers(mesh.data)
    deadline = time.monotonic() + max(QUIET_SECONDS - quiet_seconds, 10.0)
    while left and time.monotonic() < deadline:
        await asyncio.sleep(1.0)
        left = check_leftovers(mesh.data)
    left += processes_below(mesh.folder / "data", {life.process.pid for life in mesh.lives.values()})
    for text in left:
        verdict.add("broken", "", text)
    try:
        await scene.totals_agree()
    except AssertionError as error:
        verdict.add("broken", "", str(error))
    return verdict


def _report(
    scene: Scene, course: Course, verdict: Verdict, faults_seconds: float, quiet_seconds: float
) -> Iterator[str]:
    counts = verdict.counts
    kills = course.kills.total()
    with Store(scene.mesh.database) as store:
        dumps = [describe(store, instance_id) for instance_id in verdict.suspects]
    yield ""
    yield f"instances            {counts['instances']} ({len(scene.customer.asked)} acknowledged)"
    yield f"tasks                {counts['tasks']} run, in {counts['attempts']} attempts"
    yield f"effects              {counts['effects']}"
    yield f"events               {counts['events']}"
    yield f"kills                {kills}, one every {faults_seconds / max(kills, 1):.2f} s"
    for kind in KINDS:
        yield f"  {kind:<18} {course.kills[kind]}"
    yield f"lost                 {counts['lost']}"
    yield f"stuck                {counts['stuck']}"
    yield f"recorded twice       {counts['recorded_twice']}"
    yield f"effects done twice   {counts['done_twice']}"
    yield f"other final states   {counts['differing']}"
    yield f"other violations     {counts['broken']}"
    yield f"attempts lost        {counts['attempts_lost']}"
    yield f"re-executions        {counts['re_executions']} (of effects that may be repeated)"
    yield f"tries of the client  {scene.customer.tries}"
    yield f"throughput           {counts['tasks'] / faults_seconds:.1f} tasks/s while being killed"
    yield f"longest pause        {course.longest_pause:.1f} s without a new event"
    yield f"at rest after        {quiet_seconds:.1f} s"
    yield f"duration             {faults_seconds + quiet_seconds:.0f} s"
    if verdict.violations:
        yield from ("", *verdict.violations[:MAX_SHOWN], *dumps, scene.mesh.tails())
    yield "FAILED" if verdict.violations else "everything held"


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the data folder, also when all is well")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="amp-soak-"))

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    say(
        f"{options.instances} instances, {options.kills} kills, seed {options.seed}; everything is in {folder}"
    )
    code = asyncio.run(soak(options.instances, options.kills, options.seed, folder, say))
    if code == 0 and not options.keep:
        shutil.rmtree(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
