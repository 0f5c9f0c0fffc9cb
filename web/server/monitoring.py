"""Handlers for instances, events, metrics, alerts, reports, agents and the process's own health."""

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from orchestration import contracts
from orchestration.status import InstanceStatus
from web.server.instances import row_document
from web.server.problems import ProblemError
from web.server.table import Answer, Call

if TYPE_CHECKING:
    from web.server.models import AlertsQuery, EventsQuery, InstancesQuery, MetricsQuery, ReportQuery

EVENTS_ON_PAGE = 200
WIDGETS = ("overview", "performance", "alerts", "workflows")
MetricType = Literal["system", "workflow", "task", "agent"]
METRIC_TYPES: tuple[MetricType, ...] = ("system", "workflow", "task", "agent")


async def list_instances(call: Call) -> Answer:
    """Answer a page of instances, newest first, with totals by status."""
    query: InstancesQuery = call.query
    request = contracts.InstanceListRequest(
        statuses=[InstanceStatus(status) for status in query.status.split(",") if status],
        workflow_id=query.workflow_id,
        text=query.text,
        created_after=query.created_after,
        created_before=query.created_before,
        limit=query.limit,
        cursor=query.cursor,
    )
    reply = await call.services.instances.rows(request)
    return Answer(
        {
            "items": [row_document(row) for row in reply.rows],
            "next_cursor": reply.next_cursor,
            "total": reply.total,
            "counts": reply.counts,
        }
    )


async def get_instance(call: Call) -> Answer:
    """Answer one instance: its row, its tasks with definition, inputs, outputs, errors and attempts, its events."""
    instance_id = call.path["instance_id"]
    instances = call.services.instances
    row = await instances.row(instance_id)
    events = await instances.events(instance_id, after=0, limit=EVENTS_ON_PAGE)
    view = await instances.view(instance_id)
    document = view.document
    tasks = document["tasks"]
    edges = [[source, task_id] for task_id, task in tasks.items() for source in task["depends_on"]]
    return Answer(
        {
            "seq": document["seq"],
            "instance": {**row_document(row), **document["instance"]},
            "tasks": tasks,
            "graph": {"nodes": list(tasks), "edges": edges},
            "events": events,
        }
    )


async def get_task(call: Call) -> Answer:
    """Answer what a task gave, uncut."""
    return Answer(await call.services.instances.task_values(call.path["instance_id"], call.path["task_id"]))


async def list_events(call: Call) -> Answer:
    """Answer a page of an instance's events."""
    query: EventsQuery = call.query
    instance_id = call.path["instance_id"]
    return Answer(await call.services.instances.events(instance_id, after=query.after_seq, limit=query.limit))


async def get_metrics(call: Call) -> Answer:
    """Answer the metrics of one type, or of all by type."""
    query: MetricsQuery = call.query
    if query.metric_type is not None:
        reply = await _metrics(call, query.metric_type, query.time_range)
        return Answer(
            {"metric_type": query.metric_type, "metrics": reply.metrics, "timestamp": reply.timestamp}
        )
    replies = await asyncio.gather(*(_metrics(call, kind, query.time_range) for kind in METRIC_TYPES))
    found = {kind: reply.metrics for kind, reply in zip(METRIC_TYPES, replies, strict=True)}
    return Answer({"metrics": found, "timestamp": replies[0].timestamp})


async def get_workflow_metrics(call: Call) -> Answer:
    """Answer the metrics of one workflow and of its tasks."""
    workflow_id, time_range = call.path["workflow_id"], call.query.time_range
    workflow, tasks = await asyncio.gather(
        _metrics(call, "workflow", time_range, workflow_id), _metrics(call, "task", time_range, workflow_id)
    )
    metrics = workflow.metrics.get(workflow_id, workflow.metrics)
    if not metrics.get("total_executions"):
        await call.services.instances.definition(workflow_id=workflow_id)
    return Answer(
        {
            "workflow_id": workflow_id,
            "metrics": metrics,
            "tasks": tasks.metrics,
            "timestamp": workflow.timestamp,
        }
    )


