"""What the machine wants done. Questions change nothing in the world; the rest waits until the facts are stored."""

import msgspec

from orchestration.contracts import ErrorInfo


class AskCondition(msgspec.Struct, frozen=True):
    """Ask the condition evaluator whether a task runs."""

    task_id: str


class AskRecovery(msgspec.Struct, frozen=True):
    """Ask the error handler what to do about a task that failed for good."""

    task_id: str
    error: ErrorInfo


class Dispatch(msgspec.Struct, frozen=True):
    """Send an attempt to an agent with the task's capability."""

    task_id: str
    attempt: int
    token: str


class CancelAttempt(msgspec.Struct, frozen=True):
    """Tell whoever has the attempt that its result is no longer wanted."""

    task_id: str
    token: str


class AwaitResult(msgspec.Struct, frozen=True):
    """Wait for the result of an attempt that must not be dispatched twice; it comes through the inbox, or is lost."""

    task_id: str
    token: str


Question = AskCondition | AskRecovery
Command = AskCondition | AskRecovery | Dispatch | CancelAttempt | AwaitResult
