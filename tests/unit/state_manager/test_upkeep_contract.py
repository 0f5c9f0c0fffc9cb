"""What every storage does alike about room, orphans and what is old. Each test runs against each storage."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from agents.state_manager.errors import StoreFull
from agents.state_manager.state_values import change_keys
from agents.state_manager.storage import base
from agents.state_manager.storage.base import Purged, Storage, StoredContext
from orchestration.contracts import (
    InboxPutRequest,
    InboxReadRequest,
    InstanceListRequest,
    LogReadRequest,
)
from orchestration.status import InstanceStatus
from tests.unit.state_manager.store_values import ENGINE, START, ManualClock, make_batch, put_definition

LATER = START + timedelta(days=1)
LIMIT = 100


async def put(storage: Storage, *args: Any, **fields: Any) -> str:
    (outcome,) = await storage.append([make_batch(*args, **fields)])
    return outcome.status


async def end(storage: Storage, name: str, ended: datetime, *, events: int = 2, **fields: Any) -> None:
    values = {"status": InstanceStatus.COMPLETED, "completed_at": ended} | fields
    assert await put(storage, name, events=events, **values) == "ok"


async def offsets(storage: Storage, after: int = 0, **more: Any) -> list[int]:
    page = await storage.read_log(LogReadRequest(after=after, **more))
    return [event.offset for event in page.events]


# --- room ---------------------------------------------------------------------------------------------------


async def test_full_store_takes_nothing_new_and_lets_running_work_go_on(storage: Storage) -> None:
    await put(storage, "running")
    await storage.change_state("s", change_keys({"a": 1}, replace=False, description="", max_bytes=99))
    storage.room.give()
    (new, extended) = await storage.append([make_batch("new"), make_batch("running", 1)])
    assert (new.status, new.seq, extended.status) == ("full", 0, "ok")
    assert await storage.get_instance("new") is None
    (repeated,) = await storage.append([make_batch("running")])
    assert repeated.status == "ok", "a start that was stored is acknowledged again"
    reply, _ = await storage.put_inbox(InboxPutRequest(instance_id="running", kind="pause"))
    assert reply.open
    await storage.keep_lease(ENGINE, "engine", 5)
    for refused in (
        storage.put_definition(put_definition()),
        storage.change_state("s", change_keys({"a": 2}, replace=False, description="", max_bytes=99)),
        storage.change_context(
            "c", lambda stored: StoredContext(context_id="c", session_id="", created_at=START)
        ),
    ):
        with pytest.raises(StoreFull) as caught:
            await refused
        assert caught.value.details["retry_after_ms"] > 0
    assert await storage.change_state("s", lambda stored: None) is None, "what makes room is allowed"
    assert await storage.room.recover(storage.probe)
    assert await put(storage, "new") == "ok"
    await storage.put_definition(put_definition())


# --- orphans ------------------------------------------------------------------------------------------------


async def test_suspects_are_those_that_may_not_be_woken(storage: Storage, clock: ManualClock) -> None:
    await storage.keep_lease(ENGINE, "engine", 3600)
    well = {"wake_at": LATER, "wake_reason": "task a runs"}
    await put(storage, "well", **well)
    await put(storage, "due", **(well | {"wake_at": START}))
    await put(storage, "no-time", wake_reason="task a runs")
    await put(storage, "no-reason", wake_at=LATER)
    await put(storage, "ownerless", owner="gone:1", **well)
    await end(storage, "ended", START)
    found = {suspect.instance_id: suspect for suspect in await storage.suspects(START, LIMIT)}
    assert set(found) == {"due", "no-time", "no-reason", "ownerless"}
    assert {name for name, suspect in found.items() if suspect.owner_lives} == {"due", "no-time", "no-reason"}
    due = found["due"]
    assert (due.workflow_id, due.status, due.owner) == ("wf", InstanceStatus.RUNNING, ENGINE)
    assert (due.wake_at, due.wake_reason) == (START, "task a runs")
    assert len(await storage.suspects(START, 2)) == 2
    clock.advance(3601)
    assert len(await storage.suspects(START, LIMIT)) == 5, "a lease that is over counts no more"


async def test_inboxes_that_nobody_reads_are_found(storage: Storage, clock: ManualClock) -> None:
    for name in ("a", "b"):
        await put(storage, name)
        for kind in ("pause", "resume"):
            await storage.put_inbox(InboxPutRequest(instance_id=name, kind=kind))
        clock.advance(10)
    assert await storage.unread_inboxes(START - timedelta(seconds=1), LIMIT) == []
    assert await storage.unread_inboxes(START + timedelta(seconds=9), LIMIT) == [("a", ENGINE)]
    assert sorted(await storage.unread_inboxes(LATER, LIMIT)) == [("a", ENGINE), ("b", ENGINE)]
    assert len(await storage.unread_inboxes(LATER, 1)) == 1
    items = (await storage.read_inbox(InboxReadRequest(owner=ENGINE, instance_ids=["a"]))).items
    await put(storage, "a", 1, consumed=[item.inbox_id for item in items])
    assert await storage.unread_inboxes(LATER, LIMIT) == [("b", ENGINE)]


# --- what is old --------------------------------------------------------------------------------------------


async def test_purge_removes_old_ended_instances_with_all_that_is_theirs(storage: Storage) -> None:
    await put(storage, "open", events=1, started_at=START - timedelta(days=50))
    await put(storage, "old")
    await storage.put_inbox(InboxPutRequest(instance_id="old", kind="pause", dedupe_key="k"))
    await storage.change_state("old", change_keys({"a": "x"}, replace=False, description="", max_bytes=99))
    await put(storage, "old", 1, events=2, status=InstanceStatus.FAILED, completed_at=START)
    await end(storage, "young", LATER)
    await end(storage, "on-time", START + timedelta(hours=1))
    before = START + timedelta(hours=1)
    assert await storage.count_ended(before) == Purged(instances=1, events=3)
    assert await storage.purge(before) == Purged(instances=1, events=3, instance_ids=("old",))
    assert await storage.purge(before) == Purged(instances=0, events=0)
    assert await storage.get_instance("old") is None
    assert await storage.get_state("old") is None
    assert await storage.state_history("old") == []
    assert await offsets(storage, instance_id="old") == []
    listed = await storage.list_instances(InstanceListRequest())
    assert sorted(row.instance_id for row in listed.rows) == ["on-time", "open", "young"]
    assert await put(storage, "old") == "ok", "the id is free again, and begins anew"
    reply, _ = await storage.put_inbox(InboxPutRequest(instance_id="old", kind="pause", dedupe_key="k"))
    items = (await storage.read_inbox(InboxReadRequest(owner=ENGINE, instance_ids=["old"]))).items
    assert [item.inbox_id for item in items] == [reply.inbox_id]


async def test_offsets_go_on_after_a_purge_and_readers_pass_the_gap(storage: Storage) -> None:
    await end(storage, "a", START, events=3)
    await put(storage, "b")
    await end(storage, "c", START, events=2)
    assert (await storage.purge(LATER)).events == 5
    assert storage.last_offset == 6
    assert await offsets(storage) == [4]
    page = await storage.read_log(LogReadRequest(after=2, limit=10))
    assert ([event.offset for event in page.events], page.next, page.end) == ([4], 6, True)
    page = await storage.read_log(LogReadRequest(after=5, limit=1))
    assert (page.events, page.next, page.end) == ([], 6, True)
    await put(storage, "d")
    assert await offsets(storage, 4) == [7]


async def test_purge_goes_in_small_steps(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        await end(storage, f"i{number}", START + timedelta(minutes=number), events=10)
    for module in ("sqlite_upkeep", "memory_log"):
        monkeypatch.setattr(f"agents.state_manager.storage.{module}.MAX_PURGED_EVENTS", 25)
    assert (await storage.purge(LATER)).instance_ids == ("i0", "i1")
    for module in ("sqlite_upkeep", "memory_log"):
        monkeypatch.setattr(f"agents.state_manager.storage.{module}.MAX_PURGED_EVENTS", 5)
    assert (await storage.purge(LATER)).instance_ids == ("i2",), "a large one goes alone"
    for module in ("sqlite_upkeep", "memory_log"):
        monkeypatch.setattr(f"agents.state_manager.storage.{module}.MAX_PURGED_EVENTS", 500)
        monkeypatch.setattr(f"agents.state_manager.storage.{module}.MAX_PURGED_INSTANCES", 3)
    assert (await storage.purge(LATER)).instance_ids == ("i3", "i4", "i5")


def test_bounds_of_a_purge_keep_a_transaction_short() -> None:
    assert base.MAX_PURGED_INSTANCES <= 100
    assert base.MAX_PURGED_EVENTS <= 2000
