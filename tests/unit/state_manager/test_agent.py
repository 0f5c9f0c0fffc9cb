"""The state manager on a mesh: every capability asked by another agent, hints, lost engines, refusals."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from agents.state_manager import StateManager, room_watch, sweeper
from agents.state_manager.errors import StoreLost, StoreUnusable
from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError, ContextNotFound, InsufficientResources, InvalidParameters, ValidationFailed
from amp.router import Router
from amp.transports.memory import MemoryNetwork
from orchestration import contracts
from orchestration import events as ev
from orchestration.status import InstanceStatus
from runtime.clock import SystemClock
from runtime.errors import RuntimeFault
from runtime.settings import settings_from
from tests.unit.state_manager.store_values import (
    ENGINE,
    START,
    WAIT_SECONDS,
    make_batch,
    make_definition,
    make_event,
    until,
)


class World:
    """A router, a state manager and clients."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        sections.setdefault("database", {})["reserve_megabytes"] = 1
        self.settings = settings_from({"data_dir": str(folder), **sections})
        self.network = MemoryNetwork()
        self.router = Router(now=SystemClock().now, random=Random(1))
        self.router.serve_memory(self.network)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.clients: list[MeshClient] = []
        self.manager = self.make_manager()

    def make_manager(self) -> StateManager:
        return StateManager(
            self.settings, transport=self.network.transport(), random=Random(2), serve_http=False
        )

    async def client(self, agent_id: str = "tester", session_id: str = "s1") -> MeshClient:
        identity = AgentIdentity(id=agent_id, session_id=session_id)
        made = MeshClient(identity, self.network.transport(), random=Random(len(self.clients)))
        await made.start(wait_seconds=WAIT_SECONDS)
        self.clients.append(made)
        return made

    async def start(self) -> None:
        await self.manager.start(wait_seconds=WAIT_SECONDS)
        client = await self.client()
        for pattern in ("log.*", "inbox.*", "instance.*", "instances.*", "state.*", "context_update"):
            await client.subscribe(pattern, lambda event: self.events.append((event.event_type, event.data)))

    async def stop(self) -> None:
        for client in self.clients:
            await client.stop()
        await self.manager.stop()
        await self.router.stop()

    async def ask(self, contract: contracts.Contract, parameters: Any = None, **fields: Any) -> Any:
        wanted = fields if parameters is None else parameters
        return await self.clients[0].request(
            contract.id, wanted, reply_type=contract.reply, timeout_seconds=5
        )

    async def append(self, *args: Any, **fields: Any) -> contracts.AppendOutcome:
        request = contracts.AppendRequest(batches=[make_batch(*args, **fields)])
        (outcome,) = (await self.ask(contracts.STATE_APPEND, request)).outcomes
        assert isinstance(outcome, contracts.AppendOutcome)
        return outcome

    async def event(self, event_type: str, **fields: Any) -> dict[str, Any]:
        """Return the first event of that type with these fields, waiting for it."""

        def matches() -> list[dict[str, Any]]:
            return [
                data for found, data in self.events if found == event_type and fields.items() <= data.items()
            ]

        await until(lambda: bool(matches()))
        return matches()[0]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.start()
    yield made
    await made.stop()


def started(**inputs: Any) -> contracts.NewEvent:
    fact = ev.InstanceStarted(
        at=START, workflow_id="wf", workflow_version="1", definition_hash="h", inputs=inputs
    )
    return contracts.NewEvent(type=ev.type_of(fact), at=START, data=msgspec.Raw(ev.encode(fact)))


# --- the log ------------------------------------------------------------------------------------------------


async def test_append_is_durable_readable_and_hinted(world: World) -> None:
    outcome = await world.append("i1", events=2)
    assert (outcome.status, outcome.seq, outcome.offset) == ("ok", 2, 2)
    await world.event("log.advanced", offset=2)
    page = await world.ask(contracts.LOG_READ, after=1)
    assert [(event.offset, event.seq) for event in page.events] == [(2, 2)]
    row = (await world.ask(contracts.INSTANCE_GET, instance_id="i1")).row
    assert (row.owner, row.seq) == (ENGINE, 2)
    assert (await world.ask(contracts.INSTANCE_GET, instance_id="none")).row is None
    listed = await world.ask(contracts.INSTANCE_LIST, statuses=["running"])
    assert ([row.instance_id for row in listed.rows], listed.total) == (["i1"], 1)


