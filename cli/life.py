"""Runs the asynchronous body of a command: signals, errors, exit codes."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from cli.errors import CommandError
from runtime import process

Body = Callable[[asyncio.Event], Coroutine[Any, Any, int]]


def run_body(body: Body) -> int:
    """Return the exit code of a command's body; a CommandError is said on standard error and gives its own.

    Args:
        body: Receives an event that Ctrl-C or SIGTERM sets.
    """

    async def guarded(stopping: asyncio.Event) -> int:
        try:
            return await body(stopping)
        except CommandError as error:
            sys.stderr.write(f"amp: {error}\n")
            return error.exit_code

    return process.run_to_end(guarded)
