"""Everything about a sound-looking definition that a model cannot say: graph, types, capabilities, schemas, logic."""

import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestration.definition.errors import Path, did_you_mean, quoted
from orchestration.definition.findings import Findings
from orchestration.definition.graph import dependents_of, draw_cycle, order_tasks, unreachable_tasks
from orchestration.definition.logic import check_logic, make_context
from orchestration.definition.models import MAX_EDGES, OnErrorConfig, TaskDefinition, WorkflowDefinition
from orchestration.definition.parameters import check_parameters
from orchestration.definition.schemas import check_schema
from orchestration.definition.shape import Shape
from orchestration.definition.tasks import (
    CAPABILITY_BY_TYPE,
    ENVELOPE_TYPES,
    LATER_TYPES,
    capability_of,
    is_offered_to_tasks,
)

MAX_LISTED_TASKS = 10
"""Up to so many tasks a message lists those that exist."""

NEEDS_FALLBACK = "fallback"
USES_FALLBACK = frozenset({"fallback", "auto"})


@dataclass(frozen=True, slots=True)
class PlacedTask:
    """A task and its place in the text."""

    task: TaskDefinition
    path: Path


def check_definition(shape: Shape, findings: Findings) -> WorkflowDefinition | None:
    """Note every problem of what is sound so far; return the definition if all of it is."""
    placed = [
        PlacedTask(task, ("tasks", index)) for index, task in enumerate(shape.tasks) if task is not None
    ]
    head = shape.head
    for field in ("input_schema", "output_schema"):
        schema = getattr(head, field, None)
        if schema is not None:
            check_schema(schema, (field,), findings)
    for entry in placed:
        if _check_type(entry, findings):
            capability = capability_of(entry.task.type, entry.task.capability)
            check_parameters(capability, entry.task.parameters, (*entry.path, "parameters"), findings)
        _check_outputs(entry, findings)
    by_id = _unique_tasks(shape, placed, findings)
    stands_in_for = _check_graph(by_id, shape, placed, findings)
    inputs = _property_names(head.input_schema if head is not None else None)
    context = make_context({task_id: entry.task for task_id, entry in by_id.items()}, inputs, stands_in_for)
    for entry in placed:
        check_logic(entry.task, entry.path, context, findings)
    if shape.head is None or findings.has_errors:
        return None
    return WorkflowDefinition.model_validate(findings.document.value)


def _property_names(schema: Mapping[str, Any] | None) -> list[str]:
    properties = (schema or {}).get("properties")
    return list(properties) if isinstance(properties, dict) else []


def _check_type(entry: PlacedTask, findings: Findings) -> bool:
    """Check who does the work; return whether that is known."""
    task, path = entry.task, entry.path
    if task.type in LATER_TYPES:
        findings.error("type-not-available", _later(task.type), (*path, "type"))
        return False
    if task.type not in CAPABILITY_BY_TYPE:
        findings.error(
            "unknown-type",
            f"there is no task type {quoted(task.type)}",
            (*path, "type"),
            hint=partial(did_you_mean, task.type, CAPABILITY_BY_TYPE, list_known=True),
        )
        return False
    if task.capability is not None and not is_offered_to_tasks(task.capability):
        findings.error(
            "capability-refused",
            f"the capability {quoted(task.capability)} drives the orchestrator itself and cannot be a task",
            (*path, "capability"),
        )
        return False
    if task.type in ENVELOPE_TYPES and task.capability is None and "task_type" not in task.parameters:
        findings.error(
            "no-work",
            f"task {quoted(task.id)} of type '{task.type}' does not say what to do",
            path,
            hint="give it a type such as api_call, a capability, or the parameters task_type and task_config",
        )
        return False
    return True


def _later(task_type: str) -> str:
    return f"task type '{task_type}' is not available in this release"


def _check_outputs(entry: PlacedTask, findings: Findings) -> None:
    seen: set[str] = set()
    for index, name in enumerate(entry.task.outputs):
        place = (*entry.path, "outputs", index)
        if name in seen:
            findings.error("duplicate-output", f"the output {quoted(name)} is listed twice", place)
        if keyword.iskeyword(name):
            findings.error(
                "bad-output", f"the output {quoted(name)} is a word of the expression language", place
            )
        seen.add(name)


