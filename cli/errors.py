"""How commands end when they do not succeed.

CommandError            a command cannot do what it was asked; carries the exit code
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell learns. Other numbers are left to signals."""

    OK = 0
    FAILED = 1
    """The instance failed or was stopped, or a process of the mesh could not be kept running."""
    USAGE = 2
    INVALID = 3
    """A definition or inputs were refused."""
    NOT_FOUND = 4
    CONFLICT = 5
    NOT_AUTHORISED = 6
    UNREACHABLE = 7
    TIMED_OUT = 8
    """Waiting ended; what was started goes on where it runs."""
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot do what it was asked. The message says why and what would help."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