async def test_hints_of_many_commits_are_few_and_end_with_the_newest(world: World) -> None:
    await asyncio.gather(*(world.append(f"i{number}") for number in range(200)))
    await world.event("log.advanced", offset=200)
    hints = [data for event_type, data in world.events if event_type == "log.advanced"]
    assert len(hints) < 100


async def test_refused_request_names_the_place(world: World) -> None:
    bad = make_batch("i1", events=[make_event("")])
    request = contracts.AppendRequest(batches=[bad, make_batch("i2")])
    refused, stored = (await world.ask(contracts.STATE_APPEND, request)).outcomes
    assert (refused.status, stored.status) == ("refused", "ok")
    assert "batches[0].events[0].type" in refused.reason
    with pytest.raises(InvalidParameters, match="limit"):
        await world.ask(contracts.LOG_READ, limit=0)
    with pytest.raises(InvalidParameters, match="unknown field"):
        await world.ask(contracts.STATE_GET, workflow_instance_id="s", kyes=["a"])


async def test_definitions_pass_through(world: World) -> None:
    record = make_definition()
    assert (await world.ask(contracts.DEFINITION_PUT, definition=record)).status == "created"
    found = (await world.ask(contracts.DEFINITION_GET, workflow_id="wf")).definition
    assert (found.hash, found.content) == ("h1", {"a": 1})
    assert (await world.ask(contracts.DEFINITION_GET, workflow_id="none")).definition is None
    assert len((await world.ask(contracts.DEFINITION_LIST)).definitions) == 1


# --- inboxes and ownership ----------------------------------------------------------------------------------


async def test_inbox_entry_hints_its_owner(world: World) -> None:
    await world.append("i1")
    reply = await world.ask(contracts.INBOX_PUT, instance_id="i1", kind="pause", data={"reason": "r"})
    assert (reply.found, reply.open, reply.status) == (True, True, InstanceStatus.RUNNING)
    await world.event("inbox.filled", instance_id="i1", owner=ENGINE)
    items = (await world.ask(contracts.INBOX_READ, owner=ENGINE)).items
    assert [(item.inbox_id, item.kind, item.data) for item in items] == [
        (reply.inbox_id, "pause", {"reason": "r"})
    ]
    assert not (await world.ask(contracts.INBOX_PUT, instance_id="none", kind="pause")).found


async def test_instances_of_a_lost_engine_are_claimable_at_once(world: World) -> None:
    engine = await world.client("engine-1", "ses_9")
    await world.append("i1", owner="engine-1:ses_9")
    lease = contracts.LeaseRequest(owner="engine-1:ses_9", agent_id="engine-1", lease_seconds=300)
    assert (await world.ask(contracts.ENGINE_LEASE, lease)).claimable == 0
    assert (await world.ask(contracts.INSTANCE_CLAIM, owner="engine-2:s")).rows == []
    await engine.stop()
    await world.event("instances.claimable")
    rows = (await world.ask(contracts.INSTANCE_CLAIM, owner="engine-2:s")).rows
    assert [(row.instance_id, row.owner, row.epoch) for row in rows] == [("i1", "engine-2:s", 2)]
    assert (await world.append("i1", 1, owner="engine-1:ses_9")).status == "stale_owner"


async def test_lease_that_is_not_renewed_ends_by_itself(world: World) -> None:
    await world.append("i1")
    lease = contracts.LeaseRequest(owner=ENGINE, agent_id="engine", lease_seconds=0.05)
    await world.ask(contracts.ENGINE_LEASE, lease)
    await world.event("instances.claimable")


async def test_released_lease_is_announced(world: World) -> None:
    await world.append("i1")
    lease = contracts.LeaseRequest(owner=ENGINE, agent_id="engine", lease_seconds=300)
    await world.ask(contracts.ENGINE_LEASE, lease)
    released = await world.ask(contracts.ENGINE_LEASE, msgspec.structs.replace(lease, release=True))
    assert released.claimable == 1
    await world.event("instances.claimable")


