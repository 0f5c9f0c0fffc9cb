"""Who is on the mesh and whether they answer. The router says who comes and goes; probes show who is awake.

A probe is an ordinary request without effect. Addresses that agents declare are never fetched.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from amp.client import MeshClient
from amp.errors import AgentNotFound, AmpError, NetworkError, RequestTimeout
from orchestration import contracts
from orchestration.alerts import AlertSeverity, Finding
from runtime.clock import Clock

UNSEEN = timedelta(minutes=5)
"""How long an agent may be gone or silent before that is an alert."""
MAX_AGENTS = 2000
PROBE_TIMEOUT_SECONDS = 3.0
MAX_PROBES_AT_ONCE = 20
ORDERLY_REASONS = frozenset({"deregistered"})
"""Agents that left for these reasons wanted to leave."""
GONE = frozenset({"left", "lost"})

PROBES: Mapping[str, Mapping[str, Any]] = {
    contracts.INSTANCE_GET.id: {"instance_id": "-"},
    contracts.WORKFLOW_LIST.id: {"limit": 1},
    contracts.TASK_CANCEL.id: {"token": "-"},
    contracts.EXPRESSION_PARSE.id: {"expression": "1"},
    contracts.CIRCUIT_BREAKER.id: {"operation": "status", "resource_id": "-"},
    contracts.ALERT_LIST.id: {"limit": 1},
}
"""A request without effect for each role, by the capability that tells the role."""
ROLES: Mapping[str, str] = {
    contracts.INSTANCE_GET.id: "state-manager",
    contracts.WORKFLOW_LIST.id: "workflow-engine",
    contracts.TASK_CANCEL.id: "task-executor",
    contracts.EXPRESSION_PARSE.id: "condition-evaluator",
    contracts.CIRCUIT_BREAKER.id: "error-handler",
    contracts.ALERT_LIST.id: "monitor-agent",
}
"""The six roles, by the same capability."""
VITAL_ROLES = frozenset({"state-manager", "workflow-engine", "task-executor"})
"""Without one of these no workflow gets on."""


class KnownAgent(msgspec.Struct, kw_only=True):
    """What is known of an agent. `status`: healthy, present (cannot be probed), unresponsive, left, lost."""

    agent_id: str
    status: str
    first_seen: datetime
    last_seen: datetime
    session_id: str = ""
    role: str = ""
    capabilities: list[str] = []
    response_time_ms: float | None = None
    silent_probes: int = 0
    event_data: dict[str, Any] = {}

    @property
    def is_well(self) -> bool:
        """True when it answers, or is there and nothing says otherwise."""
        return self.status in ("healthy", "present")


class Roster:
    """The agents that were seen since the start, at most `MAX_AGENTS`."""

    def __init__(self, clock: Clock, own_id: str) -> None:
        self.agents: dict[str, KnownAgent] = {}
        self._clock = clock
        self.own_id = own_id

    def joined(self, data: Mapping[str, Any]) -> None:
        """Note that an agent came or came back."""
        agent = self._agent(str(data.get("agent_id", "")))
        agent.status = "present"
        agent.last_seen = self._clock.now()
        agent.session_id = str(data.get("session_id") or "")
        agent.capabilities = [str(each) for each in data.get("capabilities") or []]
        agent.role = role_of(agent.capabilities)
        agent.silent_probes = 0
        agent.event_data = {"event_type": "agent.joined", "reason": data.get("reason", "")}

    def left(self, data: Mapping[str, Any]) -> None:
        """Note that an agent went, of its own will or not."""
        agent = self.agents.get(str(data.get("agent_id", "")))
        if agent is None or (agent.session_id and data.get("session_id") not in (None, agent.session_id)):
            return
        agent.status = "left" if data.get("reason") in ORDERLY_REASONS else "lost"
        agent.last_seen = self._clock.now()
        agent.event_data = {"event_type": "agent.left", "reason": data.get("reason", "")}

    async def check(self, mesh: MeshClient) -> None:
        """Bring everything up to date: who is there by discovery, who answers by asking."""
        described = [_description(each) for each in await mesh.discover()]
        there = {each["agent_id"]: each for each in described if each["agent_id"]}
        for agent_id, each in there.items():
            known = self.agents.get(agent_id)
            if known is None or known.session_id != each["session_id"] or known.status in GONE:
                self.joined({**each, "reason": "discovered"})
        for agent in self.agents.values():
            if agent.agent_id not in there and agent.status not in GONE:
                self.left({"agent_id": agent.agent_id, "reason": "not on the mesh"})
        probed = [agent for agent in self.agents.values() if agent.agent_id in there]
        gate = asyncio.Semaphore(MAX_PROBES_AT_ONCE)
        await asyncio.gather(*(self._probe(mesh, agent, gate) for agent in probed))

    async def _probe(self, mesh: MeshClient, agent: KnownAgent, gate: asyncio.Semaphore) -> None:
        if agent.agent_id == self.own_id:
            agent.status, agent.last_seen, agent.response_time_ms = "healthy", self._clock.now(), 0.0
            return
        capability = next((each for each in PROBES if each in agent.capabilities), None)
        if capability is None:
            agent.last_seen = self._clock.now()
            return
        async with gate:
            began = self._clock.monotonic()
            session_id = agent.session_id
            try:
                await mesh.request(
                    capability,
                    PROBES[capability],
                    agent_id=agent.agent_id,
                    timeout_seconds=PROBE_TIMEOUT_SECONDS,
                )
            except (RequestTimeout, NetworkError, AgentNotFound) as error:
                if agent.session_id != session_id or agent.status in GONE:
                    return
                agent.silent_probes += 1
                agent.status = "unresponsive"
                agent.event_data = {"event_type": "probe.failed", "reason": error.code}
                return
            except AmpError as error:
                # An agent that refuses is awake.
                agent.event_data = {"event_type": "probe.refused", "reason": error.code}
            agent.response_time_ms = round((self._clock.monotonic() - began) * 1000, 3)
        if agent.session_id == session_id and agent.status not in GONE:
            agent.status, agent.last_seen, agent.silent_probes = "healthy", self._clock.now(), 0

    def unhealthy(self) -> list[Finding]:
        """Return a finding for each agent that was lost or silent for longer than `UNSEEN`."""
        now = self._clock.now()
        return [
            Finding(
                type="agent_unhealthy",
                severity=AlertSeverity.WARNING,
                title=f"Agent unhealthy: {agent.agent_id}",
                description=f"{agent.agent_id} is {agent.status}, last seen {agent.last_seen.isoformat()}",
                metadata={"agent_id": agent.agent_id, "rule": "agent_unhealthy", "role": agent.role},
            )
            for agent in self.agents.values()
            if agent.status in ("lost", "unresponsive")
            and now - agent.last_seen >= UNSEEN
            and not self._is_replaced(agent)
        ]

    def _is_replaced(self, lost: KnownAgent) -> bool:
        """Return whether the role of a lost agent, restarted under another id, is filled since."""
        return lost.status == "lost" and any(
            other.role == lost.role and other.is_well and other.first_seen > lost.last_seen
            for other in self.agents.values()
            if lost.role
        )

    def missing_roles(self) -> list[str]:
        """Return the roles that no well agent fills."""
        filled = {agent.role for agent in self.agents.values() if agent.is_well}
        return [role for role in ROLES.values() if role not in filled]

    def status(self) -> str:
        """Return healthy, degraded (something is not well) or unhealthy (no workflow gets on)."""
        missing = self.missing_roles()
        if VITAL_ROLES.intersection(missing):
            return "unhealthy"
        silent = any(agent.status in ("lost", "unresponsive") for agent in self.agents.values())
        return "degraded" if missing or silent else "healthy"

    def _agent(self, agent_id: str) -> KnownAgent:
        agent = self.agents.get(agent_id)
        if agent is None:
            now = self._clock.now()
            agent = KnownAgent(agent_id=agent_id, status="present", first_seen=now, last_seen=now)
            self.agents[agent_id] = agent
            if len(self.agents) > MAX_AGENTS:
                gone = [each for each in self.agents.values() if not each.is_well] or list(
                    self.agents.values()
                )
                del self.agents[min(gone, key=lambda each: each.last_seen).agent_id]
        return agent


def agent_object(agent: KnownAgent) -> dict[str, Any]:
    """Return an agent as a plain object."""
    return {
        "agent_id": agent.agent_id,
        "status": agent.status,
        "role": agent.role,
        "first_seen": agent.first_seen.isoformat(),
        "last_seen": agent.last_seen.isoformat(),
        "response_time_ms": agent.response_time_ms,
        "silent_probes": agent.silent_probes,
        "session_id": agent.session_id,
        "capabilities": agent.capabilities,
        "event_data": agent.event_data,
    }


def role_of(capabilities: Sequence[str]) -> str:
    """Return which of the six roles offers these capabilities, "" for any other agent."""
    return next((role for capability, role in ROLES.items() if capability in capabilities), "")


def _description(found: Mapping[str, Any]) -> dict[str, Any]:
    identity = found.get("identity") or {}
    return {
        "agent_id": str(identity.get("id", "")),
        "session_id": str(identity.get("session_id") or ""),
        "capabilities": [str(each.get("id", "")) for each in found.get("capabilities") or []],
    }
