"""Discovery: which live agents fit a query. Pure."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec

from amp.registry import Registry, number
from amp.session import CapabilityRecord, Session

MAX_FOUND_AGENTS = 1000

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Names = Annotated[list[Name], msgspec.Meta(max_length=256)]


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What discovery looks for; everything given must hold. Figures an agent never reported do not exclude it."""

    capabilities: Names = []
    capability_pattern: Name | None = None
    framework: str | None = None
    tags: Names = []
    constraints: dict[str, Any] = {}
    performance_requirements: dict[str, Any] = {}
    input_compatible_with: Any = None
    output_includes: Names | Name = []


def search(registry: Registry, query: Query) -> list[dict[str, Any]]:
    """Return the live agents that fit, as `{identity, capabilities, endpoints, health}`, sorted by id."""
    found = []
    for agent_id in sorted(registry.agents):
        session = registry.agents[agent_id]
        if not session.draining and _fits(session, query):
            found.append(registry.describe(session))
            if len(found) == MAX_FOUND_AGENTS:
                break
    return found


def _fits(session: Session, query: Query) -> bool:
    offered = session.capabilities
    record = session.record
    if any(each not in offered for each in query.capabilities):
        return False
    pattern = query.capability_pattern
    if pattern is not None and not any(fnmatchcase(each, pattern) for each in offered):
        return False
    if query.framework and (record is None or record.framework != query.framework):
        return False
    if query.tags and not set(query.tags) <= set(record.tags if record else ()):
        return False
    looked_at = [offered[each] for each in query.capabilities] or list(offered.values())
    if query.input_compatible_with is not None and not any(
        _takes(each, query.input_compatible_with) for each in looked_at
    ):
        return False
    wanted = [query.output_includes] if isinstance(query.output_includes, str) else query.output_includes
    if wanted and not any(set(wanted) <= _properties(each.output_schema) for each in looked_at):
        return False
    return all(
        _performs(session, looked_at, each) for each in (query.constraints, query.performance_requirements)
    )


def _performs(session: Session, offered: list[CapabilityRecord], wanted: Mapping[str, Any]) -> bool:
    most, least = number(wanted, "max_latency_ms"), number(wanted, "min_success_rate")
    if most is not None:
        latency = number(session.health, "response_time_avg")
        if latency is None:
            said = [
                each
                for record in offered
                if (each := number(record.constraints, "response_time_ms")) is not None
            ]
            latency = min(said, default=None)
        if latency is not None and latency > most:
            return False
    rate = number(session.health, "success_rate")
    return least is None or rate is None or rate >= least


def _properties(schema: Mapping[str, Any]) -> set[str]:
    properties = schema.get("properties")
    return set(properties) if isinstance(properties, dict) else set()


def _takes(record: CapabilityRecord, given: Any) -> bool:
    """Return whether the capability can be called with the given schema's (or sample's, or list's) fields."""
    if isinstance(given, str):
        names = {given}
    elif isinstance(given, dict):
        names = _properties(given) or set(given)
    elif isinstance(given, list):
        names = {each for each in given if isinstance(each, str)}
    else:
        return False
    required = record.input_schema.get("required")
    needed = {each for each in required if isinstance(each, str)} if isinstance(required, list) else set()
    known = _properties(record.input_schema)
    return needed <= names and (not known or bool(known & names))
