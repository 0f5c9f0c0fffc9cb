"""What must be true when everything was killed and came to rest: read from the store's file, not told by the mesh.

The log decides: it is replayed, judged fact by fact, and compared with the row, with the end that the same instance has
without faults, and with what really happened to the world, which the effect ledger says. It only reads.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from agents.task_executor.spool_folder import RECORDS
from orchestration import events as ev
from orchestration import invariants, machine
from orchestration.contracts import InstanceRow
from orchestration.definition.compile import load_plan
from orchestration.definition.plan import Plan
from orchestration.instance import Instance
from orchestration.status import InstanceStatus
from tests.chaos.workload import End, Start

MAX_VIOLATIONS = 200
MAX_DUMPED = 3
BUSY_SECONDS = 10.0
CLOCK_SLACK_SECONDS = 20.0
"""A fault this long before or after an instance's life may still have had a dispatch of it repeated."""
LEFT_SUFFIXES = frozenset({".tmp", *RECORDS})
"""Files that are there only while something is under way: unfinished ones, and what an executor spools."""
OPEN = tuple(status.value for status in InstanceStatus if not status.is_final)
_EFFECTIVE = frozenset({"effect", "once", "deduplicated", "flaky", "slow"})
"""The handlers that write into the ledger whenever they complete."""
ENDINGS = (ev.TaskCompleted, ev.TaskFailed, ev.TaskSkipped, ev.TaskCancelled)

_ROWS = "SELECT * FROM instances ORDER BY created_at, instance_id"
_ROW = "SELECT * FROM instances WHERE instance_id = ?"
_EVENTS = "SELECT seq, data FROM events WHERE instance_id = ? ORDER BY seq"
_STRAY_EVENTS = """
SELECT DISTINCT instance_id FROM events WHERE instance_id NOT IN (SELECT instance_id FROM instances) LIMIT 10"""
_CONTENT = "SELECT content FROM definitions WHERE hash = ?"
_INBOX = "SELECT instance_id, kind, data FROM inbox LIMIT 20"
_OPEN = (
    "SELECT instance_id, status, owner, wake_at, wake_reason FROM instances WHERE status IN (?, ?, ?) LIMIT ?"
)
_COUNT_OPEN = "SELECT count(*) FROM instances WHERE status IN (?, ?, ?)"
_LAST_OFFSET = "SELECT coalesce(max(offset), 0) FROM events"
_COUNT_ENDS = "SELECT workflow_id, status, count(*) FROM instances GROUP BY workflow_id, status"


@dataclass(frozen=True, slots=True)
class Effect:
    """One line of the ledger."""

    instance: str
    task: str
    attempt: int
    key: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the test knows, to hold against the store.

    `asked` are the starts by the instance ids that were acknowledged. `disturbances` are the wall times, in seconds,
    at which connections broke, so that a request may have been sent to two executors.
    """

    asked: Mapping[str, Start]
    ends: Mapping[tuple[str, int], End]
    effects: Mapping[str, Sequence[Effect]]
    disturbances: Sequence[float] = ()


@dataclass(slots=True)
class Verdict:
    """What was found. Every violation is one sentence; `counts` are the figures of a report."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    suspects: list[str] = field(default_factory=list)

    def add(self, kind: str, instance_id: str, text: str) -> None:
        """Note a violation of a kind: lost, stuck, recorded_twice, done_twice, differing or broken."""
        self.counts[kind] += 1
        if instance_id and len(self.suspects) < MAX_DUMPED and instance_id not in self.suspects:
            self.suspects.append(instance_id)
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"{kind}: {instance_id} {text}".strip())


class Store:
    """The state manager's file, read beside it."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        self._db.row_factory = sqlite3.Row
        self._plans: dict[str, Plan] = {}

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def rows(self) -> Iterator[InstanceRow]:
        """Yield every instance's row, oldest first."""
        with closing(self._db.execute(_ROWS)) as cursor:
            while page := cursor.fetchmany(100):
                yield from map(_row, page)

    def row(self, instance_id: str) -> InstanceRow | None:
        """Return an instance's row."""
        found = self._db.execute(_ROW, (instance_id,)).fetchone()
        return None if found is None else _row(found)

    def history(self, instance_id: str) -> list[tuple[int, bytes]]:
        """Return seq and encoded event of everything that happened to an instance."""
        return [(seq, data.encode()) for seq, data in self._db.execute(_EVENTS, (instance_id,))]

    def plan(self, definition_hash: str) -> Plan:
        """Return the plan that instances with this hash run by."""
        if definition_hash not in self._plans:
            (content,) = self._db.execute(_CONTENT, (definition_hash,)).fetchone()
            self._plans[definition_hash] = load_plan(json.loads(content))
        return self._plans[definition_hash]

    def count_open(self) -> int:
        """Return how many instances have not ended."""
        return int(self._db.execute(_COUNT_OPEN, OPEN).fetchone()[0])

    def open_rows(self, limit: int = 20) -> list[str]:
        """Return what is known of instances that have not ended, as text."""
        return [str(tuple(row)) for row in self._db.execute(_OPEN, (*OPEN, limit))]

    def last_offset(self) -> int:
        """Return how far the log goes."""
        return int(self._db.execute(_LAST_OFFSET).fetchone()[0])

    def inbox(self) -> list[str]:
        """Return what lies in inboxes, as text."""
        return [str(tuple(row)) for row in self._db.execute(_INBOX)]

    def stray_events(self) -> list[str]:
        """Return instances that have events and no row."""
        return [row[0] for row in self._db.execute(_STRAY_EVENTS)]

    def ends(self) -> dict[str, Counter[str]]:
        """Return how many instances of each workflow are in each status."""
        counts: dict[str, Counter[str]] = {}
        for workflow_id, status, count in self._db.execute(_COUNT_ENDS):
            counts.setdefault(workflow_id, Counter())[status] = count
        return counts


