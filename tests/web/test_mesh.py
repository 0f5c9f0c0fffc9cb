"""The dashboard on a real mesh: router, six agents and memory transport, real code throughout."""

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from amp.client import AgentIdentity, MeshClient
from runtime.clock import SystemClock
from runtime.settings import WebSettings
from tests.mesh import running_mesh
from web.server.application import WebApplication

WAIT_SECONDS = 15
WORKFLOW: dict[str, Any] = {
    "id": "greet",
    "input_schema": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "word": {"type": "string", "default": "Hola"}},
        "required": ["name"],
    },
    "output_schema": {"type": "object", "properties": {"greeting": {"type": "string"}}},
    "tasks": [
        {"id": "check", "type": "validation", "outputs": ["checked"],
         "parameters": {"data": "{user_input}", "rules": [{"type": "required", "field": "name"}]}},
        {"id": "never", "type": "data_transform", "depends_on": ["check"], "condition": {"expression": "name == 'Bob'"},
         "parameters": {"input_data": 1, "transformations": []}},
        {"id": "greet", "type": "data_transform", "depends_on": ["check"], "outputs": ["greeting"],
         "parameters": {"input_data": "{word}, {name}!", "transformations": []}},
    ],
}  # fmt: skip


async def test_a_workflow_runs_from_upload_to_its_greeting(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        identity = AgentIdentity(
            id="web-dashboard", name="web", version="1", framework="amp", session_id="s-web"
        )
        client = MeshClient(identity, mesh.network.transport(), random=Random(5))
        app = WebApplication(WebSettings(port=0), client, clock=SystemClock(), random=Random(6))
        port = await app.start(install_libraries=False)
        await client.start(wait_seconds=WAIT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
                asyncio.timeout(WAIT_SECONDS),
            ):
                await _walk(http)
        finally:
            await app.stop()
            await client.stop(drain_seconds=1)


async def _walk(http: aiohttp.ClientSession) -> None:
    form = aiohttp.FormData()
    form.add_field("file", json.dumps(WORKFLOW).encode(), filename="greet.json")
    async with http.post("/api/workflows/upload", data=form) as response:
        assert response.status == 201, await response.text()
    async with http.post("/api/workflows/greet/start", json={"inputs": {}}) as response:
        assert response.status == 422
        assert (await response.json(content_type=None))["errors"][0]["pointer"] == "/name"

    page = await http.ws_connect("/api/ws", protocols=["amp.ui.v1"])
    await page.send_json({"op": "sub", "id": 1, "topic": "overview"})
    body = {"inputs": {"name": "Ada"}, "instance_id": "mine"}
    async with http.post("/api/workflows/greet/start", json=body) as response:
        assert response.status == 201
    await page.send_json({"op": "sub", "id": 2, "topic": "instance:mine"})
    seen, last = await _until_completed(page)
    assert seen == list(range(seen[0], seen[-1] + 1))

    async with http.get("/api/workflows/mine/status") as response:
        status = await response.json()
    async with http.get("/api/instances/mine") as response:
        document = await response.json()
    assert status["instance"]["outputs"] == {"greeting": "Hola, Ada!"} == document["instance"]["outputs"]
    assert document["seq"] == last
    for task_id, task in status["tasks"].items():
        ours = document["tasks"][task_id]
        assert (ours["status"], ours["outputs"], ours["attempt_count"]) == (
            task["status"], task["outputs"], task["attempt_count"],
        )  # fmt: skip
    assert document["tasks"]["never"]["skip"]["reason"] == "condition_false"
    assert document["tasks"]["greet"]["attempts"][0]["agent_id"] == "task-executor-1"
    async with http.get("/api/agents") as response:
        assert (await response.json())["missing"] == []
    async with http.post("/api/workflows/mine/stop") as response:
        assert response.status == 409
    for path in (
        "metrics",
        "metrics/workflow/greet",
        "alerts",
        "performance/report",
        "dashboard",
        "overview",
    ):
        async with http.get(f"/api/{path}") as response:
            assert response.status == 200, path
    async with http.get("/api/metrics/workflow/nothing") as response:
        assert response.status == 404


async def _until_completed(page: aiohttp.ClientWebSocketResponse) -> tuple[list[int], int]:
    """Return the sequence numbers heard, and the last, once instance and overview say completed."""
    seen: list[int] = []
    instance_done = overview_done = False
    while not (instance_done and overview_done):
        frame = json.loads((await page.receive()).data)
        if frame["op"] == "snapshot" and frame["id"] == 2:
            seen.append(frame["seq"])
            instance_done = frame["data"]["instance"]["status"] == "completed"
        elif frame["op"] == "events":
            seen.extend(event["seq"] for event in frame["events"])
            instance_done = frame["events"][-1]["type"] == "workflow.completed"
        elif frame.get("id") == 1:
            row = frame["data"].get("items", {}).get("mine")
            overview_done = overview_done or (row is not None and row["status"] == "completed")
    return seen, seen[-1]
