"""A transport that brings a router along: the first agent on a machine hosts it, the others connect.

When no router answers at a loopback address this process binds it. The operating system decides the race: whoever
binds first wins, the others find the winner at their next attempt. When the host dies one of the others takes over
in the same way. An address that is not loopback is never hosted.
"""

import asyncio
import errno
import logging
from collections.abc import Callable
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import amp.lean_websockets  # noqa: F401 - before the transport imports websockets as it is
from amp.client import utc_now
from amp.security import Credentials, is_loopback
from amp.transports.base import ConnectFailed, Connection
from amp.transports.memory import MemoryNetwork
from amp.transports.websocket import DEFAULT_MAX_FRAME_BYTES, LOST_AFTER_SECONDS, WebSocketTransport

if TYPE_CHECKING:
    from amp.router import Router

logger = logging.getLogger(__name__)

DEFAULT_PORT = 80


class HostingTransport:
    """Connects to the router at `url`, or hosts it in this process when it is a loopback address without one."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        host_router: bool = True,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        lost_after_seconds: float = LOST_AFTER_SECONDS,
        now: Callable[[], datetime] = utc_now,
        random: Random | None = None,
    ) -> None:
        self._websocket = WebSocketTransport(
            url, api_key=api_key, max_frame_bytes=max_frame_bytes, lost_after_seconds=lost_after_seconds
        )
        parts = urlsplit(url)
        self._host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
        self._port = parts.port or DEFAULT_PORT
        self._may_host = host_router and parts.scheme == "ws" and self._port > 0 and is_loopback(self._host)
        self._credentials = Credentials(api_keys={api_key: None} if api_key else {})
        self._max_frame_bytes = max_frame_bytes
        self._lost_after_seconds = lost_after_seconds
        self._now = now
        self._random = random
        self._network = MemoryNetwork(direct=True)
        self._closed = False
        self._hosting = asyncio.Lock()
        self.router: Router | None = None

    @property
    def hosting(self) -> bool:
        """Whether the router runs in this process."""
        return self.router is not None

    async def connect(self) -> Connection:
        """Return a connection to the router, hosting it first when that is allowed and needed. Raises ConnectFailed."""
        async with self._hosting:
            if self.router is not None:
                return self._network.open()
            try:
                return await self._websocket.connect()
            except ConnectFailed as error:
                if not self._may_host or self._closed or not _is_refused(error):
                    raise
                await self._host_router(error)
            return self._network.open()

    async def _host_router(self, refused: ConnectFailed) -> None:
        # The router's HTTP server takes long to import, and few agents host.
        from amp.router import Router, RouterLimits

        limits = RouterLimits(
            max_frame_bytes=self._max_frame_bytes, lost_after_seconds=self._lost_after_seconds
        )
        router = Router(now=self._now, random=self._random, limits=limits, credentials=self._credentials)
        try:
            await router.start_http(self._host, self._port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise refused from None
            raise ConnectFailed(
                f"cannot host a router at {self._host}:{self._port}: {error.strerror}"
            ) from error
        if self._closed:
            await router.stop()
            raise refused
        router.serve_memory(self._network)
        self.router = router
        logger.info("router_hosted", extra={"host": self._host, "port": self._port})

    async def close(self) -> None:
        """Stop the router when this process hosts it; another agent takes over. Works twice."""
        self._closed = True
        router, self.router = self.router, None
        if router is not None:
            await router.stop()


def _is_refused(error: ConnectFailed) -> bool:
    """Return whether nobody listens at the address, as opposed to somebody who is not a router."""
    cause = error.__cause__
    return isinstance(cause, OSError) and (
        cause.errno == errno.ECONNREFUSED
        or "Connect call failed" in str(cause)
        or "Connection refused" in str(cause)
    )