# --- states -------------------------------------------------------------------------------------------------


async def test_state_lives_by_versions(world: World) -> None:
    empty = await world.ask(contracts.STATE_GET, workflow_instance_id="s")
    assert (empty.state, empty.version) == ({}, 0)
    assert (
        await world.ask(contracts.STATE_SET, workflow_instance_id="s", state={"a": 1, "b": 2})
    ).version == 1
    updated = await world.ask(
        contracts.STATE_UPDATE, workflow_instance_id="s", updates={"b": 3, "c": 4}, description="why"
    )
    assert (updated.version, updated.updated_keys) == (2, ["b", "c"])
    await world.event("state.updated", workflow_instance_id="s", action="update", version=2)
    found = await world.ask(
        contracts.STATE_GET, workflow_instance_id="s", keys=["c", "zz"], include_history=True
    )
    assert (found.state, found.version) == ({"c": 4}, 2)
    assert [(entry["version"], entry["change_description"]) for entry in found.history] == [
        (2, "why"),
        (1, "set"),
    ]
    with pytest.raises(ValidationFailed, match="overwrite"):
        await world.ask(contracts.STATE_SET, workflow_instance_id="s", state={})
    deleted = await world.ask(contracts.STATE_DELETE, workflow_instance_id="s", keys=["a", "zz"])
    assert deleted.deleted_keys == ["a"]
    assert (await world.ask(contracts.STATE_DELETE, workflow_instance_id="s")).deleted_keys == ["b", "c"]
    assert (await world.ask(contracts.STATE_GET, workflow_instance_id="s")).version == 0
    with pytest.raises(AmpError, match="RESOURCE_NOT_FOUND"):
        await world.ask(contracts.STATE_DELETE, workflow_instance_id="s")


async def test_states_are_queried_and_listed(world: World) -> None:
    for number in range(10):
        state = {"n": number, "kind": "even" if number % 2 == 0 else "odd", "deep": {"x": number}}
        await world.ask(contracts.STATE_SET, workflow_instance_id=f"s{number}", state=state)
    query = {"kind": "even", "deep.x": {"op": "gte", "value": 4}}
    found = await world.ask(contracts.STATE_QUERY, filters=query, projection=["n"], limit=2)
    assert ([each["state"] for each in found.results], found.total_count) == ([{"n": 8}, {"n": 6}], 3)
    listed = await world.ask(contracts.STATE_LIST, prefix="s", limit=3)
    assert ([each["workflow_instance_id"] for each in listed.states], listed.total_count) == (
        ["s9", "s8", "s7"],
        10,
    )
    with pytest.raises(InvalidParameters, match="known: eq"):
        await world.ask(contracts.STATE_QUERY, filters={"n": {"op": "regex", "value": "("}})


async def test_state_larger_than_the_setting_is_refused(tmp_path: Path) -> None:
    small = World(tmp_path, state_manager={"max_state_bytes": 1024})
    await small.start()
    try:
        with pytest.raises(InvalidParameters, match="max_state_bytes is 1024"):
            await small.ask(contracts.STATE_SET, workflow_instance_id="s", state={"a": "x" * 2000})
        with pytest.raises(InvalidParameters, match="max_state_bytes"):
            await small.ask(contracts.CONTEXT_CREATE, shared_memory={"a": "x" * 2000})
    finally:
        await small.stop()


@pytest.mark.parametrize("state_id", ["", "a\nb", "x" * 300, "\x00"])
async def test_bad_state_id_is_refused(world: World, state_id: str) -> None:
    for contract, fields in (
        (contracts.STATE_GET, {}),
        (contracts.STATE_SET, {"state": {}}),
        (contracts.STATE_UPDATE, {"updates": {}}),
        (contracts.STATE_DELETE, {}),
    ):
        with pytest.raises(InvalidParameters, match="printable"):
            await world.ask(contract, {"workflow_instance_id": state_id, **fields})


