"""What the tallies mean: metrics, reports and the data behind the dashboard's widgets, as plain objects.

Values in, values out. An empty time range gives nulls and zeros, never an infinity, and a success rate of
100.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from orchestration.alerts import Alert, AlertSeverity
from orchestration.tallies import BUCKET_SECONDS, Execution, OpenInstance, Tally, bucket_of, total

MAX_RANGE = timedelta(days=366)
MOST_COMMON_FAILURES = 5
ACTIVE_ALERTS = 10
RECENT_EXECUTIONS = 20
TOP_PERFORMERS = 10
REPORTED_ALERTS = 50
PROBLEMATIC_FAILURE_PERCENT = 20.0
DEGRADED_AT_ACTIVE_WORKFLOWS = 100
MIN_TREND_POINTS = 3
"""Fewer stretches of time with something in them say nothing about a trend."""
STEADY_SHARE = 0.1
"""A change over the range of less than this share of the mean counts as none."""

_RANGE = re.compile(r"(\d{1,6})\s*(s|m|h|d|w)", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_range(text: str) -> timedelta:
    """Return the length of a time range such as 30m, 1h, 24h, 7d.

    Raises: ValueError that says what would have been right.
    """
    match = _RANGE.fullmatch(text.strip().lower())
    length = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not timedelta() < length <= MAX_RANGE:
        raise ValueError(
            f"time range {text!r} is none; write a number and s, m, h, d or w, such as 30m, 1h or 7d"
        )
    return length


def success_rate(tally: Tally) -> float:
    """Return how many of the ends were good, in percent; stops do not count, and 100 when there were none."""
    judged = tally.completed + tally.failed
    return 100.0 if judged == 0 else round(100.0 * tally.completed / judged, 2)


def mean_seconds(tally: Tally) -> float | None:
    """Return the mean duration in seconds, None when nothing ended."""
    return round(tally.seconds_sum / tally.timed, 6) if tally.timed else None


def most_common(failures: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the most frequent failures, most frequent first."""
    ordered = sorted(failures.items(), key=lambda item: (-item[1], item[0]))
    return [{"error": code, "count": count} for code, count in ordered[:MOST_COMMON_FAILURES]]


def workflow_metrics(workflow_id: str, tally: Tally, failures: Mapping[str, int]) -> dict[str, Any]:
    """Return the metrics of a workflow over the time that its tally covers."""
    return {
        "workflow_id": workflow_id,
        "total_executions": tally.ended,
        "successful_executions": tally.completed,
        "failed_executions": tally.failed,
        "cancelled_executions": tally.cancelled,
        "started_executions": tally.started,
        "success_rate": success_rate(tally),
        "avg_execution_time_seconds": mean_seconds(tally),
        "min_execution_time_seconds": tally.seconds_min,
        "max_execution_time_seconds": tally.seconds_max,
        "last_executed": _iso(tally.last_at),
        "most_common_failures": most_common(failures),
    }


def task_metrics(workflow_id: str, task_id: str, tally: Tally, failures: Mapping[str, int]) -> dict[str, Any]:
    """Return the metrics of a task over the time that its tally covers. Times are those of attempts."""
    ended = tally.completed + tally.failed
    return {
        "task_id": task_id,
        "workflow_id": workflow_id,
        "total_executions": ended,
        "successful_executions": tally.completed,
        "failed_executions": tally.failed,
        "skipped_executions": tally.skipped,
        "attempts": tally.started,
        "lost_attempts": tally.lost,
        "success_rate": success_rate(tally),
        "avg_execution_time_seconds": mean_seconds(tally),
        "min_execution_time_seconds": tally.seconds_min,
        "max_execution_time_seconds": tally.seconds_max,
        "avg_retry_count": round(tally.retried / ended, 4) if ended else 0.0,
        "last_executed": _iso(tally.last_at),
        "most_common_failures": most_common(failures),
    }


# --- reports -----------------------------------------------------------------------------------------------


class WorkflowTally(NamedTuple):
    """A workflow's tally over a range, and its failures by code."""

    tally: Tally
    failures: Mapping[str, int]

    @classmethod
    def empty(cls) -> "WorkflowTally":
        """Return the tally of a workflow that did not run."""
        return cls(Tally(), {})


