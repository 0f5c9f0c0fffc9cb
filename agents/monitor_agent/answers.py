"""What the monitor answers about the past and the present, from its store and its roster. Nothing is changed here."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog

from agents.monitor_agent.alerting import AlertBook
from agents.monitor_agent.resources import Resources
from agents.monitor_agent.roster import Roster, agent_object
from agents.monitor_agent.store import MonitorStore
from amp.capability import Incoming
from amp.client import MeshClient
from amp.errors import AmpError, InvalidParameters
from orchestration import contracts, reports
from orchestration.tallies import BUCKET_SECONDS, OpenInstance, bucket_of, total
from runtime.clock import Clock

RECENT = timedelta(hours=1)
"""How far back an error is a recent one."""
DASHBOARD_RANGE = timedelta(hours=24)
TREND_STEPS = 24
MAX_POINTS = 2000
MAX_WORKFLOW_IDS = 1000
DEFINITIONS_TIMEOUT_SECONDS = 2.0
WIDGETS = ("overview", "performance", "alerts", "workflows")

logger = structlog.get_logger("agents.monitor_agent")


class Answers:
    """Handlers of the capabilities that only read.

    Args:
        mesh: Returns the client, once there is one.
        position: Returns how far the log is counted, `log_offset` and `log_lag`.
    """

    def __init__(
        self,
        *,
        store: MonitorStore,
        instances: Mapping[str, OpenInstance],
        alerts: AlertBook,
        roster: Roster,
        resources: Resources,
        clock: Clock,
        mesh: Callable[[], MeshClient],
        position: Callable[[], dict[str, int]],
    ) -> None:
        self._store = store
        self._instances = instances
        self._alerts = alerts
        self._roster = roster
        self._resources = resources
        self._clock = clock
        self._mesh = mesh
        self._position = position

    async def get_metrics(self, incoming: Incoming) -> contracts.MetricsGetReply:
        """Answer `metrics-get`."""
        request: contracts.MetricsGetRequest = incoming.parameters
        now = self._clock.now()
        since = bucket_of(now - _length(request.time_range))
        metrics: dict[str, Any]
        match request.metric_type:
            case "workflow":
                found = await self._store.workflows(since, request.workflow_id)
                metrics = {key: reports.workflow_metrics(key, *part) for key, part in found.items()}
                if request.workflow_id and not metrics:
                    empty = reports.WorkflowTally.empty()
                    metrics[request.workflow_id] = reports.workflow_metrics(request.workflow_id, *empty)
            case "task":
                metrics = await self._task_metrics(since, request.workflow_id, request.task_id)
            case "agent":
                known = self._roster.agents.values()
                metrics = {
                    agent.agent_id: agent_object(agent)
                    for agent in known
                    if request.agent_id in ("", agent.agent_id)
                }
            case "system":
                metrics = await self._system_metrics(since, _length(request.time_range))
        return contracts.MetricsGetReply(metrics=metrics, timestamp=now.isoformat())

    async def aggregate_metrics(self, incoming: Incoming) -> contracts.MetricsAggregateReply:
        """Answer `metrics-aggregate`."""
        request: contracts.MetricsAggregateRequest = incoming.parameters
        now = self._clock.now()
        length = _length(request.time_range)
        if length.total_seconds() / max(request.step_seconds, BUCKET_SECONDS) > MAX_POINTS:
            raise InvalidParameters(
                f"{request.time_range} in steps of {request.step_seconds:g} s makes more than {MAX_POINTS} points; "
                "take larger steps",
                {"path": "$.step_seconds"},
            )
        begin = now - length
        buckets = await self._store.buckets(
            bucket_of(begin), request.workflow_id, tasks=request.metric == "tasks"
        )
        points = reports.steps(buckets, begin=begin, end=now, step_seconds=request.step_seconds)
        return contracts.MetricsAggregateReply(
            points=[reports.point_object(point, request.metric) for point in points],
            timestamp=now.isoformat(),
            step_seconds=reports.whole_step(request.step_seconds),
        )

    async def check_health(self, incoming: Incoming) -> contracts.HealthCheckReply:
        """Answer `health-check`: ask the agents now."""
        request: contracts.HealthCheckRequest = incoming.parameters
        await self._roster.check(self._mesh())
        agents = {key: agent_object(agent) for key, agent in self._roster.agents.items()}
        status = self._roster.status()
        if request.agent_id:
            known = self._roster.agents.get(request.agent_id)
            agents = {request.agent_id: agent_object(known) if known else {"status": "missing"}}
            status = "healthy" if known is not None and known.is_well else "unhealthy"
        return contracts.HealthCheckReply(
            status=status,
            agents=agents,
            checked_at=self._clock.now().isoformat(),
            system=self._resources.read(),
            missing_roles=self._roster.missing_roles(),
        )

    async def report_performance(self, incoming: Incoming) -> contracts.PerformanceReportReply:
        """Answer `performance-report`."""
        request: contracts.PerformanceReportRequest = incoming.parameters
        now, length = self._clock.now(), _length(request.time_range)
        if len(request.workflow_ids) > MAX_WORKFLOW_IDS:
            raise InvalidParameters(
                f"workflow_ids may have {MAX_WORKFLOW_IDS} ids", {"path": "$.workflow_ids"}
            )
        since = bucket_of(now - length)
        workflows = await self._store.workflows(since)
        if request.workflow_ids:
            workflows = {key: workflows[key] for key in request.workflow_ids if key in workflows}
        report = reports.summary(
            workflows,
            time_range=request.time_range,
            at=now,
            active=len(self._active(request.workflow_ids)),
            open_alerts=len(self._alerts.open_alerts),
        )
        report["report_type"] = request.report_type
        if request.report_type == "detailed":
            tasks = await self._task_metrics(since)
            listed = self._alerts.listed(include_resolved=True)[: reports.REPORTED_ALERTS]
            wanted = set(request.workflow_ids)
            report |= {
                "workflow_metrics": {
                    key: reports.workflow_metrics(key, *part) for key, part in workflows.items()
                },
                "task_metrics": {
                    key: each for key, each in tasks.items() if not wanted or each["workflow_id"] in wanted
                },
                "agent_health": {key: agent_object(agent) for key, agent in self._roster.agents.items()},
                "system_metrics": await self._system_metrics(since, length),
                "alerts": [reports.alert_object(alert) for alert in listed],
            }
        if request.report_type == "trends" or request.include_predictions:
            points = await self._points(request.workflow_ids, now - length, now)
            report |= reports.trends(points, with_predictions=request.include_predictions)
        return contracts.PerformanceReportReply(report=report, generated_at=now.isoformat())

    async def dashboard_data(self, incoming: Incoming) -> contracts.DashboardDataReply:
        """Answer `dashboard-data`."""
        request: contracts.DashboardDataRequest = incoming.parameters
        unknown = [name for name in request.widgets if name not in WIDGETS]
        if unknown:
            raise InvalidParameters(
                f"widget {unknown[0][:50]!r} is none of {', '.join(WIDGETS)}", {"path": "$.widgets"}
            )
        now = self._clock.now()
        workflows = await self._store.workflows(bucket_of(now - DASHBOARD_RANGE))
        dashboard: dict[str, Any] = {"refresh_interval": request.refresh_interval}
        for name in dict.fromkeys(request.widgets):
            match name:
                case "overview":
                    dashboard[name] = await self._overview(workflows, now)
                case "performance":
                    hours = DASHBOARD_RANGE.total_seconds() / 3600
                    whole = total(part.tally for part in workflows.values())
                    dashboard[name] = reports.performance(
                        whole, hours=hours, resources=self._resources.read()
                    )
                case "alerts":
                    dashboard[name] = reports.alert_widget(self._alerts.open_alerts)
                case "workflows":
                    ended = await self._store.recent_executions(reports.RECENT_EXECUTIONS)
                    dashboard[name] = reports.workflow_widget(workflows, self._instances.values(), ended)
        return contracts.DashboardDataReply(dashboard=dashboard, last_updated=now.isoformat())

    # --- parts of answers ------------------------------------------------------------------------------

    async def _overview(
        self, workflows: Mapping[str, reports.WorkflowTally], now: datetime
    ) -> dict[str, Any]:
        unwell = sum(1 for agent in self._roster.agents.values() if agent.status in ("lost", "unresponsive"))
        return reports.overview(
            workflows,
            self._instances.values(),
            total_workflows=len(await self._workflow_ids(workflows)),
            recent_errors=await self._store.count_errors(bucket_of(now - RECENT)),
            unhealthy_agents=unwell,
        )

    async def _workflow_ids(self, seen: Mapping[str, object]) -> set[str]:
        """Return the ids of all stored workflows and of those that ran lately."""
        try:
            stored = await self._mesh().request(
                contracts.DEFINITION_LIST.id,
                contracts.DefinitionListRequest(),
                reply_type=_DefinitionIds,
                timeout_seconds=DEFINITIONS_TIMEOUT_SECONDS,
            )
        except AmpError as error:
            logger.warning("definitions_not_counted", code=error.code)
            return set(seen)
        return {each.workflow_id for each in stored.definitions} | set(seen)

    async def _task_metrics(self, since: int, workflow_id: str = "", task_id: str = "") -> dict[str, Any]:
        """Return task metrics by task id when one workflow is asked for, else by workflow_id/task_id."""
        found = await self._store.tasks(since, workflow_id, task_id)
        return {
            task if workflow_id else f"{workflow}/{task}": reports.task_metrics(workflow, task, *part)
            for (workflow, task), part in found.items()
        }

    async def _system_metrics(self, since: int, length: timedelta) -> dict[str, Any]:
        facts = self.system_facts(await self._store.workflows(since))
        hours = length.total_seconds() / 3600
        tasks = total(tally for _, tally in await self._store.buckets(since, tasks=True))
        return {
            **facts,
            "throughput_per_hour": round(facts["total_executions"] / hours, 4),
            "tasks_completed": tasks.completed,
            "tasks_failed": tasks.failed,
            "task_attempts": tasks.started,
            "recent_errors": await self._store.count_errors(since),
            **self._position(),
            "agents": len(self._roster.agents),
        }

    def system_facts(self, workflows: Mapping[str, reports.WorkflowTally]) -> dict[str, Any]:
        """Return what the rules of scope system see."""
        whole = total(part.tally for part in workflows.values())
        return {
            **reports.workflow_metrics("", whole, {}),
            "active_workflows": len(self._instances),
            "running_tasks": self.running_tasks(),
            **self._resources.read(),
        }

    async def _points(
        self, workflow_ids: Sequence[str], begin: datetime, end: datetime
    ) -> list[reports.Point]:
        buckets = [
            pair
            for key in (dict.fromkeys(workflow_ids) or [""])
            for pair in await self._store.buckets(bucket_of(begin), key)
        ]
        step_seconds = (end - begin).total_seconds() / TREND_STEPS
        return reports.steps(buckets, begin=begin, end=end, step_seconds=step_seconds)

    def _active(self, workflow_ids: Sequence[str]) -> list[OpenInstance]:
        return [
            each for each in self._instances.values() if not workflow_ids or each.workflow_id in workflow_ids
        ]

    def running_tasks(self) -> int:
        """Return how many attempts are under way."""
        return sum(len(instance.tasks) for instance in self._instances.values())


class _DefinitionId(msgspec.Struct):
    workflow_id: str


class _DefinitionIds(msgspec.Struct):
    definitions: list[_DefinitionId]


def _length(time_range: str) -> timedelta:
    try:
        return reports.parse_range(time_range)
    except ValueError as problem:
        raise InvalidParameters(str(problem), {"path": "$.time_range"}) from None
