"""One act of a test: work is under way, something dies, everything comes to rest, and everything must be right.

The mesh goes on from act to act; each act looks at its own instances, and the last look is at all of them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from sqlite3 import OperationalError
from typing import Any

from amp.errors import AmpError
from orchestration import contracts
from tests.chaos.checker import (
    Facts,
    Store,
    Verdict,
    check_leftovers,
    check_store,
    check_totals,
    describe,
    read_ledger,
)
from tests.chaos.customer import Customer
from tests.chaos.mesh import ChaosMesh, Life, eventually, processes_below, running_chaos
from tests.chaos.workload import VARIANTS, End, Start, expected_ends, one_of_each

QUIET_SECONDS = 60.0
"""How long everything may take to end after the last fault."""
HIT_SECONDS = 60.0
"""How long a process that is to die at a place may take to come there."""
HIT_TRIES = 6
LEFTOVER_SECONDS = 30.0
BEFORE = ("beating", "overdue", "process", "once", "chain", "paused", "files")
"""What is under way when the process that is to die is started."""

Act = Callable[["Scene"], Awaitable[None]]


class Scene:
    """A running mesh, its customer, and what is known of the instances so far."""

    def __init__(self, mesh: ChaosMesh, customer: Customer, ends: dict[tuple[str, int], End]) -> None:
        self.mesh = mesh
        self.customer = customer
        self.ends = ends
        self.instances: list[str] = []
        """Those of the last act."""
        self._acts = 0
        self._forgotten: set[str] = set()

    # --- acts ------------------------------------------------------------------------------------------

    async def strike(self, name: str, order: str, trigger: Act, *extra: str) -> None:
        """Have a process die where `order` says while work is under way, and see everything end well.

        Args:
            trigger: What it takes besides the usual work to come to that place.
            extra: Workflows to start besides one of each.
        """
        async with self.work() as under_way:
            await asyncio.sleep(0.3)
            life = await self.mesh.rearm(name, order)
            await self._joined(life)
            under_way.begin(self._one_of_each_and(extra))
            await trigger(self)
            await self.hit(life, order, lambda: under_way.begin(self._one_of_each_and(extra)))

    def _one_of_each_and(self, extra: Sequence[str]) -> list[Start]:
        label = self._label()
        more = [Start(each, number % VARIANTS, f"{label}-more-{number}") for number, each in enumerate(extra)]
        return [*one_of_each(label), *more]

    @asynccontextmanager
    async def work(self, extra: Sequence[str] = ()) -> AsyncIterator["UnderWay"]:
        """Have the usual work under way, and more of the workflows `extra`; see `work_of`."""
        label = self._label()
        starts = [
            Start(name, number % VARIANTS, f"{label}-{number}")
            for number, name in enumerate((*BEFORE, *extra))
        ]
        async with self.work_of(starts) as under_way:
            yield under_way

    @asynccontextmanager
    async def work_of(self, starts: Sequence[Start]) -> AsyncIterator["UnderWay"]:
        """Have these starts under way; at the end all must be acknowledged, ended and right."""
        under_way = UnderWay(self.customer)
        under_way.begin(starts)
        try:
            yield under_way
            instances = await under_way.acknowledged()
        finally:
            await under_way.give_up()
        self.instances = instances
        await self.rest()
        self.judge(self.check(instances))

    async def _joined(self, life: Life) -> None:
        """Return when an executor is there, so that it gets a share of the work, or has died on its way."""
        if not life.name.startswith("executor"):
            return
        async with asyncio.timeout(HIT_SECONDS):
            while not life.ended.is_set():
                agents = await self.mesh.client.discover(capabilities=[contracts.TASK_CUSTOM.id])
                if f"task-{life.name}" in {agent["identity"]["id"] for agent in agents}:
                    return
                await asyncio.sleep(0.05)

    async def hit(self, life: Life, order: str, again: Callable[[], None] | None = None) -> None:
        """Return when a process has died at its place; one that never comes there fails the test.

        Args:
            again: Called now and then: brings more of the work, for what there was may have gone to another process.
        """
        for _ in range(HIT_TRIES):
            try:
                async with asyncio.timeout(HIT_SECONDS / HIT_TRIES):
                    await life.ended.wait()
                break
            except TimeoutError:
                if again is not None:
                    again()
        else:
            raise AssertionError(f"{life.name} did not come to {order} within {HIT_SECONDS:g} s")
        assert life.wanted_end, f"{life.name} ended with {life.process.returncode}\n{self.mesh.tails()}"

    def _label(self) -> str:
        self._acts += 1
        return f"act-{self._acts}"

    # --- looks -----------------------------------------------------------------------------------------

    async def rest(self) -> None:
        """Return when every instance has ended; fail with what is stuck."""

        def quiet() -> bool:
            with suppress(OperationalError), Store(self.mesh.database) as store:
                return store.count_open() == 0
            return False

        try:
            await eventually(quiet, QUIET_SECONDS, "every instance has ended")
        except AssertionError as error:
            with Store(self.mesh.database) as store:
                stuck = "\n".join(store.open_rows())
                first = stuck.partition("'")[2].partition("'")[0]
                told = describe(store, first) if first else ""
            raise AssertionError(f"{error}; stuck:\n{stuck}\n{told}\n{self.mesh.tails()}") from None

    def check(self, only: Sequence[str] | None) -> Verdict:
        """Return what is wrong with these instances, or with all and the whole store."""
        effects = read_ledger(self.mesh.ledger)
        facts = Facts(
            asked=self.customer.asked,
            ends=self.ends,
            effects={name: done for name, done in effects.items() if name not in self._forgotten},
            disturbances=[death.wall for death in self.mesh.deaths if death.name == "router"],
        )
        with Store(self.mesh.database) as store:
            return check_store(store, facts, only)

    def judge(self, verdict: Verdict) -> None:
        """Fail with everything there is to know, unless all is well."""
        surprises = [f"{death.name} ended by itself with {death.returncode}" for death in self.mesh.surprises]
        if not verdict.violations and not surprises:
            return
        with Store(self.mesh.database) as store:
            dumps = "\n".join(describe(store, instance_id) for instance_id in verdict.suspects)
        raise AssertionError("\n".join([*verdict.violations, *surprises, dumps, self.mesh.tails()]))

    def forget(self, instances: Sequence[str]) -> None:
        """Expect no more that these instances exist: somebody had them removed."""
        self._forgotten.update(instances)
        for name in instances:
            del self.customer.asked[name]

    async def last_look(self) -> None:
        """Look at everything once more, and at what may be left behind."""
        await self.rest()
        self.judge(self.check(None))
        data = self.mesh.data
        await eventually(
            lambda: not check_leftovers(data), LEFTOVER_SECONDS, f"nothing is left: {check_leftovers(data)}"
        )
        own = {life.process.pid for life in self.mesh.lives.values()}
        assert not processes_below(self.mesh.folder / "data", own)
        if not self._forgotten:
            await self.totals_agree()

    async def totals_agree(self) -> None:
        """Return when the monitor has counted everything, and counted it right."""
        found = ["the monitor did not answer"]
        with suppress(TimeoutError):
            async with asyncio.timeout(LEFTOVER_SECONDS):
                while found:
                    reply = await self.ask(
                        contracts.METRICS_GET.id,
                        contracts.MetricsGetRequest(metric_type="workflow", time_range="24h"),
                        contracts.MetricsGetReply,
                    )
                    with Store(self.mesh.database) as store:
                        found = check_totals(store, reply.metrics)
                    await asyncio.sleep(0.2)
        assert not found, "\n".join(found)

    async def ask(self, capability: str, request: object, reply_type: Any = dict) -> Any:
        """Ask an agent, again when it was lost over the question."""
        while True:
            try:
                return await self.mesh.client.request(
                    capability,
                    request,
                    reply_type=reply_type,
                    timeout_seconds=HIT_SECONDS,
                    patience_seconds=HIT_SECONDS,
                    resend=True,
                )
            except AmpError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(0.1)


class UnderWay:
    """Starts that are being served."""

    def __init__(self, customer: Customer) -> None:
        self._customer = customer
        self._serving: list[asyncio.Task[str]] = []

    def begin(self, starts: Sequence[Start]) -> None:
        """Begin to serve starts."""
        loop = asyncio.get_running_loop()
        self._serving += [loop.create_task(self._customer.serve(start)) for start in starts]

    async def acknowledged(self) -> list[str]:
        """Return the ids of all instances once each is acknowledged."""
        return list(await asyncio.gather(*self._serving))

    async def give_up(self) -> None:
        """Stop what is still being served."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


@asynccontextmanager
async def running_scene(folder: Path, **options: Any) -> AsyncIterator[Scene]:
    """Run a mesh with a customer; at the end everything is looked at once more."""
    ends = await expected_ends(folder / "fault-free")
    place = folder / "mesh"
    place.mkdir()
    async with running_chaos(place, **options) as mesh, Customer(mesh.url) as customer:
        scene = Scene(mesh, customer, ends)
        yield scene
        await scene.last_look()
