"""What reaches an instance before anything is decided about it: answers, results, ticks and orders.

Time and chance come in here (`at`, `jitter`), so the machine needs neither a clock nor a die.
"""

from datetime import datetime
from typing import Any

import msgspec

from orchestration.contracts import ErrorInfo
from orchestration.status import RecoveryAction, Severity


class Stimulus(msgspec.Struct, frozen=True, kw_only=True):
    """What every stimulus has."""

    at: datetime


class Admit(Stimulus, frozen=True, kw_only=True):
    """A slot is free: begin."""


class ConditionAnswer(Stimulus, frozen=True, kw_only=True):
    """The evaluator answered; `error` is set when the condition could not be evaluated."""

    task_id: str
    result: bool = False
    details: dict[str, Any] = {}
    error: ErrorInfo | None = None


class AttemptSucceeded(Stimulus, frozen=True, kw_only=True):
    """An attempt ended well. `outputs` are already mapped to the declared names."""

    task_id: str
    token: str
    outputs: dict[str, Any] = {}
    primary: Any = None
    primary_output: str = ""
    metadata: dict[str, Any] = {}


class AttemptErrored(Stimulus, frozen=True, kw_only=True):
    """An attempt ended badly. `jitter` is a uniform draw in [0, 1)."""

    task_id: str
    token: str
    error: ErrorInfo
    jitter: float


class AttemptVanished(Stimulus, frozen=True, kw_only=True):
    """The agent that had the attempt is gone, or gave no sign of life; whether it did the work is unknown.

    `may_be_at_work`: the agent may have it still, and is told to stop when another attempt begins. `begun` is false
    when it is certain that its work never began, and never will.
    """

    task_id: str
    token: str
    agent_id: str = ""
    reason: str = ""
    may_be_at_work: bool = False
    begun: bool = True


class RecoveryAnswer(Stimulus, frozen=True, kw_only=True):
    """What to do about a task that failed for good."""

    task_id: str
    action: RecoveryAction
    severity: Severity
    delay_seconds: float = 0.0
    reason: str = ""
    error_id: str = ""
    escalated: bool = False
    decided_by: str = "error-handler"


class Tick(Stimulus, frozen=True, kw_only=True):
    """Time has passed; something may be due."""


class PauseOrder(Stimulus, frozen=True, kw_only=True):
    """Dispatch nothing more until resumed, or for `duration_seconds`."""

    reason: str = ""
    duration_seconds: float | None = None


class ResumeOrder(Stimulus, frozen=True, kw_only=True):
    """Go on."""

    reason: str = ""


class StopOrder(Stimulus, frozen=True, kw_only=True):
    """End the instance now."""

    reason: str = ""


class Breakdown(Stimulus, frozen=True, kw_only=True):
    """The instance cannot go on: what happened to it cannot be stored."""

    error: ErrorInfo


class RetryOrder(Stimulus, frozen=True, kw_only=True):
    """Run a task again that failed, was skipped after a failure, or waits for a retry.

    Of a task whose outcome is unknown it says that the work was not done.
    """

    task_id: str
    reason: str = ""


class SkipOrder(Stimulus, frozen=True, kw_only=True):
    """Do not run (or do not finish) a task."""

    task_id: str
    reason: str = ""


class CompleteOrder(Stimulus, frozen=True, kw_only=True):
    """A task whose outcome is unknown did its work, and gave these outputs."""

    task_id: str
    outputs: dict[str, Any] = {}
    reason: str = ""


class UpdateOrder(Stimulus, frozen=True, kw_only=True):
    """Set context variables."""

    updates: dict[str, Any]
    replace: bool = False
    description: str = ""


AnyStimulus = (
    Admit
    | ConditionAnswer
    | AttemptSucceeded
    | AttemptErrored
    | AttemptVanished
    | RecoveryAnswer
    | Tick
    | PauseOrder
    | ResumeOrder
    | StopOrder
    | Breakdown
    | RetryOrder
    | SkipOrder
    | CompleteOrder
    | UpdateOrder
)
