"""The first thing a newcomer sees: the hello-world workflow, run through the REST API of a mesh that just came up."""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from cli.errors import CommandError, ExitCode
from cli.http import Server
from cli.progress import Progress
from cli.remote import start, watch

WORKFLOW_ID = "hello-world-workflow"
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
