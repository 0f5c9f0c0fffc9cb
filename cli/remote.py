"""Runs a job on a mesh that is up already, through its dashboard: REST to start it, the live channel to watch it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Origin, Subprotocol

from cli.errors import CommandError, ExitCode
from cli.http import Server
from cli.progress import ENDS, Progress
from cli.run import Job, Outcome

SUBPROTOCOL = "amp.ui.v1"
MAX_FRAME_BYTES = 16 * 1024 * 1024
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 5.0
MAX_RETRIES = 20
PAGE_EVENTS = 500


class RemoteRunner:
    """Runs a job through the dashboard at `url`."""

    def __init__(self, url: str) -> None:
        self._server = Server(url)

    async def run(self, job: Job, progress: Progress) -> Outcome:
        """Return how the instance ended. Raises: CommandError when the server refuses it or is gone for long."""
        async with self._server as server:
            await server.post("api", "workflows", body={"definition": job.definition, "overwrite": True})
            instance_id = await start(server, job.workflow_id, job.inputs, job.idempotency_key)
            progress.say(f"instance {instance_id}: {server.url}/instances/{instance_id}")
            return await watch(server, job.workflow_id, instance_id, progress)


async def start(
    server: Server, workflow_id: str, inputs: Mapping[str, Any], idempotency_key: str = ""
) -> str:
    """Return the id of the instance that was started, by this request or by an earlier one with the same key."""
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    started = await server.post(
        "api", "workflows", workflow_id, "start", body={"inputs": inputs}, headers=headers
    )
    return str(started["instance_id"])


async def watch(server: Server, workflow_id: str, instance_id: str, progress: Progress) -> Outcome:
    """Tell an instance's events until it ends and return how it did. A broken connection is taken up where it was."""
    last_error: Any = None
    async for event in _events(server, instance_id):
        progress.tell(event)
        last_error = event.get("error") if event["type"] in ENDS else last_error
    status = await server.get("api", "workflows", instance_id, "status")
    instance = status["instance"]
    message = instance.get("error_message")
    return Outcome(
        instance_id=instance_id,
        workflow_id=workflow_id,
        status=str(instance["status"]),
        outputs=instance.get("outputs") or {},
        error=last_error or ({"message": message} if message else None),
        tasks=status.get("tasks") or {},
    )


async def _events(server: Server, instance_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the instance's events from the first up to the one that ends it, through interruptions.

    Raises: CommandError (unreachable) after many failures in a row.
    """
    seq, failures = 0, 0
    while True:
        reason: Exception | str = "the connection was closed"
        try:
            async for event in _past_and_present(server, instance_id, seq):
                failures, seq = 0, int(event["seq"])
                yield event
                if event["type"] in ENDS:
                    return
        except (OSError, WebSocketException, TimeoutError) as error:
            reason = error
        except CommandError as error:
            if error.exit_code != ExitCode.UNREACHABLE:
                raise
            reason = error
        failures += 1
        if failures > MAX_RETRIES:
            raise CommandError(
                f"{server.url} is lost ({reason}); instance {instance_id} goes on without us",
                ExitCode.UNREACHABLE,
            )
        await asyncio.sleep(min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0**failures))


async def _past_and_present(server: Server, instance_id: str, seq: int) -> AsyncIterator[dict[str, Any]]:
    """Yield the events after `seq`: first those that happened, a page at a time, then those that happen."""
    while True:
        page = await server.get("api", "instances", instance_id, "events", after_seq=seq, limit=PAGE_EVENTS)
        for record in page["items"]:
            seq = int(record["seq"])
            yield _flat(record)
        if page["end"] or not page["items"]:
            break
    async for frame in _frames(server, instance_id, seq):
        for event in _events_of(frame):
            if int(event["seq"]) > seq:
                seq = int(event["seq"])
                yield event
        if frame.get("op") == "snapshot" and int(frame["data"]["seq"]) > seq:
            return  # too far behind for the live channel: the pages have what is missing


async def _frames(server: Server, instance_id: str, after: int) -> AsyncIterator[dict[str, Any]]:
    """Yield the frames of the live channel about an instance until the server ends it."""
    parts = urlsplit(server.url)
    async with connect(
        server.websocket_url,
        origin=Origin(f"{parts.scheme}://{parts.netloc}"),
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        max_size=MAX_FRAME_BYTES,
        proxy=None,
    ) as socket:
        topic = f"instance:{instance_id}"
        await socket.send(json.dumps({"op": "sub", "id": 1, "topic": topic, "after": after}))
        async for text in socket:
            frame = json.loads(text)
            match frame.get("op"):
                case "ping":
                    await socket.send(json.dumps({"op": "pong"}))
                case "resync":
                    return
                case "error":
                    raise CommandError(
                        str(frame.get("detail", "the live channel refused")), ExitCode.NOT_FOUND
                    )
                case _:
                    yield frame


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event record of the pages in the shape of the live channel."""
    event = {**record["data"], "seq": record["seq"], "type": record["event_type"], "at": record["timestamp"]}
    return event if record["task_id"] is None else {**event, "task_id": record["task_id"]}


def _events_of(frame: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(frame.get("events", ())) if frame.get("op") == "events" else []
