"""What can go wrong while a process starts.

RuntimeFault
├── AddressUnusable     an address cannot be listened on
└── ChildFailed         a supervised process does not become ready
"""


class RuntimeFault(Exception):
    """A process cannot start or go on. The message states what happened and what would have been right."""

    code = "RUNTIME_FAULT"
    severity = "critical"
    retryable = False


class AddressUnusable(RuntimeFault):
    """An address cannot be listened on, and another port would not help."""

    code = "ADDRESS_UNUSABLE"


class ChildFailed(RuntimeFault):
    """A supervised process did not become ready, and trying again would not help."""

    code = "CHILD_FAILED"
