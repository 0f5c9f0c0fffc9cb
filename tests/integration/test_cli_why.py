"""`amp why` and `amp orphans` over a dashboard's REST API."""

import asyncio
import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from cli.errors import CommandError, ExitCode
from cli.why import explain, list_orphans
from orchestration import contracts
from orchestration import events as e
from orchestration.status import InstanceStatus
from runtime.clock import SystemClock
from runtime.settings import WebSettings
from tests.web.fake_mesh import START, FakeMesh
from web.server.application import WebApplication

FLOW = {"id": "flow", "tasks": [{"id": "charge", "outputs": ["x"]}, {"id": "ship", "depends_on": ["charge"]}]}


@pytest.fixture
def mesh() -> FakeMesh:
    mesh = FakeMesh()
    mesh.define(FLOW)
    mesh.create("flow", "ins_1")
    mesh.emit(
        "ins_1",
        e.InstanceAdmitted(at=START),
        e.TaskStarted(at=START, task_id="charge", attempt=1, token="ins_1/charge/1"),
    )
    return mesh


@pytest.fixture
async def server(mesh: FakeMesh) -> AsyncIterator[str]:
    app = WebApplication(WebSettings(port=0), mesh, clock=SystemClock(), random=Random(1))
    port = await app.start(install_libraries=False)
    yield f"http://127.0.0.1:{port}"
    await app.stop()


async def test_why_prints_the_summary_and_each_reason(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = await asyncio.to_thread(explain, server, "ins_1", None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert code is ExitCode.OK
    assert lines[0].startswith("running: charge runs since")
    assert lines[1].startswith("  running: charge runs since")
    assert lines[2].startswith("  dependency_running: ship waits for charge. charge runs")


async def test_why_of_a_task_says_what_may_be_ordered(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await asyncio.to_thread(explain, server, "ins_1", "charge", as_json=False)
    assert capsys.readouterr().out.splitlines()[-1] == "  possible now: skip"
    await asyncio.to_thread(explain, server, "ins_1", "charge", as_json=True)
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["reasons"][0]["code"] == "running"
    assert told["refusals"]["retry"]


async def test_why_of_what_is_not_there_is_not_found(server: str) -> None:
    with pytest.raises(CommandError) as caught:
        await asyncio.to_thread(explain, server, "nope", None, as_json=False)
    assert caught.value.exit_code is ExitCode.NOT_FOUND


async def test_orphans_make_the_command_fail(
    server: str, mesh: FakeMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(list_orphans, server, as_json=False) is ExitCode.OK
    assert capsys.readouterr().out.startswith("no orphans")
    mesh.orphans = [
        contracts.Orphan(
            instance_id="ins_1",
            workflow_id="flow",
            status=InstanceStatus.RUNNING,
            code="overdue",
            reason="it was\x1b[31m due",
        )
    ]
    assert await asyncio.to_thread(list_orphans, server, as_json=False) is ExitCode.FAILED
    shown = capsys.readouterr().out
    assert shown.startswith("ins_1 (flow, running) overdue: it was")
    assert "\x1b" not in shown
