"""Checks the tasks that run only when another calls for them: fallbacks and reconcile tasks.

A fallback runs when a task has failed for good; a reconcile task when it is unknown whether a task did its work, and it
says so. Nothing here looks at what the tasks do.
"""

from collections.abc import Mapping
from functools import partial

from orchestration.definition.errors import Path, did_you_mean, quoted
from orchestration.definition.findings import Findings
from orchestration.definition.graph import Edges, dependents_of
from orchestration.definition.models import OnErrorConfig, TaskDefinition
from orchestration.definition.shape import PlacedTask, Shape
from orchestration.definition.tasks import capability_of, effects_of
from orchestration.status import UNREPEATABLE, Effects

MAX_LISTED_TASKS = 10
"""Up to so many tasks a message lists those that exist."""

NEEDS_FALLBACK = "fallback"
USES_FALLBACK = frozenset({"fallback", "auto"})

CalledBy = Mapping[str, list[str]]
"""For each task on call the tasks that may call for it."""


def check_on_call(by_id: Mapping[str, PlacedTask], shape: Shape, findings: Findings) -> CalledBy:
    """Check who stands in for whom and who reconciles whom; return who may call for each task on call."""
    known = {task_id for task_id in shape.known_ids if task_id is not None}
    called_by = _check_fallbacks(by_id, shape, known, findings)
    reconciles = _check_reconciles(by_id, known, findings)
    _check_use_of_reconciles(by_id, reconciles, called_by, findings)
    for task_id, users in reconciles.items():
        called_by.setdefault(task_id, []).extend(users)
    return called_by


def _check_fallbacks(
    by_id: Mapping[str, PlacedTask], shape: Shape, known: set[str], findings: Findings
) -> dict[str, list[str]]:
    """Check who stands in for whom, and return for each fallback task the tasks that name it."""
    default = shape.head.on_error if shape.head is not None else None
    stands_in_for: dict[str, list[str]] = {}
    if default is not None and _check_on_error(default, ("on_error",), "", known, findings):
        entry = by_id.get(default.fallback or "")
        if entry is not None and entry.task.depends_on:
            findings.error(
                "fallback-waits",
                f"{quoted(entry.task.id)} may stand in for any task, so it must not wait for one",
                (*entry.path, "depends_on"),
            )
    for task_id, entry in by_id.items():
        own = entry.task.on_error
        if own is None:
            used = default.fallback if default is not None and default.fallback != task_id else None
        else:
            sound = _check_on_error(own, (*entry.path, "on_error"), task_id, known, findings)
            used = own.fallback if sound else None
        if used in by_id:
            stands_in_for.setdefault(str(used), []).append(task_id)
    return stands_in_for


def _check_on_error(
    on_error: OnErrorConfig, path: Path, owner: str, known: set[str], findings: Findings
) -> bool:
    """Check one `on_error`; return whether it names a usable fallback."""
    if on_error.fallback is None:
        if on_error.action == NEEDS_FALLBACK:
            findings.error(
                "no-fallback",
                "the action 'fallback' needs a fallback: the task to run instead",
                path,
            )
        return False
    place = (*path, "fallback")
    if on_error.action not in USES_FALLBACK:
        findings.error(
            "unused-fallback",
            f"the action '{on_error.action}' never runs a fallback",
            place,
            hint="write action: fallback, or auto",
        )
    elif on_error.fallback == owner:
        findings.error("self-fallback", f"task {quoted(owner)} cannot stand in for itself", place)
    elif on_error.fallback not in known:
        findings.error(
            "unknown-fallback",
            f"the fallback {quoted(on_error.fallback)} is no task",
            place,
            hint=partial(task_hint, on_error.fallback, known, owner),
        )
    else:
        return True
    return False


def _check_reconciles(
    by_id: Mapping[str, PlacedTask], known: set[str], findings: Findings
) -> dict[str, list[str]]:
    """Check each `reconcile`, and return for each reconcile task the tasks that name it."""
    reconciles: dict[str, list[str]] = {}
    for task_id, entry in by_id.items():
        name, place = entry.task.reconcile, (*entry.path, "reconcile")
        if name is None:
            continue
        if name == task_id:
            findings.error("self-reconcile", f"task {quoted(task_id)} cannot reconcile itself", place)
        elif name not in known:
            findings.error(
                "unknown-reconcile",
                f"the reconcile task {quoted(name)} is no task",
                place,
                hint=partial(task_hint, name, known, task_id),
            )
        elif _effects_of(entry.task) not in UNREPEATABLE:
            findings.error(
                "unused-reconcile",
                f"task {quoted(task_id)} may be repeated, so its outcome is never unknown",
                place,
                hint="declare effects: once, or irreversible",
            )
        elif name in by_id:
            if name in reconciles:
                before = quoted(reconciles[name][0])
                findings.error("shared-reconcile", f"{quoted(name)} reconciles {before} already", place)
            reconciles.setdefault(name, []).append(task_id)
    return reconciles


def _check_use_of_reconciles(
    by_id: Mapping[str, PlacedTask], reconciles: CalledBy, stands_in_for: CalledBy, findings: Findings
) -> None:
    """A reconcile task only looks, and may run several times: nothing else may build on it."""
    for task_id in reconciles:
        entry = by_id[task_id]
        if _effects_of(entry.task) in UNREPEATABLE:
            findings.error(
                "reconcile-effects",
                f"the reconcile task {quoted(task_id)} must only look, but it is said to act",
                (*entry.path, "effects") if entry.task.effects else entry.path,
                hint="declare effects: read",
            )
        if task_id in stands_in_for:
            findings.error(
                "reconcile-in-flow", f"{quoted(task_id)} cannot be reconcile task and fallback", entry.path
            )
    for entry in by_id.values():
        for index, name in enumerate(entry.task.depends_on):
            if name in reconciles and name != entry.task.id:
                findings.error(
                    "reconcile-in-flow",
                    f"{quoted(name)} only finds out about {quoted(reconciles[name][0])}; nothing can wait for it",
                    (*entry.path, "depends_on", index),
                )


def _effects_of(task: TaskDefinition) -> Effects:
    if task.effects:
        return Effects(task.effects)
    return effects_of(capability_of(task.type, task.capability), task.parameters)


def check_waits_on_call(
    by_id: Mapping[str, PlacedTask], edges: Edges, called_by: CalledBy, findings: Findings
) -> None:
    """A task on call must not wait for what waits for the task that calls for it."""
    dependents = dependents_of(edges)
    for task_id, users in called_by.items():
        waits_for = [name for name in edges[task_id] if name not in users]
        if not waits_for:
            continue
        behind = set(users)
        frontier = list(users)
        while frontier:
            for name in dependents[frontier.pop()]:
                if name not in behind and name != task_id:
                    behind.add(name)
                    frontier.append(name)
        entry = by_id[task_id]
        reconciles = any(by_id[user].task.reconcile == task_id for user in users)
        role, owner = ("reconcile task", "unknown") if reconciles else ("fallback", "failed")
        for name in waits_for:
            if name in behind:
                findings.error(
                    "reconcile-waits" if reconciles else "fallback-waits",
                    f"the {role} {quoted(task_id)} waits for {quoted(name)}, which waits for the {owner} task itself",
                    (*entry.path, "depends_on", entry.task.depends_on.index(name)),
                )


def task_hint(name: str, known: set[str], owner: str) -> str:
    """Return which task may be meant; of few tasks, all but the owner."""
    return did_you_mean(name, known - {owner}, list_known=len(known) <= MAX_LISTED_TASKS)
