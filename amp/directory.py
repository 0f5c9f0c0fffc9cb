"""Answers of the pseudo-agent `registry`: registration, subscription, discovery, negotiation, versions. Pure.

Every operation takes its body as the payload itself (the specification's shape) or as `payload.parameters` (all that
a reference client can send). Formats that the specification leaves open are described in docs/protocol.md.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from amp.actions import Action, Tell
from amp.discovery import Name, Names, Query, search
from amp.envelope import PROTOCOL, REGISTRY_ID, Destination, Envelope, Message, MessageType
from amp.errors import AgentNotFound, AuthenticationFailed, CapabilityNotFound, InvalidParameters
from amp.registry import Registry, number
from amp.session import INVOKE, MAX_SUBSCRIPTIONS, CapabilityRecord, Session, parse_registration
from amp.traffic import TrafficQuery, traffic

if TYPE_CHECKING:
    from amp.routing import Routing

MAX_REASON_CHARACTERS = 300

REGISTRATION = "registration"
_OPERATIONS: Mapping[str, str] = {
    "registration": "registration",
    "register": "registration",
    "deregistration": "deregistration",
    "deregister": "deregistration",
    "subscription": "subscription",
    "subscribe": "subscription",
    "discovery": "discovery",
    "discover": "discovery",
    "negotiation": "negotiation",
    "capability_check": "negotiation",
    "versions": "versions",
    "traffic": "traffic",
}
_BY_KEY = (
    ("agent", "registration"),
    ("identity", "registration"),
    ("query", "discovery"),
    ("negotiation_type", "negotiation"),
    ("capability_request", "versions"),
    ("patterns", "subscription"),
)
_OPEN_NAMES = frozenset({"registration", "deregistration", "discovery", "subscription", "negotiation"})
_DELEGATION, _VERSIONED, _NEGOTIATION = b'"delegation"', b'"capability_request"', b'"negotiation_type"'


class Subtask(msgspec.Struct, frozen=True, kw_only=True):
    """What a delegation asks for. The callback is carried along, never called."""

    capability: Name
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    completion_callback: Any = None


class Delegation(msgspec.Struct, frozen=True, kw_only=True):
    """A task handed on."""

    subtask: Subtask
    parent_task_id: str | None = None


class CapabilityRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a capability in certain versions."""

    id: Name
    version_constraint: str = ""
    preferred_version: str | None = None


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What a negotiation asks whether it can be had."""

    capabilities: Names = []
    estimated_tokens: int | float | None = None
    deadline: str | None = None


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    capability: str | None = None
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    query: Query | msgspec.UnsetType = msgspec.UNSET
    patterns: Annotated[list[Name], msgspec.Meta(max_length=MAX_SUBSCRIPTIONS)] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    negotiation_type: str | msgspec.UnsetType = msgspec.UNSET
    requirements: Requirements = Requirements()
    delegation: Delegation | msgspec.UnsetType = msgspec.UNSET
    capability_request: CapabilityRequest | msgspec.UnsetType = msgspec.UNSET


_BODY = msgspec.json.Decoder(_Body)
_QUERY = msgspec.json.Decoder(Query)
_TRAFFIC = msgspec.json.Decoder(TrafficQuery)
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_for_registry(destination: Destination) -> bool:
    """Return whether a request is for the router's own registry."""
    agent_id = destination.agent_id
    if agent_id:
        return agent_id in (REGISTRY_ID, "registration")
    return destination.capability in _OPEN_NAMES


def answer(
    routing: "Routing",
    session: Session,
    message: Message,
    operation: str,
    body: bytes,
    now_ms: float,
    at: datetime,
) -> list[Action]:
    """Return what follows from a request to the registry. Raises AmpError for whatever is wrong with it."""
    if operation == REGISTRATION:
        return _register(routing, session, message, body, now_ms, at)
    actions: list[Action] = []
    result: dict[str, Any] = {}
    known = session.knows_change(message.id)
    if operation == "deregistration":
        if not known:
            actions += routing.deregister(session)
            session.note_change(message.id)
        result = {"registered": False, "agent_id": session.agent_id}
    elif operation == "subscription":
        patterns = _decode(body).patterns
        if isinstance(patterns, msgspec.UnsetType):
            raise InvalidParameters("a subscription needs 'patterns'", {"path": "$.patterns"})
        if not known:
            routing.registry.subscribe(session, patterns)
            session.note_change(message.id)
        result = {"patterns": patterns}
    elif operation == "discovery":
        result = {"agents": search(routing.registry, _query(body))}
    elif operation == "negotiation":
        result = negotiate(routing.registry, _decode(body).requirements, None, at)
    elif operation == "traffic":
        result = traffic(routing, session, _traffic_query(body))
    else:
        result = _versions(routing.registry, _decode(body))
    return [*actions, _reply(session, message, result)]