def _row(row: sqlite3.Row) -> InstanceRow:
    values: dict[str, Any] = dict(row)
    values["trigger"] = values.pop("started_by")
    for name in ("created_at", "started_at", "completed_at", "updated_at", "wake_at"):
        if values[name] is not None:
            values[name] = datetime.fromtimestamp(values[name] // 1_000_000, UTC).replace(
                microsecond=values[name] % 1_000_000
            )
    for name in ("task_counts", "current_tasks"):
        values[name] = json.loads(values[name])
    return msgspec.convert(values, InstanceRow)


def read_ledger(path: Path) -> dict[str, list[Effect]]:
    """Return what happened to the world, by instance."""
    effects: dict[str, list[Effect]] = {}
    if path.exists():
        with path.open("rb") as lines:
            for line in lines:
                told = json.loads(line)
                told.pop("pid")
                effects.setdefault(told["instance"], []).append(Effect(**told))
    return effects


def check_store(store: Store, facts: Facts, only: Iterable[str] | None = None) -> Verdict:
    """Return what is wrong with the store. With `only`, look at these instances and nothing else."""
    verdict = Verdict()
    found: set[str] = set()
    rows = store.rows() if only is None else [row for name in only if (row := store.row(name)) is not None]
    for row in rows:
        found.add(row.instance_id)
        _check_instance(store, facts, row, verdict)
    for instance_id in facts.asked.keys() if only is None else only:
        if instance_id not in found:
            verdict.add("lost", instance_id, "was acknowledged and is not in the store")
    if only is None:
        for instance_id in facts.effects.keys() - facts.asked.keys():
            verdict.add("broken", instance_id, "had an effect, and nobody asked for it")
        for instance_id in store.stray_events():
            verdict.add("broken", instance_id, "has events and no row")
        for item in store.inbox():
            verdict.add("broken", "", f"an inbox holds {item[:500]}")
    return verdict


def _check_instance(store: Store, facts: Facts, row: InstanceRow, verdict: Verdict) -> None:
    name = row.instance_id
    verdict.counts["instances"] += 1
    start = facts.asked.get(name)
    if start is None:
        verdict.add("broken", name, "is in the store, and nobody asked for it")
        return
    plan, history = store.plan(row.definition_hash), store.history(name)
    if [seq for seq, _ in history] != list(range(1, len(history) + 1)):
        verdict.add("broken", name, f"has the events {[seq for seq, _ in history]}")
        return
    events = [ev.decode(data) for _, data in history]
    instance = machine.replay(plan, name, events)
    for text in (*invariants.check_history(plan, name, events), *invariants.check_row(plan, instance, row)):
        verdict.add("broken", name, text)
    if not instance.status.is_final:
        verdict.add("stuck", name, f"is {instance.status} ({row.wake_reason}; wake at {row.wake_at})")
    verdict.counts["events"] += len(events)
    for text in recorded_twice(events):
        verdict.add("recorded_twice", name, text)
    for text in differences(plan, instance, facts.ends[start.workflow_id, start.n]):
        verdict.add("differing", name, text)
    _check_effects(plan, instance, row, events, facts, verdict)


def recorded_twice(events: Iterable[ev.Event]) -> list[str]:
    """Return the tasks that ended more than once without a new round, as sentences.

    A reconcile task ends once each time that it is called for.
    """
    ends: Counter[str] = Counter()
    found = []
    for event in events:
        if isinstance(event, ev.TaskReset):
            ends.clear()
        elif isinstance(event, ev.TaskReconciling):
            ends.pop(event.reconcile, None)
        elif isinstance(event, ENDINGS):
            ends[event.task_id] += 1
            if ends[event.task_id] == 2:
                found.append(f"task {event.task_id} ended twice")
    return found


