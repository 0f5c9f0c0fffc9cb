"""A WebSocket to a router, by the `websockets` library: one JSON text a frame, no compression."""

import contextlib
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed as WebSocketClosed
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
from websockets.frames import apply_mask  # type: ignore[attr-defined]
from websockets.protocol import State

from amp.errors import LocalProtocolError
from amp.near import near_connection
from amp.transports.base import ConnectFailed, Connection, ConnectionClosed

DEFAULT_MAX_FRAME_BYTES = 8 * 1024 * 1024
OPEN_TIMEOUT_SECONDS = 5.0
CLOSE_TIMEOUT_SECONDS = 1.0
LOST_AFTER_SECONDS = 8.0
"""After so long without a sign of life the router counts as lost."""
PINGS = 4
"""How many pings fit into that time: the first must be answered within the rest of it."""
MAX_READ_AHEAD_FRAMES = 64
WRITE_BUFFER_BYTES = 1024 * 1024
MASK_SUPPLY_BYTES = 1024
_FINAL_TEXT = 0x81
_MASKED = 0x80
_MIDDLE_TEXT = bytes((_FINAL_TEXT, 126))
"""How an unmasked final text frame begins whose length takes two bytes."""
REFUSED_STATUSES = (401, 403)


class WebSocketTransport:
    """A way to the router at `url`, the short one when it is on this machine. `api_key` is sent as a bearer token."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        connect_timeout_seconds: float = OPEN_TIMEOUT_SECONDS,
        lost_after_seconds: float = LOST_AFTER_SECONDS,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise LocalProtocolError(
                f"{url!r} is no WebSocket address; write for example ws://127.0.0.1:8079/amp/v1/ws"
            )
        self.url = url
        self._near = (parts.hostname, parts.port or 0) if parts.scheme == "ws" else None
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        self._max_frame_bytes = max_frame_bytes
        self._connect_timeout_seconds = connect_timeout_seconds
        self._ping_interval_seconds = lost_after_seconds / PINGS
        self._ping_timeout_seconds = lost_after_seconds - self._ping_interval_seconds

    async def connect(self) -> Connection:
        """Return a new connection. Raises ConnectFailed; it is permanent when the router refuses the key."""
        try:
            socket = await connect(
                self.url,
                **self._way(),
                create_connection=_DirectConnection,
                compression=None,
                additional_headers=self._headers,
                proxy=None,
                open_timeout=self._connect_timeout_seconds,
                close_timeout=CLOSE_TIMEOUT_SECONDS,
                ping_interval=self._ping_interval_seconds,
                ping_timeout=self._ping_timeout_seconds,
                max_size=2 * self._max_frame_bytes,
                max_queue=MAX_READ_AHEAD_FRAMES,
                write_limit=WRITE_BUFFER_BYTES,
            )
            assert isinstance(socket, _DirectConnection)
            socket.max_frame_bytes = 2 * self._max_frame_bytes
            return _WebSocketConnection(socket)
        except InvalidStatus as error:
            status = error.response.status_code
            raise ConnectFailed(
                f"{self.url} answered HTTP {status}", permanent=status in REFUSED_STATUSES
            ) from None
        except InvalidURI as error:
            raise ConnectFailed(str(error), permanent=True) from None
        except (TimeoutError, OSError, InvalidHandshake, WebSocketException, EOFError) as error:
            raise ConnectFailed(f"{self.url}: {type(error).__name__}: {error}") from error

    def _way(self) -> dict[str, Any]:
        """Return how to connect when not by TCP."""
        near = near_connection(*self._near) if self._near else None
        return {} if near is None else {"sock": near, "unix": True}


class _DirectConnection(ClientConnection):
    """A client connection that hands whole text frames to a callback the moment they arrive.

    Only the commonest frame, an unmasked final text frame, is read and written here (RFC 6455, 5.2). Everything else
    (handshake, control frames, fragments, frames that are too large) goes the library's way, frame by frame, so that
    its parser always stands between two frames.
    """

    on_text: Callable[[bytes | str], None] | None = None
    max_frame_bytes = 2 * DEFAULT_MAX_FRAME_BYTES
    _partial = bytearray()
    _needed = 0
    _masks = b""
    _next_mask = 0

    def start_direct(self, on_text: Callable[[bytes | str], None]) -> None:
        """Deliver to `on_text` from now on, unless the library's parser has begun a frame."""
        if not self.protocol.reader.buffer:
            self._partial = bytearray()
            self.on_text = on_text

    def data_received(self, data: bytes) -> None:
        """Deliver the whole text frames in what has arrived; keep the rest."""
        if self.on_text is None:
            super().data_received(data)
            return
        partial = self._partial
        if partial:
            partial += data
            if len(partial) < self._needed:
                return
            data, self._partial = bytes(partial), bytearray()
        start, end = 0, len(data)
        if data[:2] == _MIDDLE_TEXT and int.from_bytes(data[2:4], "big") + 4 == end <= self.max_frame_bytes:
            self.on_text(data[4:])  # by far the commonest: one frame of 126 to 65535 bytes, and nothing else
            return
        while start < end:
            head, length = _frame_size(data, start, end)
            stop = start + head + length
            if length > self.max_frame_bytes:
                self.on_text = None
                super().data_received(data[start:])
                return
            if not head or stop > end:
                self._partial = bytearray(data[start:])
                self._needed = head + length
                return
            if data[start] == _FINAL_TEXT and not data[start + 1] & _MASKED and self.on_text is not None:
                self.on_text(data[start + head : stop])
            else:
                super().data_received(data[start:stop])
            start = stop

    def write_text(self, frame: bytes) -> bool:
        """Write a masked final text frame. Return False when the peer does not keep up or the connection is closing."""
        if self.paused or self.protocol.state is not State.OPEN or self.transport.is_closing():
            return False
        length = len(frame)
        mask = self._mask()
        if length < 126:
            head = bytes((_FINAL_TEXT, _MASKED | length))
        elif length < 65536:
            head = bytes((_FINAL_TEXT, _MASKED | 126)) + length.to_bytes(2, "big")
        else:
            head = bytes((_FINAL_TEXT, _MASKED | 127)) + length.to_bytes(8, "big")
        self.transport.write(head + mask + apply_mask(frame, mask))
        return True

    def _mask(self) -> bytes:
        """Return a mask that nobody can guess (RFC 6455, 5.3), from a supply that is drawn many at a time."""
        start = self._next_mask
        if start >= len(self._masks):
            self._masks, start = os.urandom(MASK_SUPPLY_BYTES), 0
        self._next_mask = start + 4
        return self._masks[start : start + 4]


