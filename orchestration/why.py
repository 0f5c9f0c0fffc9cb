"""Why an instance, or one task of it, does not move: each unmet condition with its operands, who holds it, its end.

Derived from the facts that the machine decides by, and from what the engine knows beside them. Pure: it asks nobody,
and it never says more than it was told. Every unfinished instance and every unfinished task has at least one reason.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from orchestration import contracts, reasons, task_reasons, times
from orchestration.contracts import Reason
from orchestration.definition.plan import Plan, TaskPlan
from orchestration.instance import Instance, Run
from orchestration.reasons import CODES
from orchestration.status import InstanceStatus, TaskStatus
from orchestration.surroundings import Offerer, Place, Surroundings

MAX_NAMED_DEPENDENCIES = 10
"""Most causes of one task's wait for others that get a reason each; each says how many dependencies are open."""
MAX_CHAIN = 10
"""Most tasks that are kept of a chain of waiting tasks, its end among them."""
SILENT_PART = 0.5
"""From this part of its heartbeat limit on, an agent's silence is worth telling."""

_RANK = {code: rank for rank, code in enumerate(CODES)}
_IDLE = frozenset(
    {
        "dependency_running",
        "dependency_retrying",
        "dependency_waiting",
        "fallback_not_called",
        "reconcile_not_called",
        "waiting_for_slot",
        "paused",
    }
)
"""Codes of tasks that nothing is done about yet."""


def why(plan: Plan, instance: Instance, now: datetime, surroundings: Surroundings) -> tuple[Reason, ...]:
    """Return what an instance waits for: first the instance as a whole, then what is under way, then what waits.

    A final instance has one reason, `ended`.
    """
    if instance.status.is_final:
        return (reasons.ended(instance),)
    teller = _Teller(plan, instance, now, surroundings)
    found = list(teller.whole())
    pending = (task_id for task_id in plan.tasks if task_id not in instance.active)
    for task_id in (*instance.active, *pending):
        if not instance.runs[task_id].status.is_final:
            found.extend(teller.task(task_id))
    return tuple(found)


def why_task(
    plan: Plan, instance: Instance, now: datetime, surroundings: Surroundings, task_id: str
) -> tuple[Reason, ...]:
    """Return what one task waits for, then what holds up the whole instance. A final task has one reason, `ended`."""
    run = instance.runs[task_id]
    if run.status.is_final:
        return (task_reasons.task_ended(run, instance),)
    teller = _Teller(plan, instance, now, surroundings)
    return (*teller.task(task_id), *teller.whole())


def summary(found: Sequence[Reason]) -> str:
    """Return the sentence of the most urgent reason, and how many other tasks are under way."""
    if not found:
        return ""
    first = min(found, key=lambda reason: _RANK[reason.code])
    busy = {reason.task_id for reason in found if reason.code not in _IDLE} - {first.task_id, ""}
    if not busy:
        return first.sentence
    return f"{first.sentence} {len(busy)} other task{'s are' if len(busy) > 1 else ' is'} under way."


