from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestration.alerts import (
    BUILT_IN_RULES,
    THRESHOLDS,
    Alert,
    AlertSeverity,
    Finding,
    acknowledged,
    compare,
    finding_of,
    raised,
    resolved,
    severity_for,
    to_drop,
    too_many,
)
from orchestration.status import Severity

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def finding(severity: str = "warning", **metadata: Any) -> Finding:
    return Finding(
        type="odd", severity=AlertSeverity(severity), title="Odd", description="It is odd", metadata=metadata
    )


def alert(number: int = 1, minutes: int = 0, **metadata: Any) -> Alert:
    at = NOW + timedelta(minutes=minutes)
    return raised(None, finding(**metadata), alert_id=f"alr_{number}", at=at)


def test_same_subject_is_the_same_alert_whatever_else_it_says() -> None:
    assert finding(task_id="a", note=1).fingerprint == finding("error", task_id="a", note=2).fingerprint
    assert finding(task_id="a").fingerprint != finding(task_id="b").fingerprint
    assert finding().fingerprint == finding(note=1).fingerprint
    assert finding(dedupe_key="k", task_id="a").fingerprint == finding(dedupe_key="k").fingerprint


def test_open_alert_is_counted_up() -> None:
    first = alert(task_id="a")
    again = raised(first, finding(task_id="a", value=2), alert_id="new", at=NOW + timedelta(seconds=5))
    assert (again.id, again.count, again.created_at) == ("alr_1", 2, NOW)
    assert again.updated_at == NOW + timedelta(seconds=5)
    assert again.metadata["value"] == 2


def test_acknowledgement_holds_until_it_gets_worse() -> None:
    seen = acknowledged(alert(), NOW)
    assert raised(seen, finding("info"), alert_id="x", at=NOW).acknowledged
    worse = raised(seen, finding("critical"), alert_id="x", at=NOW)
    assert (worse.acknowledged, worse.acknowledged_at, worse.severity) == (False, None, "critical")
    assert raised(worse, finding("info"), alert_id="x", at=NOW).severity == "critical"


def test_resolved_alert_is_followed_by_a_new_one() -> None:
    over = resolved(alert(), NOW)
    assert raised(over, finding(), alert_id="new", at=NOW).id == "new"
    assert resolved(over, NOW + timedelta(hours=1)) == over
    seen = acknowledged(alert(), NOW)
    assert acknowledged(seen, NOW + timedelta(hours=1)) == seen


def test_long_texts_are_cut() -> None:
    long = Finding(type="t", severity=AlertSeverity.INFO, title="x" * 9999, description="y" * 9999)
    kept = raised(None, long, alert_id="a", at=NOW)
    assert (len(kept.title), len(kept.description)) == (2000, 2000)


def test_oldest_resolved_alerts_go_first() -> None:
    alerts = [alert(1), resolved(alert(2, 1), NOW + timedelta(minutes=9)), alert(3, 2), alert(4, 3)]
    assert [each.id for each in to_drop(alerts, 3)] == ["alr_2"]
    assert [each.id for each in to_drop(alerts, 2)] == ["alr_1", "alr_2"]
    assert to_drop(alerts, 4) == []


def test_rules_raise_once_and_resolve_when_over() -> None:
    rule = BUILT_IN_RULES[0]
    firing = [finding_of(rule, "flow", {"success_rate": 50}), finding_of(rule, "", {})]
    outcome = compare(firing, [], BUILT_IN_RULES)
    assert len(outcome.findings) == 2
    alerts = [
        raised(None, each, alert_id=str(number), at=NOW) for number, each in enumerate(outcome.findings)
    ]
    stranger = alert(9)
    assert compare(firing, [*alerts, stranger], BUILT_IN_RULES) == compare([], [], BUILT_IN_RULES)
    over = compare(firing[:1], [*alerts, stranger], BUILT_IN_RULES)
    assert (over.findings, over.over) == ((), (alerts[1],))


@pytest.mark.parametrize("severity", list(Severity))
def test_thresholds_count_within_their_window(severity: Severity) -> None:
    threshold = THRESHOLDS[severity]
    enough = [NOW] * threshold.count
    assert too_many(severity, enough, NOW) == threshold.count
    assert too_many(severity, enough[1:], NOW) == 0
    assert too_many(severity, enough, NOW + threshold.window) == 0


def test_alerts_are_as_severe_as_their_errors() -> None:
    assert [severity_for(each) for each in (Severity.LOW, Severity.CRITICAL)] == ["info", "critical"]
