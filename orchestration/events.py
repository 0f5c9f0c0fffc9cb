"""The facts that happen to an instance, in the past tense. The log holds these and nothing else.

An instance is rebuilt by folding its events (`machine.replay`), so an event carries all that the fold needs:
time, chance and answers from outside come in here. Never change the meaning of a field that was ever written.
"""

from datetime import datetime
from typing import Any

import msgspec

from orchestration.contracts import ErrorInfo
from orchestration.status import RecoveryAction, Severity


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """What every event has. `at` is when it happened, by the clock of the engine that recorded it."""

    at: datetime


class InstanceStarted(Fact, frozen=True, kw_only=True, tag="workflow.started"):
    """The first event: a workflow was started with these checked inputs, defaults filled in.

    `request_hash` says what was asked for when the start had an idempotency key, `admitted` whether a slot was free
    at once: with them a repeated start gets the first one's answer.
    """

    workflow_id: str
    workflow_version: str
    definition_hash: str
    inputs: dict[str, Any]
    trigger: str = "api"
    request_hash: str = ""
    admitted: bool = False


class InstanceAdmitted(Fact, frozen=True, kw_only=True, tag="workflow.admitted"):
    """A slot was free and the instance began to run."""


class InstancePaused(Fact, frozen=True, kw_only=True, tag="workflow.paused"):
    """No new task is dispatched until it is resumed; `resume_at` ends the pause by itself."""

    reason: str = ""
    resume_at: datetime | None = None


class InstanceResumed(Fact, frozen=True, kw_only=True, tag="workflow.resumed"):
    """Tasks are dispatched again."""

    reason: str = ""


class InstanceCompleted(Fact, frozen=True, kw_only=True, tag="workflow.completed"):
    """Every task is completed or skipped."""

    outputs: dict[str, Any] = {}


class InstanceFailed(Fact, frozen=True, kw_only=True, tag="workflow.failed"):
    """A task failed and no recovery applied, or the time for the whole was up."""

    error: ErrorInfo
    task_id: str = ""


class InstanceCancelled(Fact, frozen=True, kw_only=True, tag="workflow.cancelled"):
    """Somebody stopped it."""

    reason: str = ""


class OutputMismatched(Fact, frozen=True, kw_only=True, tag="workflow.output_mismatched"):
    """A warning: the outputs do not satisfy the output schema."""

    problems: list[str]


class ConditionEvaluated(Fact, frozen=True, kw_only=True, tag="condition.evaluated"):
    """The evaluator answered about a task's condition."""

    task_id: str
    result: bool
    expression: str = ""
    details: dict[str, Any] = {}


class TaskStarted(Fact, frozen=True, kw_only=True, tag="task.started"):
    """An attempt was decided on; its dispatch follows at once. `token` names the attempt."""

    task_id: str
    attempt: int
    token: str


class TaskCompleted(Fact, frozen=True, kw_only=True, tag="task.completed"):
    """An attempt ended well. `outputs` are the declared ones; `primary` the task's primary value.

    `primary_output` names the output that equals the primary value; `primary` is then left out.
    """

    task_id: str
    attempt: int
    outputs: dict[str, Any] = {}
    primary: Any = None
    primary_output: str = ""
    metadata: dict[str, Any] = {}


class AttemptFailed(Fact, frozen=True, kw_only=True, tag="task.attempt_failed"):
    """An attempt ended badly. Whether it is tried again is another event."""

    task_id: str
    attempt: int
    error: ErrorInfo


class AttemptLost(Fact, frozen=True, kw_only=True, tag="task.attempt_lost"):
    """The attempt ended without anybody knowing its outcome: its executor was lost, or gave it up with an `error`."""

    task_id: str
    attempt: int
    agent_id: str = ""
    reason: str = ""
    error: ErrorInfo | None = None


class TaskOutcomeUnknown(Fact, frozen=True, kw_only=True, tag="task.outcome_unknown"):
    """Nobody knows whether a lost attempt did work that must not be repeated. Its `token` stays current."""

    task_id: str
    attempt: int
    token: str
    reason: str = ""


class TaskReconciling(Fact, frozen=True, kw_only=True, tag="task.reconciling"):
    """The task `reconcile` is run, for the first time or again, to find out whether the work was done."""

    task_id: str
    reconcile: str


class TaskRetrying(Fact, frozen=True, kw_only=True, tag="task.retrying"):
    """Another attempt follows at `due_at`.

    `decided_by` is `operator`, a reconcile task or an executor, when they said that a lost attempt had done nothing.
    """

    task_id: str
    attempt: int
    due_at: datetime
    reason: str = ""
    decided_by: str = ""


class RecoveryChosen(Fact, frozen=True, kw_only=True, tag="error.handled"):
    """What the error handler decided about a task that failed for good."""

    task_id: str
    action: RecoveryAction
    severity: Severity
    reason: str = ""
    error_id: str = ""
    escalated: bool = False
    delay_seconds: float = 0.0
    decided_by: str = "error-handler"


class TaskFailed(Fact, frozen=True, kw_only=True, tag="task.failed"):
    """A task failed for good."""

    task_id: str
    error: ErrorInfo


class TaskSkipped(Fact, frozen=True, kw_only=True, tag="task.skipped"):
    """A task will not run. `reason` is a machine code, `detail` a sentence.

    reason: condition_false, required_output_missing, dependencies_skipped, dependency_failed, recovery, operator,
    instance_ended, fallback_not_needed, reconcile_not_needed.
    """

    task_id: str
    reason: str
    detail: str = ""


class TaskCancelled(Fact, frozen=True, kw_only=True, tag="task.cancelled"):
    """The instance ended while the task was under way."""

    task_id: str
    reason: str = ""


class TaskReset(Fact, frozen=True, kw_only=True, tag="task.reset"):
    """An operator or the error handler wants the failed task run again, from attempt 1 of a new round."""

    task_id: str
    reason: str = ""


class VariablesUpdated(Fact, frozen=True, kw_only=True, tag="state.updated"):
    """Context variables were set from outside."""

    updates: dict[str, Any]
    replace: bool = False
    description: str = ""


class LateResult(Fact, frozen=True, kw_only=True, tag="task.late_result"):
    """A result of a superseded attempt came in: kept, not applied."""

    task_id: str
    attempt: int
    detail: str = ""
    outputs: dict[str, Any] = {}
    error: ErrorInfo | None = None


Event = (
    InstanceStarted
    | InstanceAdmitted
    | InstancePaused
    | InstanceResumed
    | InstanceCompleted
    | InstanceFailed
    | InstanceCancelled
    | OutputMismatched
    | ConditionEvaluated
    | TaskStarted
    | TaskCompleted
    | AttemptFailed
    | AttemptLost
    | TaskOutcomeUnknown
    | TaskReconciling
    | TaskRetrying
    | RecoveryChosen
    | TaskFailed
    | TaskSkipped
    | TaskCancelled
    | TaskReset
    | VariablesUpdated
    | LateResult
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def type_of(event: Event) -> str:
    """Return the event's name on the wire, such as `task.completed`."""
    tag = type(event).__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def encode(event: Event) -> bytes:
    """Return the event as JSON, tagged by `type`."""
    return _encoder.encode(event)


def decode(data: bytes | msgspec.Raw) -> Event:
    """Return the event that `encode` wrote.

    Raises: msgspec.ValidationError if the bytes are not an event.
    """
    return _decoder.decode(data)