def differences(plan: Plan, instance: Instance, end: End) -> list[str]:
    """Return how an instance ended otherwise than without faults, as sentences."""
    if instance.status.value != end.status:
        error = instance.error
        why = f": {error.code} {error.message}" if error is not None else ""
        return [f"ended {instance.status}{why}, not {end.status}"]
    found = []
    if end.tasks is not None and dict(instance.outputs) != dict(end.outputs):
        found.append(f"returned {dict(instance.outputs)}, not {dict(end.outputs)}")
    for task_id, (status, outputs) in (end.tasks or {}).items():
        run = instance.runs[task_id]
        if task_id in reconcilers(plan):
            continue
        if (run.status.value, dict(run.outputs)) != (status, dict(outputs)):
            found.append(
                f"task {task_id} is {run.status} with {dict(run.outputs)}, not {status} with {outputs}"
            )
    return found


def reconcilers(plan: Plan) -> frozenset[str]:
    """Return the tasks that run only when an outcome is unknown: without faults never."""
    return frozenset(task.reconcile for task in plan.tasks.values() if task.reconcile)


def _check_effects(
    plan: Plan,
    instance: Instance,
    row: InstanceRow,
    events: Sequence[ev.Event],
    facts: Facts,
    verdict: Verdict,
) -> None:
    """Compare what happened to the world with what the log says about it."""
    attempts = Counter(event.task_id for event in events if isinstance(event, ev.TaskStarted))
    failures = Counter(event.task_id for event in events if isinstance(event, ev.AttemptFailed))
    lost = sum(1 for event in events if isinstance(event, ev.AttemptLost))
    performed = facts.effects.get(instance.id, ())
    counts = Counter((effect.task, effect.kind) for effect in performed)
    verdict.counts["tasks"] += len(attempts)
    verdict.counts["attempts"] += sum(attempts.values())
    verdict.counts["attempts_lost"] += lost
    verdict.counts["effects"] += len(performed)
    repeats = row.epoch - 1 + _disturbances(row, facts.disturbances)
    for (task_id, kind), count in counts.items():
        if kind in ("once", "deduplicated"):
            if count > 1:
                verdict.add(
                    "done_twice", instance.id, f"{kind} effect of task {task_id} happened {count} times"
                )
            continue
        verdict.counts["re_executions"] += max(count - 1 - failures[task_id], 0)
        if count > attempts[task_id] + repeats:
            text = f"{count} effects of task {task_id} in {attempts[task_id]} attempts and {repeats} interruptions"
            verdict.add("broken", instance.id, text)
    done = {task_id for task_id, _ in counts}
    for task_id, run in instance.runs.items():
        parameters = plan.tasks[task_id].parameters
        handler = parameters.get("task_name") if plan.tasks[task_id].capability == "task-custom" else None
        if run.status.value == "completed" and handler in _EFFECTIVE and task_id not in done:
            verdict.add("broken", instance.id, f"task {task_id} completed and its effect never happened")


def _disturbances(row: InstanceRow, times: Sequence[float]) -> int:
    begin = row.created_at.timestamp() - CLOCK_SLACK_SECONDS
    end = (row.completed_at or datetime.now(UTC)).timestamp() + CLOCK_SLACK_SECONDS
    return sum(begin <= at <= end for at in times)


def check_leftovers(data: Path) -> list[str]:
    """Return what should not lie in a data folder when everything has ended: spooled results, unfinished files."""
    return [
        f"left behind: {path.relative_to(data)}"
        for path in data.rglob("*")
        if path.suffix in LEFT_SUFFIXES and path.is_file()
    ]


def check_totals(store: Store, metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return how the monitor's totals by workflow differ from what the store has."""
    found = []
    for workflow_id, counts in store.ends().items():
        told = metrics.get(workflow_id, {})
        for name, wanted in (
            ("started_executions", sum(counts.values())),
            ("successful_executions", counts["completed"]),
            ("failed_executions", counts["failed"]),
            ("cancelled_executions", counts["cancelled"]),
        ):
            if told.get(name) != wanted:
                found.append(
                    f"the monitor counts {told.get(name)} {name} of {workflow_id}; there are {wanted}"
                )
    return found


def describe(store: Store, instance_id: str) -> str:
    """Return everything that the store knows of an instance, for whoever has to find out what went wrong."""
    row = store.row(instance_id)
    lines = [f"=== {instance_id}", f"row: {row}"]
    lines += [f"{seq:4} {data.decode()[:400]}" for seq, data in store.history(instance_id)]
    lines += [f"inbox: {item}" for item in store.inbox() if instance_id in item]
    return "\n".join(lines)