def _check_graph(
    by_id: Mapping[str, PlacedTask], shape: Shape, placed: list[PlacedTask], findings: Findings
) -> dict[str, list[str]]:
    """Check what waits for what; return for each fallback task the tasks that name it."""
    _check_dependencies(shape, placed, findings)
    edges = {
        task_id: [name for name in entry.task.depends_on if name in by_id and name != task_id]
        for task_id, entry in by_id.items()
    }
    order = order_tasks(edges)
    for cycle in order.cycles:
        first = by_id[cycle[0]]
        place = (*first.path, "depends_on", first.task.depends_on.index(cycle[1]))
        findings.error("cycle", f"these tasks wait for each other for ever: {draw_cycle(cycle)}", place)
    stands_in_for = _check_fallbacks(by_id, shape, findings)
    if order.cycles:
        return stands_in_for
    _check_deadlocks(by_id, edges, stands_in_for, findings)
    for task_id in unreachable_tasks(order.tasks, edges, stands_in_for):
        message = f"task {quoted(task_id)} can never run: nothing that would start it can run without it"
        findings.error("unreachable-task", message, by_id[task_id].path)
    return stands_in_for


def _unique_tasks(shape: Shape, placed: list[PlacedTask], findings: Findings) -> dict[str, PlacedTask]:
    first_at: dict[str, int] = {}
    for index, task_id in enumerate(shape.known_ids):
        if task_id is None:
            continue
        if task_id in first_at:
            line, _ = findings.document.position(("tasks", first_at[task_id], "id"))
            before = f"line {line}" if line else f"task {first_at[task_id] + 1}"
            findings.error(
                "duplicate-id",
                f"the id {quoted(task_id)} is used before, in {before}",
                ("tasks", index, "id"),
            )
        else:
            first_at[task_id] = index
    by_id: dict[str, PlacedTask] = {}
    for entry in placed:
        by_id.setdefault(entry.task.id, entry)
    return by_id


def _check_dependencies(shape: Shape, placed: list[PlacedTask], findings: Findings) -> None:
    known = {task_id for task_id in shape.known_ids if task_id is not None}
    edges = 0
    for entry in placed:
        seen: set[str] = set()
        for index, name in enumerate(entry.task.depends_on):
            edges += 1
            place = (*entry.path, "depends_on", index)
            if name == entry.task.id:
                findings.error("self-dependency", f"task {quoted(name)} depends on itself", place)
            elif name not in known:
                findings.error(
                    "unknown-dependency",
                    f"task {quoted(entry.task.id)} depends on {quoted(name)}, which is no task",
                    place,
                    hint=partial(_task_hint, name, known, entry.task.id),
                )
            elif name in seen:
                findings.error(
                    "duplicate-dependency", f"the dependency {quoted(name)} is listed twice", place
                )
            seen.add(name)
    if edges > MAX_EDGES:
        findings.error(
            "too-many-edges", f"the tasks have {edges:,} dependencies; {MAX_EDGES:,} are allowed", ("tasks",)
        )


def _task_hint(name: str, known: set[str], owner: str) -> str:
    """Return which task may be meant; of few tasks, all but the owner."""
    return did_you_mean(name, known - {owner}, list_known=len(known) <= MAX_LISTED_TASKS)


def _check_fallbacks(
    by_id: Mapping[str, PlacedTask], shape: Shape, findings: Findings
) -> dict[str, list[str]]:
    """Check who stands in for whom, and return for each fallback task the tasks that name it."""
    default = shape.head.on_error if shape.head is not None else None
    known = {task_id for task_id in shape.known_ids if task_id is not None}
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
            hint=partial(_task_hint, on_error.fallback, known, owner),
        )
    else:
        return True
    return False


def _check_deadlocks(
    by_id: Mapping[str, PlacedTask],
    edges: Mapping[str, list[str]],
    stands_in_for: Mapping[str, list[str]],
    findings: Findings,
) -> None:
    """A fallback must not wait for what waits for the task it stands in for."""
    dependents = dependents_of(edges)
    for task_id, users in stands_in_for.items():
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
        for name in waits_for:
            if name in behind:
                findings.error(
                    "fallback-waits",
                    f"the fallback {quoted(task_id)} waits for {quoted(name)}, which waits for the failed task itself",
                    (*by_id[task_id].path, "depends_on", by_id[task_id].task.depends_on.index(name)),
                )
