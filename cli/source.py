"""Reads what a command was pointed at: a file, or standard input for `-`. Bounded, and with a clear refusal."""

import sys
from pathlib import Path

from cli.errors import CommandError, ExitCode

STANDARD_INPUT = "-"


def read_source(name: str, *, most_bytes: int) -> bytes:
    """Return the bytes of a file, or of standard input for `-`.

    Raises: CommandError (not found) when there is no such file, (invalid) when it is too large, (usage) when it
        cannot be read.
    """
    try:
        if name == STANDARD_INPUT:
            data = sys.stdin.buffer.read(most_bytes + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise CommandError(f"{name}: there is no such file", ExitCode.NOT_FOUND) from None
    except OSError as error:
        raise CommandError(f"{name}: cannot be read: {error.strerror}", ExitCode.USAGE) from None
    if len(data) > most_bytes:
        raise CommandError(f"{name}: larger than {most_bytes:,} bytes", ExitCode.INVALID)
    return data


def shown_name(name: str) -> str:
    """Return what messages call the source."""
    return "standard input" if name == STANDARD_INPUT else name
