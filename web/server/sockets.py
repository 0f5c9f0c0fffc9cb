"""The WebSockets: `amp.ui.v1` on /api/ws for our pages, and the older {type, data} stream on /ws.

One reader and one writer a client. The writer sends at most ten times a second and waits for a slow client only so
long; then the client is dropped. It must never let one client's slowness reach the hub.
"""

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from web.server.live import Hub
from web.server.outbox import Outbox
from web.server.problems import ProblemError

logger = logging.getLogger(__name__)

SUBPROTOCOL = "amp.ui.v1"
MAX_MESSAGE_BYTES = 16 * 1024
FLUSH_SECONDS = 0.1
"""Shortest time between two sendings to one client."""
PING_SECONDS = 15.0
SILENCE_SECONDS = 45.0
SEND_TIMEOUT_SECONDS = 10.0
MAX_BAD_FRAMES = 10
MAX_LEGACY_FRAMES = 1000


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a page may say."""

    op: str
    id: int = 0
    topic: str = ""
    after: int | None = None
    t: float | None = None


_decoder = msgspec.json.Decoder(Command)


class Session:
    """One page's connection."""

    def __init__(self, request: web.BaseRequest, socket: web.WebSocketResponse, hub: Hub) -> None:
        self.outbox = Outbox()
        self._request = request
        self._socket = socket
        self._hub = hub
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._bad_frames = 0

    def notify(self) -> None:
        """There is something in the outbox."""
        self._wake.set()

    async def run(self) -> None:
        """Serve the connection until either side ends it."""
        loop = asyncio.get_running_loop()
        forget = self._hub.on_source(self._source_changed)
        self._source_changed(self._hub.source_ok)
        writer = loop.create_task(self._write(), name="web:socket-writer")
        reader = loop.create_task(self._read(), name="web:socket-reader")
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            forget()
            await self._hub.leave(self)
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    def _source_changed(self, ok: bool) -> None:
        self.outbox.control({"op": "status", "source": "ok" if ok else "unavailable"})
        self.notify()

    async def _read(self) -> None:
        while True:
            while self.outbox.is_full:
                self._room.clear()
                await self._room.wait()
            try:
                message = await self._socket.receive(timeout=SILENCE_SECONDS)
            except TimeoutError:
                await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"no answer to pings")
                return
            if message.type != WSMsgType.TEXT:
                if message.type == WSMsgType.BINARY:
                    await self._socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"text frames only")
                return
            try:
                await self._obey(_decoder.decode(message.data))
            except (msgspec.DecodeError, ProblemError) as error:
                self._refuse(error)
                if self._bad_frames > MAX_BAD_FRAMES:
                    await self._socket.close(
                        code=WSCloseCode.POLICY_VIOLATION, message=b"too many bad frames"
                    )
                    return

    async def _obey(self, command: Command) -> None:
        match command.op:
            case "sub":
                try:
                    await self._hub.subscribe(self, command.id, command.topic, command.after)
                except ProblemError as problem:
                    self._answer_error(command.id, problem)
            case "unsub":
                await self._hub.unsubscribe(self, command.id)
            case "pong":
                pass
            case "ping":
                self.outbox.control({"op": "pong", "t": command.t})
                self.notify()
            case _:
                raise ProblemError(
                    400, "unknown_op", f"unknown op {command.op[:50]!r}; known: sub, unsub, ping, pong"
                )

    def _refuse(self, error: Exception) -> None:
        self._bad_frames += 1
        if not isinstance(error, ProblemError):
            error = ProblemError(400, "invalid_frame", str(error))
        self._answer_error(0, error)

    def _answer_error(self, subscription_id: int, problem: ProblemError) -> None:
        frame = {"op": "error", "id": subscription_id, "code": problem.code, "detail": problem.detail}
        self.outbox.control({**frame, "status": problem.status})
        self.notify()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        next_ping = loop.time() + PING_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_ping):
                    await self._wake.wait()
            self._wake.clear()
            frames = self.outbox.take()
            self._room.set()
            if loop.time() >= next_ping:
                frames.append(msgspec.json.encode({"op": "ping", "t": round(loop.time(), 3)}))
                next_ping = loop.time() + PING_SECONDS
            if not await _send_all(self._request, self._socket, frames):
                return
            await asyncio.sleep(FLUSH_SECONDS)


async def _send_all(request: web.BaseRequest, socket: web.WebSocketResponse, frames: list[bytes]) -> bool:
    """Send the frames; False when the client is gone or too slow, which ends it."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
            for frame in frames:
                await socket.send_frame(frame, WSMsgType.TEXT)
    except TimeoutError:
        logger.info("slow_client_dropped")
        if isinstance(request.transport, asyncio.Transport):
            request.transport.abort()
        return False
    except (ConnectionError, RuntimeError):
        return False
    return True


_LEGACY_TYPES = {
    "workflow.started": "workflow_started",
    "workflow.completed": "workflow_completed",
    "workflow.failed": "workflow_failed",
    "workflow.paused": "workflow_paused",
    "workflow.resumed": "workflow_resumed",
    "workflow.cancelled": "workflow_stopped",
    "task.completed": "task_completed",
}
_LEGACY_KEYS = ("seq", "at", "task_id", "attempt", "workflow_id", "reason", "error", "action", "severity")
"""Fields of events that the older stream carries; values of inputs and outputs are not among them."""


def legacy_message(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event as the older stream has it: {type, data}."""
    kind = event["type"]
    name = _LEGACY_TYPES.get(kind)
    if name is None:
        families = {"workflow": "workflow_event", "task": "task_event", "error": "error_event"}
        name = families.get(kind.partition(".")[0], "workflow_event")
    data = {key: event[key] for key in _LEGACY_KEYS if key in event}
    return {"type": name, "data": {"instance_id": event["instance_id"], "event_type": kind, **data}}


class LegacySession:
    """A connection to /ws: every event of every instance, and an echo of what is said."""

    def __init__(self, request: web.BaseRequest, socket: web.WebSocketResponse, hub: Hub) -> None:
        self._request = request
        self._socket = socket
        self._hub = hub
        self._frames: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._overflowed = False

    async def run(self) -> None:
        """Serve the connection until either side ends it, or it falls too far behind."""
        forget = self._hub.listen(self._on_event)
        loop = asyncio.get_running_loop()
        writer = loop.create_task(self._write(), name="web:legacy-writer")
        reader = loop.create_task(self._read(), name="web:legacy-reader")
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            forget()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    def _on_event(self, event: dict[str, Any]) -> None:
        self._add(msgspec.json.encode(legacy_message(event)))

    def _add(self, frame: bytes) -> None:
        if len(self._frames) >= MAX_LEGACY_FRAMES:
            self._overflowed = True
        else:
            self._frames.append(frame)
        self._wake.set()

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type == WSMsgType.TEXT:
                self._add(f"Echo: {message.data}".encode())

    async def _write(self) -> None:
        while not self._overflowed:
            await self._wake.wait()
            self._wake.clear()
            frames = list(self._frames)
            self._frames.clear()
            if not await _send_all(self._request, self._socket, frames):
                return
        await self._socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too slow")
