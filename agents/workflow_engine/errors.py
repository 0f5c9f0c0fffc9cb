"""What the engine refuses, with the codes that callers see.

AmpError
├── WorkflowNotFound          no definition of that id
├── InstanceNotFound          no instance of that id
├── TaskNotFound              the instance's workflow has no task of that id
├── InvalidDefinition         every problem of a definition in `details.problems`
├── InvalidInputs             every problem of the inputs in `details.problems`
├── IllegalState              the instance's state does not allow the order
├── DefinitionExists          another definition is stored under that id and version
├── FileRefused               a file outside the workflow folders, or unreadable
├── EngineBusy                too many instances wait for a slot, or the store takes no more
├── IdempotencyKeyReused      the idempotency key of a start named another request before
├── StartRefused              the store will never take the start
└── InstanceUnreadable        the history of an instance cannot be replayed
"""

from typing import Any

from amp.errors import AmpError


class EngineError(AmpError):
    """What all the engine's refusals share: a fixed code."""

    wire_code = "EXECUTION_ERROR"
    may_retry = False

    def __init__(
        self, message: str, details: dict[str, Any] | None = None, *, code: str | None = None
    ) -> None:
        super().__init__(code or self.wire_code, message, details or {}, retryable=self.may_retry)


class WorkflowNotFound(EngineError):
    """No definition of that id is stored."""

    wire_code = "WORKFLOW_NOT_FOUND"


class InstanceNotFound(EngineError):
    """No instance of that id exists."""

    wire_code = "INSTANCE_NOT_FOUND"


class TaskNotFound(EngineError):
    """The instance's workflow has no task of that id."""

    wire_code = "TASK_NOT_FOUND"


class InvalidDefinition(EngineError):
    """A definition with problems; `details.problems` lists them all."""

    wire_code = "INVALID_WORKFLOW_DEFINITION"


class InvalidInputs(EngineError):
    """Inputs that the input schema refuses; `details.problems` lists them all."""

    wire_code = "INVALID_INPUT"


class IllegalState(EngineError):
    """An order that the instance's state does not allow."""

    wire_code = "ILLEGAL_STATE"


class DefinitionExists(EngineError):
    """Another definition is stored under that id and version."""

    wire_code = "WORKFLOW_EXISTS"


class FileRefused(EngineError):
    """A definition file outside the workflow folders, missing or too large."""

    wire_code = "INVALID_INPUT"


class EngineBusy(EngineError):
    """Too many instances wait for a slot, or the store takes no more: nothing was started."""

    wire_code = "INSUFFICIENT_RESOURCES"
    may_retry = True


class IdempotencyKeyReused(EngineError):
    """The idempotency key of a start named another request before."""

    wire_code = "IDEMPOTENCY_KEY_REUSED"


class StartRefused(EngineError):
    """The store will never take the start: it breaks a bound, such as the size of the inputs."""

    wire_code = "INVALID_INPUT"


class InstanceUnreadable(EngineError):
    """The history of an instance cannot be replayed by this release."""
