"""The instances that this engine drives: taken up, let go, and set aside when they cannot be driven.

What it may drive is decided by the store. One instance that breaks must never hinder another.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import Any

import msgspec
import structlog

from agents.workflow_engine.driver import Driver, Performer
from agents.workflow_engine.errors import InstanceUnreadable
from agents.workflow_engine.histories import Histories
from agents.workflow_engine.log_writer import LogWriter
from agents.workflow_engine.slots import Slots
from amp import crash
from amp.errors import AmpError
from orchestration import contracts, machine
from orchestration import stimuli as st
from orchestration.definition.plan import Plan
from orchestration.documents import row_of
from orchestration.instance import Instance
from runtime.clock import Clock

MAX_RECENT = 1000
"""Ended instances that are still answered from memory."""
MAX_REASON_CHARACTERS = 300

logger = structlog.get_logger(__name__)

Spawn = Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]]


class Drivers:
    """One driver for each instance that is ours.

    Args:
        owner: The name under which this process owns instances.
        on_ended: Called with an instance that has ended, once that is durable.
    """

    def __init__(
        self,
        *,
        owner: str,
        log: LogWriter,
        performer: Performer,
        histories: Histories,
        slots: Slots,
        clock: Clock,
        spawn: Spawn,
        on_ended: Callable[[Instance], None],
    ) -> None:
        self.draining = False
        self.recent: OrderedDict[str, tuple[Plan, Instance]] = OrderedDict()
        self.quarantined: dict[str, str] = {}
        """Instances that are left alone until this process ends, with the reason."""
        self._owner = owner
        self._log = log
        self._performer = performer
        self._histories = histories
        self._slots = slots
        self._clock = clock
        self._spawn = spawn
        self._on_ended = on_ended
        self._by_id: dict[str, Driver] = {}
        self._beginning: set[str] = set()
        self._set_aside: set[str] = set()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Driver]:
        return iter(list(self._by_id.values()))

    def __contains__(self, instance_id: object) -> bool:
        return instance_id in self._by_id

    def get(self, instance_id: str) -> Driver | None:
        """Return the driver of an instance that is driven here and stored: of any other nobody may be told."""
        return None if instance_id in self._beginning else self._by_id.get(instance_id)

    @property
    def owned(self) -> int:
        """How many instances this engine answers for, those that it cannot drive included."""
        return len(self._by_id) + len(self._set_aside)

    def note_owned(self, instance_ids: Collection[str]) -> None:
        """Note what the store says is ours: an instance that was set aside may be another engine's by now."""
        self._set_aside = self.quarantined.keys() & set(instance_ids)

    def epochs(self) -> dict[str, int]:
        """Return under which epoch each instance is driven, without those whose start is not stored yet."""
        return {
            instance_id: driver.epoch
            for instance_id, driver in self._by_id.items()
            if instance_id not in self._beginning
        }

    # --- to begin, to take up, to let go ---------------------------------------------------------------

    def begin(self, plan: Plan, step: machine.Step) -> asyncio.Task[contracts.AppendOutcome]:
        """Store the first step of an instance and drive it; the task returns what became of the append.

        Whoever waits for the task may go away: the instance is driven all the same. One that is driven already is a
        conflict, and nothing is asked of the store.
        """
        if (known := self._by_id.get(step.instance.id)) is not None:
            return self._spawn(_taken(known), f"start {known.id}")
        driver = self._driver(plan, step.instance, epoch=1)
        self._beginning.add(driver.id)
        self._add(driver)
        return self._spawn(self._begin(driver, step), f"start {driver.id}")

    async def _begin(self, driver: Driver, step: machine.Step) -> contracts.AppendOutcome:
        crash.reach("engine.start.before_append")
        try:
            outcome = await driver.begin(step)
        finally:
            self._beginning.discard(driver.id)
        crash.reach("engine.start.after_append")
        if outcome.status != "ok":
            self._forget(driver)
        return outcome

    async def take_up(self, row: contracts.InstanceRow) -> bool:
        """Rebuild an instance that is ours and drive it; return false when it could not be read now.

        One that cannot be rebuilt is set aside and hinders no other.
        """
        if row.instance_id in self._by_id or row.instance_id in self.quarantined:
            return True
        try:
            plan, instance = await self._histories.rebuild(row)
            if not instance.status.is_final and row.instance_id not in self._by_id and not self.draining:
                self._restore(plan, instance, row.epoch)
        except InstanceUnreadable as error:
            self._quarantine(row, error.message)
        except AmpError as error:
            logger.warning("instance_not_read", instance_id=row.instance_id, code=error.code)
            return False
        except Exception as error:  # boundary: an instance that cannot be taken up must not end the engine
            logger.exception("instance_not_rebuilt", instance_id=row.instance_id)
            self._quarantine(row, f"{type(error).__name__}: {error}")
        return True

    def _restore(self, plan: Plan, instance: Instance, epoch: int) -> None:
        driver = self._driver(plan, instance, epoch=epoch)
        self._add(driver)
        try:
            driver.restore()
        except BaseException:
            self._drop(driver)
            raise
        self.admit_next()

    def let_go(self, instance_id: str, reason: str) -> None:
        """Stop driving an instance that is not ours any more."""
        driver = self._by_id.get(instance_id)
        if driver is not None:
            driver.let_go()
            self._lost(driver, reason)

    def let_go_of_all(self) -> None:
        """Stop driving everything: this process ends."""
        for driver in self:
            driver.let_go()

    async def idle(self) -> None:
        """Return when everything that has arrived is decided and stored."""
        await asyncio.gather(*(driver.idle() for driver in self), return_exceptions=True)

    def _driver(self, plan: Plan, instance: Instance, *, epoch: int) -> Driver:
        def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
            return self._spawn(self._guarded(instance.id, work), name)

        return Driver(
            plan,
            instance=instance,
            owner=self._owner,
            epoch=epoch,
            log=self._log,
            performer=self._performer,
            clock=self._clock,
            spawn=spawn,
            on_change=self._changed,
            on_lost=self._lost,
        )

    def _add(self, driver: Driver) -> None:
        self._by_id[driver.id] = driver
        self._slots.note(driver.id, driver.instance.status)

    def _drop(self, driver: Driver) -> None:
        if self._by_id.get(driver.id) is driver:
            del self._by_id[driver.id]
            self._slots.forget(driver.id)
        driver.let_go()

    def _forget(self, driver: Driver) -> None:
        self._drop(driver)
        self.admit_next()

    def _lost(self, driver: Driver, reason: str) -> None:
        logger.warning("instance_lost_to_another_engine", instance_id=driver.id, reason=reason)
        self._forget(driver)

    # --- what becomes of them --------------------------------------------------------------------------

    def admit_next(self) -> None:
        """Let the longest waiting instances begin while there are free slots."""
        if self.draining:
            return
        for instance_id in self._slots.admit():
            self._by_id[instance_id].post(st.Admit(at=self._clock.now()))

    def _changed(self, driver: Driver) -> None:
        """Facts of an instance became durable."""
        instance = driver.committed
        if instance.status.is_final:
            self._drop(driver)
            self.recent[instance.id] = (driver.plan, instance)
            while len(self.recent) > MAX_RECENT:
                self.recent.popitem(last=False)
            self._on_ended(instance)
        elif self._by_id.get(driver.id) is driver:
            self._slots.note(driver.id, instance.status)
        self.admit_next()

    async def _guarded(self, instance_id: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # boundary: an instance that breaks the code must not end the engine
            logger.exception("instance_broken", instance_id=instance_id)
            driver = self._by_id.get(instance_id)
            if driver is None:
                return
            row = row_of(driver.plan, driver.committed, None)
            row = msgspec.structs.replace(row, seq=driver.committed.seq, epoch=driver.epoch)
            self._forget(driver)
            self._quarantine(row, f"{type(error).__name__}: {error}")

    def _quarantine(self, row: contracts.InstanceRow, reason: str) -> None:
        """Leave an instance alone until this process ends, and have its row say so: no time wakes it."""
        reason = f"quarantined: {reason[:MAX_REASON_CHARACTERS]}"
        self.quarantined[row.instance_id] = reason
        self._set_aside.add(row.instance_id)
        logger.error("instance_quarantined", instance_id=row.instance_id, reason=reason)
        self._spawn(self._mark(row, reason), f"quarantine {row.instance_id}")

    async def _mark(self, row: contracts.InstanceRow, reason: str) -> None:
        outcome = await self._log.append(
            contracts.AppendBatch(
                instance_id=row.instance_id,
                owner=self._owner,
                epoch=row.epoch,
                expected_seq=row.seq,
                events=[],
                row=msgspec.structs.replace(row, wake_at=None, wake_reason=reason),
            )
        )
        if outcome.status != "ok":
            logger.warning("quarantine_not_marked", instance_id=row.instance_id, status=outcome.status)


async def _taken(known: Driver) -> contracts.AppendOutcome:
    """Return what the store would say to a second start of an instance."""
    await known.stored()
    return contracts.AppendOutcome(instance_id=known.id, status="conflict", seq=known.committed.seq)
