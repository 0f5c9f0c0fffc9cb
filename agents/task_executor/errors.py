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
├── ResultTooLarge      RESULT_TOO_LARGE         the answer is larger than the mesh carries
├── TaskFailed          TASK_EXECUTION_FAILED    the work itself failed
└── TaskCancelled       TASK_CANCELLED           nobody wants the result any more
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from amp.errors import AmpError


class TaskError(AmpError):
    """A task failed. `details` are safe to store and show."""

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


class ResultTooLarge(TaskError):
    """The answer is larger than a setting allows; the message names it."""

    default_code = "RESULT_TOO_LARGE"


class TaskFailed(TaskError):
    """The work was done and failed."""

    default_code = "TASK_EXECUTION_FAILED"


class TaskCancelled(TaskError):
    """The attempt was stopped on request."""

    default_code = "TASK_CANCELLED"
