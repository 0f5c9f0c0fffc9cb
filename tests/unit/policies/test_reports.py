import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration import reports
from orchestration.alerts import AlertSeverity, Finding, raised
from orchestration.reports import WorkflowTally
from orchestration.tallies import Execution, OpenInstance, Tally, bucket_of

NOW = datetime(2026, 1, 2, 3, 4, 0, tzinfo=UTC)


def tally(completed: int = 0, failed: int = 0, seconds: float = 1.0) -> Tally:
    made = Tally(started=completed + failed, completed=completed, failed=failed, last_at=NOW)
    for _ in range(completed + failed):
        made.take_time(seconds)
    return made


@pytest.mark.parametrize(
    ("text", "minutes"), [("30m", 30), ("1h", 60), ("24h", 1440), ("7d", 10080), ("2W", 20160)]
)
def test_ranges_are_numbers_with_a_unit(text: str, minutes: int) -> None:
    assert reports.parse_range(text) == timedelta(minutes=minutes)


@pytest.mark.parametrize("text", ["", "h", "0h", "-1h", "1y", "1.5h", "999999d", "1h30m", "١h"])
def test_other_ranges_are_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match="30m, 1h or 7d"):
        reports.parse_range(text)


def test_nothing_that_ran_gives_nulls_and_a_perfect_rate() -> None:
    metrics = reports.workflow_metrics("flow", Tally(), {})
    assert metrics["success_rate"] == 100
    assert metrics["avg_execution_time_seconds"] is None
    assert metrics["min_execution_time_seconds"] is None
    assert metrics["last_executed"] is None
    assert metrics["most_common_failures"] == []
    assert reports.task_metrics("flow", "t", Tally(), {})["avg_retry_count"] == 0


def test_metrics_say_what_happened() -> None:
    made = tally(3, 1, seconds=2.0)
    made.cancelled = 5
    made.retried = 2
    metrics = reports.workflow_metrics("flow", made, {"TIMEOUT": 1, "A": 1, "B": 3})
    assert metrics["total_executions"] == 9
    assert metrics["success_rate"] == 75
    assert metrics["avg_execution_time_seconds"] == 2
    assert [each["error"] for each in metrics["most_common_failures"]] == ["B", "A", "TIMEOUT"]
    assert reports.task_metrics("flow", "t", made, {})["avg_retry_count"] == 0.5


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1e6)), max_size=20))
def test_metrics_are_always_json(parts: list[tuple[int, int, float]]) -> None:
    whole = Tally()
    for completed, failed, seconds in parts:
        whole.add(tally(completed, failed, seconds))
    metrics = reports.workflow_metrics("flow", whole, {})
    json.dumps(metrics, allow_nan=False)
    assert 0 <= metrics["success_rate"] <= 100
    assert metrics["successful_executions"] == sum(part[0] for part in parts)
    low, mean, high = (metrics[f"{name}_execution_time_seconds"] for name in ("min", "avg", "max"))
    assert low is None or low <= mean + 1e-3 <= high + 2e-3


def test_steps_cover_the_range_without_gaps() -> None:
    begin = NOW - timedelta(hours=1)
    points = reports.steps(
        [(bucket_of(NOW), tally(2)), (bucket_of(begin), tally(1)), (0, tally(9))],
        begin=begin,
        end=NOW,
        step_seconds=600,
    )
    assert len(points) == 7
    assert [point.tally.completed for point in points] == [1, 0, 0, 0, 0, 0, 2]
    assert points[1].at - points[0].at == timedelta(minutes=10)
    assert reports.whole_step(61) == 120
    assert reports.whole_step(1) == 60
    assert reports.point_object(points[0], "duration")["value"] == 1
    assert reports.point_object(points[1], "duration")["value"] is None
    assert reports.point_object(points[0], "tasks")["value"] == 1


def points(*counts: int) -> list[reports.Point]:
    return [reports.Point(NOW + timedelta(minutes=n), tally(count)) for n, count in enumerate(counts)]


