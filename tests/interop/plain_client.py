"""An AMP client written from the protocol's text alone: `websockets` and the standard library, nothing of ours.

It behaves like the public reference client where that is stricter than the text: it drops messages with keys it does
not know, reads at most 1 MiB a frame, and treats every frame that is neither a message nor a handshake nor a heartbeat
as an error.
"""

import asyncio
import json
import time
import uuid
from datetime import UTC, datetime

from websockets.asyncio.client import connect

MESSAGE_KEYS = {"id", "type", "timestamp", "source", "destination", "headers", "payload"}
HEADER_KEYS = {
    "correlation_id", "priority", "timeout_ms", "routing_hints", "authentication", "signature", "tracing",
}  # fmt: skip
SOURCE_KEYS = {"agent_id", "session_id", "user_id"}
DESTINATION_KEYS = {"agent_id", "capability", "routing_hints"}


class RemoteError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['code']}: {error['message']}")
        self.code = error["code"]
        self.details = error.get("details") or {}


def envelope(agent_id, kind, payload, *, to=None, capability=None, protocol="AMP/1.0", **headers):
    return {
        "protocol": protocol,
        "message": {
            "id": headers.pop("message_id", str(uuid.uuid4())),
            "type": kind,
            "timestamp": datetime.now(UTC).isoformat(),
            "source": {"agent_id": agent_id},
            "destination": {"agent_id": to, "capability": capability},
            "headers": {"correlation_id": None, "priority": 5, "timeout_ms": 30000, **headers},
            "payload": payload,
        },
    }


class PlainClient:
    """One agent. `handlers` maps capability ids to coroutines of the parameters."""

    def __init__(self, agent_id, url, *, handlers=None, api_key=None):
        self.agent_id = agent_id
        self.url = url
        self.handlers = handlers or {}
        self.api_key = api_key
        self.events = asyncio.Queue()
        self.stray = []
        self.violations = []
        self._waiting = {}
        self._socket = None
        self._reader = None
        self._tasks = set()

    async def __aenter__(self):
        await self.connect()
        return self

    async def __aexit__(self, *_):
        await self.close()

    async def connect(self):
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else None
        self._socket = await connect(self.url, additional_headers=headers, proxy=None)
        await self.send_raw({"type": "heartbeat", "timestamp": time.time()})
        await self.send_raw(
            {"protocol": "AMP/1.0", "type": "handshake", "version": "1.0", "timestamp": time.time()}
        )
        self._reader = asyncio.create_task(self._read())

    async def close(self):
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()

    async def send_raw(self, value):
        await self._socket.send(value if isinstance(value, str | bytes) else json.dumps(value))

    async def closed(self):
        await self._socket.wait_closed()

    async def _read(self):
        async for frame in self._socket:
            assert isinstance(frame, str), "frames are text"
            value = json.loads(frame)
            if "message" not in value:
                if value.get("type") not in ("handshake", "heartbeat"):
                    self.violations.append(value)
                continue
            message = value["message"]
            if not self._is_strict(message):
                self.violations.append(value)
                continue
            self._dispatch(message)

    @staticmethod
    def _is_strict(message):
        return (
            set(message) == MESSAGE_KEYS
            and set(message["headers"]) <= HEADER_KEYS
            and set(message["source"]) <= SOURCE_KEYS
            and "agent_id" in message["source"]
            and set(message["destination"]) <= DESTINATION_KEYS
        )

    def _dispatch(self, message):
        if message["type"] == "request":
            task = asyncio.create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif message["type"] == "event":
            self.events.put_nowait(message)
        else:
            future = self._waiting.pop(message["headers"].get("correlation_id"), None)
            if future is None or future.done():
                self.stray.append(message)
            else:
                future.set_result(message)

    async def _answer(self, message):
        handler = self.handlers.get(message["payload"].get("capability"))
        if handler is None:
            return  # the reference client only logs
        requester = message["source"]["agent_id"]
        try:
            result = await handler(message["payload"].get("parameters") or {})
        except Exception as error:
            payload = {
                "error": {
                    "code": "EXECUTION_ERROR",
                    "message": str(error),
                    "details": {},
                    "timestamp": datetime.now(UTC).isoformat(),
                }
            }
            await self.send_raw(
                envelope(self.agent_id, "error", payload, to=requester, correlation_id=message["id"])
            )
            return
        payload = {"status": "success", "result": result, "metadata": {}}
        await self.send_raw(
            envelope(self.agent_id, "response", payload, to=requester, correlation_id=message["id"])
        )

    async def exchange(self, value, wait_seconds=5):
        """Send an envelope and return the message that answers it."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[value["message"]["id"]] = future
        await self.send_raw(value)
        return await asyncio.wait_for(future, wait_seconds)

    async def request(self, capability, parameters, *, to=None, wait_seconds=5, **headers):
        value = envelope(
            self.agent_id,
            "request",
            {"capability": capability, "parameters": parameters},
            to=to,
            capability=capability,
            **headers,
        )
        return result_of(await self.exchange(value, wait_seconds))

    async def publish(self, event_type, *, to=None, **data):
        await self.send_raw(envelope(self.agent_id, "event", {"event_type": event_type, **data}, to=to))

    async def register(self, *, shape="reference"):
        """Register in the specification's shape, or in the only one that a reference client can send."""
        body = {
            "agent": {"id": self.agent_id, "name": self.agent_id, "framework": "plain"},
            "capabilities": [
                {
                    "id": each,
                    "version": "1.0",
                    "description": "",
                    "input_schema": {"type": "object", "properties": {"text": {"type": "string"}}},
                    "output_schema": {"type": "object"},
                    "constraints": {},
                    "category": "test",
                }
                for each in self.handlers
            ],
            "endpoints": {"invoke": None, "health": "http://127.0.0.1:9/never-fetched"},
            "authentication": {"type": "none", "credentials": {}},
        }
        payload = body if shape == "specification" else {"capability": "registration", "parameters": body}
        value = envelope(self.agent_id, "request", payload, to="registry", capability="registration")
        return result_of(await self.exchange(value))


def result_of(message):
    if message["type"] == "error":
        raise RemoteError(message["payload"]["error"])
    assert message["payload"]["status"] == "success"
    return message["payload"]["result"]