async def test_instance_shows_its_variables_and_takes_changes_by_its_inbox(world: World) -> None:
    await world.ask(contracts.STATE_SET, workflow_instance_id="i1", state={"from": "before"})
    await world.append("i1", events=[started(name="Ada")])
    found = await world.ask(contracts.STATE_GET, workflow_instance_id="i1", include_history=True)
    assert (found.state, found.version) == ({"name": "Ada"}, 1)
    assert [entry["state_data"] for entry in found.history] == [{"name": "Ada"}]
    changed = await world.ask(
        contracts.STATE_UPDATE, workflow_instance_id="i1", updates={"name": "Bob"}, description="d"
    )
    assert (changed.version, changed.updated_keys) == (1, ["name"])
    with pytest.raises(ValidationFailed, match="overwrite"):
        await world.ask(contracts.STATE_SET, workflow_instance_id="i1", state={"all": "new"})
    await world.ask(contracts.STATE_SET, workflow_instance_id="i1", state={"all": "new"}, overwrite=True)
    await world.event("inbox.filled", instance_id="i1")
    items = (await world.ask(contracts.INBOX_READ, owner=ENGINE)).items
    assert [(item.kind, item.data) for item in items] == [
        ("state_update", {"updates": {"name": "Bob"}, "merge_strategy": "merge", "description": "d"}),
        ("state_update", {"updates": {"all": "new"}, "merge_strategy": "replace", "description": ""}),
    ]
    with pytest.raises(AmpError, match="RESOURCE_NOT_AVAILABLE"):
        await world.ask(contracts.STATE_DELETE, workflow_instance_id="i1")
    await world.append("i1", 1, status=InstanceStatus.COMPLETED)
    with pytest.raises(AmpError, match="completed; its variables can no longer change"):
        await world.ask(contracts.STATE_UPDATE, workflow_instance_id="i1", updates={"a": 1})


async def test_states_are_merged_and_isolated(world: World) -> None:
    await world.append("i1", events=[started(a=1, b=2, c=3)])
    merged = await world.ask(
        contracts.CONTEXT_MERGE, source_instance_id="i1", target_instance_id="t", keys=["a", "b"]
    )
    assert merged.merged_keys == ["a", "b"]
    copy = await world.ask(contracts.CONTEXT_ISOLATE, workflow_instance_id="t", keys=["a"])
    assert (copy.version, copy.keys) == (1, ["a"])
    found = await world.ask(contracts.STATE_GET, workflow_instance_id=copy.isolated_id)
    assert found.state == {"a": 1}
    with pytest.raises(AmpError, match="RESOURCE_NOT_FOUND"):
        await world.ask(contracts.CONTEXT_ISOLATE, workflow_instance_id="none")
    with pytest.raises(InvalidParameters, match="source_context_ids"):
        await world.ask(contracts.CONTEXT_MERGE, source_instance_id="i1")
    with pytest.raises(ValidationFailed):
        await world.ask(contracts.CONTEXT_ISOLATE, workflow_instance_id="i1", isolated_id="t")


async def test_backup_brings_states_back(world: World, tmp_path: Path) -> None:
    await world.append("i1")
    for name in ("a", "b"):
        await world.ask(contracts.STATE_SET, workflow_instance_id=name, state={"n": 1})
    backup = await world.ask(contracts.STATE_BACKUP, name="mine")
    assert (tmp_path / "backups" / backup.backup).stat().st_size == backup.size_bytes
    await world.ask(contracts.STATE_UPDATE, workflow_instance_id="a", updates={"n": 2})
    await world.ask(contracts.STATE_DELETE, workflow_instance_id="b")
    assert (await world.ask(contracts.STATE_RESTORE, name="mine")).restored == 2
    found = await world.ask(contracts.STATE_GET, workflow_instance_id="a", include_history=True)
    assert (found.state, found.version) == ({"n": 1}, 3)
    assert found.history[0]["change_description"] == "restored from mine"
    assert (await world.ask(contracts.STATE_GET, workflow_instance_id="b")).state == {"n": 1}
    with pytest.raises(InvalidParameters):
        await world.ask(contracts.STATE_RESTORE, name="../../etc/passwd")
    with pytest.raises(AmpError, match="RESOURCE_NOT_FOUND"):
        await world.ask(contracts.STATE_RESTORE, name="other")