def _frame_size(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the bytes of head and payload of the frame at `start`; a head of 0 means that it has not all arrived."""
    if end - start < 2:
        return 0, 0
    length = data[start + 1] & 0x7F
    head = 2
    if length == 126:
        head = 4
        length = int.from_bytes(data[start + 2 : start + 4], "big")
    elif length == 127:
        head = 10
        length = int.from_bytes(data[start + 2 : start + 10], "big")
    if data[start + 1] & _MASKED:
        head += 4
    return (head, length) if end - start >= head else (0, 0)


class _WebSocketConnection:
    def __init__(self, socket: _DirectConnection) -> None:
        self._socket = socket

    def write(self, frame: bytes) -> bool:
        return self._socket.write_text(frame)

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

    async def listen(self, on_frame: Callable[[bytes | str], None]) -> None:
        self._socket.start_direct(on_frame)
        try:
            while True:
                on_frame(await self._socket.recv(decode=False))
        except WebSocketClosed as error:
            raise _closed(error) from None
        finally:
            self._socket.on_text = None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        with contextlib.suppress(WebSocketException, OSError):
            await self._socket.close(code, reason)


def _closed(error: WebSocketClosed) -> ConnectionClosed:
    received = error.rcvd
    if received is None:
        return ConnectionClosed("the connection broke")
    return ConnectionClosed(received.reason or "the router closed the connection", code=received.code)
