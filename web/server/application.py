"""Puts the table of routes behind the checks that every request must pass. It decides nothing about workflows."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

from aiohttp import hdrs, web

from amp import crash
from amp.errors import AmpError
from runtime.clock import Clock
from runtime.ids import new_id
from runtime.settings import WebSettings
from web.server import bodies, problems, security
from web.server.assets import Assets
from web.server.instances import Instances
from web.server.live import Hub
from web.server.mesh import Backend, Mesh
from web.server.overview import Lists
from web.server.problems import ProblemError
from web.server.routes import ROUTES
from web.server.table import Answer, Call, Route, Services, checked_path, encoded

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16 * 1024
MAX_PARSING = 2
"""Definitions parsed at a time."""
SHUTDOWN_SECONDS = 5.0
KEEPALIVE_SECONDS = 75.0

REQUEST_ID = web.RequestKey("request_id", str)
_Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebApplication:
    """The HTTP side as one thing that starts and stops.

    Args:
        mesh: A started AMP client.
        assets: The page's files; by default those of `web/static`.
    """

    def __init__(
        self, settings: WebSettings, mesh: Mesh, *, clock: Clock, random: Random, assets: Assets | None = None
    ) -> None:
        backend = Backend(mesh, timeout_seconds=settings.request_timeout_seconds)
        instances = Instances(backend)
        lists = Lists(backend, instances, clock)
        self._random = random
        self._settings = settings
        self.services = Services(
            settings=settings,
            backend=backend,
            instances=instances,
            lists=lists,
            hub=Hub(mesh, instances, lists, random=random),
            assets=assets or Assets(),
            clock=clock,
            parsing=asyncio.Semaphore(MAX_PARSING),
            sockets=set(),
        )
        self.app = self._make_app()
        self._runner: web.AppRunner | None = None

    def _make_app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=self._settings.max_body_bytes)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, partial(self._serve, route))
        app.on_response_prepare.append(self._prepare)
        app.on_startup.append(self._on_startup)
        app.on_shutdown.append(self._on_shutdown)
        return app

    async def start(self, *, install_libraries: bool = True) -> int:
        """Begin to serve. Return the port.

        Raises: InsecureBindError for an address that other machines reach; OSError when the port is taken.
        """
        security.require_loopback(self._settings.host)
        runner = web.AppRunner(
            self.app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_field_size=MAX_HEADER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await runner.setup()
        self._runner = runner
        site = web.TCPSite(runner, self._settings.host, self._settings.port)
        try:
            await site.start()
        except OSError:
            await self.stop()
            raise
        if install_libraries:
            self.services.assets.install_libraries()
        port: int = runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """End: no new requests, live connections closed, the rest finishes within a set time. Works twice."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
        await self.services.assets.stop()

    async def _on_startup(self, app: web.Application) -> None:
        self.services.assets.load()
        await self.services.hub.start()

    async def _on_shutdown(self, app: web.Application) -> None:
        await self.services.hub.stop()
        for socket in list(self.services.sockets):
            await socket.close(code=1001, message=b"the dashboard stops")

    # --- every request ---------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Next) -> web.StreamResponse:
        """Check what must hold for every request, and turn every error into a problem."""
        request_id = new_id("req", self.services.clock, self._random)
        request[REQUEST_ID] = request_id
        try:
            security.check_host(request, self._settings.allowed_hosts)
            security.check_origin(request, upgrade=hdrs.UPGRADE in request.headers)
            return await handler(request)
        except ProblemError as problem:
            return self._problem(request, problem)
        except web.HTTPException as error:
            return self._problem(request, _from_http(error, request))
        except AmpError as error:
            return self._problem(request, problems.from_mesh(error, "the mesh"))
        except asyncio.CancelledError:
            raise
        except Exception:  # boundary: a bug becomes a 500 with an id that finds it in the log
            logger.exception("request_failed", extra={"request_id": request_id, "path": request.path})
            detail = "the dashboard failed to answer; its log has the trace_id"
            return self._problem(request, ProblemError(500, "internal_error", detail))

    def _problem(self, request: web.Request, problem: ProblemError) -> web.StreamResponse:
        """Return the problem; a person who opened a page that does not exist gets the page that says so."""
        wants_page = "text/html" in request.headers.get(hdrs.ACCEPT, "") and request.method == "GET"
        if problem.status == 404 and wants_page and not request.path.startswith(("/api/", "/assets/")):
            page = self.services.assets.page()
            page.set_status(404)
            return page
        return problems.response(problem, path=request.path, trace_id=request[REQUEST_ID])

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        security.add_headers(response.headers, request_id=request.get(REQUEST_ID, ""))

    async def _serve(self, route: Route, request: web.Request) -> web.StreamResponse:
        """Check the request against its row, run the handler, encode its answer."""
        path = checked_path(route, request.match_info)
        query = bodies.read_query(request, route.query) if route.kind in ("json", "form") else None
        body = None
        if route.body:
            body = await bodies.read_model(request, route.body, self._settings.max_body_bytes)
        call = Call(request=request, services=self.services, path=path, body=body, query=query)
        crash.reach("dashboard.request.parsed")
        answer = await route.handler(call)
        return encoded(answer) if isinstance(answer, Answer) else answer


def _from_http(error: web.HTTPException, request: web.Request) -> ProblemError:
    """Return aiohttp's own refusals as problems."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(method for method in error.allowed_methods if method != "HEAD")
        detail = f"{request.method} is not possible here; possible: {', '.join(allowed)}"
        return ProblemError(405, "method_not_allowed", detail, headers={"Allow": ", ".join(allowed)})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return ProblemError(413, "body_too_large", "the body is larger than web.max_body_bytes")
    if error.status == 404:
        return ProblemError(404, "not_found", "there is nothing at this address", title="Not found")
    return ProblemError(error.status, "refused", error.reason)
