"""The router's end of a WebSocket (RFC 6455), straight on the transport: a frame is handled the moment it arrives.

The HTTP server hands over a connection with its upgrade request; from then on nobody else reads or writes it. Only
what AMP uses is spoken: text frames, whole or in fragments, ping, pong and close; no extension, no subprotocol.
"""

import asyncio
import base64
import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from websockets.frames import apply_mask  # type: ignore[attr-defined]

from amp.transports.base import ConnectionClosed

WRITE_LIMIT_BYTES = 256 * 1024
"""Beyond this many unsent bytes a frame is not written at once; the sender waits for its peer."""
CLOSE_TIMEOUT_SECONDS = 1.0
MAX_CONTROL_BYTES = 125
MAX_REASON_BYTES = 120
MAX_FRAGMENTS = 1024

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _RESERVED, _OPCODE, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_FINAL_TEXT = _FINAL | _TEXT

CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_NOT_UTF8: Final = 1007
CLOSE_TOO_BIG: Final = 1009


def accept_key(headers: Mapping[str, str]) -> str | None:
    """Return what answers a WebSocket handshake, or None when the request is none."""
    if headers.get("Upgrade", "").strip().lower() != "websocket":
        return None
    if "upgrade" not in (each.strip().lower() for each in headers.get("Connection", "").split(",")):
        return None
    key = headers.get("Sec-WebSocket-Key", "").strip()
    if headers.get("Sec-WebSocket-Version", "").strip() != "13" or len(key) != 24:
        return None
    return base64.b64encode(hashlib.sha1(key.encode("ascii", "replace") + _GUID).digest()).decode()  # noqa: S324


def frame_head(opcode: int, length: int) -> bytes:
    """Return the head of an unmasked final frame."""
    if length < 126:
        return bytes((_FINAL | opcode, length))
    if length < 65536:
        return bytes((_FINAL | opcode, 126)) + length.to_bytes(2, "big")
    return bytes((_FINAL | opcode, 127)) + length.to_bytes(8, "big")


