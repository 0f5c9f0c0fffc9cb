"""Checks the templates, expressions and conditions of a definition and where their names come from.

They are parsed, never evaluated. What cannot be parsed is an error; a name that nothing declares is a warning, since
a start may bring more inputs than the schema lists.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestration.conditions.names import check_custom, names_of
from orchestration.definition.errors import Path, did_you_mean, quoted
from orchestration.definition.findings import Findings, Hint
from orchestration.definition.graph import ancestors_of, order_tasks
from orchestration.definition.models import ConditionConfig, TaskDefinition
from orchestration.expressions.errors import ExpressionError, TemplateError
from orchestration.scope import BUILTINS
from orchestration.templates import References, references

ALWAYS_KNOWN = BUILTINS | {"secrets"}
"""Names that a template finds without a declaration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where names come from: the inputs, and for each output the tasks that set it.

    `before` holds, for each task, what has ended when it begins, as a bit set over `bit`; empty when the graph has
    no order.
    """

    inputs: frozenset[str]
    set_by: Mapping[str, tuple[str, ...]]
    before: Mapping[str, int]
    bit: Mapping[str, int]

    @property
    def declared(self) -> frozenset[str]:
        """The names that are null when unset."""
        return self.inputs.union(self.set_by)


def make_context(
    tasks: Mapping[str, TaskDefinition], inputs: Iterable[str], called_by: Mapping[str, list[str]]
) -> Context:
    """Return where the names of these tasks come from."""
    set_by: dict[str, tuple[str, ...]] = {}
    for task_id, task in tasks.items():
        for name in task.outputs:
            set_by[name] = (*set_by.get(name, ()), task_id)
    # A task ends when the one that it called for has ended.
    waits_for = {task_id: list(task.depends_on) for task_id, task in tasks.items()}
    for called_id, users in called_by.items():
        waits_for[called_id] = [name for name in waits_for[called_id] if name not in users]
        for user in users:
            waits_for[user].append(called_id)
    order = order_tasks(waits_for)
    before = {} if order.cycles else ancestors_of(order.tasks, waits_for)
    bit = {task_id: index for index, task_id in enumerate(order.tasks)}
    checked = {task_id: bits for task_id, bits in before.items() if task_id not in called_by}
    return Context(inputs=frozenset(inputs), set_by=set_by, before=checked, bit=bit)


def check_logic(task: TaskDefinition, path: Path, context: Context, findings: Findings) -> None:
    """Note what is wrong with a task's templates and condition, and names that lead nowhere."""
    _check_templates(task, path, context, findings)
    if task.condition is not None:
        _check_condition(task, task.condition, (*path, "condition"), context, findings)


def _check_templates(task: TaskDefinition, path: Path, context: Context, findings: Findings) -> None:
    base = (*path, "parameters")
    try:
        found = references(task.parameters)
    except TemplateError as error:
        findings.error("template", error.reason, base)
        return
    for problem in found.problems:
        where = (*base, *_path_at(task.parameters, problem.path))
        findings.error("expression", _placed(problem.message, problem.position), where)
    for name in sorted(found.template_names):
        trouble = _trouble_with(name, task, context)
        if trouble:
            code, message, hint = trouble
            findings.warn(
                code,
                f"the template {message}",
                partial(_place_of, name, task.parameters, base),
                hint=hint,
            )


def _check_condition(
    task: TaskDefinition, condition: ConditionConfig, path: Path, context: Context, findings: Findings
) -> None:
    if condition.expression is None and not condition.required_outputs:
        findings.error("empty-condition", "a condition needs an expression, or required_outputs", path)
    for index, name in enumerate(condition.required_outputs):
        trouble = _trouble_with(name, task, context)
        if trouble:
            code, message, hint = trouble
            findings.warn(code, f"the condition {message}", (*path, "required_outputs", index), hint=hint)
    if condition.expression is None:
        return
    place = (*path, "expression")
    try:
        names, _ = names_of(condition.condition_type, condition.expression)
        if condition.condition_type == "custom":
            check_custom(condition.expression)
    except ExpressionError as error:
        findings.error("expression", _placed(error.reason, error.position), place)
        return
    if condition.condition_type != "python":
        return
    for name in sorted(names - set(condition.variables) - set(condition.required_outputs)):
        trouble = _trouble_with(name, task, context)
        if trouble:
            code, message, hint = trouble
            findings.warn(code, f"the condition {message}", place, hint=hint)


def _trouble_with(name: str, task: TaskDefinition, context: Context) -> tuple[str, str, Hint] | None:
    """Return code, message and hint when a name may have no value, else None."""
    if name in context.inputs or name in ALWAYS_KNOWN:
        return None
    setters = context.set_by.get(name)
    if setters is None:
        message = f"uses {quoted(name)}, which is no input and no task's output"
        return "undeclared-name", message, lambda: did_you_mean(name, context.declared | ALWAYS_KNOWN)
    before = context.before.get(task.id)
    if before is None or any(before >> context.bit[setter] & 1 for setter in setters):
        return None
    message = f"uses {quoted(name)}, which {quoted(setters[0])} sets, but does not wait for that task"
    return "not-upstream", message, f"add {quoted(setters[0])} to depends_on"


def _placed(message: str, position: int | None) -> str:
    return message if position is None else f"{message} (at character {position + 1})"


def _path_at(value: Any, pointed: str) -> Path:
    """Return the path that a JSON pointer means in a value."""
    path: list[str | int] = []
    for part in pointed.split("/")[1:]:
        name: str | int = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list):
            name = int(name)
        value = value[name]
        path.append(name)
    return tuple(path)


def _place_of(name: str, value: Any, base: Path) -> Path:
    """Return the path of the first string in the value at `base` whose template uses a name."""
    path: list[str | int] = [*base]
    while isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in entries:
            if name in _template_names({key: inner} if isinstance(value, dict) else [inner]):
                path.append(key)
                value = inner
                break
        else:
            break
    return tuple(path)


def _template_names(value: Any) -> frozenset[str]:
    found: References = references(value)
    return found.template_names
