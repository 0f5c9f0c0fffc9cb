"""The REST API over a fake mesh: every row of the table, and every kind of refusal."""

import json
from typing import Any

import aiohttp
import pytest

from amp.errors import RequestTimeout
from orchestration import events as e
from tests.web.fake_mesh import START, FakeMesh, later
from web.server import models
from web.server.routes import ROUTES

JSON = {"Content-Type": "application/json"}


async def problem_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    assert response.content_type == "application/problem+json"
    document = await response.json(content_type=None)
    assert document["status"] == response.status
    assert document["trace_id"] == response.headers["X-Request-Id"]
    assert "Traceback" not in json.dumps(document)
    return document


@pytest.mark.parametrize(
    "path",
    [
        "/api/workflows", "/api/workflows/small", "/api/workflows/ins_1/status", "/api/instances",
        "/api/instances?status=running,failed&limit=5", "/api/instances/ins_1",
        "/api/instances/ins_1/events?after_seq=0", "/api/instances/ins_1/tasks/a", "/api/overview",
        "/api/instances/ins_1/why", "/api/instances/ins_1/tasks/a/why", "/api/health/orphans",
        "/api/metrics", "/api/metrics?metric_type=task&time_range=7d",
        "/api/metrics/workflow/small", "/api/alerts", "/api/performance/report?report_type=summary",
        "/api/performance/report?report_type=trends&include_predictions=true", "/api/dashboard",
        "/api/dashboard?widgets=overview,alerts", "/api/agents", "/healthz", "/readyz", "/health",
    ],
)  # fmt: skip
async def test_every_resource_answers_json(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert isinstance(await response.json(), dict)


async def test_start_answers_201_with_the_instance(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    async with http.post("/api/workflows/small/start", json={"inputs": {"name": "Ada"}}) as response:
        document = await response.json()
        assert response.status == 201
        assert document["instance_id"] in mesh.rows
        assert response.headers["Location"] == f"/api/instances/{document['instance_id']}"


async def test_named_instance_starts_once(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    body = {"inputs": {"name": "Ada"}, "instance_id": "mine"}
    async with http.post("/api/workflows/small/start", json=body) as response:
        assert response.status == 201
    async with http.post("/api/workflows/small/start", json=body) as response:
        assert response.status == 409
        document = await problem_of(response)
        assert (document["instance_id"], document["current_state"]) == ("mine", "pending")


async def test_wrong_inputs_point_at_the_field(http: aiohttp.ClientSession) -> None:
    async with http.post("/api/workflows/small/start", json={"inputs": {}}) as response:
        assert response.status == 422
        assert (await problem_of(response))["errors"][0]["pointer"] == "/name"


async def test_control_orders_are_accepted_without_a_body(http: aiohttp.ClientSession) -> None:
    for order in ("pause", "resume", "stop"):
        async with http.post(f"/api/workflows/ins_1/{order}") as response:
            assert response.status == 202
            assert (await response.json())["accepted"] is True


async def test_order_to_a_finished_instance_is_a_conflict(
    http: aiohttp.ClientSession, mesh: FakeMesh
) -> None:
    mesh.emit("ins_1", e.InstanceCompleted(at=START))
    async with http.post("/api/workflows/ins_1/stop", json={"reason": "no"}) as response:
        assert response.status == 409
        assert (await problem_of(response))["current_state"] == "completed"


async def test_instance_has_tasks_events_and_graph(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    mesh.emit(
        "ins_1",
        e.InstanceAdmitted(at=later(START, 1)),
        e.TaskStarted(at=later(START, 1), task_id="a", attempt=1, token="t"),
        e.TaskCompleted(at=later(START, 2), task_id="a", attempt=1, outputs={"x": "pin is secret-pin"}),
    )
    async with http.get("/api/instances/ins_1") as response:
        document = await response.json()
    assert document["instance"]["status"] == "running"
    assert document["tasks"]["a"]["status"] == "completed"
    assert document["tasks"]["a"]["attempts"][0]["outcome"] == "completed"
    assert document["graph"] == {"nodes": ["a", "b"], "edges": [["a", "b"]]}
    assert [event["seq"] for event in document["events"]["items"]] == [1, 2, 3, 4]
    assert document["instance"]["inputs"]["name"] == "Ada"
    assert "secret-pin" not in json.dumps(document)


async def test_events_continue_after_a_seq(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    for number in range(5):
        mesh.emit("ins_1", e.InstancePaused(at=later(START, number)))
    async with http.get("/api/instances/ins_1/events?after_seq=2&limit=2") as response:
        page = await response.json()
    assert [event["seq"] for event in page["items"]] == [3, 4]
    assert (page["next_after_seq"], page["end"]) == (4, False)
    assert page["items"][0] == {
        "id": "ins_1/3",
        "seq": 3,
        "workflow_instance_id": "ins_1",
        "task_id": None,
        "event_type": "workflow.paused",
        "timestamp": page["items"][0]["timestamp"],
        "data": {},
    }


async def test_cut_values_are_whole_at_the_task(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    large = "y" * 100_000
    mesh.emit(
        "ins_1", e.TaskCompleted(at=START, task_id="a", attempt=1, outputs={"x": large}, primary_output="x")
    )
    async with http.get("/api/instances/ins_1") as response:
        assert "$truncated" in (await response.json())["tasks"]["a"]["outputs"]["x"]
    async with http.get("/api/instances/ins_1/tasks/a") as response:
        assert await response.json() == {"task_id": "a", "outputs": {"x": large}, "result": large}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/workflows/nope", None, 404, "workflow_not_found"),
        ("GET", "/api/workflows/nope/status", None, 404, "instance_not_found"),
        ("GET", "/api/instances/nope", None, 404, "instance_not_found"),
        ("GET", "/api/instances/nope/events", None, 404, "instance_not_found"),
        ("GET", "/api/instances/ins_1/tasks/nope", None, 404, "task_not_found"),
        ("GET", "/api/instances/..%2f..%2fetc", None, 404, "instance_not_found"),
        ("GET", "/api/instances/%3Cscript%3E", None, 404, "instance_not_found"),
        ("GET", "/api/nothing", None, 404, "not_found"),
        ("POST", "/api/workflows/nope/start", b"{}", 404, "workflow_not_found"),
        ("DELETE", "/api/workflows", None, 405, "method_not_allowed"),
        ("GET", "/api/workflows/small/start", None, 405, "method_not_allowed"),
        ("GET", "/api/instances?status=sleeping", None, 400, "invalid_query"),
        ("GET", "/api/instances?limit=0", None, 400, "invalid_query"),
        ("GET", "/api/instances?stauts=failed", None, 400, "invalid_query"),
        ("GET", "/api/instances?limit=5&limit=6", None, 400, "invalid_query"),
        ("GET", "/api/instances?created_after=2026-01-01T00:00:00", None, 400, "invalid_query"),
        ("GET", "/api/performance/report?report_type=poem", None, 400, "invalid_query"),
        ("GET", "/api/dashboard?widgets=clock", None, 400, "invalid_query"),
        ("GET", "/api/metrics?time_range=forever", None, 400, "invalid_query"),
        ("POST", "/api/workflows/small/start", b"{", 400, "invalid_json"),
        ("POST", "/api/workflows/small/start", b"[]", 400, "invalid_json"),
        ("POST", "/api/workflows/small/start", b'{"inputs": {}, "inputs": {}}', 400, "invalid_json"),
        ("POST", "/api/workflows/small/start", b'{"inptus": {}}', 422, "invalid_body"),
        ("POST", "/api/workflows/small/start", b'{"inputs": []}', 422, "invalid_body"),
        ("POST", "/api/workflows/small/start", b'{"inputs": {}, "instance_id": "../x"}', 422, "invalid_body"),
        ("POST", "/api/workflows/ins_1/stop", b'{"duration": 5}', 422, "invalid_body"),
        ("POST", "/api/workflows", b'{"definition": {"id": "x"}}', 422, "invalid_definition"),
        ("POST", "/api/workflows", b'{"definition": "tasks: [", "format": "yaml"}', 422, "invalid_definition"),
        ("POST", "/api/workflows", b" " * 70_000, 413, "body_too_large"),
        ("GET", "/api/ws", None, 426, "upgrade_required"),
    ],
)  # fmt: skip
async def test_bad_request_is_a_problem(
    http: aiohttp.ClientSession, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    headers = JSON if body is not None else {}
    address = http._build_url(path) if "%" not in path else None
    async with http.request(method, address or path, data=body, headers=headers) as response:
        assert (response.status, (await problem_of(response))["code"]) == (status, code)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "text/plain"}, b"{}"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b""),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x--"),
        ({}, b"{}"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"{}"),
    ],
)
async def test_only_plain_json_is_taken(
    http: aiohttp.ClientSession, headers: dict[str, str], body: bytes
) -> None:
    async with http.post(
        "/api/workflows/ins_1/pause", data=body, headers=headers, skip_auto_headers=["Content-Type"]
    ) as response:
        assert response.status == 415
        await problem_of(response)


async def test_misspelt_field_gets_a_suggestion(http: aiohttp.ClientSession) -> None:
    async with http.post("/api/workflows/small/start", json={"inptus": {}}) as response:
        assert "did you mean 'inputs'?" in (await problem_of(response))["errors"][0]["detail"]


async def test_absent_agent_is_503_with_retry_after(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    mesh.absent.add("workflow-start")
    async with http.post("/api/workflows/small/start", json={"inputs": {"name": "x"}}) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
        assert "workflow-start" in (await problem_of(response))["detail"]


async def test_agent_that_does_not_answer_is_504(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    mesh.failing["workflow-status"] = RequestTimeout("late")
    async with http.get("/api/workflows/ins_1/status") as response:
        assert response.status == 504


async def test_bug_is_500_without_its_inside(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    mesh._alert_list = lambda request: 1 / 0  # type: ignore[method-assign, assignment]
    async with http.get("/api/alerts") as response:
        assert response.status == 500
        assert "division" not in json.dumps(await problem_of(response))


async def test_not_connected_is_not_ready_but_alive(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    mesh.connected = False
    for path, status in (("/healthz", 200), ("/readyz", 503), ("/health", 503), ("/api/agents", 503)):
        async with http.get(path) as response:
            assert response.status == status


DEFINITION = """\
id: uploaded
name: Uploaded
tasks:
  - id: one
    type: data_transform
    parameters: {input_data: 1, transformations: []}
"""


async def test_definitions_come_as_object_text_or_file(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    task = {"id": "one", "type": "data_transform", "parameters": {"input_data": 1, "transformations": []}}
    async with http.post("/api/workflows", json={"definition": {"id": "given", "tasks": [task]}}) as response:
        assert response.status == 201
    async with http.post("/api/workflows", json={"definition": DEFINITION}) as response:
        assert (response.status, (await response.json())["workflow_id"]) == (201, "uploaded")
    async with http.post("/api/workflows", json={"definition": DEFINITION}) as response:
        assert response.status == 409
    form = aiohttp.FormData()
    form.add_field("file", DEFINITION.encode(), filename="up.yaml", content_type="application/yaml")
    async with http.post("/api/workflows/upload", data=form) as response:
        assert (response.status, (await response.json())["status"]) == (200, "updated")
    assert mesh.definitions["uploaded"].source == DEFINITION


async def test_bad_file_is_refused_with_line_and_column(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    form = aiohttp.FormData()
    form.add_field("file", DEFINITION.replace("type: data", "tpye: data").encode(), filename="up.yaml")
    async with http.post("/api/workflows/upload", data=form) as response:
        assert response.status == 422
        document = await problem_of(response)
    assert any(entry.get("line") == 5 for entry in document["errors"])
    assert "uploaded" not in mesh.definitions


@pytest.mark.parametrize("name", ["up.exe", "up"])
async def test_other_files_are_refused(http: aiohttp.ClientSession, name: str) -> None:
    form = aiohttp.FormData()
    form.add_field("file", b"id: x", filename=name)
    async with http.post("/api/workflows/upload", data=form) as response:
        assert response.status == 415


async def test_validate_says_everything_and_stores_nothing(
    http: aiohttp.ClientSession, mesh: FakeMesh
) -> None:
    before = dict(mesh.definitions)
    async with http.post("/api/workflows/validate", json={"definition": DEFINITION}) as response:
        assert (await response.json())["valid"] is True
    broken = {"definition": DEFINITION.replace("one", "one two")}
    async with http.post("/api/workflows/validate", json=broken) as response:
        document = await response.json()
    assert document["valid"] is False
    assert document["problems"][0]["line"]
    assert mesh.definitions == before


def test_every_model_that_a_route_names_exists() -> None:
    for name in {name for route in ROUTES for name in (route.body, route.query) if name}:
        assert issubclass(getattr(models, name), models.Model)


def test_every_route_is_described_once() -> None:
    rows = [(route.method, route.path) for route in ROUTES]
    assert len(rows) == len(set(rows))
    assert all(route.summary for route in ROUTES)
    for route in ROUTES:
        assert set(route.what) == {
            part.strip("{}") for part in route.path.split("/") if part[:1] == "{" and route.what
        }