@pytest.mark.parametrize(
    ("counts", "trend"),
    [
        ((1, 2, 3, 4), "increasing"),
        ((9, 6, 3, 1), "decreasing"),
        ((5, 5, 5, 5), "stable"),
        ((0, 0, 0, 5), "insufficient_data"),
        ((), "insufficient_data"),
    ],
)
def test_trend_follows_the_line(counts: tuple[int, ...], trend: str) -> None:
    report = reports.trends(points(*counts), with_predictions=True)
    assert report["execution_trends"]["trend"] == trend
    assert report["execution_trends"]["analysis"]
    predicted = report["predictions"]["next_step_executions"]
    assert (predicted is None) == (trend == "insufficient_data")
    assert "predictions" not in reports.trends(points(*counts), with_predictions=False)


def test_prediction_continues_the_line_and_never_goes_below_zero() -> None:
    assert reports.trends(points(1, 2, 3), with_predictions=True)["predictions"]["next_step_executions"] == 4
    falling = reports.trends(points(9, 5, 1), with_predictions=True)
    assert falling["predictions"]["next_step_executions"] == 0


def test_summary_has_every_field() -> None:
    report = reports.summary(
        {"a": WorkflowTally(tally(3, 1), {}), "b": WorkflowTally.empty()},
        time_range="1h",
        at=NOW,
        active=2,
        open_alerts=1,
    )
    assert report["report_type"] == "summary"
    assert (report["total_workflows"], report["total_executions"], report["success_rate"]) == (2, 4, 75)
    assert (report["active_workflows"], report["recent_alerts"], report["avg_execution_time"]) == (2, 1, 1)
    assert (report["time_range"], report["generated_at"]) == ("1h", NOW.isoformat())


def instance(number: int) -> OpenInstance:
    begun = NOW + timedelta(seconds=number)
    return OpenInstance(
        instance_id=f"i{number}", workflow_id="flow", started_at=begun, status="running", tasks={"a": begun}
    )


def test_overview_degrades_with_load_or_silent_agents() -> None:
    def health(active: int, unhealthy: int) -> str:
        widget = reports.overview(
            {},
            [instance(number) for number in range(active)],
            total_workflows=3,
            recent_errors=0,
            unhealthy_agents=unhealthy,
        )
        assert widget["running_tasks"] == widget["active_workflows"] == active
        return str(widget["system_health"])

    assert (health(99, 0), health(100, 0), health(0, 1)) == ("healthy", "degraded", "degraded")


def test_performance_widget_counts_by_hour() -> None:
    widget = reports.performance(tally(12), hours=24, resources={"cpu_percent": 1.0})
    assert (widget["throughput"], widget["avg_execution_time"]) == (0.5, 1)
    assert widget["resource_utilization"] == {"cpu_percent": 1.0}


def test_alert_widget_shows_ten_and_counts_all() -> None:
    alerts = [
        raised(
            None,
            Finding(type="t", severity=AlertSeverity.ERROR, title=str(n), description=""),
            alert_id=str(n),
            at=NOW + timedelta(seconds=n),
        )
        for n in range(12)
    ]
    widget = reports.alert_widget(alerts)
    assert [each["id"] for each in widget["active_alerts"]] == [str(n) for n in range(11, 1, -1)]
    assert widget["alert_count_by_severity"] == {"info": 0, "warning": 0, "error": 12, "critical": 0}


def test_workflow_widget_ranks_and_mixes_open_with_ended() -> None:
    ended = Execution(
        instance_id="old",
        workflow_id="bad",
        started_at=NOW - timedelta(hours=1),
        status="failed",
        completed_at=NOW,
        execution_time=3600,
        error="X: y",
    )
    workflows = {
        "good": WorkflowTally(tally(9, 1), {}),
        "best": WorkflowTally(tally(10), {}),
        "bad": WorkflowTally(tally(1, 3), {"X": 3}),
        "idle": WorkflowTally.empty(),
    }
    widget = reports.workflow_widget(workflows, [instance(1), instance(2)], [ended])
    assert [each["instance_id"] for each in widget["recent_executions"]] == ["i2", "i1", "old"]
    assert widget["recent_executions"][2]["error"] == "X: y"
    assert [each["workflow_id"] for each in widget["top_performers"]] == ["best", "good", "bad"]
    [bad] = widget["problematic_workflows"]
    assert (bad["workflow_id"], bad["failure_rate"], bad["common_failures"]) == (
        "bad",
        75,
        [{"error": "X", "count": 3}],
    )
    assert not math.isinf(bad["failure_rate"])
