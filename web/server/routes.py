"""The one table of everything that can be asked over HTTP. Nothing is reachable that is not a row here."""

from orchestration import contracts
from web.server import monitoring, pages, waits, workflows
from web.server.table import Route

_WORKFLOW = {"workflow_id": "workflow"}
_INSTANCE = {"instance_id": "instance"}
_TASK = {"instance_id": "instance", "task_id": "task"}

ROUTES: tuple[Route, ...] = (
    Route(
        method="GET", path="/api/workflows", handler=workflows.list_workflows,
        summary="The stored workflows", query="PageQuery",
    ),
    Route(
        method="POST", path="/api/workflows", handler=workflows.create_workflow,
        summary="Check and store a definition", body="CreateBody", reply=contracts.WorkflowCreated,
        statuses=(200, 201),
    ),
    Route(
        method="POST", path="/api/workflows/upload", handler=workflows.upload_workflow,
        summary="Check and store a definition file", query="UploadQuery", reply=contracts.WorkflowCreated,
        statuses=(200, 201), kind="form",
    ),
    Route(
        method="POST", path="/api/workflows/validate", handler=workflows.validate_workflow,
        summary="Check a definition without storing it", body="ValidateBody",
    ),
    Route(
        method="GET", path="/api/workflows/{workflow_id}", handler=workflows.get_workflow,
        summary="A workflow's newest definition", what=_WORKFLOW,
    ),
    Route(
        method="POST", path="/api/workflows/{workflow_id}/start", handler=workflows.start_workflow,
        summary="Start an instance", body="StartBody", reply=contracts.WorkflowStarted, statuses=(201,),
        what=_WORKFLOW,
    ),
    Route(
        method="GET", path="/api/workflows/{instance_id}/status", handler=workflows.workflow_status,
        summary="Where an instance stands", reply=contracts.WorkflowStatus, what=_INSTANCE,
    ),
    Route(
        method="POST", path="/api/workflows/{instance_id}/pause", handler=workflows.pause_workflow,
        summary="Pause an instance", body="ControlBody", reply=contracts.WorkflowControlled,
        statuses=(202,), what=_INSTANCE,
    ),
    Route(
        method="POST", path="/api/workflows/{instance_id}/resume", handler=workflows.resume_workflow,
        summary="Resume an instance", body="ControlBody", reply=contracts.WorkflowControlled,
        statuses=(202,), what=_INSTANCE,
    ),
    Route(
        method="POST", path="/api/workflows/{instance_id}/stop", handler=workflows.stop_workflow,
        summary="Stop an instance", body="ControlBody", reply=contracts.WorkflowControlled,
        statuses=(202,), what=_INSTANCE,
    ),
    Route(
        method="GET", path="/api/instances", handler=monitoring.list_instances,
        summary="Instances by filter, newest first", query="InstancesQuery",
    ),
    Route(
        method="GET", path="/api/instances/{instance_id}", handler=monitoring.get_instance,
        summary="An instance with tasks and events", what=_INSTANCE,
    ),
    Route(
        method="GET", path="/api/instances/{instance_id}/events", handler=monitoring.list_events,
        summary="An instance's events", query="EventsQuery", what=_INSTANCE,
    ),
    Route(
        method="GET", path="/api/instances/{instance_id}/tasks/{task_id}", handler=monitoring.get_task,
        summary="What a task gave, uncut", what=_TASK,
    ),
    Route(
        method="GET", path="/api/instances/{instance_id}/why", handler=waits.get_instance_why,
        summary="Why an instance does not move", reply=contracts.WorkflowWhy, what=_INSTANCE,
    ),
    Route(
        method="GET", path="/api/instances/{instance_id}/tasks/{task_id}/why", handler=waits.get_task_why,
        summary="Why a task does not move, and what may be ordered about it", reply=contracts.WorkflowWhy, what=_TASK,
    ),
    Route(
        method="POST", path="/api/instances/{instance_id}/tasks/{task_id}/retry", handler=waits.retry_task,
        summary="Run a task again", body="OrderBody", reply=contracts.TaskControlled, statuses=(202,), what=_TASK,
    ),
    Route(
        method="POST", path="/api/instances/{instance_id}/tasks/{task_id}/skip", handler=waits.skip_task,
        summary="Skip a task", body="OrderBody", reply=contracts.TaskControlled, statuses=(202,), what=_TASK,
    ),
    Route(
        method="POST", path="/api/instances/{instance_id}/tasks/{task_id}/complete", handler=waits.complete_task,
        summary="Say that a task of unknown outcome did its work", body="CompleteBody",
        reply=contracts.TaskControlled, statuses=(202,), what=_TASK,
    ),
    Route(
        method="GET", path="/api/health/orphans", handler=waits.get_orphans,
        summary="Unfinished instances that nothing will wake", query="OrphansQuery", reply=contracts.OrphansReply,
    ),
    Route(
        method="GET", path="/api/overview", handler=monitoring.get_overview, summary="What the overview page shows"
    ),
    Route(
        method="GET", path="/api/metrics", handler=monitoring.get_metrics,
        summary="Metrics by type", query="MetricsQuery",
    ),
    Route(
        method="GET", path="/api/metrics/workflow/{workflow_id}", handler=monitoring.get_workflow_metrics,
        summary="Metrics of a workflow", query="RangeQuery", what=_WORKFLOW,
    ),
    Route(
        method="GET", path="/api/alerts", handler=monitoring.list_alerts, summary="Alerts", query="AlertsQuery"
    ),
    Route(
        method="GET", path="/api/performance/report", handler=monitoring.get_report,
        summary="A performance report", query="ReportQuery",
    ),
    Route(
        method="GET", path="/api/dashboard", handler=monitoring.get_dashboard,
        summary="Data for widgets", query="DashboardQuery",
    ),
    Route(method="GET", path="/api/agents", handler=monitoring.list_agents, summary="Who is on the mesh"),
    Route(method="GET", path="/api/ws", handler=pages.live_socket, summary="The live channel", kind="socket"),
    Route(method="GET", path="/ws", handler=pages.legacy_socket, summary="The older event stream", kind="socket"),
    Route(method="GET", path="/healthz", handler=monitoring.get_liveness, summary="Whether the process serves"),
    Route(
        method="GET", path="/readyz", handler=monitoring.get_readiness,
        summary="Whether requests can be answered", statuses=(200, 503),
    ),
    Route(
        method="GET", path="/health", handler=monitoring.get_health,
        summary="What works", statuses=(200, 503),
    ),
    Route(method="GET", path="/monitoring", handler=pages.get_monitoring, summary="The overview", kind="file"),
    Route(method="GET", path="/assets/{digest}/{name:.+}", handler=pages.get_asset, summary="A file", kind="file"),
    *(
        Route(method="GET", path=path, handler=pages.get_page, summary="The dashboard", kind="file")
        for path in pages.PAGES
    ),
)  # fmt: skip
