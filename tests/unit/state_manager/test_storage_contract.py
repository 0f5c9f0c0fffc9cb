"""What every storage does alike. Each test runs against each storage."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.state_manager import fencing
from agents.state_manager.errors import (
    BackupNotFound,
    InvalidRequest,
    StateExists,
    StateNotFound,
    StoreBusy,
    StoreFailed,
)
from agents.state_manager.state_values import change_keys, drop_keys, put_whole
from agents.state_manager.storage import base
from agents.state_manager.storage.base import Storage, StoredContext, StoredState
from orchestration.contracts import (
    AppendOutcome,
    DefinitionGetRequest,
    DefinitionListRequest,
    InboxPutRequest,
    InboxReadRequest,
    InstanceListRequest,
    LogReadRequest,
)
from orchestration.status import InstanceStatus
from tests.unit.state_manager.store_values import (
    ENGINE,
    START,
    ManualClock,
    make_batch,
    make_event,
    put_definition,
)

OTHER = "engine:ses_2"


async def append(storage: Storage, *args: Any, **fields: Any) -> AppendOutcome:
    (outcome,) = await storage.append([make_batch(*args, **fields)])
    return outcome


# --- appending ----------------------------------------------------------------------------------------------


async def test_new_instance_begins_at_expected_seq_0_and_epoch_1(storage: Storage) -> None:
    outcome = await append(storage, "i1", 0, events=2)
    assert outcome == AppendOutcome(instance_id="i1", status="ok", seq=2, offset=2)
    row = await storage.get_instance("i1")
    assert row is not None
    assert (row.owner, row.epoch, row.seq, row.status) == (ENGINE, 1, 2, InstanceStatus.RUNNING)
    assert storage.last_offset == 2


@pytest.mark.parametrize(
    ("fields", "status", "seq"),
    [
        ({"expected_seq": 3}, "ok", 4),
        ({"expected_seq": 3, "events": 0}, "ok", 3),
        ({"expected_seq": 3, "owner": OTHER}, "stale_owner", 3),
        ({"expected_seq": 3, "epoch": 2}, "stale_owner", 3),
        ({"expected_seq": 4}, "conflict", 3),
        ({"expected_seq": 1, "events": 0}, "conflict", 3),
        ({"expected_seq": 2, "events": 2}, "conflict", 3),
        ({"expected_seq": 0, "owner": OTHER}, "stale_owner", 3),
        ({"expected_seq": 0, "events": [make_event(data=b"{}")]}, "conflict", 3),
        ({"instance_id": "unknown", "expected_seq": 1}, "conflict", 0),
        ({"instance_id": "unknown", "expected_seq": 0, "epoch": 2}, "conflict", 0),
        ({"instance_id": "unknown", "expected_seq": 0, "events": 0}, "conflict", 0),
    ],
)
async def test_append_is_fenced(storage: Storage, fields: dict[str, Any], status: str, seq: int) -> None:
    await append(storage, "i1", 0, events=3)
    outcome = await append(storage, **fields)
    assert (outcome.status, outcome.seq) == (status, seq)
    stored = await storage.read_log(LogReadRequest(instance_id=outcome.instance_id))
    assert [event.seq for event in stored.events] == list(range(1, seq + 1))
    row = await storage.get_instance(outcome.instance_id)
    assert (row.seq if row else 0) == seq


async def test_repeated_append_is_known_as_one(storage: Storage) -> None:
    first = await append(storage, "i1", 0, events=2)
    assert await append(storage, "i1", 0, events=2) == first
    second = await append(storage, "i1", 2)
    assert await append(storage, "i1", 0, events=2) == first
    assert await append(storage, "i1", 2) == second
    assert storage.last_offset == 3


async def test_refused_batch_does_not_spoil_its_neighbours(storage: Storage) -> None:
    await append(storage, "i1")
    outcomes = await storage.append([make_batch("a"), make_batch("i1", 7), make_batch("b", events=2)])
    assert [(outcome.status, outcome.seq) for outcome in outcomes] == [("ok", 1), ("conflict", 1), ("ok", 2)]


async def test_batches_of_one_instance_follow_each_other(storage: Storage) -> None:
    outcomes = await storage.append(
        [make_batch("a"), make_batch("a", 1), make_batch("a", 1, events=[make_event("x")])]
    )
    assert [outcome.status for outcome in outcomes] == ["ok", "ok", "conflict"]


async def test_row_is_replaced_but_not_who_the_instance_is(storage: Storage) -> None:
    await append(storage, "i1", current_tasks=["a"], task_counts={"running": 1})
    await append(
        storage,
        "i1",
        1,
        workflow_id="another",
        created_at=START + timedelta(days=1),
        status=InstanceStatus.FAILED,
        error_code="TIMEOUT",
        wake_reason="nothing",
        owner=ENGINE,
        completed_at=START + timedelta(seconds=2, microseconds=5),
    )
    row = await storage.get_instance("i1")
    assert row is not None
    assert (row.workflow_id, row.created_at) == ("wf", START)
    assert (row.status, row.error_code, row.wake_reason) == (InstanceStatus.FAILED, "TIMEOUT", "nothing")
    assert row.completed_at == START + timedelta(seconds=2, microseconds=5)
    assert (row.current_tasks, row.task_counts, row.started_at) == ([], {}, None)
    assert row.updated_at == START


async def test_texts_of_a_row_are_cut_to_their_bounds(storage: Storage) -> None:
    await append(storage, "i1", error_message="x" * 5000, current_tasks=[str(n) for n in range(500)])
    row = await storage.get_instance("i1")
    assert row is not None
    assert len(row.error_message) == fencing.MAX_ROW_TEXT_CHARS
    assert len(row.current_tasks) == fencing.MAX_ROW_TASKS


async def test_concurrent_appends_to_one_instance_have_one_winner(storage: Storage) -> None:
    await append(storage, "i1")
    tries = [append(storage, "i1", 1, events=[make_event(data=b"%d" % n)]) for n in range(50)]
    outcomes = await asyncio.gather(*tries)
    assert sorted(outcome.status for outcome in outcomes) == ["conflict"] * 49 + ["ok"]
    assert storage.last_offset == 2


async def test_concurrent_instances_get_distinct_offsets(storage: Storage) -> None:
    async def drive(instance_id: str) -> None:
        for seq in range(10):
            assert (await append(storage, instance_id, seq)).status == "ok"

    await asyncio.gather(*(drive(f"i{n}") for n in range(200)))
    assert storage.last_offset == 2000
    offsets: list[int] = []
    after = 0
    while True:
        page = await storage.read_log(LogReadRequest(after=after, limit=300))
        offsets += [event.offset for event in page.events]
        after = page.next
        if page.end:
            break
    assert offsets == list(range(1, 2001))


@pytest.mark.parametrize(
    ("batch", "place"),
    [
        (make_batch(""), "instance_id"),
        (make_batch("a\nb"), "instance_id"),
        (make_batch("x" * 257), "instance_id"),
        (make_batch(owner=""), "owner"),
        (make_batch(epoch=0), "epoch"),
        (make_batch(expected_seq=-1), "expected_seq"),
        (make_batch(expected_seq=2**70), "expected_seq"),
        (make_batch(consumed=[2**80]), "consumed_inbox_ids"),
        (make_batch(events=[make_event("")]), "type"),
        (make_batch(events=[make_event(data=b'"\xff"')]), "UTF-8"),
        (make_batch(created_at=START.replace(tzinfo=None)), "created_at"),
        (msgspec.structs.replace(make_batch("a"), row=make_batch("b").row), "row"),
    ],
)
async def test_batch_out_of_bounds_is_refused_alone(storage: Storage, batch: Any, place: str) -> None:
    refused, stored = await storage.append([batch, make_batch("good")])
    assert (refused.status, refused.instance_id) == ("refused", batch.instance_id)
    assert place in refused.reason
    assert stored.status == "ok"
    assert storage.last_offset == 1


async def test_too_large_event_is_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "MAX_EVENT_BYTES", 10)
    outcome = await append(storage, events=[make_event(data=b'"0123456789"')])
    assert (outcome.status, "12 bytes; at most 10" in outcome.reason) == ("refused", True)


async def test_too_many_batches_are_refused_together(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fencing, "MAX_BATCHES", 1)
    with pytest.raises(InvalidRequest, match="2 batches"):
        await storage.append([make_batch("a"), make_batch("b")])


# --- reading the log ----------------------------------------------------------------------------------------


async def test_log_is_read_in_pages_until_its_end(storage: Storage) -> None:
    await append(storage, "a", events=3)
    await append(storage, "b", events=2)
    first = await storage.read_log(LogReadRequest(limit=3))
    assert ([event.offset for event in first.events], first.next, first.end) == ([1, 2, 3], 3, False)
    second = await storage.read_log(LogReadRequest(after=first.next, limit=3))
    assert ([event.instance_id for event in second.events], second.next, second.end) == (["b", "b"], 5, True)
    third = await storage.read_log(LogReadRequest(after=5))
    assert (third.events, third.next, third.end) == ([], 5, True)


async def test_event_comes_back_as_it_was_written(storage: Storage) -> None:
    data = '{"a": [1, 2.50, "ü\\u0000\U0001f600"],  "b":null}'.encode()
    await append(storage, events=[make_event("task.completed", data)])
    (event,) = (await storage.read_log(LogReadRequest())).events
    assert (bytes(event.data), event.type, event.at, event.seq) == (data, "task.completed", START, 1)


async def test_log_of_an_instance_is_read_by_seq(storage: Storage) -> None:
    await append(storage, "a", events=3)
    await append(storage, "b", events=2)
    page = await storage.read_log(LogReadRequest(instance_id="b", after=1))
    assert [(event.seq, event.offset) for event in page.events] == [(2, 5)]
    assert (page.next, page.end) == (2, True)
    nothing = await storage.read_log(LogReadRequest(instance_id="unknown", after=7))
    assert (nothing.events, nothing.next, nothing.end) == ([], 7, True)


async def test_filtered_read_moves_past_what_it_skips(storage: Storage) -> None:
    await append(storage, "a", events=[make_event("x"), make_event("y"), make_event("y"), make_event("x")])
    page = await storage.read_log(LogReadRequest(types=["y"], limit=1))
    assert ([event.offset for event in page.events], page.next, page.end) == ([2], 2, False)
    page = await storage.read_log(LogReadRequest(types=["y"], after=page.next))
    assert ([event.offset for event in page.events], page.next, page.end) == ([3], 4, True)
    page = await storage.read_log(LogReadRequest(types=["y"], instance_id="a", after=2))
    assert [event.seq for event in page.events] == [3]


async def test_page_of_large_events_ends_early(storage: Storage) -> None:
    large = b'"' + b"x" * 300_000 + b'"'
    await append(storage, events=[make_event(data=large) for _ in range(5)])
    page = await storage.read_log(LogReadRequest())
    assert (len(page.events), page.next, page.end) == (2, 2, False)
    page = await storage.read_log(LogReadRequest(instance_id="i1", after=4))
    assert (len(page.events), page.end) == (1, True)


@pytest.mark.parametrize("after", [-1, 2**64])
async def test_impossible_offset_is_refused(storage: Storage, after: int) -> None:
    with pytest.raises(InvalidRequest, match="after"):
        await storage.read_log(LogReadRequest(after=after))


# --- listing instances --------------------------------------------------------------------------------------


@pytest.fixture
async def listed(storage: Storage) -> Storage:
    statuses = [InstanceStatus.COMPLETED, InstanceStatus.RUNNING, InstanceStatus.FAILED]
    for number in range(9):
        await append(
            storage,
            f"i{number}",
            workflow_id="even" if number % 2 == 0 else "odd",
            status=statuses[number % 3],
            created_at=START + timedelta(minutes=number // 2),
            error_message="The DISK is full" if number == 4 else "",
        )
    return storage


async def ids(storage: Storage, **fields: Any) -> list[str]:
    reply = await storage.list_instances(InstanceListRequest(**fields))
    return [row.instance_id for row in reply.rows]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["i8", "i7", "i6", "i5", "i4", "i3", "i2", "i1", "i0"]),
        ({"workflow_id": "odd"}, ["i7", "i5", "i3", "i1"]),
        ({"statuses": [InstanceStatus.RUNNING]}, ["i7", "i4", "i1"]),
        (
            {"statuses": [InstanceStatus.RUNNING, InstanceStatus.FAILED], "workflow_id": "even"},
            ["i8", "i4", "i2"],
        ),
        ({"text": "disk"}, ["i4"]),
        ({"owner": "nobody:1"}, []),
        ({"owner": ENGINE, "statuses": [InstanceStatus.RUNNING]}, ["i7", "i4", "i1"]),
        ({"text": "I3"}, ["i3"]),
        ({"text": "100%_"}, []),
        ({"created_after": START + timedelta(minutes=2)}, ["i8", "i7", "i6"]),
        ({"created_before": START + timedelta(minutes=1)}, ["i1", "i0"]),
        ({"limit": 2}, ["i8", "i7"]),
    ],
)
async def test_instances_are_filtered_newest_first(
    listed: Storage, filters: Any, expected: list[str]
) -> None:
    assert await ids(listed, **filters) == expected


async def test_pages_follow_their_cursor_and_count_all(listed: Storage) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        reply = await listed.list_instances(InstanceListRequest(limit=4, cursor=cursor))
        assert (reply.total, reply.counts) == (9, {"completed": 3, "running": 3, "failed": 3})
        seen += [row.instance_id for row in reply.rows]
        cursor = reply.next_cursor
        if cursor is None:
            break
    assert seen == [f"i{number}" for number in reversed(range(9))]


async def test_total_counts_the_wanted_statuses_only(listed: Storage) -> None:
    request = InstanceListRequest(statuses=[InstanceStatus.FAILED], workflow_id="odd")
    reply = await listed.list_instances(request)
    assert (reply.total, reply.counts) == (1, {"completed": 1, "running": 2, "failed": 1})


@pytest.mark.parametrize(
    "fields",
    [
        {"cursor": "???"},
        {"cursor": "eHg="},
        {"cursor": "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OmE="},
        {"cursor": "ü"},
        {"text": "x" * 300},
        {"created_after": START.replace(tzinfo=None)},
    ],
)
async def test_bad_listing_is_refused(storage: Storage, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await storage.list_instances(InstanceListRequest(**fields))


# --- inboxes ------------------------------------------------------------------------------------------------


async def put_inbox(storage: Storage, instance_id: str = "i1", key: str | None = None, **data: Any) -> int:
    reply, _ = await storage.put_inbox(
        InboxPutRequest(instance_id=instance_id, kind="pause", data=data, dedupe_key=key)
    )
    return reply.inbox_id


async def test_inbox_keeps_order_until_consumed(storage: Storage, clock: ManualClock) -> None:
    await append(storage, "i1")
    await append(storage, "i2", owner=OTHER)
    first = await put_inbox(storage, reason="a")
    await put_inbox(storage, "i2")
    clock.advance(1)
    second = await put_inbox(storage, reason="b")
    items = (await storage.read_inbox(InboxReadRequest(owner=ENGINE))).items
    assert [(item.inbox_id, item.data) for item in items] == [
        (first, {"reason": "a"}),
        (second, {"reason": "b"}),
    ]
    assert items[1].at == START + timedelta(seconds=1)
    await append(storage, "i1", 1, consumed=[first])
    items = (await storage.read_inbox(InboxReadRequest(owner=ENGINE, instance_ids=["i1"]))).items
    assert [item.inbox_id for item in items] == [second]


async def test_refused_append_consumes_nothing(storage: Storage) -> None:
    await append(storage, "i1")
    inbox_id = await put_inbox(storage)
    await append(storage, "i1", 5, consumed=[inbox_id])
    assert len((await storage.read_inbox(InboxReadRequest(owner=ENGINE))).items) == 1


async def test_append_consumes_only_its_own_inbox(storage: Storage) -> None:
    await append(storage, "i1")
    await append(storage, "i2")
    inbox_id = await put_inbox(storage, "i2")
    await append(storage, "i1", 1, consumed=[inbox_id, 999])
    assert len((await storage.read_inbox(InboxReadRequest(owner=ENGINE))).items) == 1


async def test_dedupe_key_is_stored_once_even_after_it_was_consumed(storage: Storage) -> None:
    await append(storage, "i1")
    await append(storage, "i2")
    first = await put_inbox(storage, key="token")
    assert await put_inbox(storage, key="token") == first
    assert await put_inbox(storage, "i2", key="token") != first
    await append(storage, "i1", 1, consumed=[first])
    assert await put_inbox(storage, key="token") == first
    items = (await storage.read_inbox(InboxReadRequest(owner=ENGINE, instance_ids=["i1"]))).items
    assert items == []


async def test_inbox_of_nobody_and_of_an_ended_instance_takes_nothing(storage: Storage) -> None:
    reply, owner = await storage.put_inbox(InboxPutRequest(instance_id="i1", kind="stop"))
    assert (reply.found, reply.open, reply.inbox_id, owner) == (False, False, 0, "")
    await append(storage, "i1")
    await put_inbox(storage)
    await append(storage, "i1", 1, status=InstanceStatus.CANCELLED)
    reply, owner = await storage.put_inbox(InboxPutRequest(instance_id="i1", kind="stop"))
    assert (reply.found, reply.open, reply.status, owner) == (True, False, InstanceStatus.CANCELLED, ENGINE)
    assert (await storage.read_inbox(InboxReadRequest(owner=ENGINE))).items == []


async def test_inbox_is_bounded(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sqlite_inbox", "memory_log"):
        monkeypatch.setattr(f"agents.state_manager.storage.{module}.MAX_INBOX_ITEMS", 2)
    await append(storage, "i1")
    await put_inbox(storage)
    await put_inbox(storage)
    with pytest.raises(StoreBusy, match="2 entries wait"):
        await put_inbox(storage)


@pytest.mark.parametrize("fields", [{"instance_id": ""}, {"kind": ""}, {"dedupe_key": "a\x00"}])
async def test_bad_inbox_entry_is_refused(storage: Storage, fields: dict[str, Any]) -> None:
    request = InboxPutRequest(**({"instance_id": "i1", "kind": "pause"} | fields))
    with pytest.raises(InvalidRequest):
        await storage.put_inbox(request)


# --- ownership ----------------------------------------------------------------------------------------------


async def test_instances_without_a_live_owner_are_claimed_oldest_first(storage: Storage) -> None:
    for number in (2, 0, 1):
        await append(storage, f"i{number}", created_at=START + timedelta(seconds=number))
    await append(storage, "ended", status=InstanceStatus.COMPLETED)
    assert (await storage.keep_lease(OTHER, "other", 10)).claimable == 3
    rows = await storage.claim(OTHER, 2)
    assert [(row.instance_id, row.owner, row.epoch) for row in rows] == [("i0", OTHER, 2), ("i1", OTHER, 2)]
    assert (await storage.keep_lease(OTHER, "other", 10)).claimable == 1
    assert [row.instance_id for row in await storage.claim(OTHER, 50)] == ["i2"]
    assert await storage.claim(OTHER, 50) == []


async def test_claim_fences_the_owner_before(storage: Storage) -> None:
    await append(storage, "i1")
    await storage.keep_lease(OTHER, "other", 10)
    await storage.claim(OTHER, 50)
    assert (await append(storage, "i1", 1)).status == "stale_owner"
    assert (await append(storage, "i1", 1, owner=OTHER, epoch=1)).status == "stale_owner"
    assert (await append(storage, "i1", 1, owner=OTHER, epoch=2)).status == "ok"


async def test_live_lease_protects_and_ends_by_time(storage: Storage, clock: ManualClock) -> None:
    await append(storage, "i1")
    assert (await storage.keep_lease(ENGINE, "engine", 10)).claimable == 0
    assert await storage.claim(OTHER, 50) == []
    clock.advance(6)
    await storage.keep_lease(ENGINE, "engine", 10)
    clock.advance(9)
    sweep = await storage.sweep_leases()
    assert (sweep.ended, sweep.claimable, sweep.next_expiry) == ((), 0, START + timedelta(seconds=16))
    clock.advance(1)
    sweep = await storage.sweep_leases()
    assert (sweep.ended, sweep.claimable, sweep.next_expiry) == ((ENGINE,), 1, None)
    assert len(await storage.claim(OTHER, 50)) == 1


async def test_lease_outlives_a_wall_clock_that_is_set_back(storage: Storage, clock: ManualClock) -> None:
    await append(storage, "i1")
    await storage.keep_lease(ENGINE, "engine", 10)
    clock.wall -= timedelta(hours=1)
    clock.seconds += 11
    assert (await storage.sweep_leases()).ended == (ENGINE,)


async def test_lease_can_be_ended_at_once(storage: Storage) -> None:
    await append(storage, "i1")
    await storage.keep_lease(ENGINE, "engine", 10)
    assert await storage.end_lease("nobody") == 0
    assert await storage.end_lease(ENGINE) == 1


async def test_new_session_of_an_agent_ends_its_old_lease(storage: Storage) -> None:
    await append(storage, "i1")
    await storage.keep_lease(ENGINE, "engine", 10)
    assert (await storage.keep_lease(OTHER, "engine", 10)).claimable == 1
    assert [row.owner for row in await storage.claim(OTHER, 5)] == [OTHER]


async def test_a_renewed_lease_says_how_the_engine_stands_among_the_others(storage: Storage) -> None:
    await storage.keep_lease(ENGINE, "engine", 10)
    for number in range(3):
        await append(storage, f"mine{number}")
    await append(storage, "ended", status=InstanceStatus.COMPLETED)
    await append(storage, "theirs", owner=OTHER)
    alone = await storage.keep_lease(ENGINE, "engine", 10)
    await storage.keep_lease(OTHER, "other", 10)
    both = await storage.keep_lease(ENGINE, "engine", 10)
    assert (alone.held, alone.open, alone.engines, alone.claimable) == (3, 4, 1, 1)
    assert (both.held, both.open, both.engines, both.claimable) == (3, 4, 2, 0)


async def test_an_engine_is_told_that_its_lease_had_ended(storage: Storage, clock: ManualClock) -> None:
    assert (await storage.keep_lease(ENGINE, "engine", 10)).begun
    clock.advance(9)
    assert not (await storage.keep_lease(ENGINE, "engine", 10)).begun
    clock.advance(11)
    assert (await storage.keep_lease(ENGINE, "engine", 10)).begun, "it ended by time, swept or not"
    await storage.end_lease(ENGINE)
    assert (await storage.keep_lease(ENGINE, "engine", 10)).begun, "somebody ended it"


async def test_concurrent_claims_share_without_overlap(storage: Storage) -> None:
    await storage.append([make_batch(f"i{number:03}") for number in range(100)])
    owners = [f"e{number}:s" for number in range(10)]
    await asyncio.gather(*(storage.keep_lease(owner, owner, 10) for owner in owners))
    claims = await asyncio.gather(*(storage.claim(owner, 15) for owner in owners))
    claimed = [row.instance_id for rows in claims for row in rows]
    assert sorted(claimed) == [f"i{number:03}" for number in range(100)]
    assert max(len(rows) for rows in claims) == 15


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
async def test_impossible_lease_is_refused(storage: Storage, seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="lease_seconds"):
        await storage.keep_lease(ENGINE, "engine", seconds)


# --- definitions --------------------------------------------------------------------------------------------


async def test_definitions_are_kept_by_hash_and_the_newest_is_in_force(storage: Storage) -> None:
    steps = [
        (put_definition(content_hash="h1", step=1), "created"),
        (put_definition(content_hash="h1", step=1), "unchanged"),
        (put_definition(content_hash="h2", step=2), "exists"),
        (put_definition(content_hash="h2", step=2, overwrite=True), "updated"),
        (put_definition(content_hash="h3", step=3, version="2.0"), "updated"),
        (put_definition(content_hash="h2", step=2), "unchanged"),
        (put_definition(content_hash="h4", step=4, workflow_id="other"), "created"),
    ]
    for request, status in steps:
        assert (await storage.put_definition(request)).status == status
    newest = await storage.get_definition(DefinitionGetRequest(workflow_id="wf"))
    assert newest is not None
    assert (newest.hash, newest.version, newest.content, newest.created_at) == (
        "h3",
        "2.0",
        {"step": 3},
        START,
    )
    older = await storage.get_definition(DefinitionGetRequest(hash="h1"))
    assert older is not None
    assert older.content == {"step": 1}
    assert await storage.get_definition(DefinitionGetRequest(workflow_id="unknown")) is None
    assert await storage.get_definition(DefinitionGetRequest()) is None
    reverted = await storage.put_definition(put_definition(content_hash="h1", step=1, overwrite=True))
    assert reverted.status == "updated"
    newest = await storage.get_definition(DefinitionGetRequest(workflow_id="wf"))
    assert newest is not None
    assert newest.hash == "h1"


async def test_definitions_are_listed_by_id_in_pages(storage: Storage) -> None:
    for name in ("c", "a", "b"):
        await storage.put_definition(put_definition(workflow_id=name, content_hash=name))
    first = await storage.list_definitions(DefinitionListRequest(limit=2))
    assert ([record.workflow_id for record in first.definitions], first.next) == (["a", "b"], "b")
    second = await storage.list_definitions(DefinitionListRequest(limit=2, after=first.next))
    assert ([record.workflow_id for record in second.definitions], second.next) == (["c"], "")


async def test_too_large_definition_is_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "MAX_DEFINITION_BYTES", 5)
    with pytest.raises(InvalidRequest, match="at most 5"):
        await storage.put_definition(put_definition())


# --- states -------------------------------------------------------------------------------------------------


async def set_state(storage: Storage, state_id: str, overwrite: bool = True, **state: Any) -> StoredState:
    decide = put_whole(state, overwrite=overwrite, description="", max_bytes=10_000)
    stored = await storage.change_state(state_id, decide)
    assert stored is not None
    return stored


async def test_state_grows_by_versions_with_a_history(storage: Storage, clock: ManualClock) -> None:
    first = await set_state(storage, "s", a=1)
    clock.advance(5)
    second = await storage.change_state(
        "s", change_keys({"b": 2}, replace=False, description="more", max_bytes=999)
    )
    assert second is not None
    assert (first.version, second.version, second.state) == (1, 2, {"a": 1, "b": 2})
    assert (second.created_at, second.updated_at) == (START, START + timedelta(seconds=5))
    assert await storage.get_state("s") == second
    history = await storage.state_history("s")
    assert [(entry.version, entry.description, entry.state) for entry in history] == [
        (2, "more", {"a": 1, "b": 2}),
        (1, "set", {"a": 1}),
    ]


async def test_refused_change_leaves_the_state(storage: Storage) -> None:
    await set_state(storage, "s", a=1)
    with pytest.raises(StateExists, match="version 1"):
        await set_state(storage, "s", overwrite=False, a=2)
    with pytest.raises(InvalidRequest, match="max_state_bytes"):
        await storage.change_state(
            "s", change_keys({"b": "x" * 50}, replace=False, description="", max_bytes=57)
        )
    stored = await storage.get_state("s")
    assert stored is not None
    assert (stored.version, stored.state) == (1, {"a": 1})


async def test_history_is_bounded(storage: Storage) -> None:
    for number in range(60):
        await set_state(storage, "s", n=number)
    history = await storage.state_history("s")
    assert [entry.version for entry in history] == list(range(60, 10, -1))


async def test_deleted_state_takes_its_history_along(storage: Storage) -> None:
    await set_state(storage, "s", a=1, b=2)
    left = await storage.change_state("s", drop_keys(["a"]))
    assert left is not None
    assert (left.version, left.state) == (2, {"b": 2})
    assert await storage.change_state("s", drop_keys([])) is None
    assert await storage.get_state("s") is None
    assert await storage.state_history("s") == []
    with pytest.raises(StateNotFound):
        await storage.change_state("s", drop_keys([]))


async def test_concurrent_updates_all_count(storage: Storage) -> None:
    updates = [change_keys({f"k{n}": n}, replace=False, description="", max_bytes=9999) for n in range(40)]
    await asyncio.gather(*(storage.change_state("s", update) for update in updates))
    stored = await storage.get_state("s")
    assert stored is not None
    assert (stored.version, stored.state) == (40, {f"k{n}": n for n in range(40)})


async def test_states_are_listed_by_prefix_newest_change_first(storage: Storage, clock: ManualClock) -> None:
    for name in ("a%1", "a%2", "b", "A%3"):
        await set_state(storage, name, x=1)
        clock.advance(1)
    await set_state(storage, "a%1", x=2)
    listed, total = await storage.list_states("a%", 10)
    assert ([(state.workflow_instance_id, state.version) for state in listed], total) == (
        [("a%1", 2), ("a%2", 1)],
        2,
    )
    listed, total = await storage.list_states("", 1)
    assert ([dict(state.state) for state in listed], total) == ([{}], 4)


async def scanned(storage: Storage, texts: Mapping[str, str]) -> set[str]:
    async with aclosing(storage.scan_states(texts)) as states:
        return {state.workflow_instance_id async for state in states}


async def test_scan_finds_all_states_that_hold_a_text(storage: Storage) -> None:
    for number in range(70):
        await set_state(storage, f"s{number}", color="red" if number % 7 == 0 else "blue", n=number)
    assert await scanned(storage, {"color": "red"}) == {f"s{number}" for number in range(0, 70, 7)}
    await set_state(storage, "s0", color="green")
    await storage.change_state("s7", drop_keys(["color"]))
    await storage.change_state("s14", drop_keys([]))
    assert await scanned(storage, {"color": "red"}) == {f"s{number}" for number in range(21, 70, 7)}
    assert len(await scanned(storage, {})) == 69


async def test_scan_may_be_given_up(storage: Storage) -> None:
    for number in range(100):
        await set_state(storage, f"s{number}", n=number)
    for _ in range(10):
        async with aclosing(storage.scan_states({})) as states:
            async for _ in states:
                break
    assert len(await scanned(storage, {})) == 100


# --- contexts -----------------------------------------------------------------------------------------------


def make_context(context_id: str = "c1", **fields: Any) -> StoredContext:
    return StoredContext(**({"context_id": context_id, "session_id": "", "created_at": START} | fields))


async def test_context_is_kept_until_it_expires(storage: Storage, clock: ManualClock) -> None:
    context = make_context(
        expires_at=START + timedelta(seconds=10),
        shared_memory={"a": [1]},
        agent_memory={"x": {"p": 1}},
        parent_context="c0",
        root_context="c0",
    )
    assert await storage.change_context("c1", lambda stored: context) == context
    assert await storage.get_context("c1") == context
    clock.advance(10)
    assert await storage.get_context("c1") is None
    seen: list[StoredContext | None] = []

    def decide(stored: StoredContext | None) -> StoredContext:
        seen.append(stored)
        return make_context(root_context="c1")

    await storage.change_context("c1", decide)
    assert seen == [None]
    assert await storage.get_context("c1") == make_context(root_context="c1")


async def test_contexts_are_bounded(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sqlite_states", "memory"):
        monkeypatch.setattr(f"agents.state_manager.storage.{module}.MAX_CONTEXTS", 1)
    await storage.change_context("c1", lambda stored: make_context("c1"))
    with pytest.raises(StoreBusy, match="1 contexts"):
        await storage.change_context("c2", lambda stored: make_context("c2"))
    await storage.change_context("c1", lambda stored: make_context("c1", shared_memory={"a": 1}))
    assert await storage.get_context("c2") is None


# --- copies -------------------------------------------------------------------------------------------------


async def test_backup_holds_the_states_of_its_moment(storage: Storage, tmp_path: Path) -> None:
    for number in range(40):
        await set_state(storage, f"s{number}", n=number)
    target = tmp_path / "backups" / "one.db"
    size = await storage.back_up(target)
    assert size == target.stat().st_size > 0
    await set_state(storage, "s1", n="later")
    async with aclosing(storage.scan_backup(target)) as states:
        found = {state.workflow_instance_id: dict(state.state) async for state in states}
    assert found == {f"s{number}": {"n": number} for number in range(40)}
    assert list(target.parent.iterdir()) == [target]


async def test_backup_never_overwrites(storage: Storage, tmp_path: Path) -> None:
    target = tmp_path / "one.db"
    await storage.back_up(target)
    with pytest.raises(InvalidRequest, match="exists already"):
        await storage.back_up(target)


@pytest.mark.parametrize("content", [None, b"", b"not a database at all, only text" * 50])
async def test_what_is_no_backup_is_not_found(
    storage: Storage, tmp_path: Path, content: bytes | None
) -> None:
    source = tmp_path / "some.db"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(BackupNotFound):
        await anext(storage.scan_backup(source))


async def test_closed_store_refuses(storage: Storage) -> None:
    await storage.stop()
    await storage.stop()
    with pytest.raises(StoreFailed, match="not open"):
        await storage.append([make_batch()])
    with pytest.raises(StoreFailed, match="not open"):
        await storage.get_instance("i1")


async def test_bounds_of_pages_fit_a_frame() -> None:
    assert base.MAX_PAGE_BYTES < 1024 * 1024