# --- contexts -----------------------------------------------------------------------------------------------


async def context(client: MeshClient, contract: contracts.Contract, **fields: Any) -> dict[str, Any]:
    reply = await client.request(contract.id, fields, reply_type=contract.reply)
    shown = reply.context
    assert shown is not None
    return dict(shown)


async def test_private_memory_stays_private(world: World) -> None:
    ada, bob = world.clients[0], await world.client("bob", "s2")
    made = await context(
        ada, contracts.CONTEXT_CREATE, session_id="ses", shared_memory={"a": 1}, agent_memory={"secret": 1}
    )
    assert made["agent_memory"] == {"tester": {"secret": 1}}
    seen = await context(bob, contracts.CONTEXT_GET, context_id=made["id"])
    assert (seen["shared_memory"], seen["agent_memory"], seen["session_id"]) == ({"a": 1}, {}, "ses")
    await context(
        bob, contracts.CONTEXT_UPDATE, context_id=made["id"], shared_memory={"b": 2}, agent_memory={"own": 1}
    )
    await world.event("context_update")
    seen = await context(ada, contracts.CONTEXT_GET, context_id=made["id"])
    assert (seen["shared_memory"], seen["agent_memory"]) == ({"a": 1, "b": 2}, {"tester": {"secret": 1}})
    replaced = await context(
        bob, contracts.CONTEXT_UPDATE, context_id=made["id"], shared_memory={"c": 3}, merge_strategy="replace"
    )
    assert (replaced["shared_memory"], replaced["agent_memory"]) == ({"c": 3}, {})
    seen = await context(ada, contracts.CONTEXT_GET, context_id=made["id"])
    assert seen["agent_memory"] == {"tester": {"secret": 1}}


async def test_fork_and_merge_keep_their_lineage(world: World) -> None:
    client = world.clients[0]
    root = await context(client, contracts.CONTEXT_CREATE, shared_memory={"a": 1}, agent_memory={"own": 1})
    child = await context(client, contracts.CONTEXT_FORK, context_id=root["id"], session_id="x")
    grandchild = await context(client, contracts.CONTEXT_FORK, context_id=child["id"])
    assert grandchild["lineage"] == {"parent_context": child["id"], "root_context": root["id"]}
    assert (child["shared_memory"], child["agent_memory"], grandchild["session_id"]) == ({"a": 1}, {}, "x")
    await context(client, contracts.CONTEXT_UPDATE, context_id=child["id"], shared_memory={"a": 2, "b": 2})
    await context(
        client, contracts.CONTEXT_UPDATE, context_id=grandchild["id"], shared_memory={"b": 3, "c": 3}
    )
    merged = await world.ask(
        contracts.CONTEXT_MERGE, context_id=root["id"], source_context_ids=[child["id"], grandchild["id"]]
    )
    assert merged.merged_keys == ["a", "b", "c"]
    assert merged.context["shared_memory"] == {"a": 1, "b": 3, "c": 3}
    with pytest.raises(InvalidParameters, match="source_context_ids"):
        await world.ask(contracts.CONTEXT_MERGE, context_id=root["id"])


async def test_unknown_and_expired_contexts_are_not_found(world: World) -> None:
    client = world.clients[0]
    made = await context(client, contracts.CONTEXT_CREATE, context_id="mine", ttl_seconds=0.01)
    assert made["id"] == "mine"

    async def is_gone() -> bool:
        return await world.manager.storage.get_context("mine") is None

    await until(is_gone)
    for contract in (contracts.CONTEXT_GET, contracts.CONTEXT_UPDATE, contracts.CONTEXT_FORK):
        with pytest.raises(ContextNotFound):
            await context(client, contract, context_id="mine")
    await context(client, contracts.CONTEXT_CREATE, context_id="mine")
    with pytest.raises(InvalidParameters, match="exists already"):
        await context(client, contracts.CONTEXT_CREATE, context_id="mine")
    with pytest.raises(InvalidParameters, match="ttl_seconds"):
        await context(client, contracts.CONTEXT_CREATE, ttl_seconds=-1)


