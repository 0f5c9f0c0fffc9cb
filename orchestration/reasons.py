"""The sentence of each reason why something does not move: operands in, a `Reason` out. It decides nothing.

A sentence says what is waited for, who holds it, what ends the wait, and when at the latest. Times are in UTC.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from orchestration.contracts import ErrorInfo, Reason
from orchestration.definition.plan import TaskPlan
from orchestration.instance import Instance, Run
from orchestration.status import InstanceStatus, TaskStatus
from orchestration.surroundings import Offerer, Place, Slots

CODES: Mapping[str, str] = {
    "ended": "it is final; nothing more will happen",
    "quarantined": "its history cannot be continued by this release",
    "store_unavailable": "the state manager does not answer, so nothing can be recorded",
    "owner_lost_waiting_for_takeover": "its engine is gone; another one takes it over",
    "outcome_unknown_needs_person": "whether the work was done is unknown; a person says so",
    "waiting_for_slot": "the engine runs as many instances as it may",
    "paused": "it was paused",
    "inbox_pending": "orders or results are stored for it and not taken up yet",
    "no_agent_offers_capability": "nobody on the mesh can do this",
    "heartbeat_missing_soon": "the agent has been silent for long; the attempt counts as lost soon",
    "outcome_unknown_waiting_for_result": "the agent was lost; its result may still arrive",
    "reconciling": "another task finds out whether the work was done",
    "dispatch_limit": "too many attempts of this engine are on their way for one capability",
    "agents_busy": "all agents that can do this are full; it waits in the mesh",
    "preferred_agent_absent": "the agent that the definition prefers is not on the mesh",
    "error_handler_deciding": "it failed, and the error handler is asked what to do",
    "waiting_for_fallback": "it failed, and another task stands in for it",
    "retry_at": "the next attempt is due at a certain time",
    "condition_being_evaluated": "the condition evaluator is asked whether it runs",
    "running": "an agent is at work on it",
    "starting": "its turn has come; its attempt begins at once",
    "dependency_running": "a task before it runs",
    "dependency_retrying": "a task before it is tried again",
    "dependency_waiting": "a task before it waits itself; the sentence names what for",
    "fallback_not_called": "it runs only when the task that it stands in for fails",
    "reconcile_not_called": "it runs only when the outcome of a task is unknown",
}
"""Every code with its meaning, what is most urgent to know first."""

MAX_NAMES = 10
"""Most tasks or agents that one sentence lists."""


# --- the instance as a whole --------------------------------------------------------------------------------


def quarantined(instance_id: str, cause: str, owner: str) -> Reason:
    """Its history cannot be continued."""
    return Reason(
        code="quarantined",
        sentence=f"Instance {instance_id} is set aside: {cause}. It goes on when an engine that can read it runs.",
        held_by=owner,
        unblocked_by="a release of the engine that reads its history",
    )


def store_unavailable(instance_id: str) -> Reason:
    """Nothing can be recorded now."""
    return Reason(
        code="store_unavailable",
        sentence=f"Instance {instance_id} cannot go on because no state manager answers, and nothing may happen that "
        "is not recorded; it goes on by itself once one does.",
        held_by="state-manager",
        unblocked_by="a state manager on the mesh",
    )


def owner_lost(instance_id: str, owner: str, claimable_at: datetime | None) -> Reason:
    """Its engine is gone."""
    lost = f"its engine {owner} is gone" if owner else "no engine owns it"
    when = f" after {clock(claimable_at)} at the latest" if claimable_at is not None else ""
    return Reason(
        code="owner_lost_waiting_for_takeover",
        sentence=f"Instance {instance_id} waits to be taken over, because {lost}; any running engine does that{when}.",
        held_by=owner,
        unblocked_by="a running workflow engine",
        until=claimable_at,
    )


def inbox_pending(instance_id: str, entries: int, owner: str) -> Reason:
    """Something is stored for it and not taken up."""
    what = "1 order or result waits" if entries == 1 else f"{entries} orders or results wait"
    return Reason(
        code="inbox_pending",
        sentence=f"{what} in the inbox of instance {instance_id}; {owner or 'its engine'} takes them up next.",
        facts={"entries": entries},
        held_by=owner,
        unblocked_by="its engine reading the inbox",
    )


def waiting_for_slot(instance_id: str, slots: Slots | None, owner: str, task_id: str = "") -> Reason:
    """The engine runs as many as it may."""
    who = f"{task_id} waits with instance {instance_id}, which" if task_id else f"Instance {instance_id}"
    sentence, facts = f"{who} waits for a free slot (workflow_engine.max_concurrent_workflows).", {}
    if slots is not None:
        facts = {
            "running": slots.running,
            "limit": slots.limit,
            "place": slots.place,
            "waiting": slots.waiting,
        }
        place = f"number {slots.place} of {slots.waiting} in line" if slots.place else "in line"
        sentence = (
            f"{who} is {place} for a slot: {slots.running} of {slots.limit} instances run "
            "(workflow_engine.max_concurrent_workflows)."
        )
    return Reason(
        code="waiting_for_slot",
        sentence=sentence,
        task_id=task_id,
        facts=facts,
        held_by=owner,
        unblocked_by="the end of a running instance",
    )


def paused(instance: Instance, until: datetime | None, task_id: str = "") -> Reason:
    """Nothing new begins until it is resumed."""
    cause = f": {instance.pause_reason}" if instance.pause_reason else " by request"
    ends = instance.resume_at
    then = f"goes on at {clock(ends)}" if ends is not None else "goes on when somebody resumes it"
    who = f"{task_id} is held: instance {instance.id}" if task_id else f"Instance {instance.id}"
    return Reason(
        code="paused",
        sentence=f"{who} is paused{cause}; it {then}.",
        task_id=task_id,
        held_by="the pause",
        unblocked_by="resume",
        until=ends or until,
    )


def ended(instance: Instance) -> Reason:
    """Nothing more will happen to the instance, and why."""
    at, error = clock(instance.completed_at), instance.error
    match instance.status:
        case InstanceStatus.FAILED:
            which = f" because {instance.failed_task} failed" if instance.failed_task else ""
            sentence = f"Instance {instance.id} failed at {at}{which}{_with(error)}."
        case InstanceStatus.CANCELLED:
            cause = f": {error.message}" if error is not None and error.message else " by request"
            sentence = f"Instance {instance.id} was stopped at {at}{cause}."
        case _:
            sentence = f"Instance {instance.id} completed at {at}."
    facts = {"status": str(instance.status), "error": error.code if error is not None else ""}
    return Reason(code="ended", sentence=sentence, facts=facts, held_by=instance.failed_task)


def task_ended(run: Run, instance: Instance) -> Reason:
    """Nothing more will happen to the task, and why."""
    at = clock(run.completed_at)
    match run.status:
        case TaskStatus.FAILED:
            sentence = f"{run.task_id} failed at {at}{_with(run.error)}."
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
        sentence=f"{run.task_id} failed{_with(run.error)}; {who} what to do about it.",
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


# --- words --------------------------------------------------------------------------------------------------


def clock(at: datetime | None) -> str:
    """Return a time as sentences have it."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at is not None else "an unknown time"


def names(listed: Sequence[str]) -> str:
    """Return a list of names as sentences have it, cut at `MAX_NAMES`."""
    shown = ", ".join(listed[:MAX_NAMES])
    return shown if len(listed) <= MAX_NAMES else f"{shown} and {len(listed) - MAX_NAMES} more"


def _agents(offerers: Sequence[Offerer]) -> str:
    return names([each.agent_id for each in offerers])


def _with(error: ErrorInfo | None) -> str:
    return f" with {error.code}: {error.message}" if error is not None else ""
