"""A mesh in one object: the contracts that the dashboard uses, over definitions, rows and a log kept in memory.

Tests write events with `emit` and see what the dashboard makes of them. `Simulator` plays whole instances.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from typing import Any

import msgspec

from amp.errors import AmpError, CapabilityNotFound, NetworkError
from amp.subscriptions import Event
from orchestration import contracts, events, machine, orders
from orchestration import stimuli as st
from orchestration.definition.plan import Plan
from orchestration.errors import IllegalMove
from orchestration.instance import Instance
from orchestration.starts import instance_id_of, request_hash
from orchestration.status import Effects, InstanceStatus
from orchestration.surroundings import Surroundings
from orchestration.why import summary, why, why_task
from tests.builders import make_plan, make_task

START = datetime(2026, 11, 20, 9, 0, 0, tzinfo=UTC)
INSTANCE_STATES = {
    "workflow.started": "pending",
    "workflow.admitted": "running",
    "workflow.paused": "paused",
    "workflow.resumed": "running",
    "workflow.completed": "completed",
    "workflow.failed": "failed",
    "workflow.cancelled": "cancelled",
}
TASK_STATES = {
    "task.started": "running",
    "task.completed": "completed",
    "task.retrying": "retrying",
    "task.outcome_unknown": "outcome_unknown",
    "task.failed": "failed",
    "task.skipped": "skipped",
    "task.cancelled": "cancelled",
    "task.reset": "pending",
}
UNDER_WAY = ("running", "retrying", "ready", "outcome_unknown")
AGENTS = {
    "workflow-engine": [
        "workflow-create",
        "workflow-load",
        "workflow-start",
        "workflow-status",
        "workflow-pause",
        "workflow-why",
    ],
    "task-executor-1": ["task-execute", "task-api-call", "task-data-transform", "task-validation"],
    "state-manager": ["state-get", "state-set", "log-read", "instance-get", "instance-list"],
    "condition-evaluator": ["condition-evaluate", "decision-tree", "rule-engine"],
    "error-handler": ["error-handle", "error-recover", "circuit-breaker"],
    "monitor-agent": ["metrics-get", "alert-list", "health-check", "performance-report", "dashboard-data"],
}


class FakeMesh:
    """Stands in for `amp.client.MeshClient`."""

    def __init__(self) -> None:
        self.on_connected: list[Callable[[], Awaitable[None]]] = []
        self.on_disconnected: list[Callable[[], Awaitable[None]]] = []
        self.connected = True
        self.log: list[contracts.EventRecord] = []
        self.purged_to = 0
        self.rows: dict[str, contracts.InstanceRow] = {}
        self.request_hashes: dict[str, str] = {}
        self.task_states: dict[str, dict[str, str]] = {}
        self.definitions: dict[str, contracts.DefinitionRecord] = {}
        self.alerts: list[dict[str, Any]] = []
        self.agents = {agent_id: list(offered) for agent_id, offered in AGENTS.items()}
        self.health: dict[str, str] = {}
        self.absent: set[str] = set()
        self.failing: dict[str, AmpError] = {}
        self.requests: list[tuple[str, Any]] = []
        self.on_start: Callable[[str], None] | None = None
        self.on_control: Callable[[str, str], None] | None = None
        self.orphans: list[contracts.Orphan] = []
        self.surroundings: dict[str, Surroundings] = {}
        self._handlers: list[tuple[str, Callable[[Any], Any]]] = []

    # --- what tests do ---------------------------------------------------------------------------------

    def define(self, definition: Mapping[str, Any], source: str = "") -> contracts.DefinitionRecord:
        content = {"version": "1.0", "name": definition["id"], **definition}
        record = contracts.DefinitionRecord(
            workflow_id=content["id"],
            version=content["version"],
            name=content["name"],
            hash=f"hash-{content['id']}-{len(self.definitions)}",
            content=content,
            source=source,
            format="yaml",
            created_at=START,
        )
        self.definitions[content["id"]] = record
        return record

    def create(
        self,
        workflow_id: str,
        instance_id: str,
        inputs: Mapping[str, Any] | None = None,
        at: datetime = START,
    ):
        definition = self.definitions[workflow_id]
        self.rows[instance_id] = contracts.InstanceRow(
            instance_id=instance_id,
            workflow_id=workflow_id,
            workflow_version=definition.version,
            workflow_name=definition.name,
            definition_hash=definition.hash,
            status=InstanceStatus.PENDING,
            created_at=at,
        )
        self.task_states[instance_id] = {task["id"]: "pending" for task in definition.content["tasks"]}
        self.emit(
            instance_id,
            events.InstanceStarted(
                at=at,
                workflow_id=workflow_id,
                workflow_version=definition.version,
                definition_hash=definition.hash,
                inputs=dict(inputs or {}),
            ),
        )

    def emit(self, instance_id: str, *facts: events.Event, hint: bool = True) -> None:
        row = self.rows[instance_id]
        states = self.task_states[instance_id]
        for fact in facts:
            kind = events.type_of(fact)
            row = self._row_after(row, kind, fact)
            self.log.append(
                contracts.EventRecord(
                    offset=self.newest + 1,
                    instance_id=instance_id,
                    seq=row.seq,
                    type=kind,
                    at=fact.at,
                    data=msgspec.Raw(events.encode(fact)),
                )
            )
            if kind in TASK_STATES:
                states[fact.task_id] = TASK_STATES[kind]
        counts: dict[str, int] = {}
        for state in states.values():
            counts[state] = counts.get(state, 0) + 1
        current = [task_id for task_id, state in states.items() if state in UNDER_WAY]
        self.rows[instance_id] = msgspec.structs.replace(row, task_counts=counts, current_tasks=current)
        if hint:
            self.publish("log.advanced", {"offset": self.newest})

    def _row_after(self, row: contracts.InstanceRow, kind: str, fact: Any) -> contracts.InstanceRow:
        changes: dict[str, Any] = {"seq": row.seq + 1, "updated_at": fact.at}
        if kind in INSTANCE_STATES:
            changes["status"] = InstanceStatus(INSTANCE_STATES[kind])
        if kind == "workflow.admitted":
            changes["started_at"] = fact.at
        if kind in ("workflow.completed", "workflow.failed", "workflow.cancelled"):
            changes["completed_at"] = fact.at
        if kind == "workflow.failed":
            changes.update(error_code=fact.error.code, error_message=fact.error.message)
        return msgspec.structs.replace(row, **changes)

    def publish(self, event_type: str, data: Mapping[str, Any]) -> None:
        for pattern, handler in list(self._handlers):
            if fnmatch(event_type, pattern):
                handler(Event(event_type=event_type, data=dict(data), source_agent_id="state-manager"))

    # --- what the dashboard does -----------------------------------------------------------------------

    async def request(self, capability: str, parameters: Any, *, reply_type: Any = object, **_: Any) -> Any:
        self.requests.append((capability, parameters))
        await asyncio.sleep(0)
        if not self.connected:
            raise NetworkError("not connected to the mesh router")
        if capability in self.failing:
            raise self.failing[capability]
        if capability in self.absent:
            raise CapabilityNotFound(f"no agent offers {capability!r}")
        reply = getattr(self, "_" + capability.replace("-", "_"))(parameters)
        wire = msgspec.json.decode(msgspec.json.encode(reply))
        return msgspec.convert(wire, reply_type) if reply_type is not contracts.LogReadReply else reply

    async def subscribe(self, pattern: str, handler: Callable[[Any], Any]) -> None:
        self._handlers.append((pattern, handler))

    async def discover(self, *, capabilities: Any = (), pattern: Any = None) -> list[dict[str, Any]]:
        if not self.connected:
            raise NetworkError("not connected to the mesh router")
        return [
            {
                "identity": {
                    "id": agent_id,
                    "name": agent_id.replace("-", " "),
                    "version": "1.0",
                    "framework": "amp",
                },
                "capabilities": [{"id": one} for one in offered],
            }
            for agent_id, offered in self.agents.items()
        ]

    @property
    def newest(self) -> int:
        """The log's newest offset, which outlives the event that had it."""
        return max(self.purged_to, self.log[-1].offset if self.log else 0)

    def _log_read(self, request: contracts.LogReadRequest) -> contracts.LogReadReply:
        if request.instance_id is None:
            found = [record for record in self.log if record.offset > request.after]
            key = "offset"
        else:
            found = [r for r in self.log if r.instance_id == request.instance_id and r.seq > request.after]
            key = "seq"
        found = [record for record in found if not request.types or record.type in request.types]
        page = found[: request.limit]
        is_end = len(found) <= request.limit
        last = getattr(page[-1], key) if page else request.after
        if key == "offset" and is_end:
            last = max(last, self.newest)
        return contracts.LogReadReply(events=page, next=last, end=is_end)

    def _instance_get(self, request: contracts.InstanceGetRequest) -> contracts.InstanceGetReply:
        return contracts.InstanceGetReply(row=self.rows.get(request.instance_id))

    def _instance_list(self, request: contracts.InstanceListRequest) -> contracts.InstanceListReply:
        rows = sorted(self.rows.values(), key=lambda row: (row.created_at, row.instance_id), reverse=True)
        rows = [row for row in rows if request.workflow_id in (None, row.workflow_id)]
        if request.text:
            rows = [
                row for row in rows if request.text in row.instance_id + row.workflow_name + row.error_message
            ]
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.status] = counts.get(row.status, 0) + 1
        rows = [row for row in rows if not request.statuses or row.status in request.statuses]
        first = int(request.cursor or 0)
        page = rows[first : first + request.limit]
        more = str(first + request.limit) if len(rows) > first + request.limit else None
        return contracts.InstanceListReply(rows=page, next_cursor=more, total=len(rows), counts=counts)

    def _definition_get(self, request: contracts.DefinitionGetRequest) -> contracts.DefinitionGetReply:
        found = next(
            (
                record
                for record in self.definitions.values()
                if (
                    record.hash == request.hash if request.hash else record.workflow_id == request.workflow_id
                )
            ),
            None,
        )
        return contracts.DefinitionGetReply(definition=found)

    def _definition_list(self, request: contracts.DefinitionListRequest) -> contracts.DefinitionListReply:
        found = [record for key, record in sorted(self.definitions.items()) if key > request.after]
        return contracts.DefinitionListReply(definitions=found[: request.limit])

    def _workflow_create(self, request: contracts.WorkflowCreateRequest) -> contracts.WorkflowCreated:
        workflow_id = request.definition["id"]
        known = workflow_id in self.definitions
        if known and not request.overwrite:
            raise AmpError("WORKFLOW_EXISTS", f"workflow {workflow_id!r} exists with other content", {})
        self.define(request.definition, request.source)
        return contracts.WorkflowCreated(
            workflow_id=workflow_id, status="updated" if known else "created", version="1.0"
        )

    def _workflow_start(self, request: contracts.WorkflowStartRequest) -> contracts.WorkflowStarted:
        if request.workflow_id not in self.definitions:
            raise AmpError("WORKFLOW_NOT_FOUND", f"there is no workflow {request.workflow_id!r}", {})
        schema = self.definitions[request.workflow_id].content.get("input_schema", {})
        missing = [name for name in schema.get("required", ()) if name not in request.inputs]
        if missing:
            problems = [
                {"path": f"/{name}", "message": f"{name!r} is required", "code": "required"}
                for name in missing
            ]
            raise AmpError("INVALID_INPUT", "the inputs do not fit", {"problems": problems})
        instance_id = request.instance_id or f"ins_{len(self.rows) + 1:04d}"
        if request.idempotency_key:
            instance_id = instance_id_of(request.idempotency_key)
            hash = request_hash(request.workflow_id, request.inputs)
            if self.request_hashes.setdefault(instance_id, hash) != hash:
                raise AmpError("IDEMPOTENCY_KEY_REUSED", "the key was used for another request", {})
            if instance_id in self.rows:
                return contracts.WorkflowStarted(
                    instance_id=instance_id, status="pending", workflow_id=request.workflow_id, replayed=True
                )
        if instance_id in self.rows:
            status = self.rows[instance_id].status
            return contracts.WorkflowStarted(instance_id=instance_id, status=status, created=False)
        self.create(request.workflow_id, instance_id, request.inputs, at=self.now())
        if self.on_start is not None:
            self.on_start(instance_id)
        return contracts.WorkflowStarted(
            instance_id=instance_id, status="pending", workflow_id=request.workflow_id
        )

    def now(self) -> datetime:
        return datetime.now(UTC)

    def _control(self, request: contracts.WorkflowControlRequest, order: str) -> contracts.WorkflowControlled:
        row = self.rows.get(request.instance_id)
        if row is None:
            raise AmpError("INSTANCE_NOT_FOUND", f"there is no instance {request.instance_id!r}", {})
        if row.status.is_final:
            details = {"current_state": row.status}
            raise AmpError("ILLEGAL_STATE", f"the instance is {row.status} already", details)
        if self.on_control is not None:
            self.on_control(request.instance_id, order)
        return contracts.WorkflowControlled(instance_id=row.instance_id, status=row.status)

    def _replayed(self, instance_id: str) -> tuple[Plan, Instance]:
        """Return an instance as the real machine makes it of its events."""
        if instance_id not in self.rows:
            raise AmpError("INSTANCE_NOT_FOUND", f"there is no instance {instance_id!r}", {})
        definition = self.definitions[self.rows[instance_id].workflow_id].content
        made = [
            make_task(
                task["id"],
                *task.get("depends_on", ()),
                outputs=task.get("outputs", ()),
                effects=Effects(task.get("effects", "none")),
            )
            for task in definition["tasks"]
        ]
        plan = make_plan(*made)
        facts = [events.decode(record.data) for record in self.log if record.instance_id == instance_id]
        return plan, machine.replay(plan, instance_id, facts)

    def _workflow_why(self, request: contracts.WorkflowWhyRequest) -> contracts.WorkflowWhy:
        plan, instance = self._replayed(request.instance_id)
        around = self.surroundings.get(request.instance_id, Surroundings(owner="workflow-engine"))
        now, refusals = self.now(), {}
        if request.task_id:
            if request.task_id not in plan.tasks:
                raise AmpError("TASK_NOT_FOUND", f"there is no task {request.task_id!r}", {})
            found = why_task(plan, instance, now, around, request.task_id)
            refusals = dict(orders.refusals(plan, instance, request.task_id, now))
            status = instance.runs[request.task_id].status.value
        else:
            found, status = why(plan, instance, now, around), instance.status.value
        return contracts.WorkflowWhy(
            instance_id=request.instance_id,
            task_id=request.task_id,
            status=status,
            summary=summary(found),
            reasons=list(found),
            refusals=refusals,
            as_of=now,
        )

    def _order(self, request: Any, stimulus: Any) -> contracts.TaskControlled:
        plan, instance = self._replayed(request.workflow_instance_id)
        if request.task_id not in plan.tasks:
            raise AmpError("TASK_NOT_FOUND", f"there is no task {request.task_id!r}", {})
        try:
            step = machine.advance(plan, instance, stimulus)
        except IllegalMove as error:
            refusals = orders.refusals(plan, instance, request.task_id, self.now())
            details = {
                "current_state": instance.runs[request.task_id].status.value,
                "allowed": [order for order, reason in refusals.items() if not reason],
            }
            raise AmpError("ILLEGAL_STATE", str(error), details) from None
        self.emit(instance.id, *step.events)
        return contracts.TaskControlled(
            accepted=True, workflow_instance_id=instance.id, task_id=request.task_id
        )

    def _task_retry(self, request: contracts.TaskRetryRequest) -> contracts.TaskControlled:
        return self._order(
            request, st.RetryOrder(at=self.now(), task_id=request.task_id, reason=request.reason)
        )

    def _task_skip(self, request: contracts.TaskSkipRequest) -> contracts.TaskControlled:
        return self._order(
            request, st.SkipOrder(at=self.now(), task_id=request.task_id, reason=request.reason)
        )

    def _task_complete(self, request: contracts.TaskCompleteRequest) -> contracts.TaskControlled:
        given = {"outputs": request.outputs, "reason": request.reason}
        return self._order(request, st.CompleteOrder(at=self.now(), task_id=request.task_id, **given))

    def _instance_orphans(self, request: contracts.OrphansRequest) -> contracts.OrphansReply:
        return contracts.OrphansReply(
            count=len(self.orphans), orphans=self.orphans[: request.limit], checked_at=self.now()
        )

    def _workflow_pause(self, request: contracts.WorkflowControlRequest) -> contracts.WorkflowControlled:
        return self._control(request, "pause")

    def _workflow_resume(self, request: contracts.WorkflowControlRequest) -> contracts.WorkflowControlled:
        return self._control(request, "resume")

    def _workflow_stop(self, request: contracts.WorkflowControlRequest) -> contracts.WorkflowControlled:
        return self._control(request, "stop")

    def _workflow_status(self, request: contracts.WorkflowStatusRequest) -> contracts.WorkflowStatus:
        row = self.rows.get(request.instance_id)
        if row is None:
            raise AmpError("INSTANCE_NOT_FOUND", f"there is no instance {request.instance_id!r}", {})
        tasks = {task_id: {"status": state} for task_id, state in self.task_states[row.instance_id].items()}
        return contracts.WorkflowStatus(instance={"id": row.instance_id, "status": row.status}, tasks=tasks)

    def _metrics_get(self, request: contracts.MetricsGetRequest) -> contracts.MetricsGetReply:
        metrics = (
            {request.workflow_id: {"total_executions": 3}}
            if request.workflow_id
            else {"kind": request.metric_type}
        )
        return contracts.MetricsGetReply(metrics=metrics, timestamp=START.isoformat())

    def _alert_list(self, request: contracts.AlertListRequest) -> contracts.AlertListReply:
        return contracts.AlertListReply(alerts=self.alerts, total_count=len(self.alerts))

    def _health_check(self, request: contracts.HealthCheckRequest) -> contracts.HealthCheckReply:
        agents = {agent_id: {"status": self.health.get(agent_id, "healthy")} for agent_id in self.agents}
        return contracts.HealthCheckReply(status="healthy", agents=agents, checked_at=START.isoformat())

    def _performance_report(
        self, request: contracts.PerformanceReportRequest
    ) -> contracts.PerformanceReportReply:
        return contracts.PerformanceReportReply(
            report={"report_type": request.report_type}, generated_at=START.isoformat()
        )

    def _dashboard_data(self, request: contracts.DashboardDataRequest) -> contracts.DashboardDataReply:
        return contracts.DashboardDataReply(
            dashboard={widget: {} for widget in request.widgets}, last_updated=START.isoformat()
        )


def later(at: datetime, seconds: float) -> datetime:
    return at + timedelta(seconds=seconds)