def _register(
    routing: "Routing", session: Session, message: Message, body: bytes, now_ms: float, at: datetime
) -> list[Action]:
    """Return what follows from a registration. A repeated one changes nothing: a later one may have."""
    registration = parse_registration(body)
    agent_id = registration.record.id
    if agent_id != message.source.agent_id:
        raise AuthenticationFailed(
            f"{message.source.agent_id!r} cannot register {agent_id!r}", {"reason": "identity_bound"}
        )
    result: dict[str, Any] = {"registered": True, "agent_id": agent_id, "registered_at": at}
    if session.kind == INVOKE:
        routing.registry.check_borrowed(session, agent_id)
        routing.registry.remember(registration)
        return [_reply(session, message, result)]
    actions: list[Action] = []
    if not session.knows_change(message.id):
        actions = routing.register(session, registration, now_ms, at)
        session.note_change(message.id)
    result["capabilities"] = sorted(session.capabilities)
    result["batching"] = registration.session.batching
    result["repeats"] = registration.session.repeats
    return [*actions, _reply(session, message, result), *routing.release(session, now_ms)]


def _reply(session: Session, message: Message, result: Mapping[str, Any]) -> Action:
    payload = {"status": "success", "result": result, "metadata": {}}
    return Tell(
        session=session,
        type=MessageType.RESPONSE,
        payload=payload,
        correlation_id=message.id,
        source_id=REGISTRY_ID,
    )


def operation_of(message: Message) -> tuple[str, bytes]:
    """Return which operation a request means, and its body in either shape."""
    try:
        payload = _RAW_OBJECT.decode(message.payload)
        named = msgspec.json.decode(payload["capability"]) if "capability" in payload else None
        parameters = _RAW_OBJECT.decode(payload["parameters"]) if "parameters" in payload else None
    except msgspec.DecodeError as error:
        raise InvalidParameters(f"the payload is not valid: {str(error)[:MAX_REASON_CHARACTERS]}") from None
    body, keys = bytes(message.payload), payload
    if parameters is not None and not any(key in payload for key, _ in _BY_KEY):
        body, keys = bytes(payload["parameters"]), parameters
    for name in (message.destination.capability, named):
        if isinstance(name, str) and name in _OPERATIONS:
            return _OPERATIONS[name], body
    for key, operation in _BY_KEY:
        if key in keys:
            return operation, body
    asked = message.destination.capability or named
    raise CapabilityNotFound(
        f"the registry does not offer {str(asked)[:80]!r}",
        {"capability": asked, "available_capabilities": sorted(set(_OPERATIONS.values()))},
    )


def _decode(body: bytes) -> _Body:
    try:
        return _BODY.decode(body)
    except msgspec.DecodeError as error:
        place = str(error).partition(" - at `")[2].rstrip("`") or "$"
        raise InvalidParameters(f"not valid: {str(error)[:MAX_REASON_CHARACTERS]}", {"path": place}) from None


def _query(body: bytes) -> Query:
    query = _decode(body).query
    if not isinstance(query, msgspec.UnsetType):
        return query
    try:
        return _QUERY.decode(body)
    except msgspec.DecodeError as error:
        raise InvalidParameters(f"the query is not valid: {str(error)[:MAX_REASON_CHARACTERS]}") from None


def _traffic_query(body: bytes) -> TrafficQuery:
    try:
        return _TRAFFIC.decode(body)
    except msgspec.DecodeError as error:
        raise InvalidParameters(f"the query is not valid: {str(error)[:MAX_REASON_CHARACTERS]}") from None


# --- negotiation, delegation, versions ----------------------------------------------------------------------


def negotiate(
    registry: Registry, requirements: Requirements, agent_id: str | None, at: datetime
) -> dict[str, Any]:
    """Return whether what is required can be had, from one agent or from the mesh, and what is missing."""
    if agent_id is not None and agent_id not in registry.agents:
        raise AgentNotFound(f"agent {agent_id!r} is not on the mesh", {"agent_id": agent_id})
    providers: dict[str, list[str]] = {}
    problems: list[str] = []
    for capability_id in requirements.capabilities:
        holders = registry.offers.get(capability_id, {})
        fitting = [
            name
            for name, session in holders.items()
            if agent_id in (None, name) and _within_tokens(session.capabilities[capability_id], requirements)
        ]
        if fitting:
            providers[capability_id] = sorted(fitting)
        elif holders and agent_id is None:
            problems.append(f"{capability_id}: more tokens than any agent takes")
        else:
            problems.append(f"{capability_id}: not offered")
    if requirements.deadline is not None and _is_past(requirements.deadline, at):
        problems.append("the deadline has passed")
    missing = [each for each in requirements.capabilities if each not in providers]
    return {
        "negotiation_type": "capability_check",
        "accepted": not problems,
        "capabilities": {each: each in providers for each in requirements.capabilities},
        "providers": providers,
        "missing": missing,
        "reasons": problems,
    }


def _within_tokens(record: CapabilityRecord, requirements: Requirements) -> bool:
    most = number(record.constraints, "max_tokens")
    return most is None or requirements.estimated_tokens is None or requirements.estimated_tokens <= most


