"""The small HTTP server of an agent: /health says how it is, /metrics counts what it did.

It only reads and answers loopback names and plain addresses, so that a web page cannot reach it by a name of its own.
"""

import errno
import ipaddress
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from runtime.errors import AddressUnusable
from runtime.metrics import ProcessMetrics, add_process_metrics

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 16 * 1024
SHUTDOWN_SECONDS = 1.0
KEEPALIVE_SECONDS = 15.0
SERVING_STATUSES = frozenset({"healthy", "degraded"})
"""With these /health answers 200, with any other 503."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HealthServer:
    """Serves GET /health and GET /metrics.

    Args:
        port: The wanted port; 0 means any. When it is taken, a free one is used and that is said.
        health: Returns the document of /health; its `status` decides between 200 and 503.
        registry: What /metrics shows; the process's own metrics are added while the server runs.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        health: Callable[[], Mapping[str, Any]],
        registry: CollectorRegistry,
    ) -> None:
        self.host = host
        self.port = port
        self._health = health
        self._registry = registry
        self._runner: web.AppRunner | None = None
        self._process_metrics: ProcessMetrics | None = None

    @property
    def url(self) -> str:
        """Where the server is reached."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self) -> int:
        """Listen, and return the port.

        Raises: AddressUnusable when the address is not this machine's or may not be used.
        """
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_REQUEST_BYTES)
        app.router.add_get("/health", self._get_health)
        app.router.add_get("/metrics", self._get_metrics)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, keepalive_timeout=KEEPALIVE_SECONDS
        )
        await self._runner.setup()
        wanted = self.port
        try:
            await self._listen()
        except BaseException:
            await self.stop()
            raise
        self._process_metrics = add_process_metrics(self._registry)
        if wanted not in (0, self.port):
            logger.warning("health_port_taken", extra={"wanted": wanted, "port": self.port, "url": self.url})
            sys.stdout.write(f"port {wanted} is taken; /health and /metrics are on {self.url}\n")
            sys.stdout.flush()
        logger.info("health_listening", extra={"port": self.port, "url": self.url})
        return self.port

    async def stop(self) -> None:
        """Stop listening. Works twice and before `start`."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        collector, self._process_metrics = self._process_metrics, None
        if collector is not None:
            self._registry.unregister(collector)

    async def _listen(self) -> None:
        try:
            await self._bind(self.port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or self.port == 0:
                raise AddressUnusable(f"cannot listen on {self.url}: {error.strerror or error}") from None
            await self._bind(0)

    async def _bind(self, port: int) -> None:
        assert self._runner is not None
        site = web.TCPSite(self._runner, self.host, port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_local_host(request.headers.get("Host", ""), bound_to=self.host):
            raise web.HTTPForbidden(text=f"this server answers to its own address, {self.url}, only\n")
        response = await handler(request)
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def _get_health(self, request: web.Request) -> web.Response:
        document = self._health()
        status = 200 if document.get("status") in SERVING_STATUSES else 503
        return web.Response(
            body=msgspec.json.encode(document, enc_hook=str), status=status, content_type="application/json"
        )

    async def _get_metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


def is_local_host(header: str, *, bound_to: str) -> bool:
    """Return whether a Host header names this server by an address or a name that nobody outside can own.

    On a loopback address only loopback names count. On others any address or a name without a dot does: a web page
    can point a name of its own at us (DNS rebinding), but it cannot own those.
    """
    name = _host_name(header)
    if name is None:
        return False
    address = _address(name)
    loopback = name == "localhost" or (address is not None and address.is_loopback)
    bound = _address(bound_to)
    if bound_to == "localhost" or (bound is not None and bound.is_loopback):
        return loopback
    return loopback or address is not None or "." not in name or name == bound_to


def _host_name(header: str) -> str | None:
    """Return the name in `name:port` in small letters, or None when the header is not one."""
    text = header.strip().lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        is_name = bool(bracket) and _address(name) is not None
        port = port.removeprefix(":") if port.startswith(":") else f"{port}?" if port else ""
    else:
        name, _, port = text.partition(":")
        is_name = bool(name)
    return name if is_name and (not port or port.isdigit()) else None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
