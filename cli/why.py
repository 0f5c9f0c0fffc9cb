"""`amp why` and `amp orphans`: what waits on a mesh that is up, as its dashboard tells it. Nothing is changed."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from cli.errors import ExitCode
from cli.http import Server
from runtime.texts import escape_control

MAX_SHOWN_REASONS = 50
"""Most reasons that are printed; --json has all that the server sends."""
MAX_ASKED_ORPHANS = 500


def explain(server: str, instance_id: str, task_id: str | None, *, as_json: bool) -> ExitCode:
    """Print why an instance, or one task of it, does not move; return the exit code.

    Raises: CommandError when the server cannot say.
    """
    parts = ("tasks", task_id) if task_id else ()
    told = _asked(server, lambda api: api.get("api", "instances", instance_id, *parts, "why"))
    _write(told, _reasons(told), as_json=as_json)
    return ExitCode.OK


def list_orphans(server: str, *, as_json: bool) -> ExitCode:
    """Print the unfinished instances that nothing will wake; return FAILED when there are any.

    Raises: CommandError when the server cannot say.
    """
    told = _asked(server, lambda api: api.get("api", "health", "orphans", limit=MAX_ASKED_ORPHANS))
    _write(told, _orphans(told), as_json=as_json)
    return ExitCode.FAILED if told["count"] else ExitCode.OK


def _asked(url: str, ask: Callable[[Server], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with Server(url) as server:
            return await ask(server)

    return asyncio.run(run())


def _write(told: Any, lines: Iterator[str], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
        return
    for line in lines:
        sys.stdout.write(escape_control(line) + "\n")


def _reasons(told: Mapping[str, Any]) -> Iterator[str]:
    reasons = told["reasons"]
    yield f"{told['status']}: {told['summary']}"
    if len(reasons) > 1:
        yield from (f"  {reason['code']}: {reason['sentence']}" for reason in reasons[:MAX_SHOWN_REASONS])
    if len(reasons) > MAX_SHOWN_REASONS:
        yield f"  and {len(reasons) - MAX_SHOWN_REASONS} more; --json has them"
    allowed = [order for order, refusal in told.get("refusals", {}).items() if not refusal]
    if allowed:
        yield f"  possible now: {', '.join(allowed)}"


def _orphans(told: Mapping[str, Any]) -> Iterator[str]:
    if not told["count"]:
        yield "no orphans: every unfinished instance has an owner who will wake it"
    for orphan in told["orphans"]:
        what = f"{orphan['workflow_id']}, {orphan['status']}"
        yield f"{orphan['instance_id']} ({what}) {orphan['code']}: {orphan['reason']}"
    if told["count"] > len(told["orphans"]):
        yield f"and {told['count'] - len(told['orphans'])} more"
