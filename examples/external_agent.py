"""An agent from outside: offers `text-uppercase` to the mesh with nothing but the `websockets` library.

    python examples/external_agent.py [ws://127.0.0.1:8079/amp/v1/ws]

It imports nothing of this project; any language with JSON and WebSockets can do the same. A workflow uses it with
`capability: text-uppercase` and `parameters: {text: "{some_input}"}`. The messages are explained in docs/protocol.md.
"""

import asyncio
import json
import sys
import uuid
from datetime import UTC, datetime

from websockets.asyncio.client import connect

AGENT_ID = "external-uppercase"
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
REGISTRATION = {
    "agent": {"id": AGENT_ID, "name": "Upper case from outside", "version": "1.0", "framework": "none"},
    "capabilities": [
        {"id": "text-uppercase", "version": "1.0", "description": "Text in capitals", "category": "text",
         "input_schema": TEXT, "output_schema": TEXT, "constraints": {}}
    ],
}  # fmt: skip


def message(kind: str, destination: dict, headers: dict, payload: dict) -> str:
    """Return one frame: an AMP envelope as JSON text."""
    body = {"id": str(uuid.uuid4()), "type": kind, "timestamp": datetime.now(UTC).isoformat(),
            "source": {"agent_id": AGENT_ID}, "destination": destination, "headers": headers,
            "payload": payload}  # fmt: skip
    return json.dumps({"protocol": "AMP/1.0", "message": body})


def answer(request: dict) -> str:
    """Return the reply to a request: a response, or an error that says what was wrong."""
    to = {"agent_id": request["source"]["agent_id"]}
    headers = {"correlation_id": request["id"]}
    text = request["payload"].get("parameters", {}).get("text")
    if isinstance(text, str):
        return message(
            "response", to, headers, {"status": "success", "result": {"text": text.upper()}, "metadata": {}}
        )
    error = {"code": "INVALID_PARAMETERS", "message": "'text' must be a text", "details": {"path": "$.text"},
             "timestamp": datetime.now(UTC).isoformat()}  # fmt: skip
    return message("error", to, headers, {"error": error})


async def main(url: str) -> None:
    """Serve, and connect again whenever the connection is gone."""
    async for socket in connect(url):
        await socket.send(
            message("request", {"agent_id": "registry", "capability": "registration"}, {}, REGISTRATION)
        )
        async for frame in socket:
            incoming = json.loads(frame).get("message", {})
            if incoming.get("type") == "request":
                await socket.send(answer(incoming))
            elif incoming.get("type") in ("response", "error"):
                print(incoming["payload"], flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8079/amp/v1/ws"))