class _Refused(Exception):
    """The peer broke the protocol of the socket."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class ServerSocket(asyncio.Protocol):
    """One connection after its upgrade.

    Args:
        before: The protocol that read the upgrade request; it is told when the connection is gone.
        max_bytes: The largest message; a larger one ends the connection.

    `on_binary` is called for each binary frame, `arrival` is entered while what has arrived is handled, `heard_at` is
    when something last arrived, in the loop's seconds.
    """

    def __init__(self, transport: asyncio.Transport, before: asyncio.BaseProtocol, *, max_bytes: int) -> None:
        self.on_binary: Callable[[], None] = _ignore
        self.arrival: AbstractContextManager[object] = nullcontext()
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self._transport = transport
        self._before = before
        self._max_bytes = max_bytes
        self._on_frame: Callable[[bytes], None] | None = None
        self._early: list[bytes] = []
        self._buffer = bytearray()
        self._needed = 0
        self._fragments: list[bytes] = []
        self._fragment_bytes = 0
        self._fragment_opcode = 0
        self._closing = False
        self._deaf = False
        self._writable: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._code = 1006

    def accept(self, key: str) -> None:
        """Take the connection over and tell the client that it is a WebSocket now."""
        self._transport.set_protocol(self)
        self._transport.set_write_buffer_limits(high=WRITE_LIMIT_BYTES)
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + key.encode() + b"\r\n\r\n"
        )

    # --- what arrives ---------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Handle every whole frame in what has arrived; keep the rest."""
        self.heard_at = self._loop.time()
        if self._deaf:
            return
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed:
                return
            data, self._buffer = bytes(buffer), bytearray()
        try:
            with self.arrival:
                self._read(data)
        except _Refused as refused:
            self._deaf = True
            self._say_end(refused.code, str(refused))

    def _read(self, data: bytes) -> None:
        start, end = 0, len(data)
        while end - start >= 2:
            first, second = data[start], data[start + 1]
            length, head = second & _LENGTH, 6
            if length == 126:
                length, head = int.from_bytes(data[start + 2 : start + 4], "big"), 8
            elif length == 127:
                length, head = int.from_bytes(data[start + 2 : start + 10], "big"), 14
            if not second & _MASKED:
                raise _Refused(CLOSE_PROTOCOL_ERROR, "frames to a server are masked")
            if end - start < head:
                self._needed = head
                break
            if length > self._max_bytes:
                raise _Refused(CLOSE_TOO_BIG, f"a message has at most {self._max_bytes} bytes")
            stop = start + head + length
            if stop > end:
                self._needed = head + length
                break
            payload = apply_mask(data[start + head : stop], data[start + head - 4 : start + head])
            start = stop
            if first == _FINAL_TEXT and not self._fragment_opcode:
                self._deliver(payload)
            else:
                self._uncommon(first, payload)
        else:
            self._needed = 2
        if start < end:
            self._buffer = bytearray(data[start:])

    def _deliver(self, payload: bytes) -> None:
        if self._closing:
            return
        if not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                raise _Refused(CLOSE_NOT_UTF8, "a text frame is not UTF-8") from None
        if self._on_frame is None:
            self._early.append(payload)
        else:
            self._on_frame(payload)

    def _uncommon(self, first: int, payload: bytes) -> None:
        opcode, final = first & _OPCODE, bool(first & _FINAL)
        if first & _RESERVED:
            raise _Refused(CLOSE_PROTOCOL_ERROR, "no extension was agreed on")
        if opcode >= _CLOSE:
            if not final or len(payload) > MAX_CONTROL_BYTES or opcode > _PONG:
                raise _Refused(CLOSE_PROTOCOL_ERROR, "a control frame is whole and short")
            self._control(opcode, payload)
        elif opcode not in (_CONTINUATION, _TEXT, _BINARY):
            raise _Refused(CLOSE_PROTOCOL_ERROR, f"opcode {opcode} is unknown")
        else:
            self._fragment(opcode, payload, final)

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            if self._transport.get_write_buffer_size() <= WRITE_LIMIT_BYTES:
                self._transport.write(frame_head(_PONG, len(payload)) + payload)
        elif opcode == _CLOSE:
            self._code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            self._deaf = True
            if not self._closing:
                self._say_end(1000 if self._code == 1005 else self._code, "")
            self._transport.close()

    def _fragment(self, opcode: int, payload: bytes, final: bool) -> None:
        if (opcode == _CONTINUATION) != bool(self._fragment_opcode):
            raise _Refused(CLOSE_PROTOCOL_ERROR, "fragments are out of order")
        self._fragment_opcode = self._fragment_opcode or opcode
        self._fragments.append(payload)
        self._fragment_bytes += len(payload)
        if self._fragment_bytes > self._max_bytes or len(self._fragments) > MAX_FRAGMENTS:
            raise _Refused(CLOSE_TOO_BIG, f"a message has at most {self._max_bytes} bytes")
        if not final:
            return
        kind, whole = self._fragment_opcode, b"".join(self._fragments)
        self._fragments, self._fragment_bytes, self._fragment_opcode = [], 0, 0
        if kind == _BINARY:
            self.on_binary()
        else:
            self._deliver(whole)

    async def listen(self, on_frame: Callable[[bytes], None]) -> None:
        """Call `on_frame` with each text as it arrives. Raises ConnectionClosed at the end."""
        early, self._early = self._early, []
        self._on_frame = on_frame
        for frame in early:
            on_frame(frame)
        await asyncio.shield(self._gone)
        raise ConnectionClosed("the client closed the connection", code=self._code)

    async def receive(self) -> bytes:
        """Not offered: frames are listened to."""
        raise ConnectionClosed("this connection is listened to")

    # --- what leaves ----------------------------------------------------------------------------------------

    def write(self, frame: bytes) -> bool:
        """Write one text frame at once. Return False, with nothing written, when the peer does not keep up."""
        transport = self._transport
        if self._closing or transport.get_write_buffer_size() > WRITE_LIMIT_BYTES or transport.is_closing():
            return False
        transport.write(frame_head(_TEXT, len(frame)) + frame)
        return True

    async def send(self, frame: bytes) -> None:
        """Write one text frame, and wait while the peer does not keep up. Raises ConnectionClosed."""
        while self._transport.get_write_buffer_size() > WRITE_LIMIT_BYTES and not self._gone.done():
            if self._writable is None:
                self._writable = self._loop.create_future()
            await asyncio.shield(self._writable)
        if self._closing or self._transport.is_closing():
            raise ConnectionClosed(code=self._code)
        self._transport.write(frame_head(_TEXT, len(frame)) + frame)

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        if not self._closing and self._transport.get_write_buffer_size() <= WRITE_LIMIT_BYTES:
            self._transport.write(frame_head(_PING, 0))

    def resume_writing(self) -> None:
        """Go on with what waits: the peer has read."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- the end --------------------------------------------------------------------------------------------

    def _say_end(self, code: int, reason: str) -> None:
        """Say the end. The peer has `CLOSE_TIMEOUT_SECONDS` to answer it, then the connection is cut."""
        if self._closing:
            return
        self._closing = True
        if not self._transport.is_closing():
            body = code.to_bytes(2, "big") + reason.encode()[:MAX_REASON_BYTES]
            self._transport.write(frame_head(_CLOSE, len(body)) + body)
            self._loop.call_later(CLOSE_TIMEOUT_SECONDS, self._transport.abort)

    def abort(self) -> None:
        """End without a word: the peer is not there any more."""
        self._closing = True
        self._transport.abort()

    def eof_received(self) -> None:
        """The peer ended its side; so do we."""

    def connection_lost(self, error: Exception | None) -> None:
        """Wake everybody who waits, and the HTTP server that began this connection."""
        self._closing = True
        self.resume_writing()
        if not self._gone.done():
            self._gone.set_result(None)
        self._before.connection_lost(error)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close, and wait until the connection is gone. Works twice."""
        self._say_end(code, reason)
        await asyncio.wait((self._gone,), timeout=2 * CLOSE_TIMEOUT_SECONDS)


def _ignore() -> None:
    return None
