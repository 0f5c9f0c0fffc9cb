"""Everything that can go wrong in the state manager.

StateManagerError
├── InvalidRequest            INVALID_PARAMETERS      the request breaks a bound or a rule
├── StateExists               VALIDATION_ERROR        a set without `overwrite` over an existing state
├── InstanceNotWritable       RESOURCE_NOT_AVAILABLE  the state belongs to an instance that cannot take it
├── StateNotFound             RESOURCE_NOT_FOUND
├── ContextUnknown            CONTEXT_NOT_FOUND       unknown or expired
├── BackupNotFound            RESOURCE_NOT_FOUND
├── StoreBusy                 INSUFFICIENT_RESOURCES  too much waits for the writer, or a table is at its bound
├── StoreFull                 INSUFFICIENT_RESOURCES  the disk has no room; nothing was stored
├── StoreFailed               INTERNAL_ERROR          the disk or the database refused; nothing was stored
├── StoreLost                 INTERNAL_ERROR          an fsync failed: the process must end and open the store again
│   └── StoreDamaged          INTERNAL_ERROR          what was read is not what was written: the process must end
└── StoreUnusable             STORE_UNUSABLE          refused at start: in use, damaged, or of another release
    ├── StoreInUse            STORE_UNUSABLE          another process serves it
    └── StoreNotReady         STORE_UNUSABLE          refused at start, and may be taken later: the disk is full
"""

from typing import Any

from runtime.errors import RuntimeFault


class StateManagerError(Exception):
    """A refusal by the state manager. `code` goes over the wire with the message and `details`."""

    code = "INTERNAL_ERROR"
    severity = "high"
    retryable = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequest(StateManagerError):
    """The request breaks a bound or a rule; the same request will never succeed."""

    code = "INVALID_PARAMETERS"
    severity = "medium"


class StateExists(StateManagerError):
    """A state is there already and the caller did not ask to replace it."""

    code = "VALIDATION_ERROR"
    severity = "medium"


class InstanceNotWritable(StateManagerError):
    """The id names an instance whose variables cannot be changed that way."""

    code = "RESOURCE_NOT_AVAILABLE"
    severity = "medium"


class StateNotFound(StateManagerError):
    """There is no state under that id."""

    code = "RESOURCE_NOT_FOUND"
    severity = "medium"


class ContextUnknown(StateManagerError):
    """There is no such context, or it has expired."""

    code = "CONTEXT_NOT_FOUND"
    severity = "medium"


class BackupNotFound(StateManagerError):
    """There is no backup of that name."""

    code = "RESOURCE_NOT_FOUND"
    severity = "medium"


class StoreBusy(StateManagerError):
    """A bound is reached; the same request may succeed later."""

    code = "INSUFFICIENT_RESOURCES"
    severity = "high"
    retryable = True


class StoreFull(StateManagerError):
    """The disk has no room. Nothing of the request was stored; reading goes on."""

    code = "INSUFFICIENT_RESOURCES"
    severity = "critical"
    retryable = True


class StoreFailed(StateManagerError):
    """The disk or the database refused the transaction. Nothing of the request was stored."""

    code = "INTERNAL_ERROR"
    severity = "high"
    retryable = True


class StoreLost(StateManagerError):
    """An fsync failed. What the disk holds is unknown, so the process must end and open the store again."""

    code = "INTERNAL_ERROR"
    severity = "critical"
    retryable = True


class StoreDamaged(StoreLost):
    """What was read is not what was written. Nothing is served any more, and nothing is repaired."""

    retryable = False


class StoreUnusable(StateManagerError, RuntimeFault):
    """The store cannot be opened: in use, damaged, or written by another release. Nothing was changed."""

    code = "STORE_UNUSABLE"
    severity = "critical"


class StoreInUse(StoreUnusable):
    """Another process has the store."""


class StoreNotReady(StoreUnusable):
    """The store cannot be opened now because the disk is full. The next try may succeed."""

    retryable = True