# --- its life -----------------------------------------------------------------------------------------------


async def test_restarted_manager_goes_on(world: World) -> None:
    await world.append("i1")
    await world.manager.stop()
    await world.manager.stop()
    world.manager = world.make_manager()
    await world.manager.start(wait_seconds=WAIT_SECONDS)
    assert (await world.append("i1", 1)).offset == 2


async def test_manager_that_never_started_stops(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.manager.stop()
    await world.router.stop()


async def test_health_says_what_is_wrong(world: World) -> None:
    assert world.manager.health()["redis"] == "off"
    assert "status" not in world.manager.health()
    world.manager._store_lost(StoreLost("an fsync failed"))
    assert world.manager.failed.is_set()


async def test_full_disk_refuses_and_goes_on_reading(world: World) -> None:
    await world.append("i1")
    storage: Any = world.manager.storage
    pages = await storage.write(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    await storage.write(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchall())
    big = make_event(data=b'"' + b"x" * 100_000 + b'"')
    assert (await world.append("i2", events=[big])).status == "full"
    assert (await world.append("i1", 1)).status == "ok", "running work goes on in what room there is"
    assert world.manager.health()["status"] == "degraded"
    assert world.manager.health()["store"]["full"]
    with pytest.raises(InsufficientResources) as caught:
        await world.append("i1", 2, events=[big])
    assert caught.value.retryable
    assert caught.value.details["retry_after_ms"] > 0
    with pytest.raises(InsufficientResources, match="nothing new is taken"):
        await world.ask(contracts.STATE_SET, workflow_instance_id="s", state={"a": 1})
    assert len((await world.ask(contracts.LOG_READ)).events) == 2
    await storage.write(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchall())
    assert await storage.room.recover(storage.probe)
    assert (await world.append("i2", events=[big])).status == "ok"
    assert "status" not in world.manager.health()


async def test_full_disk_is_an_alert_and_over_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_watch, "RETRY_SECONDS", 0.01)
    world = World(tmp_path)
    asked: list[Any] = []

    async def create(incoming: Incoming) -> contracts.AlertCreateReply:
        asked.append(incoming.parameters)
        return contracts.AlertCreateReply(alert_id="a1", created=True)

    async def update(incoming: Incoming) -> contracts.AlertUpdateReply:
        asked.append(incoming.parameters)
        return contracts.AlertUpdateReply(alert={}, updated=True)

    monitor = MeshClient(
        AgentIdentity(id="monitor", session_id="m1"),
        world.network.transport(),
        offers=[
            Offer(capability=Capability(id=contract.id), handler=handler, parameters_type=contract.request)
            for contract, handler in ((contracts.ALERT_CREATE, create), (contracts.ALERT_UPDATE, update))
        ],
        random=Random(9),
    )
    await monitor.start(wait_seconds=WAIT_SECONDS)
    world.clients.append(monitor)
    await world.start()
    world.clients.reverse()
    try:
        world.manager.storage.room.give()
        await until(lambda: len(asked) == 2)
        assert (asked[0].alert_type, asked[0].severity) == ("store_full", "critical")
        assert (asked[1].alert_id, asked[1].resolved) == ("a1", True)
        assert (await world.append("i1")).status == "ok"
    finally:
        await world.stop()


async def test_orphans_are_answered_hinted_and_counted(world: World) -> None:
    past = SystemClock().now() - timedelta(seconds=100)
    await world.manager.storage.keep_lease(ENGINE, "engine", 60)
    await world.append("late", wake_at=past, wake_reason="task a runs")
    await world.append("blind", wake_at=past)
    await world.append("well", wake_at=past + timedelta(days=1), wake_reason="task a runs")
    reply = await world.ask(contracts.INSTANCE_ORPHANS)
    assert reply.count == 2
    assert {orphan.instance_id: orphan.code for orphan in reply.orphans} == {
        "late": "overdue",
        "blind": "no_wake_reason",
    }
    await world.manager.sweeper.sweep()
    assert (await world.event("instance.overdue", instance_id="late"))["owner"] == ENGINE
    assert world.manager.metrics.get_sample_value("amp_orphaned_instances") == 2


async def test_unread_inbox_is_hinted_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "UNREAD_SECONDS", 0.0)
    await world.append("i1")
    await world.ask(contracts.INBOX_PUT, instance_id="i1", kind="pause")
    await world.event("inbox.filled", instance_id="i1")
    world.events.clear()
    await world.manager.sweeper.sweep()
    assert (await world.event("inbox.filled", instance_id="i1"))["owner"] == ENGINE


