"""The router's port: WebSocket, HTTP binding, registry, health and metrics on one aiohttp server.

A web page must never drive the mesh: requests that a browser sends for a page (an Origin, a cross-site fetch) are
refused, and on loopback so is every Host that is not this machine. Any other address needs credentials.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

import amp.lean_websockets  # noqa: F401 - before the socket imports websockets as it is
from amp.caller import CALLER, Caller
from amp.errors import AmpError, AuthenticationFailed, AuthorizationFailed, LocalProtocolError
from amp.http_binding import HttpBinding
from amp.link import Link
from amp.metrics import exposition
from amp.near import near_listener
from amp.rest import RegistryApi
from amp.security import is_loopback
from amp.server_socket import ServerSocket, accept_key
from amp.watch import Watch

if TYPE_CHECKING:
    from amp.router import Router

logger = logging.getLogger(__name__)

SOCKET_PATHS = ("/amp/v1/ws", "/ws", "/")
SHUTDOWN_TIMEOUT_SECONDS = 2.0
BACKLOG = 512
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """The HTTP side of one router."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self._binding = HttpBinding(router)
        self._registry = RegistryApi(router)
        self._watch = Watch(router.limits.lost_after_seconds)
        self._runner: web.AppRunner | None = None
        self._loopback = True
        self._host = ""
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen. Port 0 takes a free one, which `port` then tells.

        Raises: OSError when the address is taken, LocalProtocolError when it would be open to the network.
        """
        self._host = host
        self._loopback = is_loopback(host)
        if not self._loopback and not self._router.credentials.required:
            raise LocalProtocolError(
                f"{host!r} can be reached from other machines: give an API key (--api-key or AMP_MESH__API_KEY),"
                " or listen on 127.0.0.1"
            )
        listener = _listen(host, port)
        self.port = int(listener.getsockname()[1])
        limit = 2 * self._router.limits.max_frame_bytes
        app = web.Application(middlewares=[self._answer_errors, self._guard], client_max_size=limit)
        for path in SOCKET_PATHS:
            app.router.add_get(path, self._socket)
        app.router.add_get("/health", self._health)
        app.router.add_get("/agents/{agent_id}/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        self._binding.add_routes(app)
        self._registry.add_routes(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_SECONDS)
        try:
            await self._runner.setup()
            await web.SockSite(self._runner, listener, backlog=BACKLOG).start()
            if (near := near_listener(host, self.port, BACKLOG)) is not None:
                await web.SockSite(self._runner, near, backlog=BACKLOG).start()
        except BaseException:
            listener.close()
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening. Works twice."""
        runner, self._runner = self._runner, None
        self._binding.stop()
        self._watch.stop()
        if runner is not None:
            await runner.cleanup()

    # --- who may come in ------------------------------------------------------------------------------------

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except AmpError as error:
            return error_response(error)
        except (web.HTTPException, asyncio.CancelledError):
            raise
        except Exception:  # boundary: a failing handler becomes an HTTP status
            logger.exception("http_handler_failed", extra={"path": request.path})
            return error_response(AmpError("INTERNAL_ERROR", "the router could not handle the request"))

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._loopback and not self._is_this_machine(request):
            raise AuthorizationFailed(
                f"the Host {request.host[:80]!r} is not this machine", {"reason": "host"}
            )
        origin = request.headers.get("Origin")
        if origin is not None or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise AuthorizationFailed("web pages may not use the mesh", {"reason": "origin"})
        resource = request.match_info.route.resource
        if resource is not None and resource.canonical == "/health":
            return await handler(request)
        pinned = self._router.credentials.identify(request.headers.get("Authorization"), self._router.now())
        speaks_for = request.query.get("agent_id")
        if resource is not None and resource.canonical.startswith("/agents/{agent_id}/a"):
            speaks_for = request.match_info["agent_id"]
        if pinned is not None and speaks_for not in (None, pinned):
            raise AuthorizationFailed(f"this key is bound to {pinned!r}")
        request[CALLER] = Caller(pinned, speaks_for or pinned)
        if request.method in ("POST", "PUT") and request.content_type != "application/json":
            raise AmpError("INVALID_SCHEMA", "send the content type application/json", {"status": 415})
        return await handler(request)

    def _is_this_machine(self, request: web.Request) -> bool:
        said = {_host_name(request.host), (request.url.host or "").lower()}
        return said <= LOOPBACK_HOSTS | {self._host}

    # --- routes ---------------------------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        key = accept_key(request.headers)
        transport = request.transport
        if key is None or transport is None:
            return web.json_response(
                {"protocol": "AMP/1.0", "websocket": SOCKET_PATHS[0], "health": "/health"}
            )
        if self._router.connections >= self._router.limits.max_connections:
            raise AmpError("INSUFFICIENT_RESOURCES", "too many connections", {"retry_after_ms": 1000})
        server_socket = ServerSocket(
            transport, request.protocol, max_bytes=2 * self._router.limits.max_frame_bytes
        )
        server_socket.accept(key)
        link = Link(server_socket, cork=self._router.cork)
        server_socket.arrival = self._router.cork
        member = self._router.admit(link, "websocket", pinned_agent_id=request[CALLER].agent_id)
        server_socket.on_binary = partial(self._router.refuse_binary, member.session)
        self._watch.add(server_socket, member.session)
        try:
            await self._router.read(member, link)
        finally:
            self._watch.remove(server_socket)
        return web.Response()

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "status": "healthy",
                "role": "router",
                "protocol": "AMP/1.0",
                "agents": len(self._router.routing.registry.agents),
            }
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=exposition(self._router), content_type="text/plain", charset="utf-8")


STATUS_BY_CODE = {
    "AUTHENTICATION_FAILED": 401,
    "AUTHORIZATION_FAILED": 403,
    "AGENT_NOT_FOUND": 404,
    "CAPABILITY_NOT_FOUND": 404,
    "RATE_LIMIT_EXCEEDED": 429,
    "INSUFFICIENT_RESOURCES": 503,
    "INTERNAL_ERROR": 500,
}


def error_response(error: AmpError) -> web.Response:
    """Return an AMP error as an HTTP answer."""
    said = error.details.get("status")
    status = said if isinstance(said, int) else STATUS_BY_CODE.get(error.code, 400)
    if isinstance(error, AuthenticationFailed) and error.details.get("reason") in (
        "identity_bound",
        "agent_id_in_use",
    ):
        status = 403
    body = {"error": {"code": error.code, "message": error.message, "details": error.details}}
    return web.json_response(body, status=status)


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound, listening socket; the operating system refuses the second to come with EADDRINUSE."""
    name = "127.0.0.1" if host == "localhost" else host.strip("[]")
    family, kind, proto, _, address = socket.getaddrinfo(
        name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
