"""A WebSocket to a router, by the `websockets` library: one JSON text a frame, no compression."""

import contextlib
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed as WebSocketClosed
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException

from amp.errors import LocalProtocolError
from amp.transports.base import ConnectFailed, Connection, ConnectionClosed

DEFAULT_MAX_FRAME_BYTES = 8 * 1024 * 1024
OPEN_TIMEOUT_SECONDS = 5.0
CLOSE_TIMEOUT_SECONDS = 1.0
PING_INTERVAL_SECONDS = 10.0
PING_TIMEOUT_SECONDS = 10.0
MAX_READ_AHEAD_FRAMES = 64
WRITE_BUFFER_BYTES = 1024 * 1024
REFUSED_STATUSES = (401, 403)


class WebSocketTransport:
    """A way to the router at `url`. `api_key` is sent as a bearer token."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        connect_timeout_seconds: float = OPEN_TIMEOUT_SECONDS,
    ) -> None:
        if urlsplit(url).scheme not in ("ws", "wss") or not urlsplit(url).hostname:
            raise LocalProtocolError(
                f"{url!r} is no WebSocket address; write for example ws://127.0.0.1:8079/amp/v1/ws"
            )
        self.url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        self._max_frame_bytes = max_frame_bytes
        self._connect_timeout_seconds = connect_timeout_seconds

    async def connect(self) -> Connection:
        """Return a new connection. Raises ConnectFailed; it is permanent when the router refuses the key."""
        try:
            return _WebSocketConnection(
                await connect(
                    self.url,
                    compression=None,
                    additional_headers=self._headers,
                    proxy=None,
                    open_timeout=self._connect_timeout_seconds,
                    close_timeout=CLOSE_TIMEOUT_SECONDS,
                    ping_interval=PING_INTERVAL_SECONDS,
                    ping_timeout=PING_TIMEOUT_SECONDS,
                    max_size=2 * self._max_frame_bytes,
                    max_queue=MAX_READ_AHEAD_FRAMES,
                    write_limit=WRITE_BUFFER_BYTES,
                )
            )
        except InvalidStatus as error:
            status = error.response.status_code
            raise ConnectFailed(
                f"{self.url} answered HTTP {status}", permanent=status in REFUSED_STATUSES
            ) from None
        except InvalidURI as error:
            raise ConnectFailed(str(error), permanent=True) from None
        except (TimeoutError, OSError, InvalidHandshake, WebSocketException, EOFError) as error:
            raise ConnectFailed(f"{self.url}: {type(error).__name__}: {error}") from error


class _WebSocketConnection:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send(frame, text=True)
        except WebSocketClosed as error:
            raise _closed(error) from None

    async def receive(self) -> bytes:
        try:
            return await self._socket.recv(decode=False)
        except WebSocketClosed as error:
            raise _closed(error) from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        with contextlib.suppress(WebSocketException, OSError):
            await self._socket.close(code, reason)


def _closed(error: WebSocketClosed) -> ConnectionClosed:
    received = error.rcvd
    if received is None:
        return ConnectionClosed("the connection broke")
    return ConnectionClosed(received.reason or "the router closed the connection", code=received.code)
