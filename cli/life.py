"""Runs the asynchronous body of a command: signals, errors, exit codes."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from cli.errors import CommandError
from runtime import process
from runtime.process import NewLoop

Body = Callable[[asyncio.Event], Coroutine[Any, Any, int]]


def run_body(body: Body, *, new_loop: NewLoop | None = None) -> int:
    """Return the exit code of a command's body; a CommandError is said on standard error and gives its own.

    Args:
        body: Receives an event that Ctrl-C or SIGTERM sets.
        new_loop: Makes the event loop; None takes the best there is.
    """

    async def guarded(stopping: asyncio.Event) -> int:
        try:
            return await body(stopping)
        except CommandError as error:
            sys.stderr.write(f"amp: {error}\n")
            return error.exit_code

    return process.run_to_end(guarded, new_loop=new_loop)
