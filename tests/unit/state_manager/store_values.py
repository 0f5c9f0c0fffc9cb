"""Values and a clock for the tests of the state manager."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from agents.state_manager.store_clock import StoreClock
from orchestration.contracts import (
    AppendBatch,
    DefinitionPutRequest,
    DefinitionRecord,
    InstanceRow,
    NewEvent,
)
from orchestration.status import InstanceStatus

START = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)
WAIT_SECONDS = 5.0
ENGINE = "engine:ses_1"


class ManualClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.wall = START
        self.seconds = 100.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.seconds += seconds


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return as soon as the condition holds; fail when it does not within five seconds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.001)


def make_store_clock(clock: ManualClock | None = None) -> StoreClock:
    return StoreClock(clock or ManualClock())


def make_event(type: str = "task.started", data: bytes = b"{}") -> NewEvent:
    return NewEvent(type=type, at=START, data=msgspec.Raw(data))


def make_row(instance_id: str = "i1", **fields: Any) -> InstanceRow:
    values: dict[str, Any] = {
        "workflow_id": "wf",
        "workflow_version": "1.0",
        "workflow_name": "A workflow",
        "definition_hash": "h1",
        "status": InstanceStatus.RUNNING,
        "created_at": START,
    }
    return InstanceRow(instance_id=instance_id, **(values | fields))


def make_batch(
    instance_id: str = "i1",
    expected_seq: int = 0,
    *,
    owner: str = ENGINE,
    epoch: int = 1,
    events: list[NewEvent] | int = 1,
    consumed: list[int] | None = None,
    **row: Any,
) -> AppendBatch:
    made = (
        [make_event(data=b'{"n": %d}' % (expected_seq + number)) for number in range(events)]
        if isinstance(events, int)
        else events
    )
    return AppendBatch(
        instance_id=instance_id,
        owner=owner,
        epoch=epoch,
        expected_seq=expected_seq,
        events=made,
        row=make_row(instance_id, **row),
        consumed_inbox_ids=consumed or [],
    )


def make_definition(
    workflow_id: str = "wf", version: str = "1.0", content_hash: str = "h1", **content: Any
) -> DefinitionRecord:
    return DefinitionRecord(
        workflow_id=workflow_id,
        version=version,
        name="A workflow",
        hash=content_hash,
        content=content or {"a": 1},
    )


def put_definition(overwrite: bool = False, **fields: Any) -> DefinitionPutRequest:
    return DefinitionPutRequest(definition=make_definition(**fields), overwrite=overwrite)
