"""What can go wrong while a process starts.

RuntimeFault
└── AddressUnusable     an address cannot be listened on
"""


class RuntimeFault(Exception):
    """A process cannot start or go on. The message states what happened and what would have been right."""

    code = "RUNTIME_FAULT"
    severity = "critical"
    retryable = False


class AddressUnusable(RuntimeFault):
    """An address cannot be listened on, and another port would not help."""

    code = "ADDRESS_UNUSABLE"
