"""How a task fails. Each class is one code, so that nobody classifies by reading messages.

TaskError
├── InvalidInput        INVALID_INPUT            the parameters cannot be used
├── NotPermitted        PERMISSION_DENIED        a setting or the peer forbids it
├── NotAuthenticated    AUTHENTICATION_FAILED    the peer does not know us
├── NotFound            RESOURCE_NOT_FOUND       what the task names is not there
├── TimedOut            TIMEOUT                  it took too long
├── Unreachable         NETWORK_ERROR            the peer did not answer, or answered that it cannot
├── RateLimited         RATE_LIMIT_EXCEEDED      the peer wants us to slow down
├── Overloaded          RESOURCE_NOT_AVAILABLE   this executor cannot take it now
├── SpoolFull           INSUFFICIENT_RESOURCES   its ending could not be kept, so it must not begin
├── NotBegun            NOT_BEGUN                its effect never began, and begins no more
├── OutcomeUnknown      OUTCOME_UNKNOWN          its effect began in an earlier life; nobody knows how it ended
├── PoisonTask          POISON_TASK              executors die of it
├── ResultTooLarge      RESULT_TOO_LARGE         the answer is larger than the mesh carries
├── TaskFailed          TASK_EXECUTION_FAILED    the work itself failed
└── TaskCancelled       TASK_CANCELLED           nobody wants the result any more
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from amp.errors import AmpError


class TaskError(AmpError):
    """A task failed. `details` are safe to store and show.

    `details.begun` says whether the effect may have begun, where the code alone does not: after a NETWORK_ERROR with
    `begun: false` the work can be repeated whatever it does, after one without nobody knows.
    """

    default_code: ClassVar[str] = "TASK_EXECUTION_FAILED"

    def __init__(
        self, message: str, *, details: Mapping[str, Any] | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(
            self.default_code,
            message,
            dict(details or {}),
            retryable=self.default_retryable if retryable is None else retryable,
        )


class InvalidInput(TaskError):
    """The parameters cannot be used. The message says which and what would have been right."""

    default_code = "INVALID_INPUT"


class NotPermitted(TaskError):
    """A setting of the operator, or the peer, forbids it."""

    default_code = "PERMISSION_DENIED"


class NotAuthenticated(TaskError):
    """The peer refused the credentials."""

    default_code = "AUTHENTICATION_FAILED"


class NotFound(TaskError):
    """A file, an address or a handler that the task names does not exist."""

    default_code = "RESOURCE_NOT_FOUND"


class TimedOut(TaskError):
    """The time for the work ran out."""

    default_code = "TIMEOUT"
    default_retryable = True


class Unreachable(TaskError):
    """The peer did not answer, or said that it cannot now."""

    default_code = "NETWORK_ERROR"
    default_retryable = True


class RateLimited(TaskError):
    """The peer asks to slow down; `details.retry_after_seconds` says for how long when it told."""

    default_code = "RATE_LIMIT_EXCEEDED"
    default_retryable = True


class Overloaded(TaskError):
    """This executor cannot take the work now."""

    default_code = "RESOURCE_NOT_AVAILABLE"
    default_retryable = True


class SpoolFull(TaskError):
    """How the attempt ends could not be kept, and it must not be repeated: it did not begin. Try again later."""

    default_code = "INSUFFICIENT_RESOURCES"
    default_retryable = True

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message, details={"retry_after_ms": round(wait_seconds * 1000)})


class NotBegun(TaskError):
    """The attempt did not begin and never will, so another one repeats nothing."""

    default_code = "NOT_BEGUN"
    default_retryable = True


class OutcomeUnknown(TaskError):
    """The attempt was begun by an executor that was killed before it could say how it ended."""

    default_code = "OUTCOME_UNKNOWN"


class PoisonTask(TaskError):
    """Executors were killed with this task under way, again and again. It is not begun any more."""

    default_code = "POISON_TASK"


class ResultTooLarge(TaskError):
    """The answer is larger than a setting allows; the message names it."""

    default_code = "RESULT_TOO_LARGE"


class TaskFailed(TaskError):
    """The work was done and failed."""

    default_code = "TASK_EXECUTION_FAILED"


class TaskCancelled(TaskError):
    """The attempt was stopped on request."""

    default_code = "TASK_CANCELLED"
