"""A definition made ready to run: every default resolved, every reference found, the graph indexed.

A plan is a value. The machine and the engine read it and never the text that a person typed.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from orchestration.retry import RetryPolicy
from orchestration.status import Effects, RecoveryAction

SCHEDULE_TO_START_SECONDS = 3600.0
"""How long an attempt waits for an agent to take it, for a task that does not say."""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """When a task runs at all. `names` are the context names that the expression uses."""

    expression: str = ""
    condition_type: Literal["python", "simple", "regex", "custom", "json_path"] = "python"
    variables: Mapping[str, Any] = {}
    required_outputs: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    whole_context: bool = False


class OnError(msgspec.Struct, frozen=True, kw_only=True):
    """What the author wants done when a task fails for good. `auto` leaves it to the error handler's table."""

    action: Literal["fail", "auto"] | RecoveryAction = "fail"
    fallback: str = ""


class TaskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One task, ready to run.

    `references` are the context names that its parameters' templates use; `whole_context` is true when a template
    uses `workflow_context`, `inputs`, `user_input`, `request_data` or anything else that needs every variable.
    `effects_declared` is true when the author said what a repetition would do, with `effects` or a `reconcile` task.
    `named_codes` are the error codes that the task's own `retry_config` names: what they mean is the author's word.
    `is_fallback` tasks run only when the task that names them fails, `is_reconcile` tasks only when the outcome of the
    one that names them is unknown. `heartbeat_seconds` and `total_timeout_seconds` are 0 where there is no such limit.
    """

    id: str
    name: str
    type: str
    agent_id: str | None
    capability: str
    parameters: Mapping[str, Any]
    has_templates: bool
    references: frozenset[str]
    whole_context: bool
    depends_on: tuple[str, ...]
    dependents: tuple[str, ...]
    condition: Condition | None
    timeout_seconds: float
    retry: RetryPolicy
    named_codes: frozenset[str] = frozenset()
    output_names: tuple[str, ...]
    effects: Effects
    effects_declared: bool = False
    on_error: OnError
    is_fallback: bool = False
    is_reconcile: bool = False
    reconcile: str = ""
    schedule_to_start_seconds: float = SCHEDULE_TO_START_SECONDS
    heartbeat_seconds: float = 0.0
    total_timeout_seconds: float = 0.0
    metadata: Mapping[str, Any] = {}

    @property
    def is_on_call(self) -> bool:
        """True when the task runs only once another task calls for it."""
        return self.is_fallback or self.is_reconcile


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow, ready to run. `tasks` is in topological order; `declared` are the names that are null when unset."""

    workflow_id: str
    version: str
    name: str
    definition_hash: str
    global_timeout_seconds: float
    tasks: Mapping[str, TaskPlan]
    declared: frozenset[str]
    input_schema: Mapping[str, Any] | None
    output_schema: Mapping[str, Any] | None
    output_names: tuple[str, ...]
