"""Custom task handlers whose effects on the world can be counted: each is a line of the effect ledger.

An executor loads this file by its path. It must import nothing of the tests, and keep nothing between two calls but
the open ledger. CHAOS_LEDGER names the ledger; a line is written with one append, so that many processes share it.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amp.errors import AmpError

VARIABLE = "CHAOS_LEDGER"
MAX_SECONDS = 600.0

_open_ledgers: dict[str, int] = {}


def _record(kind: str, context: Mapping[str, Any]) -> None:
    """Perform an effect: append one line that says who did what."""
    path = os.environ[VARIABLE]
    if path not in _open_ledgers:
        _open_ledgers[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    line = {
        "instance": context["workflow_instance_id"],
        "task": context["task_id"],
        "attempt": context["attempt"],
        "key": context["idempotency_key"],
        "kind": kind,
        "pid": os.getpid(),
    }
    os.write(_open_ledgers[path], json.dumps(line, separators=(",", ":")).encode() + b"\n")


async def _spend(params: Mapping[str, Any], name: str) -> None:
    seconds = float(params.get(name, 0.0))
    if seconds > 0:
        await asyncio.sleep(min(seconds, MAX_SECONDS))


async def effect(params: Mapping[str, Any], context: Mapping[str, Any]) -> object:
    """Return `value` after an effect that may be repeated."""
    await _spend(params, "before")
    _record("idempotent", context)
    await _spend(params, "after")
    return params["value"]


async def once(params: Mapping[str, Any], context: Mapping[str, Any]) -> object:
    """Return `value` after an effect that must never be repeated."""
    await _spend(params, "before")
    _record("once", context)
    await _spend(params, "after")
    return params["value"]


async def deduplicated(params: Mapping[str, Any], context: Mapping[str, Any]) -> object:
    """Return `value` after an effect that the other side performs once for each idempotency key."""
    await _spend(params, "before")
    folder = Path(os.environ[VARIABLE] + ".keys")
    folder.mkdir(exist_ok=True)
    try:
        key = context["idempotency_key"].replace("/", "!")
        os.close(os.open(folder / key, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass
    else:
        _record("deduplicated", context)
    await _spend(params, "after")
    return params["value"]


async def flaky(params: Mapping[str, Any], context: Mapping[str, Any]) -> object:
    """Return `value` from the attempt `succeeds_at` on; before, fail as a network does."""
    await _spend(params, "before")
    _record("idempotent", context)
    if context["attempt"] < params["succeeds_at"]:
        raise AmpError("NETWORK_ERROR", "the other side does not answer yet", retryable=True)
    return params["value"]


async def broken(params: Mapping[str, Any], context: Mapping[str, Any]) -> object:
    """Fail for good, and say which resource is at fault."""
    await _spend(params, "before")
    raise AmpError(params["code"], "broken by design", {"resource_id": "the-broken-thing"}, retryable=False)


async def slow(params: Mapping[str, Any], context: Mapping[str, Any]) -> object:
    """Return `value` after `before` seconds, telling all the while how far it is."""
    _record("idempotent", context)
    left = min(float(params["before"]), MAX_SECONDS)
    while left > 0:
        await context["progress"]({"seconds_left": left})
        await asyncio.sleep(min(left, 0.2))
        left -= 0.2
    return params["value"]


def look(params: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return {outcome, outputs}: whether the ledger knows the effect of another task of this instance."""
    wanted = f'"instance":"{context["workflow_instance_id"]}","task":"{params["task"]}",'.encode()
    path = Path(os.environ[VARIABLE])
    done = path.exists() and wanted in path.read_bytes()
    return {"outcome": "done", "outputs": {"receipt": params["value"]}} if done else {"outcome": "not_done"}


HANDLERS = {
    "effect": effect,
    "once": once,
    "deduplicated": deduplicated,
    "flaky": flaky,
    "broken": broken,
    "slow": slow,
    "look": look,
}
