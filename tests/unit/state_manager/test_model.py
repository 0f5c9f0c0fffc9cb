"""Appends, claims, leases and inboxes in any order, against a model of a page."""

import asyncio
import itertools
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agents.state_manager.storage.base import Storage
from agents.state_manager.storage.memory import MemoryStorage
from agents.state_manager.storage.sqlite import SqliteStorage
from orchestration.contracts import InboxPutRequest, InboxReadRequest, LogReadRequest
from orchestration.status import InstanceStatus
from tests.unit.state_manager.conftest import refuse_loss
from tests.unit.state_manager.store_values import ManualClock, make_batch, make_event, make_store_clock

INSTANCES = st.sampled_from(["a", "b", "c"])
OWNERS = st.sampled_from(["e1:s", "e2:s"])
LEASE_SECONDS = 10


class StoreMachine(RuleBasedStateMachine):
    """Drives a storage and a dictionary alike."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.storage = self.open()
        self.run(self.storage.start())
        self.rows: dict[str, dict[str, Any]] = {}
        self.log: list[tuple[str, bytes]] = []
        self.inbox: dict[int, str] = {}
        self.leases: dict[str, float] = {}
        self.numbers = itertools.count()

    def open(self) -> Storage:
        return SqliteStorage(Path(self.folder.name) / "store.db", make_store_clock(self.clock), refuse_loss)

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.storage.stop())
        self.runner.close()
        self.folder.cleanup()

    def live(self, owner: str) -> bool:
        return self.leases.get(owner, 0) > self.clock.seconds

    def claimable(self) -> list[str]:
        return [key for key, row in self.rows.items() if not row["ended"] and not self.live(row["owner"])]

    @rule(
        instance=INSTANCES,
        owner=OWNERS,
        seq_error=st.sampled_from([0, 0, 0, 1, -1]),
        epoch_error=st.sampled_from([0, 0, 0, 1]),
        count=st.integers(0, 3),
        ends=st.booleans(),
        consumes=st.booleans(),
    )
    def append(
        self,
        instance: str,
        owner: str,
        seq_error: int,
        epoch_error: int,
        count: int,
        ends: bool,
        consumes: bool,
    ) -> None:
        row = self.rows.get(instance)
        seq = max(0, (row["seq"] if row else 0) + seq_error)
        epoch = (row["epoch"] if row else 1) + epoch_error
        events = [make_event(data=b"%d" % next(self.numbers)) for _ in range(count)]
        consumed = [key for key, held in self.inbox.items() if held == instance][:1] if consumes else []
        status = InstanceStatus.COMPLETED if ends else InstanceStatus.RUNNING
        batch = make_batch(
            instance, seq, owner=owner, epoch=epoch, events=events, consumed=consumed, status=status
        )
        (outcome,) = self.run(self.storage.append([batch]))
        if row is None:
            expected = "ok" if seq == 0 and epoch == 1 and events else "conflict"
        elif (owner, epoch) != (row["owner"], row["epoch"]):
            expected = "stale_owner"
        else:
            expected = "ok" if seq == row["seq"] else "conflict"
        assert outcome.status == expected
        if expected != "ok":
            assert outcome.seq == (row["seq"] if row else 0)
            return
        self.rows[instance] = {"owner": owner, "epoch": epoch, "seq": seq + count, "ended": ends}
        self.log += [(instance, bytes(event.data)) for event in events]
        for key in consumed:
            del self.inbox[key]
        if ends:
            self.inbox = {key: held for key, held in self.inbox.items() if held != instance}

    @rule(instance=INSTANCES)
    def put_inbox(self, instance: str) -> None:
        reply, owner = self.run(self.storage.put_inbox(InboxPutRequest(instance_id=instance, kind="pause")))
        row = self.rows.get(instance)
        assert (reply.found, reply.open) == (row is not None, row is not None and not row["ended"])
        if reply.open:
            assert row is not None
            assert owner == row["owner"]
            assert reply.inbox_id not in self.inbox
            self.inbox[reply.inbox_id] = instance

    @rule(owner=OWNERS)
    def keep_lease(self, owner: str) -> None:
        self.leases[owner] = self.clock.seconds + LEASE_SECONDS
        standing = self.run(self.storage.keep_lease(owner, owner, LEASE_SECONDS))
        assert standing.claimable == len(self.claimable())

    @rule(owner=OWNERS)
    def end_lease(self, owner: str) -> None:
        self.leases.pop(owner, None)
        assert self.run(self.storage.end_lease(owner)) == len(self.claimable())

    @rule(owner=OWNERS, limit=st.integers(1, 2))
    def claim(self, owner: str, limit: int) -> None:
        free = sorted(key for key in self.claimable() if self.rows[key]["owner"] != owner)[:limit]
        claimed = self.run(self.storage.claim(owner, limit))
        assert [row.instance_id for row in claimed] == free
        for key in free:
            self.rows[key]["owner"] = owner
            self.rows[key]["epoch"] += 1

    @rule(seconds=st.integers(1, 8))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(hours=st.sampled_from([-1, -24]))
    def set_clock_back(self, hours: int) -> None:
        self.clock.wall = self.clock.wall.replace(hour=max(0, self.clock.wall.hour + hours))

    @invariant()
    def log_is_what_was_acknowledged(self) -> None:
        stored = self.run(self.storage.read_log(LogReadRequest(limit=1000))).events
        assert [(event.instance_id, bytes(event.data)) for event in stored] == self.log
        for instance, row in self.rows.items():
            seqs = [event.seq for event in stored if event.instance_id == instance]
            assert seqs == list(range(1, row["seq"] + 1))

    @invariant()
    def rows_are_what_was_acknowledged(self) -> None:
        for instance, expected in self.rows.items():
            row = self.run(self.storage.get_instance(instance))
            found = {"owner": row.owner, "epoch": row.epoch, "seq": row.seq, "ended": row.status.is_final}
            assert found == expected

    @invariant()
    def inboxes_hold_what_nobody_consumed(self) -> None:
        for owner in ("e1:s", "e2:s"):
            items = self.run(self.storage.read_inbox(InboxReadRequest(owner=owner))).items
            held = [key for key, instance in self.inbox.items() if self.rows[instance]["owner"] == owner]
            assert [item.inbox_id for item in items] == sorted(held)


class MemoryMachine(StoreMachine):
    """The same over the storage in memory."""

    def open(self) -> Storage:
        return MemoryStorage(make_store_clock(self.clock))


class RestartingMachine(StoreMachine):
    """The same over a file that is closed and opened again at any time."""

    @rule()
    def restart(self) -> None:
        self.run(self.storage.stop())
        self.storage = self.open()
        self.run(self.storage.start())
        for owner, expiry in self.leases.items():
            self.leases[owner] = max(expiry, self.clock.seconds + LEASE_SECONDS)


_SETTINGS = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMemoryModel = MemoryMachine.TestCase
TestMemoryModel.settings = settings(_SETTINGS, max_examples=60)
TestSqliteModel = RestartingMachine.TestCase
TestSqliteModel.settings = _SETTINGS
