"""The first thing a newcomer sees: the hello-world workflow, run through the REST API of a mesh that just came up.

`python -m cli.demo URL` writes the greeting to standard output, or why there is none, and exits accordingly.
"""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from cli.errors import CommandError, ExitCode
from cli.http import Server
from cli.progress import Progress
from cli.remote import start, watch

WORKFLOW_ID = "hello-world-workflow"
TIMEOUT_SECONDS = 60.0
INPUTS: Mapping[str, Any] = {"name": "AMP User", "language": "en"}


async def greet(dashboard_url: str, *, timeout_seconds: float) -> str:
    """Return the greeting that the workflow gave.

    Raises: CommandError when it does not complete in time.
    """
    try:
        async with asyncio.timeout(timeout_seconds), Server(dashboard_url) as server:
            instance_id = await start(server, WORKFLOW_ID, INPUTS)
            outcome = await watch(server, WORKFLOW_ID, instance_id, Progress(sys.stderr))
    except TimeoutError:
        raise CommandError(
            f"{WORKFLOW_ID} did not end within {timeout_seconds:g} s", ExitCode.TIMED_OUT
        ) from None
    if outcome.status != "completed":
        raise CommandError(f"{WORKFLOW_ID} {outcome.status}: {outcome.error}")
    return str(outcome.outputs.get("greeting", outcome.outputs))


def main() -> NoReturn:
    """Greet through the dashboard that the command line names."""
    try:
        sys.stdout.write(f"{asyncio.run(greet(sys.argv[1], timeout_seconds=TIMEOUT_SECONDS))}\n")
    except CommandError as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.exit(ExitCode.OK)


if __name__ == "__main__":
    main()
