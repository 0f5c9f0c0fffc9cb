"""What must hold when a run has come to rest. It reads the store, the ledger and what users were told.

Each finding is one sentence with the last events of the instance that it is about. Nothing here knows of faults.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestration import events as ev
from orchestration import invariants, machine
from orchestration.definition.plan import Plan
from orchestration.instance import Instance
from orchestration.status import Effects
from simulation.mesh import SimulatedMesh
from simulation.users import Users

MAX_TOLD_EVENTS = 12
POISON = "POISON_TASK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an instance ended, as far as faults must not change it."""

    status: str
    outputs: Mapping[str, Any]
    tasks: Mapping[str, str]
    failed_task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a run came to. `endings` are by the label of the start; `excused` need not equal the calm run's."""

    findings: tuple[str, ...]
    endings: Mapping[str, Ending]
    excused: frozenset[str]


def judge(mesh: SimulatedMesh, users: Users) -> Verdict:
    """Return what is wrong with a run that has come to rest, and how its instances ended."""
    findings = [*users.findings, *mesh.failures, *mesh.loop.failures]
    endings: dict[str, Ending] = {}
    excused: set[str] = set()
    rows = mesh.store.rows
    for start in users.workload.starts:
        instance_id = users.acknowledged.get(start.label)
        if instance_id is None:
            findings.append(f"{start.label}: its start was never acknowledged")
        elif instance_id not in rows:
            findings.append(f"{start.label}: {instance_id} was acknowledged and does not exist")
        else:
            history = facts_of(mesh, instance_id)
            instance, found = _instance(mesh, users, instance_id, history)
            findings.extend(
                f"{start.label} ({instance_id}): {text}\n{last_events(history)}" for text in found
            )
            if instance is not None:
                plan = users.plans[instance.definition_hash]
                endings[start.label] = _ending(plan, instance, stopped=start.is_stopped)
                if _was_poisoned(history):
                    excused.add(start.label)
    findings.extend(f"{name} exists and nobody asked for it" for name in sorted(set(rows) - users.asked))
    findings.extend(f"the inbox of {item.instance_id} still holds {item.kind}" for item in mesh.store.inbox)
    findings.extend(_unhappened(mesh))
    return Verdict(findings=tuple(findings), endings=endings, excused=frozenset(excused))


def differences(calm: Verdict, stormy: Verdict) -> list[str]:
    """Return how instances ended otherwise than in the run without faults."""
    return [
        f"{label}: without faults it ends as {calm.endings[label]}, with them as {ending}"
        for label, ending in stormy.endings.items()
        if label not in stormy.excused and label in calm.endings and ending != calm.endings[label]
    ]


def facts_of(mesh: SimulatedMesh, instance_id: str) -> list[ev.Event]:
    """Return an instance's history."""
    return [ev.decode(event.data) for event in mesh.store.events if event.instance_id == instance_id]


def last_events(history: list[ev.Event]) -> str:
    """Return the newest events, one a line."""
    return "\n".join(f"    {ev.encode(event).decode()[:300]}" for event in history[-MAX_TOLD_EVENTS:])


def _instance(
    mesh: SimulatedMesh, users: Users, instance_id: str, history: list[ev.Event]
) -> tuple[Instance | None, list[str]]:
    row = mesh.store.rows[instance_id]
    plan = users.plans[row.definition_hash]
    findings = invariants.check_history(plan, instance_id, history)
    try:
        instance = machine.replay(plan, instance_id, history)
    except (ValueError, KeyError) as error:
        return None, [*findings, f"its history cannot be replayed: {error}"]
    findings += invariants.check_row(plan, instance, row)
    seqs = [event.seq for event in mesh.store.events if event.instance_id == instance_id]
    if seqs != list(range(1, len(seqs) + 1)):
        findings.append(f"its events are numbered {seqs}")
    if not row.status.is_final:
        findings.append(f"it is stuck: {row.status}, wakes at {row.wake_at} because {row.wake_reason!r}")
    findings += _effects(mesh, plan, instance)
    return instance, findings


def _effects(mesh: SimulatedMesh, plan: Plan, instance: Instance) -> list[str]:
    """Return which effects happened too often or not at all."""
    done: Counter[str] = Counter(
        effect.task_id for effect in mesh.ledger.effects if effect.instance_id == instance.id
    )
    findings = []
    for run in instance.runs.values():
        task, count = plan.tasks[run.task_id], done[run.task_id]
        if task.effects in (Effects.ONCE, Effects.IRREVERSIBLE) and count > 1:
            findings.append(f"the effect of {task.id} must happen once and happened {count} times")
        simulated = task.type == "custom" and (plan.workflow_id, task.id) not in mesh.ledger.asks
        if simulated and run.status == "completed" and not count and not task.on_error.fallback:
            findings.append(f"{task.id} is completed and was never done")
    return findings


def _unhappened(mesh: SimulatedMesh) -> list[str]:
    """Return what a reader was shown of the log and is not there."""
    log = {event.offset: event for event in mesh.store.events}
    return [
        f"event {offset} was {seen.type} of {seen.instance_id} when it was read, and is gone"
        for offset, seen in mesh.seen.items()
        if (kept := log.get(offset)) is None or bytes(kept.data) != bytes(seen.data)
    ][:MAX_TOLD_EVENTS]


def _ending(plan: Plan, instance: Instance, *, stopped: bool) -> Ending:
    """Return what must be the same with and without faults. When a user stops it is chance how far it got."""
    asking = {task.reconcile for task in plan.tasks.values() if task.reconcile}
    tasks = {name: run.status.value for name, run in instance.runs.items() if name not in asking}
    return Ending(
        status=instance.status.value,
        outputs=dict(instance.outputs),
        tasks={} if stopped else tasks,
        failed_task=instance.failed_task,
    )


def _was_poisoned(history: list[ev.Event]) -> bool:
    """Return whether a task was given up because several executors were lost with it: a bound, not a fault."""
    return any(isinstance(event, ev.AttemptFailed) and event.error.code == POISON for event in history)
