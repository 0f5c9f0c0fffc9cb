"""What a person may write in a definition: every field, its type and its range. Nothing is interpreted here.

A field that is absent keeps its default from the code that compiles the plan, so that a stored definition holds
what its author wrote and no more. A field written as null counts as absent.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, model_validator

MAX_TASKS = 10_000
MAX_EDGES = 50_000
MAX_ATTEMPTS = 100
MAX_WAIT_SECONDS = 31_536_000
MIN_HEARTBEAT_SECONDS = 0.5
MAX_OUTPUTS = 100

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
CAPABILITY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,127}$"
CODE_PATTERN = r"^(\*|[A-Za-z][A-Za-z0-9_.-]{0,127})$"

_UNSAFE_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _plain_number(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _no_double_dot(value: str) -> str:
    if ".." in value:
        raise ValueError("must not contain '..'")
    return value


def _shown_safely(value: str) -> str:
    if _UNSAFE_TEXT.search(value):
        raise ValueError("must not contain control characters")
    return value


Number = PlainSerializer(_plain_number, return_type=float | int)
Seconds = Annotated[float, Field(gt=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False), Number]
Heartbeat = Annotated[
    float, Field(ge=MIN_HEARTBEAT_SECONDS, le=MAX_WAIT_SECONDS, allow_inf_nan=False), Number
]
Delay = Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False), Number]
Id = Annotated[str, Field(pattern=ID_PATTERN), AfterValidator(_no_double_dot)]
Capability = Annotated[str, Field(pattern=CAPABILITY_PATTERN)]
OutputName = Annotated[str, Field(pattern=NAME_PATTERN)]
ErrorCode = Annotated[str, Field(pattern=CODE_PATTERN)]
Title = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_shown_safely)]
Prose = Annotated[str, Field(max_length=10_000), AfterValidator(_shown_safely)]
Version = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_shown_safely)]
Tag = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_shown_safely)]
Object = dict[str, Any]


class Definition(BaseModel):
    """What every part of a definition has: unknown fields are refused, null means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {
                key: value for key, value in data.items() if value is not None or key not in cls.model_fields
            }
        return data


class RetryConfig(Definition):
    """When a failed attempt is followed by another. What is absent comes from the workflow, then the defaults."""

    strategy: Literal["none", "fixed_delay", "linear_backoff", "exponential_backoff"] | None = None
    """How the wait grows from attempt to attempt. Default: fixed_delay."""
    max_attempts: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS)] | None = None
    """Attempts in all, the first one included. Default: 3."""
    initial_delay_seconds: Delay | None = None
    """Wait before the second attempt. Default: 1."""
    max_delay_seconds: Delay | None = None
    """Longest wait between attempts. Default: 60."""
    backoff_multiplier: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False), Number] | None = None
    """Factor of exponential_backoff. Default: 2."""
    retry_on_codes: Annotated[list[ErrorCode], Field(max_length=100)] | None = None
    """Error codes that are worth another attempt; `*` means all. Default: TIMEOUT, NETWORK_ERROR."""
    non_retryable_codes: Annotated[list[ErrorCode], Field(max_length=100)] | None = None
    """Error codes that end the task at once, whatever `retry_on_codes` says."""


class ConditionConfig(Definition):
    """When a task runs at all; otherwise it is skipped."""

    expression: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    """The task runs when this is true."""
    condition_type: Literal["python", "simple", "regex", "custom", "json_path"] = "python"
    """The language of the expression."""
    variables: Object = {}
    """Values that the expression sees in addition to the context, and before it."""
    required_outputs: Annotated[list[OutputName], Field(max_length=MAX_OUTPUTS)] = []
    """Names that must have a value, else the task is skipped without looking at the expression."""


class OnErrorConfig(Definition):
    """What happens when a task has failed for good."""

    action: Literal["fail", "auto", "retry", "skip", "fallback", "pause", "abort", "escalate"]
    """`auto` asks the error handler, which decides by the kind of error."""
    fallback: Id | None = None
    """The task that runs instead, for `fallback` and `auto`."""


class TaskDefinition(Definition):
    """One step of a workflow."""

    id: Id
    """Unique in the workflow."""
    name: Title | None = None
    """What people see. Default: the id."""
    description: Prose | None = None
    """What the task is for."""
    type: str = "sequential"
    """What kind of work it is; picks the capability when none is named."""
    agent_id: Id | None = None
    """The agent preferred for the work; any other with the capability does when it is away."""
    capability: Capability | None = None
    """What an agent must offer to do the work. Default: by the type."""
    parameters: Object = {}
    """What the work is done with. Text in it may hold templates."""
    depends_on: list[Id] = []
    """Tasks that end before this one begins."""
    condition: ConditionConfig | None = None
    """When the task runs at all."""
    timeout_seconds: Seconds | None = None
    """Longest time of one attempt, from when an agent takes it. Default: 300."""
    schedule_to_start_seconds: Seconds | None = None
    """How long an attempt waits for an agent to take it. Default: 3600."""
    heartbeat_seconds: Heartbeat | None = None
    """How long an attempt may go without a sign of life from its agent before it counts as lost. Default: for ever."""
    total_timeout_seconds: Seconds | None = None
    """Longest time of all attempts together, with the waits between them. Default: no limit of its own."""
    retry_config: RetryConfig | None = None
    """When a failed attempt is followed by another. Default: the workflow's."""
    outputs: Annotated[list[OutputName], Field(max_length=MAX_OUTPUTS)] = []
    """Names under which later tasks find the result."""
    effects: Literal["none", "read", "idempotent", "once", "irreversible"] | None = None
    """What a repeated attempt would do to the world. Default: by the capability."""
    reconcile: Id | None = None
    """The task that finds out whether the work was done, when the agent that had it was lost."""
    on_error: OnErrorConfig | None = None
    """What happens when the task has failed for good. Default: the workflow's."""
    metadata: Object = {}
    """Anything; kept and shown, never interpreted."""


class WorkflowHead(Definition):
    """A workflow without its tasks."""

    id: Id
    """The name under which the workflow is stored and started."""
    name: Title | None = None
    """What people see. Default: the id."""
    version: Version = "1.0"
    """Changes with the content."""
    description: Prose = ""
    """What the workflow is for."""
    tags: Annotated[list[Tag], Field(max_length=50)] = []
    """Words to find it by."""
    global_timeout_seconds: Seconds | None = None
    """Longest time of an instance. Default: 3600."""
    global_retry_config: RetryConfig | None = None
    """The tasks' retries, unless they say otherwise."""
    on_error: OnErrorConfig | None = None
    """What happens when a task has failed for good, unless it says otherwise. Default: the instance fails."""
    input_schema: Object | None = None
    """JSON Schema (Draft 2020-12) of the inputs; its defaults are filled in."""
    output_schema: Object | None = None
    """JSON Schema of the outputs; its properties name what the workflow returns."""
    metadata: Object = {}
    """Anything; kept and shown, never interpreted."""


class WorkflowDefinition(WorkflowHead):
    """A whole workflow, as its author wrote it."""

    tasks: Annotated[list[TaskDefinition], Field(min_length=1, max_length=MAX_TASKS)]
    """The steps. Their order is set by `depends_on` alone."""
