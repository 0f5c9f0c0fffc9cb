"""Alerts as values: what counts as the same alert, when a rule fires and when it is over, when errors are
too many.

The monitor keeps the alerts and acts on them; this module only says what they become.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

import msgspec

from orchestration.status import Severity


class AlertSeverity(StrEnum):
    """How much an alert matters, least first."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


SUBJECT_KEYS = (
    "workflow_id",
    "workflow_instance_id",
    "task_id",
    "agent_id",
    "resource_id",
    "error_code",
    "rule",
)
"""The metadata that say what an alert is about.

Two alerts of one type about one subject are the same alert.
"""
DEDUPE_KEY = "dedupe_key"
MAX_TEXT_CHARACTERS = 2000

_RANK = {severity: rank for rank, severity in enumerate(AlertSeverity)}
_OF_ERROR = {
    Severity.LOW: AlertSeverity.INFO,
    Severity.MEDIUM: AlertSeverity.WARNING,
    Severity.HIGH: AlertSeverity.ERROR,
    Severity.CRITICAL: AlertSeverity.CRITICAL,
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something worth an alert."""

    type: str
    severity: AlertSeverity
    title: str
    description: str
    metadata: Mapping[str, Any] = {}

    @property
    def fingerprint(self) -> str:
        """The identity of the alert: its type and the subject, or its title when the metadata name none."""
        dedupe_key = self.metadata.get(DEDUPE_KEY)
        if isinstance(dedupe_key, str) and dedupe_key:
            return f"{self.type}|{dedupe_key}"
        subject = [f"{key}={self.metadata[key]}" for key in SUBJECT_KEYS if self.metadata.get(key)]
        return "|".join((self.type, *(subject or [self.title])))


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as it is kept and shown. `count` says how often the same thing happened while it was open."""

    id: str
    type: str
    severity: AlertSeverity
    title: str
    description: str
    metadata: Mapping[str, Any]
    created_at: datetime
    updated_at: datetime
    fingerprint: str
    count: int = 1
    acknowledged: bool = False
    acknowledged_at: datetime | None = None
    resolved: bool = False
    resolved_at: datetime | None = None


def raised(existing: Alert | None, finding: Finding, *, alert_id: str, at: datetime) -> Alert:
    """Return the alert after a finding.

    That is a new one, or the open one of the same fingerprint counted up. When it got worse, an earlier
    acknowledgement no longer counts.
    """
    if existing is None or existing.resolved:
        return Alert(
            id=alert_id,
            type=finding.type,
            severity=finding.severity,
            title=finding.title[:MAX_TEXT_CHARACTERS],
            description=finding.description[:MAX_TEXT_CHARACTERS],
            metadata=finding.metadata,
            created_at=at,
            updated_at=at,
            fingerprint=finding.fingerprint,
        )
    worse = _RANK[finding.severity] > _RANK[existing.severity]
    return msgspec.structs.replace(
        existing,
        severity=finding.severity if worse else existing.severity,
        description=finding.description[:MAX_TEXT_CHARACTERS],
        metadata=finding.metadata,
        updated_at=max(at, existing.updated_at),
        count=existing.count + 1,
        acknowledged=existing.acknowledged and not worse,
        acknowledged_at=None if worse else existing.acknowledged_at,
    )


def acknowledged(alert: Alert, at: datetime) -> Alert:
    """Return the alert after somebody took note of it. The first time stays."""
    if alert.acknowledged:
        return alert
    return msgspec.structs.replace(alert, acknowledged=True, acknowledged_at=at, updated_at=at)


def resolved(alert: Alert, at: datetime) -> Alert:
    """Return the alert after its cause is gone. The first time stays."""
    if alert.resolved:
        return alert
    return msgspec.structs.replace(alert, resolved=True, resolved_at=at, updated_at=at)


def to_drop(alerts: Iterable[Alert], keep: int) -> list[Alert]:
    """Return the alerts beyond the newest `keep`; resolved ones go before open ones."""
    ordered = sorted(alerts, key=lambda alert: (not alert.resolved, alert.updated_at), reverse=True)
    return ordered[keep:]


# --- rules ---------------------------------------------------------------------------------------------


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that is open while its condition is true.

    `condition` is an expression over the metrics of each workflow (scope workflow) or of the system.
    """

    alert_type: str
    severity: AlertSeverity
    title: str
    description: str
    condition: str
    scope: Literal["workflow", "system"] = "workflow"


BUILT_IN_RULES: tuple[Rule, ...] = (
    Rule(
        alert_type="high_failure_rate",
        severity=AlertSeverity.WARNING,
        title="High failure rate",
        description="Less than 80 % of the executions of the last hour succeeded",
        condition="total_executions > 0 and success_rate < 80",
    ),
    Rule(
        alert_type="slow_execution",
        severity=AlertSeverity.INFO,
        title="Slow execution",
        description="The executions of the last hour took more than 300 seconds on average",
        condition="avg_execution_time_seconds != None and avg_execution_time_seconds > 300",
    ),
)
"""The rules that are always there."""


class RuleOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a round of rules changes.

    Findings that were not open, alerts whose condition is no longer true.
    """

    findings: tuple[Finding, ...] = ()
    over: tuple[Alert, ...] = ()


def finding_of(rule: Rule, subject: str, facts: Mapping[str, Any]) -> Finding:
    """Return the finding of a rule that holds for a subject: a workflow's id, or "" for the system."""
    about = {"workflow_id": subject} if subject else {}
    return Finding(
        type=rule.alert_type,
        severity=rule.severity,
        title=f"{rule.title}: {subject}" if subject else rule.title,
        description=rule.description,
        metadata={"rule": rule.alert_type, **about, "facts": dict(facts)},
    )


def compare(firing: Sequence[Finding], open_alerts: Iterable[Alert], rules: Sequence[Rule]) -> RuleOutcome:
    """Return what changes when exactly `firing` hold now.

    Alerts of other types than those of the rules are none of its business.
    """
    ruled = {rule.alert_type for rule in rules}
    mine = {
        alert.fingerprint: alert for alert in open_alerts if alert.type in ruled and "rule" in alert.metadata
    }
    holding = {finding.fingerprint for finding in firing}
    return RuleOutcome(
        findings=tuple(finding for finding in firing if finding.fingerprint not in mine),
        over=tuple(alert for fingerprint, alert in mine.items() if fingerprint not in holding),
    )


def compare_type(firing: Sequence[Finding], open_alerts: Iterable[Alert], alert_type: str) -> RuleOutcome:
    """Return what changes when of one type of alerts exactly `firing` hold now."""
    mine = {alert.fingerprint: alert for alert in open_alerts if alert.type == alert_type}
    holding = {finding.fingerprint for finding in firing}
    return RuleOutcome(
        findings=tuple(finding for finding in firing if finding.fingerprint not in mine),
        over=tuple(alert for fingerprint, alert in mine.items() if fingerprint not in holding),
    )


# --- errors --------------------------------------------------------------------------------------------


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """So many errors of one severity in so long a time are worth an alert."""

    count: int
    window: timedelta


THRESHOLDS: Mapping[Severity, Threshold] = {
    Severity.LOW: Threshold(count=10, window=timedelta(minutes=60)),
    Severity.MEDIUM: Threshold(count=5, window=timedelta(minutes=30)),
    Severity.HIGH: Threshold(count=3, window=timedelta(minutes=15)),
    Severity.CRITICAL: Threshold(count=1, window=timedelta(minutes=5)),
}


def too_many(severity: Severity, errors_at: Iterable[datetime], now: datetime) -> int:
    """Return how many errors of a severity lie in its window when they reach its threshold, else 0."""
    threshold = THRESHOLDS[severity]
    count = sum(1 for at in errors_at if now - threshold.window < at <= now)
    return count if count >= threshold.count else 0


def severity_for(severity: Severity) -> AlertSeverity:
    """Return how severe an alert about an error of this severity is."""
    return _OF_ERROR[severity]
