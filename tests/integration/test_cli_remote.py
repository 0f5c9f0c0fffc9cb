"""`amp run --server` and the demo against a stand-in for the dashboard: refusals, interruptions, hostile answers."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cli import demo
from cli.errors import CommandError, ExitCode
from cli.http import Server
from cli.progress import Progress
from cli.remote import RemoteRunner, watch
from cli.run import Job, Outcome
from web.server.instances import event_record

EVENTS: list[dict[str, Any]] = [
    {"seq": 1, "type": "workflow.started", "at": "2026-01-01T00:00:00Z"},
    {"seq": 2, "type": "task.started", "at": "2026-01-01T00:00:00Z", "task_id": "a", "attempt": 1},
    {"seq": 3, "type": "task.completed", "at": "2026-01-01T00:00:01Z", "task_id": "a"},
    {"seq": 4, "type": "workflow.completed", "at": "2026-01-01T00:00:01Z", "outputs": {"greeting": "Hi"}},
]
JOB = Job(
    workflow_id="hello-world-workflow", definition={"id": "x"}, text="", format="json", inputs={"name": "Ada"}
)


class Lines:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


class Dashboard:
    """Answers like the dashboard; `past` events are in the pages, the rest comes live, `cut` after each connection."""

    def __init__(self, past: int = 0, *, per_connection: int = 100) -> None:
        self.past = past
        self.per_connection = per_connection
        self.connections = 0
        self.refusal: tuple[int, dict[str, Any]] | None = None
        self.posted: list[tuple[str, Any]] = []
        self.status = "completed"
        self.snapshots = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/api/workflows", self.post)
        app.router.add_post("/api/workflows/{id}/start", self.post)
        app.router.add_get("/api/workflows/{id}/status", self.get_status)
        app.router.add_get("/api/instances/{id}/events", self.get_events)
        app.router.add_get("/api/ws", self.live)
        return app

    async def post(self, request: web.Request) -> web.Response:
        self.posted.append((request.path, await request.json()))
        if self.refusal is not None:
            status, problem = self.refusal
            return web.json_response(problem, status=status)
        return web.json_response({"instance_id": "ins_1"}, status=201)

    async def get_status(self, request: web.Request) -> web.Response:
        outputs = {"greeting": "Hi"} if self.status == "completed" else {}
        return web.json_response(
            {"instance": {"status": self.status, "outputs": outputs}, "tasks": {"a": {}}}
        )

    async def get_events(self, request: web.Request) -> web.Response:
        after = int(request.query["after_seq"])
        items = [event for event in EVENTS[: self.past] if int(str(event["seq"])) > after][:2]
        records = [event_record("ins_1", event) for event in items]
        return web.json_response({"items": records, "end": after + len(items) >= self.past})

    async def live(self, request: web.Request) -> web.WebSocketResponse:
        self.connections += 1
        socket = web.WebSocketResponse(protocols=["amp.ui.v1"])
        await socket.prepare(request)
        asked = json.loads(await socket.receive_str())
        assert asked["topic"] == "instance:ins_1"
        await socket.send_json({"op": "ping", "t": 1})
        assert json.loads(await socket.receive_str()) == {"op": "pong"}
        if self.snapshots:
            self.snapshots -= 1
            self.past = len(EVENTS)
            await socket.send_json({"op": "snapshot", "id": 1, "data": {"seq": len(EVENTS)}})
        else:
            new = [event for event in EVENTS if int(str(event["seq"])) > asked["after"]][
                : self.per_connection
            ]
            await socket.send_json({"op": "events", "id": 1, "events": [*EVENTS[: asked["after"]], *new]})
        await socket.close()
        return socket


@asynccontextmanager
async def serving(dashboard: Dashboard) -> AsyncIterator[str]:
    async with TestServer(dashboard.app()) as server:
        yield str(server.make_url("/")).rstrip("/")


async def watched(url: str, lines: Lines) -> Outcome:
    async with Server(url) as server:
        return await watch(server, "w", "ins_1", Progress(lines))  # type: ignore[arg-type]


async def test_definition_is_stored_then_started_then_watched() -> None:
    dashboard, lines = Dashboard(), Lines()
    async with serving(dashboard) as url:
        outcome = await RemoteRunner(url).run(JOB, Progress(lines))  # type: ignore[arg-type]
    assert dashboard.posted == [
        ("/api/workflows", {"definition": {"id": "x"}, "overwrite": True}),
        ("/api/workflows/hello-world-workflow/start", {"inputs": {"name": "Ada"}}),
    ]
    assert (outcome.status, outcome.outputs, outcome.error) == ("completed", {"greeting": "Hi"}, None)
    assert lines.text == f"instance ins_1: {url}/instances/ins_1\n  ✓ a 1.00 s\n"


@pytest.mark.parametrize("past", [0, 1, 3, 4])
async def test_every_event_is_told_once_wherever_the_live_channel_begins(past: int) -> None:
    dashboard, lines = Dashboard(past), Lines()
    async with serving(dashboard) as url:
        await watched(url, lines)
    assert lines.text == "  ✓ a 1.00 s\n"
    assert dashboard.connections == (0 if past == 4 else 1)


async def test_broken_connection_is_taken_up_where_it_was() -> None:
    dashboard, lines = Dashboard(per_connection=1), Lines()
    async with serving(dashboard) as url:
        await watched(url, lines)
    assert dashboard.connections == 4
    assert lines.text == "  ✓ a 1.00 s\n"


async def test_snapshot_sends_the_watcher_back_to_the_pages() -> None:
    dashboard, lines = Dashboard(past=1), Lines()
    dashboard.snapshots = 1
    async with serving(dashboard) as url:
        outcome = await watched(url, lines)
    assert outcome.status == "completed"
    assert lines.text == "  ✓ a 1.00 s\n"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ExitCode.USAGE),
        (404, ExitCode.NOT_FOUND),
        (409, ExitCode.CONFLICT),
        (422, ExitCode.INVALID),
        (503, ExitCode.UNREACHABLE),
        (500, ExitCode.FAILED),
    ],
)
async def test_problem_becomes_a_sentence_and_an_exit_code(status: int, code: ExitCode) -> None:
    dashboard = Dashboard()
    problem = {"detail": "it is so", "errors": [{"pointer": "/inputs/a", "detail": "must be a number"}]}
    dashboard.refusal = (status, problem)
    async with serving(dashboard) as url:
        with pytest.raises(CommandError, match="it is so\n  /inputs/a must be a number") as refused:
            await RemoteRunner(url).run(JOB, Progress(Lines()))  # type: ignore[arg-type]
    assert refused.value.exit_code == code


async def asked(dashboard: TestServer, name: str) -> object:
    async with Server(str(dashboard.make_url("/"))) as server:
        return await server.get("api", name)


async def test_answer_that_is_no_problem_document_is_told_by_its_status() -> None:
    app = web.Application()
    async with TestServer(app) as server:
        with pytest.raises(CommandError, match="HTTP 404") as refused:
            await asked(server, "nothing")
    assert refused.value.exit_code == ExitCode.NOT_FOUND


async def test_answer_that_is_no_json_is_told() -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    app = web.Application()
    app.router.add_get("/api/x", page)
    async with TestServer(app) as server:
        with pytest.raises(CommandError, match="is it the dashboard"):
            await asked(server, "x")


async def test_names_are_quoted_in_addresses() -> None:
    dashboard = Dashboard()
    async with serving(dashboard) as url, Server(url) as server:
        await server.post("api", "workflows", "a/../b?c", "start", body={})
    assert dashboard.posted[0][0] == "/api/workflows/a/../b?c/start"


async def test_demo_returns_the_greeting() -> None:
    async with serving(Dashboard()) as url:
        assert await demo.greet(url, timeout_seconds=30) == "Hi"


async def test_demo_tells_that_the_workflow_failed() -> None:
    dashboard = Dashboard()
    dashboard.status = "failed"
    async with serving(dashboard) as url:
        with pytest.raises(CommandError, match="hello-world-workflow failed"):
            await demo.greet(url, timeout_seconds=30)
