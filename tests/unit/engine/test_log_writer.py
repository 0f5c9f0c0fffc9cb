"""Appends of many instances in few requests, and none of them left behind."""

import asyncio
from typing import Any

import msgspec
import pytest

from agents.workflow_engine.log_writer import LogWriter
from amp.errors import InsufficientResources
from orchestration import contracts
from orchestration import events as ev
from orchestration.status import InstanceStatus
from tests.builders import at


def batch(instance_id: str, expected_seq: int = 0) -> contracts.AppendBatch:
    event = ev.InstanceAdmitted(at=at(0))
    return contracts.AppendBatch(
        instance_id=instance_id,
        owner="me",
        epoch=1,
        expected_seq=expected_seq,
        events=[contracts.NewEvent(type=ev.type_of(event), at=at(0), data=msgspec.Raw(ev.encode(event)))],
        row=contracts.InstanceRow(
            instance_id=instance_id,
            workflow_id="flow",
            workflow_version="1",
            workflow_name="Flow",
            definition_hash="h",
            status=InstanceStatus.RUNNING,
            created_at=at(0),
        ),
    )


class FakeMesh:
    """Answers appends; `refusals` come first."""

    def __init__(self) -> None:
        self.requests: list[contracts.AppendRequest] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusals = 0

    async def request(self, capability: str, parameters: Any, **options: Any) -> Any:
        await self.gate.wait()
        if self.refusals:
            self.refusals -= 1
            raise InsufficientResources("the disk is full")
        self.requests.append(parameters)
        return contracts.AppendReply(
            outcomes=[
                contracts.AppendOutcome(
                    instance_id=one.instance_id,
                    status="ok",
                    seq=one.expected_seq + len(one.events),
                )
                for one in parameters.batches
            ]
        )


async def test_batches_gather_while_requests_are_on_their_way() -> None:
    mesh = FakeMesh()
    writer = LogWriter(mesh)  # type: ignore[arg-type]
    mesh.gate.clear()
    appends = [asyncio.ensure_future(writer.append(batch(f"i{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    mesh.gate.set()
    outcomes = await asyncio.gather(*appends)
    assert {outcome.status for outcome in outcomes} == {"ok"}
    assert len(mesh.requests) <= 3
    assert sum(len(request.batches) for request in mesh.requests) == 20


async def test_an_append_in_the_moment_a_sender_ends_is_not_left_behind() -> None:
    mesh = FakeMesh()
    writer = LogWriter(mesh)  # type: ignore[arg-type]

    async def chain(name: str) -> None:
        for _ in range(50):
            await writer.append(batch(name))

    async with asyncio.timeout(5):
        await asyncio.gather(*(chain(f"i{n}") for n in range(3)))


async def test_a_refused_append_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = FakeMesh()
    mesh.refusals = 1
    monkeypatch.setattr("agents.workflow_engine.log_writer.RETRY_SECONDS", 0.0)
    outcome = await LogWriter(mesh).append(batch("i"))  # type: ignore[arg-type]
    assert outcome.status == "ok"


async def test_stop_gives_up_what_was_not_answered() -> None:
    mesh = FakeMesh()
    mesh.gate.clear()
    writer = LogWriter(mesh)  # type: ignore[arg-type]
    append = asyncio.ensure_future(writer.append(batch("i")))
    await asyncio.sleep(0)
    await writer.stop()
    with pytest.raises(asyncio.CancelledError):
        await append