def _is_past(deadline: str, at: datetime) -> bool:
    try:
        due = datetime.fromisoformat(deadline)
    except ValueError:
        raise InvalidParameters(
            "the deadline is not an ISO 8601 time", {"path": "$.requirements.deadline"}
        ) from None
    return (due if due.tzinfo else due.replace(tzinfo=at.tzinfo)) < at


def translate(registry: Registry, session: Session, envelope: Envelope, at: datetime) -> Envelope | Action:
    """Return a delegation or a versioned request as the plain request it stands for; a negotiation is answered."""
    message = envelope.message
    payload = bytes(message.payload)
    if _DELEGATION not in payload and _VERSIONED not in payload and _NEGOTIATION not in payload:
        return envelope
    raw = _RAW_OBJECT.decode(payload)
    if "capability" in raw and "parameters" in raw:
        return envelope
    body = _decode(payload)
    destination = message.destination
    if not isinstance(body.negotiation_type, msgspec.UnsetType):
        return _reply(
            session, message, negotiate(registry, body.requirements, destination.agent_id or None, at)
        )
    if not isinstance(body.delegation, msgspec.UnsetType):
        subtask = body.delegation.subtask
        raw["capability"] = msgspec.Raw(msgspec.json.encode(subtask.capability))
        raw["parameters"] = subtask.parameters
        target = Destination(agent_id=destination.agent_id, capability=subtask.capability)
    elif not isinstance(body.capability_request, msgspec.UnsetType):
        wanted = body.capability_request
        raw["capability"] = msgspec.Raw(msgspec.json.encode(wanted.id))
        raw.setdefault("parameters", msgspec.Raw(b"{}"))
        hints = {
            "version_constraint": wanted.version_constraint,
            "preferred_version": wanted.preferred_version,
        }
        target = Destination(agent_id=destination.agent_id, capability=wanted.id, routing_hints=hints)
    else:
        return envelope
    changed = msgspec.structs.replace(
        message, destination=target, payload=msgspec.Raw(msgspec.json.encode(raw))
    )
    return Envelope(PROTOCOL, changed)


def _versions(registry: Registry, body: _Body) -> dict[str, Any]:
    wanted = body.capability_request
    if isinstance(wanted, msgspec.UnsetType):
        raise InvalidParameters("'capability_request' is missing", {"path": "$.capability_request"})
    holders = registry.offers.get(wanted.id, {})
    fitting = with_version(holders, wanted.id, wanted.version_constraint, wanted.preferred_version)
    if not fitting:
        raise no_version(holders, wanted.id, wanted.version_constraint)
    agents = [
        {"agent_id": name, "version": each.capabilities[wanted.id].version} for name, each in fitting.items()
    ]
    return {"capability": {"id": wanted.id, "version": agents[0]["version"]}, "agents": agents}


def no_version(holders: Mapping[str, Session], capability_id: str, constraint: str) -> CapabilityNotFound:
    """Return the error that names the versions there are."""
    versions = sorted({each.capabilities[capability_id].version for each in holders.values()})
    return CapabilityNotFound(
        f"no agent offers {capability_id!r} in a version {constraint[:80]!r}",
        {"capability": capability_id, "available_versions": versions},
    )


def with_version(
    holders: Mapping[str, Session], capability_id: str, constraint: str, preferred: str | None = None
) -> dict[str, Session]:
    """Return the holders whose version fits `>=1.0.0 <2.0.0`; only those with the preferred one when there are some."""
    checks = [_check(each) for each in re.split(r"[\s,]+", constraint.strip()) if each]
    fitting = {
        name: session
        for name, session in holders.items()
        if all(check(_version(session.capabilities[capability_id].version)) for check in checks)
    }
    best = {
        name: session
        for name, session in fitting.items()
        if preferred and _version(session.capabilities[capability_id].version) == _version(preferred)
    }
    return best or fitting


def _version(text: str) -> tuple[int, int, int]:
    """Return major, minor, patch; what is missing is 0."""
    parts = [int(each) for each in re.findall(r"\d{1,9}", text)[:3]]
    parts += [0] * (3 - len(parts))
    return parts[0], parts[1], parts[2]


def _check(term: str) -> Any:
    match = re.fullmatch(r"(>=|<=|==|=|!=|>|<|\^|~)?v?(\d{1,9}(?:\.\d{1,9}){0,2})", term)
    if match is None:
        raise InvalidParameters(
            f"{term[:40]!r} is no version constraint; write for example '>=1.0.0 <2.0.0'",
            {"path": "$.capability_request.version_constraint"},
        )
    sign, wanted = match[1] or "==", _version(match[2])
    checks = {
        ">=": lambda version: version >= wanted,
        "<=": lambda version: version <= wanted,
        ">": lambda version: version > wanted,
        "<": lambda version: version < wanted,
        "=": lambda version: version == wanted,
        "==": lambda version: version == wanted,
        "!=": lambda version: version != wanted,
        "^": lambda version: wanted <= version < (wanted[0] + 1, 0, 0),
        "~": lambda version: wanted <= version < (wanted[0], wanted[1] + 1, 0),
    }
    return checks[sign]
