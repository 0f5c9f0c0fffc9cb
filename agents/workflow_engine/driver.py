"""One instance being driven: what reaches it is decided by the machine, stored, then performed.

Store first, then act: a command the world can see is performed after the facts that caused it are durable.
Questions (conditions, recovery) change nothing and are asked at once. Only this loop changes its instance.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import msgspec
import structlog

from amp import crash
from orchestration import commands as cmd
from orchestration import contracts, machine
from orchestration import events as ev
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import Plan
from orchestration.documents import row_of
from orchestration.errors import IllegalMove
from orchestration.instance import Instance
from orchestration.times import Due, due_of_instance, due_of_task, due_times
from runtime.clock import Clock

LOOK_AGAIN_SECONDS = 600.0
"""An instance for which nothing is due (it waits for a slot, say) is looked at again after so long."""
MAX_TIMER_SECONDS = 3600.0
"""Longest single wait of a timer: a longer one is waited for in pieces, so a clock that jumps is noticed."""

_CHANGES_ALL = frozenset({ev.InstanceAdmitted, ev.InstancePaused, ev.InstanceResumed})
"""Facts after which other things are due, or none."""
_CHANGES_ONE = (ev.TaskStarted, ev.TaskRetrying)
"""Facts after which something else is due for their task."""

logger = structlog.get_logger(__name__)


class Performer(Protocol):
    """Performs what the machine wants. Answers come back through `Driver.post`."""

    def perform(self, driver: "Driver", command: cmd.Command) -> None:
        """Begin to perform a command, unless that is under way; never wait for it."""
        ...

    def settle(self, kept: "KeptResult") -> None:
        """Have the agent told that a result which it keeps is recorded, or will never be wanted; never wait for it."""
        ...

    def hand_on(self, driver: "Driver", letters: "Sequence[Letter]") -> None:
        """Give results that this engine cannot record to the engine that owns the instance; never wait for it."""
        ...


class Appender(Protocol):
    """Stores facts durably."""

    async def append(self, batch: contracts.AppendBatch) -> contracts.AppendOutcome:
        """Return what became of the batch once it is durable or refused."""
        ...


class KeptResult(msgspec.Struct, frozen=True):
    """A result that the agent which made it keeps until it is told that it is recorded."""

    agent_id: str
    token: str


class Letter(msgspec.Struct, frozen=True):
    """Something in the mailbox: with an `inbox_id` it came through the inbox, `kept` is the result that it brings."""

    stimulus: st.AnyStimulus
    inbox_id: int = 0
    kept: KeptResult | None = None


class Driver:
    """Drives one instance that this engine owns.

    `committed` is the instance as it is stored: the only one that others may be told about.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        instance: Instance,
        owner: str,
        epoch: int,
        log: Appender,
        performer: Performer,
        clock: Clock,
        spawn: Callable[..., asyncio.Task[None]],
        on_change: Callable[["Driver"], None],
        on_lost: Callable[["Driver", str], None],
    ) -> None:
        self.plan = plan
        self.instance = instance
        self.committed = instance
        self.owner = owner
        self.epoch = epoch
        self.lost = False
        self.seen_inbox: set[int] = set()
        self._log = log
        self._performer = performer
        self._clock = clock
        self._spawn = spawn
        self._on_change = on_change
        self._on_lost = on_lost
        self._mailbox: deque[Letter] = deque()
        self._working: asyncio.Task[None] | None = None
        self._storing: asyncio.Future[None] | None = None
        self._open = False
        self._broken = False
        self._due: list[tuple[datetime, int, Due]] = []
        self._due_count = 0
        self._ends_at: datetime | None = None
        self._wake_at: datetime | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: datetime | None = None

    @property
    def id(self) -> str:
        """The instance's id."""
        return self.instance.id

    # --- what reaches it -------------------------------------------------------------------------------

    def post(self, stimulus: st.AnyStimulus, *, inbox_id: int = 0, kept: KeptResult | None = None) -> None:
        """Put something into the mailbox. An inbox entry that is already there is not put in twice.

        Args:
            kept: The result that the stimulus brings, to be settled once what follows from it is stored.
        """
        if self.lost:
            if kept is not None and self.committed.status.is_final:
                self._performer.settle(kept)
            return
        if inbox_id and inbox_id in self.seen_inbox:
            return
        if inbox_id:
            self.seen_inbox.add(inbox_id)
        self._mailbox.append(Letter(stimulus, inbox_id, kept))
        self._wake()

    def nudge(self) -> None:
        """Look at the instance again: a time may have passed unnoticed, or a command been forgotten.

        What is under way is not done twice: the performer knows it. The row says anew when that is done next.
        """
        if self._working is None and self._open and not self.lost:
            for command in machine.pending_commands(self.plan, self.committed):
                self._performer.perform(self, command)
        self._wake_at = self._clock.now()
        self.post(st.Tick(at=self._wake_at))

    def _wake(self) -> None:
        """Begin to work off the mailbox, unless that is under way or the instance is not stored yet."""
        if self._open and self._mailbox and self._working is None:
            self._working = self._spawn(self._work(), f"instance {self.id}")

    def settle(self, kept: KeptResult) -> None:
        """A result reached the instance's inbox by another way: whoever keeps it need not."""
        self._performer.settle(kept)

    async def idle(self) -> None:
        """Return when everything that is in the mailbox now is decided and stored."""
        while self._working is not None:
            await asyncio.shield(self._working)

    async def stored(self) -> None:
        """Return when the append that is on its way now has been answered.

        The log may tell others of a fact a moment before this engine hears that it is stored.
        """
        if self._storing is not None:
            await asyncio.shield(self._storing)

    async def begin(self, step: machine.Step) -> contracts.AppendOutcome:
        """Store the first step of a new instance and perform what follows from it."""
        self.instance = step.instance
        outcome = await self._store(step.events, [], expected_seq=0)
        if outcome.status == "ok":
            self._settle(step.events, step.commands)
            self._open = True
            self._wake()
        else:
            self.lost = True
        return outcome

    def restore(self) -> None:
        """Take up an instance that was rebuilt from its facts: do again what has to be done again."""
        self._open = True
        self._note_all_due()
        for command in machine.pending_commands(self.plan, self.instance):
            self._performer.perform(self, command)
        self._arm()
        self.post(st.Tick(at=self._clock.now()))

    def let_go(self) -> None:
        """Stop driving: another engine owns the instance, or this process ends. Results that wait are handed on."""
        self.lost = True
        if self._mailbox:
            self._performer.hand_on(self, list(self._mailbox))
        self._mailbox.clear()
        if self._timer is not None:
            self._timer.cancel()

    # --- the loop --------------------------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            while self._mailbox and not self.lost:
                await self._turn()
        finally:
            self._working = None

    async def _turn(self) -> None:
        """Decide about everything that has arrived, store it in one append, then act."""
        before = self.instance
        facts: list[ev.Event] = []
        orders: list[cmd.Command] = []
        consumed: list[int] = []
        kept: list[KeptResult] = []
        letters: list[Letter] = []
        while self._mailbox:
            letter = self._mailbox.popleft()
            letters.append(letter)
            if letter.inbox_id:
                consumed.append(letter.inbox_id)
            if letter.kept is not None:
                kept.append(letter.kept)
            try:
                step = machine.advance(self.plan, self.instance, letter.stimulus)
            except IllegalMove as error:
                logger.info("order_refused", instance_id=self.id, reason=str(error))
                continue
            self.instance = step.instance
            facts.extend(step.events)
            for command in step.commands:
                if isinstance(command, cmd.Question):
                    self._performer.perform(self, command)
                else:
                    orders.append(command)
        if facts or consumed or self._is_overdue():
            crash.reach("engine.turn.before_append")
            outcome = await self._store(facts, consumed, expected_seq=before.seq)
            if outcome.status == "refused" and not self._broken:
                self._break_down(before, outcome.reason)
                return
            if outcome.status != "ok":
                self._performer.hand_on(self, letters)
                self.let_go()
                self._on_lost(self, f"{outcome.status}, the log has seq {outcome.seq}")
                return
            crash.reach("engine.turn.after_append")
        self._settle(facts, machine.without_superseded(self.instance, orders))
        for result in kept:
            self._performer.settle(result)

    def _break_down(self, before: Instance, reason: str) -> None:
        """The store will never take these facts (too large, say): the instance fails with the reason instead."""
        self._broken = True
        self.instance = before
        logger.error("facts_refused", instance_id=self.id, reason=reason)
        error = ErrorInfo(
            code="STATE_REFUSED", message=f"the store refused what happened: {reason}", retryable=False
        )
        self._mailbox.clear()
        self.seen_inbox.clear()
        self.post(st.Breakdown(at=self._clock.now(), error=error))

    async def _store(
        self, facts: "tuple[ev.Event, ...] | list[ev.Event]", consumed: list[int], *, expected_seq: int
    ) -> contracts.AppendOutcome:
        self._note_facts(facts)
        batch = contracts.AppendBatch(
            instance_id=self.id,
            owner=self.owner,
            epoch=self.epoch,
            expected_seq=expected_seq,
            events=[
                contracts.NewEvent(type=ev.type_of(fact), at=fact.at, data=msgspec.Raw(ev.encode(fact)))
                for fact in facts
            ],
            row=row_of(self.plan, self.instance, self._next_wake()),
            consumed_inbox_ids=consumed,
        )
        storing = self._storing = asyncio.get_running_loop().create_future()
        try:
            outcome = await self._log.append(batch)
            if outcome.status == "ok":
                self.committed = self.instance
        finally:
            storing.set_result(None)
            self._storing = None
        return outcome

    def _settle(
        self,
        facts: "tuple[ev.Event, ...] | list[ev.Event]",
        orders: "tuple[cmd.Command, ...] | list[cmd.Command]",
    ) -> None:
        """The facts are durable: what they ask for is done."""
        for number, order in enumerate(orders):
            if number:
                crash.reach("engine.dispatch.between")
            self._performer.perform(self, order)
        self._arm()
        if facts:
            self._on_change(self)

    # --- time ------------------------------------------------------------------------------------------

    def _note_facts(self, facts: "tuple[ev.Event, ...] | list[ev.Event]") -> None:
        """Note what facts make due. `instance` is as all the facts of the turn made it."""
        instance = self.instance
        for fact in facts:
            if type(fact) in _CHANGES_ALL:
                self._note_all_due()
                return
            if isinstance(fact, _CHANGES_ONE):
                task, run = self.plan.tasks[fact.task_id], instance.runs[fact.task_id]
                due = due_of_task(task, run, instance.status)
                if due is not None:
                    self._note_due(due)

    def _note_all_due(self) -> None:
        self._due.clear()
        started_at = self.instance.started_at
        if started_at is not None:
            self._ends_at = started_at + timedelta(seconds=self.plan.global_timeout_seconds)
        for due in due_times(self.plan, self.instance):
            self._note_due(due)

    def _note_due(self, due: Due) -> None:
        """Note something that is due, unless the time for the whole is up before."""
        if self._ends_at is None or due.at < self._ends_at or due.what == "global_timeout":
            self._due_count += 1
            heapq.heappush(self._due, (due.at, self._due_count, due))

    def _next_due(self) -> datetime | None:
        """Return when something is due next; what the facts have overtaken is forgotten on the way."""
        while self._due:
            at, _, due = self._due[0]
            if self._is_due_still(due):
                return at
            heapq.heappop(self._due)
        return None

    def _is_due_still(self, due: Due) -> bool:
        instance = self.instance
        if not due.task_id:
            return due.what == "global_timeout" or due in due_of_instance(self.plan, instance)
        return due == due_of_task(self.plan.tasks[due.task_id], instance.runs[due.task_id], instance.status)

    def _next_wake(self) -> datetime | None:
        """Return when the instance is looked at again at the latest, for its row; None when it has ended."""
        if self.instance.status.is_final:
            return None
        self._wake_at = self._next_due() or self._clock.now() + timedelta(seconds=LOOK_AGAIN_SECONDS)
        return self._wake_at

    def _is_overdue(self) -> bool:
        """Return whether the row says that the instance was to be looked at before now: it was, and says so anew."""
        if self.instance.status.is_final or self._wake_at is None:
            return False
        return self._wake_at <= self._clock.now()

    def _arm(self) -> None:
        """Set the timer to the earliest thing that is due, or to when the row says that somebody looks."""
        due = None if self.instance.status.is_final or self.lost else self._next_due() or self._wake_at
        if due is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        if self._timer is not None and self._timer_at == due:
            return
        if self._timer is not None:
            self._timer.cancel()
        wait = min(max((due - self._clock.now()).total_seconds(), 0.0), MAX_TIMER_SECONDS)
        self._timer_at = due
        self._timer = asyncio.get_running_loop().call_later(wait, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._clock.now()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)
        crash.reach("engine.timer.fired")
        self.post(st.Tick(at=now))