async def test_purge_removes_what_ended_long_ago_and_all_that_is_its(world: World) -> None:
    old = SystemClock().now() - timedelta(days=3)
    for name, status, ended in (
        ("old", InstanceStatus.COMPLETED, old),
        ("young", InstanceStatus.FAILED, old + timedelta(days=2.5)),
        ("open", InstanceStatus.RUNNING, None),
    ):
        await world.append(name, events=2, status=status, completed_at=ended)
    count = await world.ask(contracts.STATE_PURGE, older_than_days=2, dry_run=True)
    assert (count.instances, count.events) == (1, 2)
    assert (await world.ask(contracts.INSTANCE_GET, instance_id="old")).row is not None
    purged = await world.ask(contracts.STATE_PURGE, older_than_days=2)
    assert (purged.instances, purged.events) == (1, 2)
    assert (await world.ask(contracts.INSTANCE_GET, instance_id="old")).row is None
    assert [event.offset for event in (await world.ask(contracts.LOG_READ)).events] == [3, 4, 5, 6]
    with pytest.raises(InvalidParameters):
        await world.ask(contracts.STATE_PURGE, older_than_days=0.5)


async def test_memory_store_serves_the_same_mesh(tmp_path: Path) -> None:
    world = World(tmp_path, database={"sqlite_path": ":memory:"})
    await world.start()
    try:
        assert (await world.append("i1")).status == "ok"
        assert len((await world.ask(contracts.LOG_READ)).events) == 1
    finally:
        await world.stop()
    assert os.listdir(tmp_path) == []


async def test_absent_redis_does_not_hinder(tmp_path: Path) -> None:
    world = World(tmp_path, state_manager={"use_redis": True, "redis_url": "redis://127.0.0.1:1/0"})
    await world.start()
    try:
        await world.ask(contracts.STATE_SET, workflow_instance_id="s", state={"a": 1})
        assert (await world.ask(contracts.STATE_GET, workflow_instance_id="s")).state == {"a": 1}
        await until(lambda: world.manager.health()["redis"] != "used")
    finally:
        await world.stop()


async def test_capabilities_are_those_of_the_contracts(world: World) -> None:
    offered = {offer.capability.id for offer in world.manager.offers()}
    wanted = {
        contract.id
        for contract in contracts.CONTRACTS.values()
        if contract.id.startswith(
            ("state-", "context-", "log-", "inbox-", "instance-", "definition-", "engine-")
        )
    }
    assert offered == wanted


async def test_leases_are_measured_by_the_store(world: World) -> None:
    lease = contracts.LeaseRequest(owner=ENGINE, agent_id="engine", lease_seconds=60)
    await world.ask(contracts.ENGINE_LEASE, lease)
    sweep = await world.manager.storage.sweep_leases()
    assert sweep.next_expiry is not None
    assert timedelta(0) < sweep.next_expiry - SystemClock().now() <= timedelta(seconds=60)


async def test_bad_redis_url_is_told_without_its_password(tmp_path: Path) -> None:
    world = World(tmp_path, state_manager={"use_redis": True, "redis_url": "ftp://me:hidden@host"})
    with pytest.raises(RuntimeFault, match=r"state_manager\.redis_url") as caught:
        await world.manager.start(wait_seconds=WAIT_SECONDS)
    assert "hidden" not in str(caught.value)
    await world.manager.stop()
    await world.router.stop()


async def test_second_manager_on_one_store_is_refused(world: World) -> None:
    second = StateManager(
        world.settings, transport=world.network.transport(), agent_id="second", serve_http=False
    )
    with pytest.raises(StoreUnusable, match="in use by another"):
        await second.start(wait_seconds=WAIT_SECONDS)
    await second.stop()
