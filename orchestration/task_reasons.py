"""The sentence of each reason why a task does not move: operands in, a `Reason` out. It decides nothing.

A sentence says what is waited for, who holds it, what ends the wait, and when at the latest.
"""

from collections.abc import Sequence
from datetime import datetime

from orchestration.contracts import Reason
from orchestration.definition.plan import TaskPlan
from orchestration.instance import Instance, Run
from orchestration.reasons import MAX_NAMES, clock, names, with_error
from orchestration.status import TaskStatus
from orchestration.surroundings import Offerer, Place


def task_ended(run: Run, instance: Instance) -> Reason:
    """Nothing more will happen to the task, and why."""
    at = clock(run.completed_at)
    match run.status:
        case TaskStatus.FAILED:
            sentence = f"{run.task_id} failed at {at}{with_error(run.error)}."
        case TaskStatus.SKIPPED:
            sentence = f"{run.task_id} was skipped at {at}: {run.skip_reason.replace('_', ' ')}."
        case TaskStatus.CANCELLED:
            sentence = f"{run.task_id} was cancelled at {at}, when instance {instance.id} ended."
        case _:
            sentence = f"{run.task_id} completed at {at}, with attempt {run.attempt}."
    facts = {"status": str(run.status), "skip_reason": run.skip_reason}
    return Reason(code="ended", sentence=sentence, task_id=run.task_id, facts=facts)


# --- before an attempt, and between two ---------------------------------------------------------------------


def starting(task_id: str, owner: str, until: datetime | None) -> Reason:
    """Its turn has come."""
    return Reason(
        code="starting",
        sentence=f"{task_id} begins now: everything before it has ended.",
        task_id=task_id,
        held_by=owner,
        unblocked_by="its engine recording the attempt",
        until=until,
    )


def condition_being_evaluated(
    task_id: str, expression: str, evaluators: Sequence[Offerer], until: datetime | None
) -> Reason:
    """The evaluator is asked."""
    return Reason(
        code="condition_being_evaluated",
        sentence=f"{task_id} waits for the condition evaluator to say whether it runs: {expression}",
        task_id=task_id,
        facts={"expression": expression},
        held_by=_agents(evaluators),
        unblocked_by="the evaluator's answer",
        until=until,
    )


def not_called(task_id: str, users: Sequence[str], *, reconciles: bool, until: datetime | None) -> Reason:
    """It runs only when another task calls for it."""
    when = f"the outcome of {names(users)} is unknown" if reconciles else f"{names(users)} fails for good"
    return Reason(
        code="reconcile_not_called" if reconciles else "fallback_not_called",
        sentence=f"{task_id} runs only if {when}; else it is skipped.",
        task_id=task_id,
        facts={"tasks": list(users[:MAX_NAMES])},
        held_by=names(users),
        unblocked_by=f"the end of {names(users)}",
        until=until,
    )


def dependency(
    task_id: str,
    waits_for: Sequence[str],
    chain: Sequence[str],
    cause: Reason,
    status: TaskStatus,
    open_count: int,
) -> Reason:
    """Tasks before it are not final; `cause` is what the last task of the first one's chain waits for."""
    code, root = "dependency_waiting", chain[-1]
    if status is TaskStatus.RETRYING:
        code = "dependency_retrying"
    elif len(chain) == 1 and cause.code in ("running", "heartbeat_missing_soon"):
        code = "dependency_running"
    through = f", which waits for {names(chain[1:])}" if len(chain) > 1 else ""
    if len(waits_for) > 1:
        through = f", all held up by {root}"
    return Reason(
        code=code,
        sentence=f"{task_id} waits for {names(waits_for)}{through}. {cause.sentence}",
        task_id=task_id,
        facts={
            "dependencies": list(waits_for[:MAX_NAMES]),
            "root_cause": cause.code,
            "chain": list(chain[:MAX_NAMES]),
            "open_dependencies": open_count,
        },
        held_by=root,
        unblocked_by=cause.unblocked_by,
        until=cause.until,
    )


def retry_at(run: Run, max_attempts: int, until: datetime | None, *, held: bool = False) -> Reason:
    """The next attempt is due at a certain time."""
    when = f"at {clock(run.due_at)}" if run.due_at is not None else "soon"
    then = ", once the instance is resumed" if held else ""
    code = run.error.code if run.error is not None else ""
    after = f" after {code}" if code else ""
    return Reason(
        code="retry_at",
        sentence=f"{run.task_id} is tried again {when}{after}{then}; {run.failures} of {max_attempts} attempts failed.",
        task_id=run.task_id,
        facts={"failures": run.failures, "max_attempts": max_attempts, "error": code},
        held_by="the pause" if held else "the timer",
        unblocked_by="resume and then the time" if held else "the time, or task-retry",
        until=until,
    )


def error_handler_deciding(run: Run, *, alone: bool, owner: str, until: datetime | None) -> Reason:
    """It failed, and somebody decides what follows."""
    who = "no error handler is on the mesh, so its engine decides" if alone else "the error handler decides"
    return Reason(
        code="error_handler_deciding",
        sentence=f"{run.task_id} failed{with_error(run.error)}; {who} what to do about it.",
        task_id=run.task_id,
        facts={"error": run.error.code if run.error is not None else "", "failures": run.failures},
        held_by=owner if alone else "error-handler",
        unblocked_by="the decision",
        until=until,
    )


def waits_for_called(code: str, run: Run, called: str, cause: str, until: datetime | None) -> Reason:
    """It failed or its outcome is unknown, and the task that it called is not done."""
    if code == "reconciling":
        doing = f"The outcome of {run.task_id} is unknown; {called} finds out what happened."
    else:
        doing = f"{run.task_id} failed and waits for its fallback {called}."
    return Reason(
        code=code,
        sentence=f"{doing} {cause}".rstrip(),
        task_id=run.task_id,
        facts={"task": called, "error": run.error.code if run.error is not None else ""},
        held_by=called,
        unblocked_by=f"the end of {called}",
        until=until,
    )


