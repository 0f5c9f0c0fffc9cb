"""Who is on the mesh and what they can do: the router's directory. Pure, and the one owner of these tables.

It also answers the questions of AMP's pseudo-destination `registry`: discovery, negotiation, versions.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from amp.envelope import PROTOCOL_VERSION, RESERVED_AGENT_IDS
from amp.errors import AgentIdInUse, AuthenticationFailed
from amp.session import AgentRecord, CapabilityRecord, Registration, Session

MAX_REMEMBERED_AGENTS = 128
MAX_LISTED_CAPABILITIES = 200
MAX_MATCH_CACHE = 1024


class Registry:
    """The live sessions by agent and by capability, and the last registration of agents that left."""

    def __init__(self) -> None:
        self.sessions: dict[int, Session] = {}
        self.agents: dict[str, Session] = {}
        self.offers: dict[str, dict[str, Session]] = {}
        self.remembered: OrderedDict[str, Registration] = OrderedDict()
        self._matching: dict[str, tuple[Session, ...]] = {}

    def add(self, session: Session) -> None:
        """Take up a new connection that has no agent yet."""
        self.sessions[session.key] = session

    def holder_to_replace(
        self, session: Session, agent_id: str, *, exclusive: bool = False, resume_token: str | None = None
    ) -> Session | None:
        """Return the session that must give up `agent_id` to `session`, or None when the id is free.

        Raises: AuthenticationFailed when the session may not carry this id, AgentIdInUse when a live agent keeps it.
        """
        if agent_id in RESERVED_AGENT_IDS:
            raise AuthenticationFailed(f"the agent id {agent_id!r} belongs to the router")
        fixed = session.pinned_agent_id or session.agent_id
        if fixed is not None and fixed != agent_id:
            raise AuthenticationFailed(
                f"this connection speaks for {fixed!r}, not for {agent_id[:80]!r}",
                {"reason": "identity_bound"},
            )
        holder = self.agents.get(agent_id)
        if holder is None or holder is session:
            return None
        resumed = resume_token is not None and holder.terms.resume_token == resume_token
        if not resumed and (exclusive or holder.terms.exclusive):
            raise AgentIdInUse(
                f"a live agent holds the id {agent_id!r}; choose another id or stop that agent",
                {"reason": "agent_id_in_use", "agent_id": agent_id},
            )
        return holder

    def check_borrowed(self, session: Session, agent_id: str) -> None:
        """Raise unless a call without a connection of its own may speak for `agent_id`."""
        if agent_id in RESERVED_AGENT_IDS or session.pinned_agent_id not in (None, agent_id):
            raise AuthenticationFailed(
                f"this call may not speak for {agent_id[:80]!r}", {"reason": "identity_bound"}
            )
        holder = self.agents.get(agent_id)
        if holder is not None and holder.terms.exclusive and session.pinned_agent_id != agent_id:
            raise AgentIdInUse(
                f"a live agent holds the id {agent_id!r}", {"reason": "agent_id_in_use", "agent_id": agent_id}
            )

    def bind(self, session: Session, agent_id: str) -> bool:
        """Make `session` the one that carries `agent_id`. Return whether a remembered registration was restored."""
        session.agent_id = agent_id
        session.record = AgentRecord(id=agent_id)
        self.agents[agent_id] = session
        self._matching.clear()
        known = self.remembered.get(agent_id)
        if known is not None:
            self.apply(session, known)
        return known is not None

    def apply(self, session: Session, registration: Registration) -> None:
        """Give a bound session what its registration says. A later registration replaces an earlier one."""
        self.withdraw(session)
        session.record = registration.record
        session.capabilities = registration.by_id
        session.free_capabilities = frozenset(each.id for each in session.capabilities.values() if each.free)
        session.endpoints = dict(registration.endpoints or {})
        session.terms = registration.session
        session.registered = True
        session.draining = False
        session.lagging = False
        wanted = registration.session.subscriptions
        session.subscriptions = None if wanted is None else tuple(wanted)
        self._matching.clear()
        for capability_id in session.capabilities:
            self.offers.setdefault(capability_id, {})[session.record.id] = session

    def subscribe(self, session: Session, patterns: Iterable[str]) -> None:
        """Replace the patterns of events that the session wants."""
        session.subscriptions = tuple(patterns)
        session.lagging = False
        self._matching.clear()

    def mute(self, session: Session) -> None:
        """Take a session that cannot keep up out of the fan-out of events until it subscribes again."""
        session.lagging = True
        self._matching.clear()

    def withdraw(self, session: Session) -> None:
        """Stop offering what the session's agent offers."""
        agent_id = session.agent_id or ""
        for capability_id in session.capabilities:
            holders = self.offers.get(capability_id, {})
            if holders.get(agent_id) is session:
                del holders[agent_id]
                if not holders:
                    del self.offers[capability_id]

    def remove(self, session: Session) -> bool:
        """Forget a connection. Return whether it carried its agent until now."""
        self.sessions.pop(session.key, None)
        self.withdraw(session)
        self._matching.clear()
        if session.agent_id is None or self.agents.get(session.agent_id) is not session:
            return False
        del self.agents[session.agent_id]
        return True

    def remember(self, registration: Registration) -> None:
        """Keep a registration for an agent whose client does not announce itself again after a reconnect."""
        agent_id = registration.record.id
        self.remembered[agent_id] = registration
        self.remembered.move_to_end(agent_id)
        while len(self.remembered) > MAX_REMEMBERED_AGENTS:
            self.remembered.popitem(last=False)

    def forget(self, agent_id: str) -> bool:
        """Drop the remembered registration. Return whether there was one."""
        return self.remembered.pop(agent_id, None) is not None

    def listeners(self, event_type: str, *, subscribers_only: bool) -> tuple[Session, ...]:
        """Return the sessions that an event goes to: matching subscribers, and those that never subscribe."""
        kind = f"{int(subscribers_only)}{event_type}"
        found = self._matching.get(kind)
        if found is None:
            found = tuple(
                session
                for session in self.agents.values()
                if not session.lagging
                and (
                    not subscribers_only
                    if session.subscriptions is None
                    else any(fnmatchcase(event_type, pattern) for pattern in session.subscriptions)
                )
            )
            if len(self._matching) >= MAX_MATCH_CACHE:
                self._matching.clear()
            self._matching[kind] = found
        return found

    def capability_ids(self) -> list[str]:
        """Return what the mesh offers, sorted, at most `MAX_LISTED_CAPABILITIES`."""
        return sorted(self.offers)[:MAX_LISTED_CAPABILITIES]

    def describe(self, session: Session) -> dict[str, Any]:
        """Return an agent as discovery and the REST registry show it."""
        record = session.record
        identity = {
            "id": session.agent_id,
            "name": record.name if record else "",
            "version": record.version if record else "",
            "framework": record.framework if record else "",
            "protocol_version": (record.protocol_version if record else "") or PROTOCOL_VERSION,
        }
        if record is not None and record.session_id:
            identity["session_id"] = record.session_id
        return {
            "identity": identity,
            "capabilities": [describe_capability(each) for each in session.capabilities.values()],
            "endpoints": {"invoke": None, "health": None} | session.endpoints,
            "health": {"status": "draining" if session.draining else "healthy"} | session.health,
            "registered_at": session.joined_at,
        }


def describe_capability(record: CapabilityRecord) -> dict[str, Any]:
    """Return a capability as JSON values."""
    return {
        "id": record.id,
        "version": record.version,
        "description": record.description,
        "category": record.category,
        "input_schema": record.input_schema,
        "output_schema": record.output_schema,
        "constraints": record.constraints,
    }


def describe_registration(registration: Registration, registered_at: str) -> dict[str, Any]:
    """Return the registration of an agent without a connection, as discovery shows agents."""
    record = registration.record
    return {
        "identity": msgspec.to_builtins(record),
        "capabilities": [describe_capability(each) for each in registration.by_id.values()],
        "endpoints": {"invoke": None, "health": None} | (registration.endpoints or {}),
        "health": {"status": "disconnected"},
        "registered_at": registered_at,
    }


def number(value: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number under `key`, or None."""
    found = value.get(key)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