async def _metrics(
    call: Call, kind: MetricType, time_range: str, workflow_id: str = ""
) -> contracts.MetricsGetReply:
    request = contracts.MetricsGetRequest(metric_type=kind, time_range=time_range, workflow_id=workflow_id)
    return await call.services.backend.ask(contracts.METRICS_GET, request, contracts.MetricsGetReply)


async def list_alerts(call: Call) -> Answer:
    """Answer alerts, newest first."""
    query: AlertsQuery = call.query
    request = contracts.AlertListRequest(
        severity=query.severity, include_resolved=query.include_resolved, limit=query.limit
    )
    reply = await call.services.backend.ask(contracts.ALERT_LIST, request, contracts.AlertListReply)
    return Answer({"items": reply.alerts, "next_cursor": None, "total": reply.total_count})


async def get_report(call: Call) -> Answer:
    """Answer a performance report."""
    query: ReportQuery = call.query
    request = contracts.PerformanceReportRequest(
        report_type=query.report_type,
        time_range=query.time_range,
        workflow_ids=[one for one in query.workflow_ids.split(",") if one],
        include_predictions=query.include_predictions,
    )
    reply = await call.services.backend.ask(
        contracts.PERFORMANCE_REPORT, request, contracts.PerformanceReportReply
    )
    return Answer({"report": reply.report, "generated_at": reply.generated_at})


async def get_dashboard(call: Call) -> Answer:
    """Answer the data behind the widgets, by widget."""
    wanted = [one for one in call.query.widgets.split(",") if one]
    for widget in wanted:
        if widget not in WIDGETS:
            detail = f"unknown widget {widget[:50]!r}; known: {', '.join(WIDGETS)}"
            raise ProblemError(400, "invalid_query", detail)
    request = contracts.DashboardDataRequest(widgets=wanted)
    reply = await call.services.backend.ask(contracts.DASHBOARD_DATA, request, contracts.DashboardDataReply)
    return Answer(reply.dashboard)


async def get_overview(call: Call) -> Answer:
    """Answer what the overview page shows."""
    return Answer(await call.services.lists.overview())


async def list_agents(call: Call) -> Answer:
    """Answer who is on the mesh, and which of the six kinds of agents are absent."""
    found = await call.services.lists.agents()
    if not found["reachable"]:
        raise ProblemError(
            503, "mesh_unavailable", "the mesh router is not reachable", headers={"Retry-After": "2"}
        )
    items: list[Any] = sorted(found["items"].values(), key=lambda agent: (agent["role"] == "", agent["id"]))
    return Answer({"items": items, "next_cursor": None, "total": len(items), "missing": found["missing"]})


async def get_liveness(call: Call) -> Answer:
    """Answer 200 as long as the process serves."""
    return Answer({"status": "alive"})


async def get_readiness(call: Call) -> Answer:
    """Answer 200 when requests can be answered: on the mesh, and the log readable."""
    if not call.services.backend.mesh.connected:
        raise ProblemError(503, "not_ready", "not connected to the mesh router", headers={"Retry-After": "2"})
    if not call.services.hub.source_ok:
        raise ProblemError(503, "not_ready", "the log cannot be read: is a state manager running?")
    return Answer({"status": "ready"})


async def get_health(call: Call) -> Answer:
    """Answer 200 with what works; 503 when the mesh is not reachable."""
    connected, readable = call.services.backend.mesh.connected, call.services.hub.source_ok
    status = "healthy" if connected and readable else "degraded" if connected else "disconnected"
    data = {
        "status": status,
        "agent_id": call.services.settings.agent_id,
        "role": "web-dashboard",
        "connected": connected,
        "log_readable": readable,
        "dashboard_installed": call.services.assets.is_ready,
    }
    return Answer(data, status=200 if connected else 503)
