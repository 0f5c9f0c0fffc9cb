"""Which unfinished instance nothing will wake: the decision behind the sweeper. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestration.contracts import Orphan
from orchestration.status import InstanceStatus

OWNERLESS_SECONDS = 60.0
"""How long an instance may be without a live owner: engines claim within seconds when there is one."""
OVERDUE_SECONDS = 30.0
"""How long after its time an instance may still be asleep: its engine may be busy, and clocks differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """What a storage knows about an unfinished instance that may be an orphan."""

    instance_id: str
    workflow_id: str
    status: InstanceStatus
    owner: str
    owner_lives: bool
    wake_at: datetime | None
    wake_reason: str


def orphan_of(suspect: Suspect, ownerless_since: datetime | None, now: datetime) -> Orphan | None:
    """Return why nothing will wake an instance, None when something will.

    Args:
        ownerless_since: Since when its owner has not been alive, as far as is known.
    """
    if suspect.status.is_final:
        return None
    if not suspect.owner_lives:
        gone = None if ownerless_since is None else now - ownerless_since
        if gone is None or gone <= timedelta(seconds=OWNERLESS_SECONDS):
            return None
        reason = f"its owner {suspect.owner} is gone and no engine has taken it over"
        return _orphan(suspect, "no_owner", reason, ownerless_since)
    if suspect.wake_at is None or not suspect.wake_reason:
        missing = "time at which it is looked at again" if suspect.wake_reason else "wake reason"
        known = f": {suspect.wake_reason}" if suspect.wake_reason else ""
        return _orphan(suspect, "no_wake_reason", f"it has no {missing}{known}", None)
    if now - suspect.wake_at > timedelta(seconds=OVERDUE_SECONDS):
        reason = f"{suspect.owner} has not looked at it when it was due: {suspect.wake_reason}"
        return _orphan(suspect, "overdue", reason, suspect.wake_at)
    return None


def _orphan(suspect: Suspect, code: str, reason: str, since: datetime | None) -> Orphan:
    return Orphan(
        instance_id=suspect.instance_id,
        workflow_id=suspect.workflow_id,
        status=suspect.status,
        code=code,
        reason=reason,
        owner=suspect.owner,
        since=since,
    )
