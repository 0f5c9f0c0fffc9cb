"""What can go wrong when a recovery is ordered.

AmpError
└── RecoveryFailed      the order was not accepted, or cannot be given for this error
"""

from typing import Any

from amp.errors import AmpError


class RecoveryFailed(AmpError):
    """A recovery could not be ordered. People have to look."""

    default_code = "RECOVERY_FAILED"

    def __init__(self, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__("RECOVERY_FAILED", message, details, severity="high", retryable=False)
