"""Notices that an agent gives no sign of life for an attempt whose task wants one.

The watch is in memory: it begins anew when an engine takes an instance over. It never counts time in which this
engine itself could not hear anybody.
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

import structlog

from agents.workflow_engine.flights import Flight
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration.contracts import TaskBeat
from orchestration.instance import Instance
from orchestration.status import TaskStatus
from orchestration.turn import is_current
from runtime.clock import Clock

logger = structlog.get_logger(__name__)


async def watch(flight: Flight, mesh: MeshClient, clock: Clock) -> None:
    """Return when the agent that has the attempt was silent for the task's `heartbeat_seconds`.

    Before the first sign the mesh is asked where the attempt is: one that waits in a queue cannot give any.
    """
    limit = timedelta(seconds=flight.task.heartbeat_seconds)
    heard_at: datetime | None = None
    while True:
        now = clock.now()
        if not mesh.connected:
            heard_at = now
        elif flight.last_sign_at is not None and (heard_at is None or flight.last_sign_at > heard_at):
            heard_at = flight.last_sign_at
        elif heard_at is None and await _is_assigned(flight.token, mesh):
            heard_at = now
        if heard_at is not None and now - heard_at >= limit:
            logger.warning(
                "attempt_silent",
                instance_id=flight.driver.id,
                task_id=flight.task.id,
                attempt=flight.attempt,
                heartbeat_seconds=flight.task.heartbeat_seconds,
            )
            return
        left = limit if heard_at is None else limit - (now - heard_at)
        await asyncio.sleep(left.total_seconds())


async def _is_assigned(token: str, mesh: MeshClient) -> bool:
    try:
        found = await mesh.traffic(requests=[token])
    except AmpError:
        return False
    return bool(found["requests"].get(token, {}).get("state") == "assigned")


def unwanted(beats: Iterable[TaskBeat], instance_of: Callable[[str], Instance | None]) -> list[str]:
    """Return the tokens whose result is certainly not wanted any more.

    Of an instance that this engine does not know nothing is said: its owner may want the result. An attempt whose
    outcome counts as unknown may still come to an end, but must not begin: somebody may be finding out what it did.

    Args:
        instance_of: Returns an instance as it is stored, when this engine drives it or saw it end.
    """
    return [beat.token for beat in beats if _is_unwanted(beat, instance_of)]


def _is_unwanted(beat: TaskBeat, instance_of: Callable[[str], Instance | None]) -> bool:
    token = beat.token
    instance_id, _, rest = token.rpartition("/")[0].rpartition("/")
    instance = instance_of(instance_id)
    if instance is None:
        return False
    run = instance.runs.get(rest)
    if instance.status.is_final or run is None or not is_current(run, token):
        return True
    return not beat.begun and run.status is not TaskStatus.RUNNING
