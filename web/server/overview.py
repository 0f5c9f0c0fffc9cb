"""The lists that pages watch: overview, instances by filter, agents. Each is loaded whole and compared by the topic."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from amp.errors import AmpError
from orchestration import contracts
from orchestration.status import InstanceStatus
from runtime.clock import Clock
from web.server.instances import Instances, row_document
from web.server.mesh import Backend
from web.server.problems import ProblemError

ACTIVE = (InstanceStatus.PENDING, InstanceStatus.RUNNING, InstanceStatus.PAUSED)
MAX_ACTIVE_ROWS = 50
MAX_RECENT_ROWS = 12
MAX_FAILED_ROWS = 20
MAX_OPEN_ALERTS = 20
MAX_SHOWN_ORPHANS = 5
ATTENTION_HOURS = 24
HEALTH_TIMEOUT_SECONDS = 3

PRESENT = "present"
"""The status of an agent that is on the mesh and that nobody has probed."""
WELL = frozenset({"healthy", PRESENT})

ROLES: Mapping[str, str] = {
    contracts.WORKFLOW_START.id: "Workflow engine",
    contracts.TASK_EXECUTE.id: "Task executor",
    contracts.LOG_READ.id: "State manager",
    contracts.CONDITION_EVALUATE.id: "Condition evaluator",
    contracts.ERROR_HANDLE.id: "Error handler",
    contracts.METRICS_GET.id: "Monitor agent",
}
"""A capability that only one kind of agent offers, and what people call that kind."""


class Lists:
    """Loads the documents behind list topics and their REST twins."""

    def __init__(self, backend: Backend, instances: Instances, clock: Clock) -> None:
        self._backend = backend
        self._instances = instances
        self._clock = clock

    async def overview(self) -> dict[str, Any]:
        """Return {items, active, recent, failed, counts, total, agents, missing, alerts, orphans}.

        Rows are in `items` by id; `active`, `recent` and `failed` are ids.
        """
        since = self._clock.now() - timedelta(hours=ATTENTION_HOURS)
        list_request = contracts.InstanceListRequest
        active, recent, failed, agents, alerts, orphans = await asyncio.gather(
            self._instances.rows(list_request(statuses=list(ACTIVE), limit=MAX_ACTIVE_ROWS)),
            self._instances.rows(list_request(limit=MAX_RECENT_ROWS)),
            self._instances.rows(
                list_request(statuses=[InstanceStatus.FAILED], created_after=since, limit=MAX_FAILED_ROWS)
            ),
            self.agents(),
            self._open_alerts(),
            self._orphans(),
        )
        rows = {row.instance_id: row_document(row) for part in (active, recent, failed) for row in part.rows}
        return {
            "items": rows,
            "active": [row.instance_id for row in active.rows],
            "active_total": active.total,
            "recent": [row.instance_id for row in recent.rows],
            "failed": [row.instance_id for row in failed.rows],
            "failed_total": failed.total,
            "counts": recent.counts,
            "total": recent.total,
            "agents": agents["items"],
            "missing": agents["missing"],
            "alerts": alerts,
            "orphans": orphans,
        }

    async def instance_page(self, request: contracts.InstanceListRequest) -> dict[str, Any]:
        """Return {items, order, counts, total, next_cursor}; rows are in `items` by id, `order` is newest first."""
        reply = await self._instances.rows(request)
        return {
            "items": {row.instance_id: row_document(row) for row in reply.rows},
            "order": [row.instance_id for row in reply.rows],
            "counts": reply.counts,
            "total": reply.total,
            "next_cursor": reply.next_cursor,
        }

    async def agents(self) -> dict[str, Any]:
        """Return {items, missing}: who is on the mesh, with what the monitor says of their health, and which of the
        six kinds are absent."""
        try:
            found = await self._backend.mesh.discover()
        except AmpError:
            return {"items": {}, "missing": list(ROLES.values()), "reachable": False}
        health = await self._health() if _offered(found, contracts.HEALTH_CHECK.id) else {}
        items = {agent["id"]: agent for agent in (_agent(entry, health) for entry in found) if agent["id"]}
        present = {agent["role"] for agent in items.values()}
        missing = [role for role in ROLES.values() if role not in present]
        return {"items": items, "missing": missing, "reachable": True}

    async def _health(self) -> Mapping[str, Any]:
        try:
            reply = await self._backend.mesh.request(
                contracts.HEALTH_CHECK.id,
                contracts.HealthCheckRequest(),
                reply_type=contracts.HealthCheckReply,
                timeout_seconds=HEALTH_TIMEOUT_SECONDS,
            )
        except AmpError:
            return {}
        return reply.agents

    async def _open_alerts(self) -> list[dict[str, Any]]:
        """Return the newest open alerts; none when the monitor cannot say."""
        try:
            reply = await self._backend.mesh.request(
                contracts.ALERT_LIST.id,
                contracts.AlertListRequest(limit=MAX_OPEN_ALERTS),
                reply_type=contracts.AlertListReply,
                timeout_seconds=HEALTH_TIMEOUT_SECONDS,
            )
        except (AmpError, ProblemError):
            return []
        return reply.alerts

    async def _orphans(self) -> dict[str, Any]:
        """Return {count, items}: unfinished instances that nothing will wake; none when nobody can say."""
        try:
            reply = await self._backend.mesh.request(
                contracts.INSTANCE_ORPHANS.id,
                contracts.OrphansRequest(limit=MAX_SHOWN_ORPHANS),
                reply_type=contracts.OrphansReply,
                timeout_seconds=HEALTH_TIMEOUT_SECONDS,
            )
        except (AmpError, ProblemError):
            return {"count": 0, "items": []}
        return {"count": reply.count, "items": reply.orphans}


def _capability_ids(entry: Mapping[str, Any]) -> list[str]:
    listed = entry.get("capabilities") or []
    return sorted(str(one.get("id", "")) if isinstance(one, Mapping) else str(one) for one in listed)


def _offered(found: Sequence[Mapping[str, Any]], capability: str) -> bool:
    return any(capability in _capability_ids(entry) for entry in found)


def _agent(entry: Mapping[str, Any], health: Mapping[str, Any]) -> dict[str, Any]:
    """Return one agent as pages show it. `role` is empty for agents that are none of the six."""
    identity = entry.get("identity") or {}
    agent_id = str(identity.get("id") or entry.get("id") or "")
    capabilities = _capability_ids(entry)
    role = next((role for capability, role in ROLES.items() if capability in capabilities), "")
    checked = health.get(agent_id)
    status = str(checked.get("status", PRESENT)) if isinstance(checked, Mapping) else PRESENT
    return {
        "id": agent_id,
        "name": str(identity.get("name") or agent_id),
        "version": str(identity.get("version") or ""),
        "framework": str(identity.get("framework") or ""),
        "role": role,
        "status": status,
        "is_well": status in WELL,
        "capabilities": capabilities,
    }
