"""Everything about a sound-looking definition that a model cannot say: graph, types, capabilities, schemas, logic."""

import keyword
from collections.abc import Mapping
from functools import partial
from typing import Any

from orchestration.definition.errors import did_you_mean, quoted
from orchestration.definition.findings import Findings
from orchestration.definition.graph import draw_cycle, order_tasks, unreachable_tasks
from orchestration.definition.logic import check_logic, make_context
from orchestration.definition.models import MAX_EDGES, WorkflowDefinition
from orchestration.definition.on_call import CalledBy, check_on_call, check_waits_on_call, task_hint
from orchestration.definition.parameters import check_parameters
from orchestration.definition.schemas import check_schema
from orchestration.definition.shape import PlacedTask, Shape
from orchestration.definition.tasks import (
    CAPABILITY_BY_TYPE,
    ENVELOPE_TYPES,
    LATER_TYPES,
    capability_of,
    is_offered_to_tasks,
)


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
        _check_times(entry, findings)
    by_id = _unique_tasks(shape, placed, findings)
    called_by = _check_graph(by_id, shape, placed, findings)
    inputs = _property_names(head.input_schema if head is not None else None)
    context = make_context({task_id: entry.task for task_id, entry in by_id.items()}, inputs, called_by)
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


def _check_times(entry: PlacedTask, findings: Findings) -> None:
    """Warn of limits that another one always reaches first."""
    task = entry.task
    for field, limit in (
        ("heartbeat_seconds", task.heartbeat_seconds),
        ("timeout_seconds", task.timeout_seconds),
    ):
        longest = task.timeout_seconds if field == "heartbeat_seconds" else task.total_timeout_seconds
        if limit is not None and longest is not None and limit > longest:
            shorter = "timeout_seconds" if field == "heartbeat_seconds" else "total_timeout_seconds"
            findings.warn("useless-limit", f"{shorter} ends before {field} is reached", (*entry.path, field))


def _check_graph(
    by_id: Mapping[str, PlacedTask], shape: Shape, placed: list[PlacedTask], findings: Findings
) -> CalledBy:
    """Check what waits for what; return for each task on call the tasks that may call for it."""
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
    called_by = check_on_call(by_id, shape, findings)
    if order.cycles:
        return called_by
    check_waits_on_call(by_id, edges, called_by, findings)
    for task_id in unreachable_tasks(order.tasks, edges, called_by):
        message = f"task {quoted(task_id)} can never run: nothing that would start it can run without it"
        findings.error("unreachable-task", message, by_id[task_id].path)
    return called_by


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
                    hint=partial(task_hint, name, known, entry.task.id),
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
