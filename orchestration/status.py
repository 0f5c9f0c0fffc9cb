"""The words for where an instance and a task stand. Every layer, from YAML to dashboard, uses these."""

from enum import StrEnum


class InstanceStatus(StrEnum):
    """Where an instance stands."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when the instance will never change again."""
        return self in _FINAL_INSTANCE


class TaskStatus(StrEnum):
    """Where a task of an instance stands."""

    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    RETRYING = "retrying"
    OUTCOME_UNKNOWN = "outcome_unknown"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when only an operator's retry can change the task again."""
        return self in _FINAL_TASK


class Severity(StrEnum):
    """How bad an error is."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class RecoveryAction(StrEnum):
    """What to do about a task that failed for good."""

    RETRY = "retry"
    SKIP = "skip"
    FALLBACK = "fallback"
    PAUSE = "pause"
    ESCALATE = "escalate"
    ROLLBACK = "rollback"
    ABORT = "abort"


class Effects(StrEnum):
    """What a repeated attempt of a task would do to the world."""

    NONE = "none"
    READ = "read"
    IDEMPOTENT = "idempotent"
    ONCE = "once"
    IRREVERSIBLE = "irreversible"


_FINAL_INSTANCE = frozenset({InstanceStatus.COMPLETED, InstanceStatus.FAILED, InstanceStatus.CANCELLED})
_FINAL_TASK = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.SKIPPED, TaskStatus.CANCELLED})
UNREPEATABLE = frozenset({Effects.ONCE, Effects.IRREVERSIBLE})
"""Effects that a second attempt must not repeat blindly."""
