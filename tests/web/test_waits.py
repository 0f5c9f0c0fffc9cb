"""What waits, over REST: reasons, orders about one task, orphans. The machine behind the fake mesh is the real one."""

from datetime import timedelta
from typing import Any

import aiohttp
import pytest

from orchestration import contracts
from orchestration import events as e
from orchestration.status import InstanceStatus
from orchestration.surroundings import Offerer, Surroundings
from tests.web.fake_mesh import START, FakeMesh
from tests.web.test_rest import problem_of

WHY = "/api/instances/ins_1/why"
TASK = "/api/instances/ins_1/tasks/a"


def under_way(mesh: FakeMesh) -> None:
    mesh.emit(
        "ins_1",
        e.InstanceAdmitted(at=START),
        e.TaskStarted(at=START, task_id="a", attempt=1, token="ins_1/a/1"),
    )


def of_unknown_outcome(mesh: FakeMesh) -> None:
    mesh.definitions["small"].content["tasks"][0]["effects"] = "once"
    under_way(mesh)
    mesh.emit(
        "ins_1",
        e.AttemptLost(at=START, task_id="a", attempt=1, reason="gone"),
        e.TaskOutcomeUnknown(at=START, task_id="a", attempt=1, token="ins_1/a/1", reason="gone"),
    )


def failed(mesh: FakeMesh) -> None:
    under_way(mesh)
    error = e.ErrorInfo(code="BROKEN", message="secret-pin was refused")
    mesh.emit(
        "ins_1",
        e.AttemptFailed(at=START, task_id="a", attempt=1, error=error),
    )


async def answer(http: aiohttp.ClientSession, path: str) -> Any:
    async with http.get(path) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def test_an_instance_says_what_it_waits_for(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    under_way(mesh)
    full = (Offerer(agent_id="executor-1", in_flight=8, max_in_flight=8),)
    mesh.surroundings["ins_1"] = Surroundings(offers={"task-data-transform": full})
    told = await answer(http, WHY)
    assert (told["instance_id"], told["status"]) == ("ins_1", "running")
    assert [(reason["code"], reason["task_id"]) for reason in told["reasons"]] == [
        ("agents_busy", "a"),
        ("dependency_waiting", "b"),
    ]
    assert told["summary"].startswith("a waits in the mesh")
    assert told["reasons"][0]["until"]
    assert told["reasons"][0]["held_by"] == "executor-1"


async def test_a_task_says_what_it_waits_for_and_what_may_be_ordered(
    http: aiohttp.ClientSession, mesh: FakeMesh
) -> None:
    of_unknown_outcome(mesh)
    told = await answer(http, f"{TASK}/why")
    assert (told["status"], told["reasons"][0]["code"]) == ("outcome_unknown", "outcome_unknown_needs_person")
    assert told["refusals"] == {"retry": "", "skip": "", "complete": ""}


async def test_secrets_stay_out_of_reasons(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    failed(mesh)
    told = await answer(http, WHY)
    assert "was refused" in told["summary"]
    assert "secret-pin" not in str(told)


async def test_a_silent_store_is_told_though_nobody_can_say_what_is_secret(
    http: aiohttp.ClientSession, mesh: FakeMesh
) -> None:
    failed(mesh)
    mesh.absent.add("instance-get")
    async with http.get(WHY) as response:
        assert response.status == 503
    mesh.surroundings["ins_1"] = Surroundings(store_answers=False)
    told = await answer(http, WHY)
    assert [reason["code"] for reason in told["reasons"]] == ["store_unavailable"]
    assert "secret-pin" not in str(told)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/instances/nope/why", "instance_not_found"),
        ("/api/instances/ins_1/tasks/nope/why", "task_not_found"),
        ("/api/instances/ins_1/tasks/no%20id/why", "task_not_found"),
    ],
)
async def test_what_is_not_there_is_not_found(http: aiohttp.ClientSession, path: str, code: str) -> None:
    async with http.get(path) as response:
        assert response.status == 404
        assert (await problem_of(response))["code"] == code


async def test_a_person_completes_what_nobody_knows(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    of_unknown_outcome(mesh)
    body = {"outputs": {"x": 7}, "reason": "seen at the provider"}
    async with http.post(f"{TASK}/complete", json=body) as response:
        assert response.status == 202
        assert response.headers["Location"] == "/api/instances/ins_1"
        assert await response.json() == {"accepted": True, "instance_id": "ins_1", "task_id": "a"}
    document = await answer(http, "/api/instances/ins_1")
    assert document["tasks"]["a"]["status"] == "completed"
    assert document["tasks"]["a"]["outputs"] == {"x": 7}


@pytest.mark.parametrize(("order", "status"), [("retry", "running"), ("skip", "skipped")])
async def test_a_person_decides_otherwise(
    http: aiohttp.ClientSession, mesh: FakeMesh, order: str, status: str
) -> None:
    of_unknown_outcome(mesh)
    async with http.post(f"{TASK}/{order}", json={"reason": "not seen there"}) as response:
        assert response.status == 202
    told = await answer(http, f"{TASK}/why")
    assert told["status"] == status
    assert "not seen there" in str([request for name, request in mesh.requests if name == f"task-{order}"])


async def test_an_impossible_order_is_a_conflict_with_what_is_possible(
    http: aiohttp.ClientSession, mesh: FakeMesh
) -> None:
    under_way(mesh)
    async with http.post(f"{TASK}/retry") as response:
        assert response.status == 409
        problem = await problem_of(response)
    assert (problem["code"], problem["current_state"], problem["allowed"]) == (
        "state_conflict",
        "running",
        ["skip"],
    )
    async with http.post(f"{TASK}/complete", json={"outputs": {}}) as response:
        assert response.status == 409


@pytest.mark.parametrize(
    ("order", "body", "status"),
    [
        ("complete", {"outputs": [1]}, 422),
        ("complete", {"output": {}}, 422),
        ("skip", {"reason": "x" * 501}, 422),
        ("retry", {"outputs": {}}, 422),
    ],
)
async def test_a_body_that_does_not_fit_is_refused(
    http: aiohttp.ClientSession, mesh: FakeMesh, order: str, body: Any, status: int
) -> None:
    of_unknown_outcome(mesh)
    async with http.post(f"{TASK}/{order}", json=body) as response:
        assert response.status == status
        await problem_of(response)


async def test_orphans_are_listed(http: aiohttp.ClientSession, mesh: FakeMesh) -> None:
    assert (await answer(http, "/api/health/orphans"))["count"] == 0
    mesh.orphans = [
        contracts.Orphan(
            instance_id=f"ins_{number}",
            workflow_id="small",
            status=InstanceStatus.RUNNING,
            code="no_owner",
            reason="no engine owns it",
            since=START - timedelta(seconds=number),
        )
        for number in range(3)
    ]
    told = await answer(http, "/api/health/orphans?limit=2")
    assert (told["count"], len(told["orphans"])) == (3, 2)
    assert told["orphans"][0]["code"] == "no_owner"
    overview = await answer(http, "/api/overview")
    assert overview["orphans"]["count"] == 3
    mesh.absent.add("instance-orphans")
    assert (await answer(http, "/api/overview"))["orphans"] == {"count": 0, "items": []}
    async with http.get("/api/health/orphans") as response:
        assert response.status == 503