def summary(
    workflows: Mapping[str, WorkflowTally], *, time_range: str, at: datetime, active: int, open_alerts: int
) -> dict[str, Any]:
    """Return the summary report."""
    whole = total(part.tally for part in workflows.values())
    return {
        "report_type": "summary",
        "time_range": time_range,
        "generated_at": at.isoformat(),
        "total_workflows": len(workflows),
        "active_workflows": active,
        "total_executions": whole.ended,
        "successful_executions": whole.completed,
        "failed_executions": whole.failed,
        "success_rate": success_rate(whole),
        "avg_execution_time": mean_seconds(whole),
        "recent_alerts": open_alerts,
    }


class Point(NamedTuple):
    """What happened in one step of a range that began at `at`."""

    at: datetime
    tally: Tally


def steps(
    tallies: Iterable[tuple[int, Tally]], *, begin: datetime, end: datetime, step_seconds: float
) -> list[Point]:
    """Return the tallies of buckets gathered into equal steps, empty ones included.

    Args:
        tallies: Each with its bucket.
        step_seconds: Rounded up to whole buckets.
    """
    width = _buckets_in(step_seconds)
    first, last = bucket_of(begin), bucket_of(end)
    count = (last - first) // width + 1
    gathered = [Tally() for _ in range(count)]
    for bucket, tally in tallies:
        if first <= bucket <= last:
            gathered[(bucket - first) // width].add(tally)
    return [
        Point(datetime.fromtimestamp((first + number * width) * BUCKET_SECONDS, UTC), tally)
        for number, tally in enumerate(gathered)
    ]


def whole_step(step_seconds: float) -> float:
    """Return the step that is used when this one is asked for, in seconds."""
    return float(_buckets_in(step_seconds) * BUCKET_SECONDS)


def point_object(point: Point, metric: str) -> dict[str, Any]:
    """Return a point of `executions`, `failures`, `duration` or `tasks` as a plain object."""
    tally = point.tally
    by_status = {"completed": tally.completed, "failed": tally.failed, "cancelled": tally.cancelled}
    values: dict[str, float | None] = {
        "executions": tally.ended,
        "failures": tally.failed,
        "duration": mean_seconds(tally),
        "tasks": tally.completed + tally.failed,
    }
    return {
        "at": point.at.isoformat(),
        "value": values[metric],
        "started": tally.started,
        "by_status": by_status,
    }


def _buckets_in(step_seconds: float) -> int:
    return max(1, math.ceil(step_seconds / BUCKET_SECONDS))


def trends(points: Sequence[Point], *, with_predictions: bool) -> dict[str, Any]:
    """Return how executions, their duration and their errors develop, and what a straight line says comes
    next."""
    executions = [float(point.tally.ended) for point in points]
    failures = [float(point.tally.failed) for point in points]
    seconds = [mean for point in points if (mean := mean_seconds(point.tally)) is not None]
    report: dict[str, Any] = {
        "execution_trends": _trend(executions, "executions"),
        "performance_trends": _trend(seconds, "seconds an execution"),
        "error_trends": _trend(failures, "failed executions"),
    }
    if with_predictions:
        report["predictions"] = {
            "method": "straight line through the steps of the range",
            "next_step_executions": _next(executions),
            "next_step_failures": _next(failures),
            "next_step_execution_time_seconds": _next(seconds),
        }
    return report


def _trend(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Return the direction of values in equal steps and a sentence about it."""
    if sum(1 for value in values if value) < MIN_TREND_POINTS:
        return {
            "trend": "insufficient_data",
            "analysis": f"Too few steps with {unit} in them to see a trend.",
        }
    slope, _ = _line(values)
    mean = sum(values) / len(values)
    change = slope * (len(values) - 1)
    if abs(change) < STEADY_SHARE * mean:
        return {"trend": "stable", "analysis": f"About {mean:.3g} {unit} a step over the whole range."}
    word = "increasing" if change > 0 else "decreasing"
    return {"trend": word, "analysis": f"{change:+.3g} {unit} over the range, {mean:.3g} a step on average."}


def _next(values: Sequence[float]) -> float | None:
    """Return what a straight line through the values says comes next, None where it would say nothing."""
    if sum(1 for value in values if value) < MIN_TREND_POINTS:
        return None
    slope, first = _line(values)
    return round(max(0.0, first + slope * len(values)), 6)


def _line(values: Sequence[float]) -> tuple[float, float]:
    """Return slope and first value of the least-squares line through values at 0, 1, 2, ..."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((place - middle) ** 2 for place in range(count))
    slope = sum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread
    return slope, mean - slope * middle


# --- dashboard ---------------------------------------------------------------------------------------------


def overview(
    workflows: Mapping[str, WorkflowTally],
    instances: Iterable[OpenInstance],
    *,
    total_workflows: int,
    recent_errors: int,
    unhealthy_agents: int,
) -> dict[str, Any]:
    """Return the widget `overview`."""
    active = list(instances)
    well = len(active) < DEGRADED_AT_ACTIVE_WORKFLOWS and not unhealthy_agents
    return {
        "active_workflows": len(active),
        "running_tasks": sum(len(instance.tasks) for instance in active),
        "total_workflows": total_workflows,
        "success_rate": success_rate(total(part.tally for part in workflows.values())),
        "recent_errors": recent_errors,
        "system_health": "healthy" if well else "degraded",
    }


def performance(whole: Tally, *, hours: float, resources: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the widget `performance`. Throughput is executions that ended, an hour."""
    return {
        "avg_execution_time": mean_seconds(whole),
        "throughput": round(whole.ended / hours, 4),
        "resource_utilization": dict(resources),
    }


def alert_widget(open_alerts: Iterable[Alert]) -> dict[str, Any]:
    """Return the widget `alerts`: the newest open ones, and how many of each severity are open."""
    newest = sorted(open_alerts, key=lambda alert: alert.updated_at, reverse=True)
    counts = {severity.value: 0 for severity in AlertSeverity}
    for alert in newest:
        counts[alert.severity] += 1
    return {
        "active_alerts": [alert_object(alert) for alert in newest[:ACTIVE_ALERTS]],
        "alert_count_by_severity": counts,
    }


def workflow_widget(
    workflows: Mapping[str, WorkflowTally], instances: Iterable[OpenInstance], ended: Iterable[Execution]
) -> dict[str, Any]:
    """Return the widget `workflows`."""
    running = [execution_of(instance) for instance in instances]
    recent = sorted([*running, *ended], key=lambda execution: execution.started_at, reverse=True)
    ran = [(key, part) for key, part in workflows.items() if part.tally.completed + part.tally.failed]
    best = sorted(ran, key=lambda item: (-success_rate(item[1].tally), mean_seconds(item[1].tally) or 0.0))
    bad = [(key, part, 100.0 - success_rate(part.tally)) for key, part in ran]
    bad = sorted((item for item in bad if item[2] > PROBLEMATIC_FAILURE_PERCENT), key=lambda item: -item[2])
    return {
        "recent_executions": [execution_object(execution) for execution in recent[:RECENT_EXECUTIONS]],
        "top_performers": [
            {
                "workflow_id": key,
                "success_rate": success_rate(part.tally),
                "avg_execution_time": mean_seconds(part.tally),
                "total_executions": part.tally.ended,
            }
            for key, part in best[:TOP_PERFORMERS]
        ],
        "problematic_workflows": [
            {
                "workflow_id": key,
                "failure_rate": round(rate, 2),
                "failed_executions": part.tally.failed,
                "common_failures": most_common(part.failures),
            }
            for key, part, rate in bad[:TOP_PERFORMERS]
        ],
    }


def execution_of(instance: OpenInstance) -> Execution:
    """Return an open instance as lists show it."""
    return Execution(
        instance_id=instance.instance_id,
        workflow_id=instance.workflow_id,
        started_at=instance.started_at,
        status=instance.status,
    )


def execution_object(execution: Execution) -> dict[str, Any]:
    """Return an execution as a plain object."""
    return {
        "instance_id": execution.instance_id,
        "workflow_id": execution.workflow_id,
        "started_at": execution.started_at.isoformat(),
        "status": execution.status,
        "completed_at": _iso(execution.completed_at),
        "execution_time": execution.execution_time,
        "error": execution.error or None,
    }


def alert_object(alert: Alert) -> dict[str, Any]:
    """Return an alert as a plain object."""
    return {
        "id": alert.id,
        "type": alert.type,
        "severity": alert.severity.value,
        "title": alert.title,
        "description": alert.description,
        "metadata": dict(alert.metadata),
        "created_at": alert.created_at.isoformat(),
        "updated_at": alert.updated_at.isoformat(),
        "acknowledged": alert.acknowledged,
        "acknowledged_at": _iso(alert.acknowledged_at),
        "resolved": alert.resolved,
        "resolved_at": _iso(alert.resolved_at),
        "count": alert.count,
    }


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None
