"""The registry over REST: agents register, look each other up, report their health.

Addresses that an agent reports are shown to others and never fetched.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from amp.caller import CALLER
from amp.discovery import Query, search
from amp.errors import AgentNotFound, AmpError, InvalidParameters
from amp.registry import describe_registration
from amp.session import Registration, Session, parse_registration

if TYPE_CHECKING:
    from amp.router import Router

MAX_HEALTH_BYTES = 16 * 1024
MAX_REASON_CHARACTERS = 300


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent reports of itself."""

    status: str = "healthy"
    last_seen: str | int | float | None = None
    response_time_avg: int | float | None = None
    success_rate: int | float | None = None
    error_count: int | None = None
    capabilities_available: Any = None
    load_level: Any = None
    metadata: dict[str, Any] | None = None


class RegistryApi:
    """The routes below `/agents`."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self._registry = router.routing.registry

    def add_routes(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_post("/agents", self._register)
        app.router.add_get("/agents", self._search)
        app.router.add_get("/agents/search", self._search)
        app.router.add_get("/agents/{agent_id}", self._get)
        app.router.add_delete("/agents/{agent_id}", self._delete)
        app.router.add_put("/agents/{agent_id}/health", self._report)

    async def _register(self, request: web.Request) -> web.Response:
        registration = parse_registration(await request.read())
        agent_id = registration.record.id
        self._check_right(request, agent_id)
        at = self._router.now()
        session = self._registry.agents.get(agent_id)
        if session is None:
            self._registry.remember(registration)
        else:
            self._router.update(session, registration)
        return web.json_response(self._described(agent_id, registration, at), status=201)

    def _described(self, agent_id: str, registration: Registration, at: datetime) -> dict[str, Any]:
        session = self._registry.agents.get(agent_id)
        if session is not None:
            return self._registry.describe(session)
        return describe_registration(registration, at.isoformat())

    async def _search(self, request: web.Request) -> web.Response:
        asked = request.query
        constraints = {
            key: _number(asked, key) for key in ("min_success_rate", "max_latency_ms") if key in asked
        }
        capabilities = [each for each in asked.getall("capability", []) if each]
        query = Query(
            capabilities=[each for each in capabilities if "*" not in each],
            capability_pattern=next((each for each in capabilities if "*" in each), None),
            framework=asked.get("framework") or None,
            tags=[tag for each in asked.getall("tags", []) for tag in each.split(",") if tag],
            constraints=constraints,
        )
        return web.json_response({"agents": search(self._registry, query)})

    async def _get(self, request: web.Request) -> web.Response:
        agent_id = request.match_info["agent_id"]
        session = self._registry.agents.get(agent_id)
        if session is not None:
            return web.json_response(self._registry.describe(session))
        remembered = self._registry.remembered.get(agent_id)
        if remembered is None:
            raise _unknown(agent_id)
        return web.json_response(describe_registration(remembered, ""))

    async def _delete(self, request: web.Request) -> web.Response:
        agent_id = request.match_info["agent_id"]
        session = self._registry.agents.get(agent_id)
        self._check_right(request, agent_id)
        known = self._registry.forget(agent_id)
        if session is not None:
            self._router.withdraw(session)
        elif not known:
            raise _unknown(agent_id)
        return web.json_response({"agent_id": agent_id, "registered": False})

    async def _report(self, request: web.Request) -> web.Response:
        agent_id = request.match_info["agent_id"]
        session = self._registry.agents.get(agent_id)
        if session is None:
            raise _unknown(agent_id)
        self._check_right(request, agent_id)
        body = await request.read()
        if len(body) > MAX_HEALTH_BYTES:
            raise InvalidParameters(f"a health report has at most {MAX_HEALTH_BYTES} bytes")
        try:
            health = msgspec.json.decode(body, type=Health)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidParameters(
                f"the health report is not valid: {str(error)[:MAX_REASON_CHARACTERS]}"
            ) from None
        session.health = msgspec.to_builtins(health)
        session.health.setdefault("status", "healthy")
        return web.json_response({"agent_id": agent_id, "health": session.health})

    def _check_right(self, request: web.Request, agent_id: str) -> None:
        """Raise unless the caller may speak for the agent."""
        caller = Session(key=0, kind="rest", pinned_agent_id=request[CALLER].proven_agent_id)
        self._registry.check_borrowed(caller, agent_id)


def _number(asked: Any, key: str) -> float:
    try:
        return float(asked[key])
    except ValueError:
        raise InvalidParameters(f"{key} must be a number") from None


def _unknown(agent_id: str) -> AmpError:
    return AgentNotFound(f"agent {agent_id!r} is not known here", {"agent_id": agent_id})
