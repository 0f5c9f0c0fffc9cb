"""Which unfinished instance is an orphan, and what the sweeper does about it."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.state_manager.orphans import OVERDUE_SECONDS, OWNERLESS_SECONDS, Suspect, orphan_of
from agents.state_manager.storage.base import Storage
from agents.state_manager.sweeper import Sweeper
from orchestration.contracts import InboxPutRequest
from orchestration.status import InstanceStatus
from tests.unit.state_manager.store_values import ENGINE, START, ManualClock, make_batch, make_store_clock

SECOND = timedelta(seconds=1)


def make_suspect(**fields: Any) -> Suspect:
    values: dict[str, Any] = {
        "instance_id": "i1",
        "workflow_id": "wf",
        "status": InstanceStatus.RUNNING,
        "owner": ENGINE,
        "owner_lives": True,
        "wake_at": START + timedelta(hours=1),
        "wake_reason": "task a runs",
    }
    return Suspect(**(values | fields))


GONE = {"owner_lives": False}


@pytest.mark.parametrize(
    ("fields", "ownerless_seconds", "code"),
    [
        ({}, None, None),
        ({"status": InstanceStatus.PENDING}, None, None),
        (GONE, None, None),
        (GONE, 0, None),
        (GONE, OWNERLESS_SECONDS, None),
        (GONE, OWNERLESS_SECONDS + 1, "no_owner"),
        (GONE | {"wake_at": None}, OWNERLESS_SECONDS + 1, "no_owner"),
        (GONE | {"wake_at": None}, 5, None),
        ({}, OWNERLESS_SECONDS + 1, None),
        ({"wake_at": None}, None, "no_wake_reason"),
        ({"wake_reason": ""}, None, "no_wake_reason"),
        ({"wake_at": None, "wake_reason": ""}, None, "no_wake_reason"),
        ({"wake_at": START - OVERDUE_SECONDS * SECOND}, None, None),
        ({"wake_at": START - (OVERDUE_SECONDS + 1) * SECOND}, None, "overdue"),
        ({"wake_at": START - timedelta(days=1), "status": InstanceStatus.PAUSED}, None, "overdue"),
        ({"wake_at": START - timedelta(days=1), "wake_reason": ""}, None, "no_wake_reason"),
        ({"status": InstanceStatus.COMPLETED, "wake_at": None}, None, None),
        (GONE | {"status": InstanceStatus.FAILED}, 1e6, None),
    ],
)
def test_orphan_is_what_nothing_will_wake(
    fields: dict[str, Any], ownerless_seconds: float | None, code: str | None
) -> None:
    since = None if ownerless_seconds is None else START - timedelta(seconds=ownerless_seconds)
    orphan = orphan_of(make_suspect(**fields), since, START)
    assert (orphan.code if orphan is not None else None) == code
    if orphan is not None:
        assert (orphan.instance_id, orphan.workflow_id, orphan.owner) == ("i1", "wf", ENGINE)
        assert orphan.reason
        assert orphan.since == {"no_owner": since, "overdue": fields.get("wake_at")}.get(orphan.code)


class Hints:
    """What a sweeper hinted at."""

    def __init__(self, storage: Storage, clock: ManualClock) -> None:
        self.overdue: list[tuple[str, str]] = []
        self.inbox: list[tuple[str, str]] = []
        self.counts: list[int] = []

        async def overdue(instance_id: str, owner: str) -> None:
            self.overdue.append((instance_id, owner))

        async def inbox(instance_id: str, owner: str) -> None:
            self.inbox.append((instance_id, owner))

        async def changed(count: int) -> None:
            self.counts.append(count)

        self.sweeper = Sweeper(
            storage,
            make_store_clock(clock),
            hint_overdue=overdue,
            hint_inbox=inbox,
            hint_changed=changed,
        )


async def put(storage: Storage, name: str, wake_at: datetime | None, **fields: Any) -> None:
    await storage.append([make_batch(name, wake_at=wake_at, wake_reason="task a runs", **fields)])


async def test_sweeper_counts_by_the_time_it_has_seen_and_hints_the_overdue(
    storage: Storage, clock: ManualClock, tmp_path: Path
) -> None:
    hints = Hints(storage, clock)
    await storage.keep_lease(ENGINE, "engine", 3600)
    await put(storage, "overdue", START - timedelta(hours=1))
    await put(storage, "ownerless", START + timedelta(hours=1), owner="gone:1")
    await put(storage, "well", START + timedelta(hours=1))
    await storage.put_inbox(InboxPutRequest(instance_id="well", kind="pause"))
    await hints.sweeper.sweep()
    assert (hints.sweeper.count, hints.overdue, hints.inbox) == (1, [("overdue", ENGINE)], [])
    clock.advance(OWNERLESS_SECONDS + 1)
    await hints.sweeper.sweep()
    assert hints.sweeper.count == 2
    assert hints.overdue == [("overdue", ENGINE)] * 2, "a hint may be lost, so it is given again"
    assert hints.inbox == [("well", ENGINE)]
    answer = await hints.sweeper.answer(1)
    assert (answer.count, len(answer.orphans), answer.checked_at) == (2, 1, clock.now())
    await storage.keep_lease("gone:1", "gone", 3600)
    await hints.sweeper.sweep()
    assert hints.sweeper.count == 1
    await storage.end_lease("gone:1")
    await hints.sweeper.sweep()
    assert hints.sweeper.count == 1, "an owner who is gone again is given his time again"
    assert hints.counts == [1, 2, 1], "told only when the orphans are others than before"
