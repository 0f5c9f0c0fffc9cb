"""Checks what a person wrote against the models and says what is wrong in the words of the format, all at once.

One bad field must not hide what else is wrong: each task is checked by itself, and what is sound of it goes on to
the checks of the graph and the expressions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestration.definition.errors import Path, did_you_mean, quoted
from orchestration.definition.findings import Findings
from orchestration.definition.models import (
    CAPABILITY_PATTERN,
    CODE_PATTERN,
    ID_PATTERN,
    MAX_TASKS,
    NAME_PATTERN,
    TaskDefinition,
    WorkflowHead,
)

_M = TypeVar("_M", bound=BaseModel)

MEANT = {
    "timeout": "timeout_seconds",
    "global_timeout": "global_timeout_seconds",
    "retry": "retry_config",
    "retries": "retry_config",
    "needs": "depends_on",
    "dependencies": "depends_on",
    "if": "condition",
    "when": "condition",
    "with": "parameters",
    "params": "parameters",
    "config": "parameters",
    "output": "outputs",
    "inputs": "input_schema",
    "steps": "tasks",
    "delay": "initial_delay_seconds",
    "attempts": "max_attempts",
    "type": "condition_type",
}
"""Other words that people use for our fields."""

_PATTERN_MEANING = {
    ID_PATTERN: "an id begins with a letter or digit and goes on with letters, digits, '.', '_' or '-', 128 at most",
    CAPABILITY_PATTERN: "a capability is letters, digits, '.', '_', ':', '/' or '-', 128 at most",
    NAME_PATTERN: "a name begins with a letter and goes on with letters, digits or '_', 128 at most",
    CODE_PATTERN: "a code is letters, digits, '.', '_' or '-', 128 at most, or *",
}
_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "an object (a mapping of names to values)",
    "list_type": "a list",
    "model_type": "an object (a mapping of names to values)",
    "model_attributes_type": "an object (a mapping of names to values)",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What is sound: `head` without its bad fields, and for each entry of `tasks` the task, or null.

    `known_ids` holds the ids of all entries that have one, sound or not.
    """

    head: WorkflowHead | None
    tasks: list[TaskDefinition | None]
    known_ids: list[str | None]


@dataclass(frozen=True, slots=True)
class PlacedTask:
    """A task and its place in the text."""

    task: TaskDefinition
    path: Path


def check_shape(findings: Findings) -> Shape:
    """Note every unknown, missing or ill-typed field, and return what can be looked at further."""
    value = findings.document.value
    if not isinstance(value, dict):
        findings.error("wrong-type", f"a definition is an object, not {_kind_of(value)}", ())
        return Shape(None, [], [])
    head = _checked(WorkflowHead, {key: value[key] for key in value if key != "tasks"}, (), findings)
    entries = value.get("tasks")
    if not isinstance(entries, list):
        if entries is None:
            findings.error("missing-field", "'tasks' is required: the list of the workflow's steps", ())
        else:
            findings.error("wrong-type", f"'tasks' must be a list, not {_kind_of(entries)}", ("tasks",))
        return Shape(head, [], [])
    if not 1 <= len(entries) <= MAX_TASKS:
        findings.error(
            "task-count", f"a workflow has 1 to {MAX_TASKS:,} tasks, this one {len(entries):,}", ("tasks",)
        )
        return Shape(head, [], [])
    tasks = [
        _checked(TaskDefinition, entry, ("tasks", index), findings) for index, entry in enumerate(entries)
    ]
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in entries]
    return Shape(head, tasks, [task_id if isinstance(task_id, str) else None for task_id in ids])


def _checked(model: type[_M], data: Any, path: Path, findings: Findings) -> _M | None:
    """Return the model; after noting problems, the model of what is left without the bad fields, if that suffices."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
    for detail in details:
        _note(model, detail, path, findings)
    if not isinstance(data, dict):
        return None
    bad = {str(detail["loc"][0]) for detail in details if detail["loc"]}
    try:
        return model.model_validate({key: value for key, value in data.items() if key not in bad})
    except ValidationError:
        return None


def _note(model: type[BaseModel], detail: ErrorDetails, path: Path, findings: Findings) -> None:
    place: Path = (*path, *detail["loc"])
    name = str(detail["loc"][-1]) if detail["loc"] else ""
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _model_at(model, detail["loc"][:-1])
        findings.error(
            "unknown-field",
            f"there is no field {quoted(name)} here",
            place,
            hint=partial(_unknown_field_hint, name, known),
            at_key=True,
        )
    elif kind == "missing":
        findings.error("missing-field", f"{quoted(name)} is required", place[:-1])
    else:
        message, hint = _explain(kind, detail, name)
        findings.error("wrong-type" if kind in _KINDS else "wrong-value", message, place, hint=hint)


def _explain(kind: str, detail: ErrorDetails, name: str) -> tuple[str, str]:
    """Return what is wrong with a value, and the cure."""
    subject = f"item {int(name) + 1}" if name.isdigit() else quoted(name) if name else "a task"
    context: Mapping[str, Any] = detail.get("ctx") or {}
    given = detail["input"]
    if kind in _KINDS:
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        hint = f'write it in quotes: "{given}"' if kind == "string_type" and is_number else ""
        if kind in ("float_type", "int_type") and isinstance(given, str):
            hint = "write the number without quotes"
        if kind.startswith("model") and name == "condition" and isinstance(given, str):
            hint = "write it as condition: {expression: ...}"
        if kind == "list_type" and isinstance(given, str):
            hint = f"write it as a list: [{given[:40]}]"
        return f"{subject} must be {_KINDS[kind]}, not {_kind_of(given)}", hint
    match kind:
        case "string_pattern_mismatch":
            return f"{subject} is not allowed: {quoted(given)}", _PATTERN_MEANING.get(context["pattern"], "")
        case "literal_error":
            allowed = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
            close = did_you_mean(given, allowed) if isinstance(given, str) else ""
            return f"{subject} must be one of {', '.join(allowed)}; not {quoted(given)}", close
        case "greater_than":
            return f"{subject} must be more than {context['gt']:g}", ""
        case "greater_than_equal":
            return f"{subject} must be at least {context['ge']:g}", ""
        case "less_than_equal":
            return f"{subject} must be at most {context['le']:g}", ""
        case "string_too_short" | "too_short":
            return f"{subject} must not be empty", ""
        case "string_too_long" | "too_long":
            unit = "characters" if kind.startswith("string") else "items"
            return f"{subject} must have at most {context['max_length']} {unit}", ""
        case "value_error":
            return f"{subject} {context.get('error', 'is not allowed')}", ""
    said = str(detail["msg"])
    return f"{subject}: {said[:1].lower()}{said[1:]}", ""


def _unknown_field_hint(name: str, known: type[BaseModel] | None) -> str:
    if known is None:
        return ""
    meant = MEANT.get(name)
    if meant in known.model_fields:
        return f"did you mean {quoted(meant)}?"
    return did_you_mean(name, known.model_fields, list_known=True)


def _model_at(model: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel] | None:
    """Return the model that describes a place inside another model."""
    found: type[BaseModel] | None = model
    for part in location:
        field = found.model_fields.get(str(part)) if found is not None else None
        if field is None:
            return None
        choices = (field.annotation, *get_args(field.annotation))
        found = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return found


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
    return "an object"
