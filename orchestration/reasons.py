"""The codes of reasons, and the sentences of those about an instance as a whole: operands in, a `Reason` out.

A sentence says what is waited for, who holds it, what ends the wait, and when at the latest. Times are in UTC.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from orchestration.contracts import ErrorInfo, Reason
from orchestration.instance import Instance
from orchestration.status import InstanceStatus
from orchestration.surroundings import Slots

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
            sentence = f"Instance {instance.id} failed at {at}{which}{with_error(error)}."
        case InstanceStatus.CANCELLED:
            cause = f": {error.message}" if error is not None and error.message else " by request"
            sentence = f"Instance {instance.id} was stopped at {at}{cause}."
        case _:
            sentence = f"Instance {instance.id} completed at {at}."
    facts = {"status": str(instance.status), "error": error.code if error is not None else ""}
    return Reason(code="ended", sentence=sentence, facts=facts, held_by=instance.failed_task)


# --- words --------------------------------------------------------------------------------------------------


def clock(at: datetime | None) -> str:
    """Return a time as sentences have it."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at is not None else "an unknown time"


def names(listed: Sequence[str]) -> str:
    """Return a list of names as sentences have it, cut at `MAX_NAMES`."""
    shown = ", ".join(listed[:MAX_NAMES])
    return shown if len(listed) <= MAX_NAMES else f"{shown} and {len(listed) - MAX_NAMES} more"


def with_error(error: ErrorInfo | None) -> str:
    """Return how a sentence goes on about an error."""
    return f" with {error.code}: {error.message}" if error is not None else ""
