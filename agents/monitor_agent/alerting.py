"""The alerts that are kept: raised, counted up, acknowledged, resolved, and dropped when there are too many.

What they become is decided by `orchestration.alerts`; here the results are held until they are saved.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestration import alerts as rules
from orchestration.alerts import Alert, Finding, Rule
from orchestration.expressions import ExpressionError, evaluate


class AlertBook:
    """The alerts by id. Changes are collected until `take_changes`, so that they are saved in one go.

    Args:
        max_alerts: How many are kept; the oldest resolved ones go first.
    """

    def __init__(self, alerts: Mapping[str, Alert], max_alerts: int) -> None:
        self._max_alerts = max_alerts
        self._alerts: dict[str, Alert] = {}
        self._open: dict[str, str] = {}
        self._changed: dict[str, Alert] = {}
        self.reset(alerts)

    def reset(self, alerts: Mapping[str, Alert]) -> None:
        """Hold these alerts, as they were saved, and nothing else."""
        self._alerts = dict(alerts)
        self._open = {alert.fingerprint: alert.id for alert in alerts.values() if not alert.resolved}
        self._changed.clear()

    def __len__(self) -> int:
        return len(self._alerts)

    @property
    def open_alerts(self) -> list[Alert]:
        """The alerts that are not resolved."""
        return [self._alerts[alert_id] for alert_id in self._open.values()]

    def listed(self, *, severity: str = "", include_resolved: bool = False) -> list[Alert]:
        """Return alerts, newest change first."""
        chosen = self._alerts.values() if include_resolved else self.open_alerts
        fitting = (alert for alert in chosen if not severity or alert.severity == severity)
        return sorted(fitting, key=lambda alert: alert.updated_at, reverse=True)

    def get(self, alert_id: str) -> Alert | None:
        """Return an alert, None when there is none of that id."""
        return self._alerts.get(alert_id)

    def raise_(self, finding: Finding, *, new_id: str, at: datetime) -> tuple[Alert, bool]:
        """Return the alert of a finding, and whether it is a new one."""
        existing = self._alerts.get(self._open.get(finding.fingerprint, ""))
        alert = rules.raised(existing, finding, alert_id=new_id, at=at)
        self._put(alert)
        return alert, alert.id == new_id

    def acknowledge(self, alert: Alert, at: datetime) -> Alert:
        """Return the alert after somebody took note of it."""
        return self._put(rules.acknowledged(alert, at))

    def resolve(self, alert: Alert, at: datetime) -> Alert:
        """Return the alert after its cause is gone."""
        return self._put(rules.resolved(alert, at))

    def take_changes(self) -> tuple[list[Alert], list[Alert]]:
        """Return the alerts to save and those to drop, and forget that they changed."""
        dropped = rules.to_drop(self._alerts.values(), self._max_alerts)
        for alert in dropped:
            del self._alerts[alert.id]
            self._changed.pop(alert.id, None)
            if self._open.get(alert.fingerprint) == alert.id:
                del self._open[alert.fingerprint]
        changed = list(self._changed.values())
        self._changed.clear()
        return changed, dropped

    def _put(self, alert: Alert) -> Alert:
        self._alerts[alert.id] = alert
        self._changed[alert.id] = alert
        if not alert.resolved:
            self._open[alert.fingerprint] = alert.id
        elif self._open.get(alert.fingerprint) == alert.id:
            del self._open[alert.fingerprint]
        return alert


def firing(
    rule_set: Sequence[Rule],
    workflows: Mapping[str, Mapping[str, Any]],
    system: Mapping[str, Any],
    now: datetime,
) -> tuple[list[Finding], list[tuple[Rule, ExpressionError]]]:
    """Return the findings of the rules that hold, and the rules that cannot be evaluated.

    Args:
        workflows: The metrics of each workflow, by id.
        system: The metrics of the system.
    """
    findings: list[Finding] = []
    broken: list[tuple[Rule, ExpressionError]] = []
    for rule in rule_set:
        subjects: Iterable[tuple[str, Mapping[str, Any]]] = (
            workflows.items() if rule.scope == "workflow" else [("", system)]
        )
        for subject, facts in subjects:
            try:
                holds = bool(evaluate(rule.condition, facts, now=now))
            except ExpressionError as error:
                broken.append((rule, error))
                break
            if holds:
                findings.append(rules.finding_of(rule, subject, facts))
    return findings, broken
