"""From a checked definition to the plan that the machine reads, and to the content that the store keeps."""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import ValidationError

from orchestration.conditions.names import names_of
from orchestration.definition.errors import DefinitionError, Problem, pointer
from orchestration.definition.graph import dependents_of, order_tasks
from orchestration.definition.models import (
    ConditionConfig,
    OnErrorConfig,
    RetryConfig,
    TaskDefinition,
    WorkflowDefinition,
)
from orchestration.definition.plan import SCHEDULE_TO_START_SECONDS, Condition, OnError, Plan, TaskPlan
from orchestration.definition.tasks import capability_of, effects_of, retry_policy
from orchestration.expressions.errors import DataError
from orchestration.status import Effects, RecoveryAction
from orchestration.templates import has_templates, references

WORKFLOW_TIMEOUT_SECONDS = 3600.0
TASK_TIMEOUT_SECONDS = 300.0


def normalize(definition: WorkflowDefinition) -> dict[str, Any]:
    """Return what the author wrote as plain data in one form: fields in the models' order, nothing absent.

    `parse_object(normalize(d))` gives a definition that normalizes to the same content.
    """
    content: dict[str, Any] = definition.model_dump(mode="json", exclude_unset=True)
    return content


def definition_hash(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of normalized content, in hexadecimal. The order of keys does not count."""
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def load_plan(
    content: Mapping[str, Any],
    *,
    workflow_timeout_seconds: float = WORKFLOW_TIMEOUT_SECONDS,
    task_timeout_seconds: float = TASK_TIMEOUT_SECONDS,
) -> Plan:
    """Return the plan of stored content, which was checked when it was stored.

    Raises: DefinitionError if this release cannot run the content.
    """
    source_name = str(content.get("id", ""))
    try:
        definition = WorkflowDefinition.model_validate(content)
        return compile_plan(
            definition,
            workflow_timeout_seconds=workflow_timeout_seconds,
            task_timeout_seconds=task_timeout_seconds,
        )
    except ValidationError as error:
        found = [(str(detail["msg"]), pointer(detail["loc"])) for detail in error.errors(include_input=False)]
    except DataError as error:
        # Another release stored an expression that this one does not understand.
        found = [(error.message, "")]
    problems = [Problem(code="stored-content", message=message, path=path) for message, path in found]
    raise DefinitionError(problems, source_name=source_name)


def compile_plan(
    definition: WorkflowDefinition,
    *,
    workflow_timeout_seconds: float = WORKFLOW_TIMEOUT_SECONDS,
    task_timeout_seconds: float = TASK_TIMEOUT_SECONDS,
) -> Plan:
    """Return the plan of a checked definition.

    Args:
        workflow_timeout_seconds: For a workflow that sets no `global_timeout_seconds`.
        task_timeout_seconds: For a task that sets no `timeout_seconds`.
    """
    by_id = {task.id: task for task in definition.tasks}
    on_error = {task.id: _on_error(task, definition.on_error) for task in definition.tasks}
    fallbacks = {wish.fallback for wish in on_error.values()}
    called_by: dict[str, set[str]] = {}
    for task in definition.tasks:
        for called in (on_error[task.id].fallback, task.reconcile):
            if called:
                called_by.setdefault(called, set()).add(task.id)
    # A task on call follows the one that calls for it by its nature; waiting for that one's success would never end.
    depends_on = {
        task.id: tuple(name for name in task.depends_on if name not in called_by.get(task.id, ()))
        for task in definition.tasks
    }
    reconciles = {task.reconcile for task in definition.tasks}
    dependents = dependents_of(depends_on)
    tasks = {
        task_id: _task_plan(
            by_id[task_id],
            definition,
            depends_on=depends_on[task_id],
            dependents=tuple(dependents[task_id]),
            on_error=on_error[task_id],
            is_fallback=task_id in fallbacks,
            is_reconcile=task_id in reconciles,
            timeout_seconds=task_timeout_seconds,
        )
        for task_id in order_tasks(depends_on).tasks
    }
    output_properties = (definition.output_schema or {}).get("properties", {})
    return Plan(
        workflow_id=definition.id,
        version=definition.version,
        name=definition.name or definition.id,
        definition_hash=definition_hash(normalize(definition)),
        global_timeout_seconds=definition.global_timeout_seconds or workflow_timeout_seconds,
        tasks=tasks,
        declared=declared_names(definition),
        input_schema=definition.input_schema,
        output_schema=definition.output_schema,
        output_names=tuple(output_properties),
    )


def declared_names(definition: WorkflowDefinition) -> frozenset[str]:
    """Return the names that are null when unset: the input schema's properties and every task's outputs."""
    inputs = (definition.input_schema or {}).get("properties", {})
    return frozenset(inputs).union(*(task.outputs for task in definition.tasks))


def _task_plan(
    task: TaskDefinition,
    definition: WorkflowDefinition,
    *,
    depends_on: tuple[str, ...],
    dependents: tuple[str, ...],
    on_error: OnError,
    is_fallback: bool,
    is_reconcile: bool,
    timeout_seconds: float,
) -> TaskPlan:
    capability = capability_of(task.type, task.capability)
    found = references(task.parameters)
    effects = Effects(task.effects) if task.effects else effects_of(capability, task.parameters)
    return TaskPlan(
        id=task.id,
        name=task.name or task.id,
        type=task.type,
        agent_id=task.agent_id,
        capability=capability,
        parameters=task.parameters,
        has_templates=has_templates(task.parameters),
        references=found.names,
        whole_context=found.whole_context,
        depends_on=depends_on,
        dependents=dependents,
        condition=None if task.condition is None else _condition(task.condition),
        timeout_seconds=task.timeout_seconds or timeout_seconds,
        retry=retry_policy(capability, task.parameters, task.retry_config, definition.global_retry_config),
        named_codes=_named_codes(task.retry_config),
        output_names=tuple(task.outputs),
        effects=effects,
        effects_declared=task.effects is not None or task.reconcile is not None,
        on_error=on_error,
        is_fallback=is_fallback,
        is_reconcile=is_reconcile,
        reconcile=task.reconcile or "",
        schedule_to_start_seconds=task.schedule_to_start_seconds or SCHEDULE_TO_START_SECONDS,
        heartbeat_seconds=task.heartbeat_seconds or 0.0,
        total_timeout_seconds=task.total_timeout_seconds or 0.0,
        metadata=task.metadata,
    )


def _named_codes(own: RetryConfig | None) -> frozenset[str]:
    """Return the codes that a task's own retry_config names. The wildcard names none."""
    if own is None:
        return frozenset()
    return frozenset([*(own.retry_on_codes or ()), *(own.non_retryable_codes or ())]) - {"*"}


def _condition(condition: ConditionConfig) -> Condition:
    names, whole_context = frozenset[str](), False
    if condition.expression is not None:
        names, whole_context = names_of(condition.condition_type, condition.expression)
    return Condition(
        expression=condition.expression or "",
        condition_type=condition.condition_type,
        variables=condition.variables,
        required_outputs=tuple(condition.required_outputs),
        names=names - frozenset(condition.variables),
        whole_context=whole_context,
    )


def _on_error(task: TaskDefinition, default: OnErrorConfig | None) -> OnError:
    wish = task.on_error
    if wish is None:
        # The workflow's fallback cannot stand in for itself.
        wish = None if default is not None and default.fallback == task.id else default
    if wish is None:
        return OnError()
    if wish.action == "fail" or wish.action == "auto":
        return OnError(action=wish.action, fallback=wish.fallback or "")
    return OnError(action=RecoveryAction(wish.action), fallback=wish.fallback or "")