class _Teller:
    """One question's answers. The ends of chains are found once, however many tasks wait for them."""

    def __init__(self, plan: Plan, instance: Instance, now: datetime, around: Surroundings) -> None:
        self._plan, self._instance, self._now, self._around = plan, instance, now, around
        self._chains: dict[str, tuple[str, ...]] = {}
        self._causes: dict[str, Reason | None] = {}
        begun = instance.started_at
        self._ends = begun + timedelta(seconds=plan.global_timeout_seconds) if begun is not None else None

    def whole(self) -> Iterator[Reason]:
        """Yield what holds up the instance as a whole; nothing when only tasks are waited for."""
        around, instance = self._around, self._instance
        if around.unreadable:
            yield reasons.quarantined(instance.id, around.unreadable, around.owner)
        if not around.store_answers:
            yield reasons.store_unavailable(instance.id)
        if not around.owner_lives:
            yield reasons.owner_lost(instance.id, around.owner, around.claimable_at)
        if around.inbox:
            yield reasons.inbox_pending(instance.id, around.inbox, around.owner)
        if instance.status is InstanceStatus.PENDING:
            yield reasons.waiting_for_slot(instance.id, around.slots, around.owner)
        elif instance.status is InstanceStatus.PAUSED:
            yield reasons.paused(instance, self._ends)

    def task(self, task_id: str) -> Iterator[Reason]:
        """Yield the reasons of a task that is not final, at least one."""
        run, task = self._instance.runs[task_id], self._plan.tasks[task_id]
        match run.status:
            case TaskStatus.PENDING:
                yield from self._pending(run, task)
            case TaskStatus.READY:
                yield from self._ready(run, task)
            case TaskStatus.RETRYING:
                yield self._retrying(run, task)
            case TaskStatus.OUTCOME_UNKNOWN if run.reconciling:
                yield self._calls("reconciling", run, task.reconcile)
            case TaskStatus.OUTCOME_UNKNOWN:
                yield task_reasons.needs_person(run, task, self._ends)
            case _ if run.awaiting_fallback:
                yield self._calls("waiting_for_fallback", run, task.on_error.fallback)
            case _ if run.deciding:
                alone = self._around.offers.get(contracts.ERROR_HANDLE.id) == ()
                yield task_reasons.error_handler_deciding(
                    run, alone=alone, owner=self._around.owner, until=self._ends
                )
            case _:
                yield from self._attempt(run, task)

    # --- before an attempt, and between two ------------------------------------------------------------

    def _pending(self, run: Run, task: TaskPlan) -> Iterator[Reason]:
        if task.is_on_call and not run.is_called:
            yield self._not_called(task)
            return
        waits_for = self._open_dependencies(task)
        yield from self._dependencies(task, waits_for)
        if not waits_for:
            yield self._turn_has_come(task.id)

    def _ready(self, run: Run, task: TaskPlan) -> Iterator[Reason]:
        condition = task.condition
        asks = condition is not None and bool(condition.expression) and run.condition_met is None
        if condition is None or not asks or self._instance.status is not InstanceStatus.RUNNING:
            yield self._turn_has_come(task.id)
            return
        evaluator = contracts.CONDITION_EVALUATE.id
        evaluators = self._around.offers.get(evaluator)
        if evaluators == ():
            yield task_reasons.nobody_offers(task.id, evaluator, self._ends)
        yield task_reasons.condition_being_evaluated(
            task.id, condition.expression, evaluators or (), self._ends
        )

    def _turn_has_come(self, task_id: str) -> Reason:
        instance, around = self._instance, self._around
        match instance.status:
            case InstanceStatus.PAUSED:
                return reasons.paused(instance, self._ends, task_id)
            case InstanceStatus.PENDING:
                return reasons.waiting_for_slot(instance.id, around.slots, around.owner, task_id)
            case _:
                return task_reasons.starting(task_id, around.owner, self._ends)

    def _retrying(self, run: Run, task: TaskPlan) -> Reason:
        instance = self._instance
        if instance.status is not InstanceStatus.PAUSED:
            return task_reasons.retry_at(run, task.retry.max_attempts, run.due_at)
        if run.due_at is not None and run.due_at <= self._now:
            return reasons.paused(instance, self._ends, run.task_id)
        return task_reasons.retry_at(
            run, task.retry.max_attempts, instance.resume_at or self._ends, held=True
        )

    def _calls(self, code: str, run: Run, called: str) -> Reason:
        cause = self._cause(called)
        sentence = cause.sentence if cause is not None else ""
        return task_reasons.waits_for_called(code, run, called, sentence, self._ends)

    def _not_called(self, task: TaskPlan) -> Reason:
        users = [user.id for user in self._plan.tasks.values() if user.on_error.fallback == task.id]
        asking = [user.id for user in self._plan.tasks.values() if user.reconcile == task.id]
        return task_reasons.not_called(task.id, users or asking, reconciles=not users, until=self._ends)

    # --- what is waited for ----------------------------------------------------------------------------

    def _open_dependencies(self, task: TaskPlan) -> list[str]:
        return [name for name in task.depends_on if not self._instance.runs[name].status.is_final]

    def _dependencies(self, task: TaskPlan, waits_for: Sequence[str]) -> Iterator[Reason]:
        """Yield one reason for each cause that the open dependencies wait for in the end."""
        by_root: dict[str, list[str]] = {}
        for name in waits_for:
            by_root.setdefault(self._chain(name)[-1], []).append(name)
        for root, waiting in list(by_root.items())[:MAX_NAMED_DEPENDENCIES]:
            cause = self._cause(root) or self._turn_has_come(root)
            status = self._instance.runs[waiting[0]].status
            yield task_reasons.dependency(
                task.id, waiting, self._chain(waiting[0]), cause, status, len(waits_for)
            )

    def _cause(self, task_id: str) -> Reason | None:
        """Return the first reason of a task; None when it is final, or when the question leads back to itself."""
        if task_id not in self._causes:
            self._causes[task_id] = None
            if not self._instance.runs[task_id].status.is_final:
                self._causes[task_id] = next(self.task(task_id))
        return self._causes[task_id]

    def _chain(self, task_id: str) -> tuple[str, ...]:
        """Return the tasks from this one to the one that does not wait for another to end, both included."""
        way: list[str] = []
        while task_id not in self._chains:
            run, task = self._instance.runs[task_id], self._plan.tasks[task_id]
            waits = run.status is TaskStatus.PENDING and (run.is_called or not task.is_on_call)
            before = self._open_dependencies(task) if waits else []
            if not before:
                self._chains[task_id] = (task_id,)
            else:
                way.append(task_id)
                task_id = before[0]
        for earlier in reversed(way):
            rest = self._chains[task_id]
            if len(rest) >= MAX_CHAIN:
                rest = (*rest[: MAX_CHAIN - 2], rest[-1])
            self._chains[earlier] = (earlier, *rest)
            task_id = earlier
        return self._chains[task_id]

    # --- an attempt ------------------------------------------------------------------------------------

    def _attempt(self, run: Run, task: TaskPlan) -> Iterator[Reason]:
        place = self._around.places.get(run.token)
        if place is not None and place.state == "awaited":
            until = place.until or self._attempt_ends(run, task)
            yield task_reasons.waiting_for_result(run, task, place, until)
        elif place is not None and place.state == "assigned":
            yield from self._assigned(run, task, place)
        else:
            yield from self._not_taken(run, task, place)

    def _assigned(self, run: Run, task: TaskPlan, place: Place) -> Iterator[Reason]:
        yield task_reasons.running(run, task, place.agent_id, self._attempt_ends(run, task))
        last = place.last_sign_at
        if task.heartbeat_seconds > 0 and last is not None:
            silent_seconds = (self._now - last).total_seconds()
            if silent_seconds >= task.heartbeat_seconds * SILENT_PART:
                until = last + timedelta(seconds=task.heartbeat_seconds)
                yield task_reasons.heartbeat_missing_soon(task, place, silent_seconds, until)

    def _not_taken(self, run: Run, task: TaskPlan, place: Place | None) -> Iterator[Reason]:
        """Nobody has the attempt yet; when nobody knows where it is and agents have room, it is taken as running."""
        offerers = self._around.offers.get(task.capability)
        until = self._start_ends(run, task)
        if offerers == ():
            yield task_reasons.nobody_offers(task.id, task.capability, until)
            return
        if place is not None and place.state == "held":
            yield task_reasons.dispatch_limit(task, place, self._around.owner, until)
        elif place is not None or _all_full(offerers):
            yield task_reasons.agents_busy(task, place, offerers or (), until)
        else:
            yield task_reasons.running(run, task, "", self._attempt_ends(run, task))
        preferred = task.agent_id
        if preferred and offerers is not None and preferred not in {each.agent_id for each in offerers}:
            yield task_reasons.preferred_agent_absent(task, preferred, until)

    # --- when it ends by itself ------------------------------------------------------------------------

    def _start_ends(self, run: Run, task: TaskPlan) -> datetime | None:
        begun = run.attempt_started_at
        last = begun + timedelta(seconds=task.schedule_to_start_seconds) if begun is not None else None
        return _earliest(last, times.total_due_at(task, run), self._ends)

    def _attempt_ends(self, run: Run, task: TaskPlan) -> datetime | None:
        due = times.due_of_task(task, run, self._instance.status)
        return _earliest(due.at if due is not None else None, self._ends)


def _earliest(*moments: datetime | None) -> datetime | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _all_full(offerers: Sequence[Offerer] | None) -> bool:
    return bool(offerers) and not any(each.has_room for each in offerers or ())
