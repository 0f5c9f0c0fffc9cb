"""The small HTTP server of an agent: /health says how it is, /metrics counts what it did.

It only reads and answers loopback names and plain addresses, so that a web page cannot reach it by a name of its own.
"""

import errno
import ipaddress
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from runtime.errors import AddressUnusable
from runtime.lean_prometheus import CollectorRegistry, choose_encoder
from runtime.metrics import ProcessMetrics, add_process_metrics
from runtime.plain_http import Answer, PlainHttpServer, Request, refusal

logger = logging.getLogger(__name__)

SERVING_STATUSES = frozenset({"healthy", "degraded"})
"""With these /health answers 200, with any other 503."""
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


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
        self._server = PlainHttpServer(self._answer)
        self._process_metrics: ProcessMetrics | None = None

    @property
    def url(self) -> str:
        """Where the server is reached."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self) -> int:
        """Listen, and return the port.

        Raises: AddressUnusable when the address is not this machine's or may not be used.
        """
        wanted = self.port
        await self._listen()
        self._process_metrics = add_process_metrics(self._registry)
        if wanted not in (0, self.port):
            logger.warning("health_port_taken", extra={"wanted": wanted, "port": self.port, "url": self.url})
            sys.stdout.write(f"port {wanted} is taken; /health and /metrics are on {self.url}\n")
            sys.stdout.flush()
        logger.info("health_listening", extra={"port": self.port, "url": self.url})
        return self.port

    async def stop(self) -> None:
        """Stop listening. Works twice and before `start`."""
        await self._server.stop()
        collector, self._process_metrics = self._process_metrics, None
        if collector is not None:
            self._registry.unregister(collector)

    async def _listen(self) -> None:
        try:
            self.port = await self._server.start(self.host, self.port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or self.port == 0:
                raise AddressUnusable(f"cannot listen on {self.url}: {error.strerror or error}") from None
            self.port = await self._server.start(self.host, 0)

    def _answer(self, request: Request) -> Answer:
        if not is_local_host(request.headers.get("host", ""), bound_to=self.host):
            return refusal(403, f"this server answers to its own address, {self.url}, only")
        match request.path:
            case "/health":
                return self._health_answer()
            case "/metrics":
                encode, content_type = choose_encoder(request.headers.get("accept", ""))
                return Answer(body=encode(self._registry), content_type=content_type, headers=HEADERS)
            case _:
                return refusal(404, "there are /health and /metrics")

    def _health_answer(self) -> Answer:
        document = self._health()
        return Answer(
            status=200 if document.get("status") in SERVING_STATUSES else 503,
            body=msgspec.json.encode(document, enc_hook=str),
            content_type="application/json",
            headers=HEADERS,
        )


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