# --- an attempt ---------------------------------------------------------------------------------------------


def nobody_offers(task_id: str, capability: str, until: datetime | None) -> Reason:
    """Nobody on the mesh can do it."""
    return Reason(
        code="no_agent_offers_capability",
        sentence=f"{task_id} needs {capability}, which no agent on the mesh offers; start one that does. "
        f"It may wait until {clock(until)}.",
        task_id=task_id,
        facts={"capability": capability},
        unblocked_by=f"an agent that offers {capability}",
        until=until,
    )


def dispatch_limit(task: TaskPlan, place: Place, owner: str, until: datetime | None) -> Reason:
    """It waits in the engine."""
    return Reason(
        code="dispatch_limit",
        sentence=f"{task.id} waits in its engine, at place {place.place} of {place.of}, because too many attempts for "
        f"{task.capability} are on their way; it may wait until {clock(until)}.",
        task_id=task.id,
        facts={"capability": task.capability, "place": place.place, "waiting": place.of},
        held_by=owner,
        unblocked_by="the end of another attempt",
        until=until,
    )


def agents_busy(
    task: TaskPlan, place: Place | None, offerers: Sequence[Offerer], until: datetime | None
) -> Reason:
    """It waits in the mesh."""
    where = f", at place {place.place} of {place.of}" if place is not None else ""
    full = ", ".join(f"{each.agent_id} has {each.in_flight}" for each in offerers[:MAX_NAMES])
    return Reason(
        code="agents_busy",
        sentence=f"{task.id} waits in the mesh{where}, until an agent that offers {task.capability} has room"
        f"{f' ({full} under way)' if full else ''}; it may wait until {clock(until)}.",
        task_id=task.id,
        facts={
            "capability": task.capability,
            "place": place.place if place is not None else 0,
            "waiting": place.of if place is not None else 0,
            "agents": {each.agent_id: [each.in_flight, each.max_in_flight] for each in offerers[:MAX_NAMES]},
        },
        held_by=_agents(offerers),
        unblocked_by=f"an agent that offers {task.capability} and has room",
        until=until,
    )


def preferred_agent_absent(task: TaskPlan, agent_id: str, until: datetime | None) -> Reason:
    """The agent that the definition prefers is not there."""
    return Reason(
        code="preferred_agent_absent",
        sentence=f"{task.id} would rather run at {agent_id}, which is not on the mesh or does not offer "
        f"{task.capability}; any agent that offers it is taken.",
        task_id=task.id,
        facts={"agent_id": agent_id, "capability": task.capability},
        unblocked_by=f"{agent_id}, or any agent that offers {task.capability}",
        until=until,
    )


def running(run: Run, task: TaskPlan, agent_id: str, until: datetime | None) -> Reason:
    """An agent is at work on it, as far as anybody knows."""
    at = f" at {agent_id}" if agent_id else ""
    return Reason(
        code="running",
        sentence=f"{task.id} runs{at} since {clock(run.attempt_started_at)}, attempt {run.attempt}; it may take "
        f"{task.timeout_seconds:g} s, and ends by {clock(until)}.",
        task_id=task.id,
        facts={"attempt": run.attempt, "timeout_seconds": task.timeout_seconds},
        held_by=agent_id,
        unblocked_by="the attempt's result",
        until=until,
    )


def heartbeat_missing_soon(task: TaskPlan, place: Place, silent_seconds: float, until: datetime) -> Reason:
    """Its agent has been silent for long."""
    return Reason(
        code="heartbeat_missing_soon",
        sentence=f"{place.agent_id or 'The agent'} has said nothing about {task.id} for {silent_seconds:.1f} s; "
        f"without a sign of life by {clock(until)} the attempt counts as lost.",
        task_id=task.id,
        facts={"silent_seconds": round(silent_seconds, 3), "heartbeat_seconds": task.heartbeat_seconds},
        held_by=place.agent_id,
        unblocked_by="a heartbeat or the result",
        until=until,
    )


def waiting_for_result(run: Run, task: TaskPlan, place: Place, until: datetime | None) -> Reason:
    """Its agent was lost, and its result may still arrive."""
    then = f"{task.reconcile} finds out what happened" if task.reconcile else "a person says what happened"
    return Reason(
        code="outcome_unknown_waiting_for_result",
        sentence=f"The agent that had {task.id} was lost, and the work must not be repeated blindly (effects: "
        f"{task.effects}); its result is waited for until {clock(until)}, then {then}.",
        task_id=task.id,
        facts={"attempt": run.attempt, "effects": str(task.effects)},
        held_by=place.agent_id,
        unblocked_by="the result, which a living executor delivers by itself",
        until=until,
    )


def needs_person(run: Run, task: TaskPlan, until: datetime | None) -> Reason:
    """Nobody but a person can say whether the work was done."""
    return Reason(
        code="outcome_unknown_needs_person",
        sentence=f"Nobody knows whether attempt {run.attempt} of {task.id} did its work, and it must not be repeated "
        f"blindly (effects: {task.effects}); unless its result still arrives, say what happened: complete, retry "
        "or skip it.",
        task_id=task.id,
        facts={"attempt": run.attempt, "effects": str(task.effects)},
        held_by="a person",
        unblocked_by="task-complete, task-retry or task-skip",
        until=until,
    )


def _agents(offerers: Sequence[Offerer]) -> str:
    return names([each.agent_id for each in offerers])
