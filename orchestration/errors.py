"""What goes wrong in decisions. Each class carries the code that is sent on the wire.

OrchestrationError
└── IllegalMove      an order that the instance's state does not allow
"""


class OrchestrationError(Exception):
    """A decision could not be made."""

    code = "INVALID_INPUT"
    severity = "medium"
    retryable = False


class IllegalMove(OrchestrationError):
    """An order that the state does not allow. Nothing changed."""

    code = "ILLEGAL_STATE"
