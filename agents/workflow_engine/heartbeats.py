"""Notices that an agent gives no sign of life for an attempt whose task wants one.

The watch is in memory: it begins anew when an engine takes an instance over. It never counts time in which this
engine itself could not hear anybody.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
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


def unwanted(
    beats: Iterable[TaskBeat],
    instance_of: Callable[[str], Instance | None],
    stored: Mapping[str, Instance],
) -> list[str]:
    """Return the tokens whose result is certainly not wanted any more, and those that must not begin.

    Of an attempt at work in an instance that this engine does not know nothing is said: its owner may want the result.
    One that asks whether it may begin must be known to be wanted. One whose outcome counts as unknown may still come
    to an end, but must not begin: somebody may be finding out what it did.

    Args:
        instance_of: Returns an instance as it is stored, when this engine drives it or saw it end.
        stored: The instances of the attempts that ask, as the store has them whoever drives them.
    """
    return [
        beat.token
        for beat in beats
        if (_is_unwanted(beat, instance_of) if beat.begun else not _may_begin(beat, stored))
    ]


def instance_id_of(token: str) -> str:
    """Return the instance that an attempt's token names."""
    return _named_in(token)[0]


def _named_in(token: str) -> tuple[str, str]:
    instance_id, _, task_id = token.rpartition("/")[0].rpartition("/")
    return instance_id, task_id


def _is_unwanted(beat: TaskBeat, instance_of: Callable[[str], Instance | None]) -> bool:
    instance_id, task_id = _named_in(beat.token)
    instance = instance_of(instance_id)
    return instance is not None and not _is_current(instance, task_id, beat.token)


def _may_begin(beat: TaskBeat, stored: Mapping[str, Instance]) -> bool:
    instance_id, task_id = _named_in(beat.token)
    instance = stored.get(instance_id)
    if instance is None or not _is_current(instance, task_id, beat.token):
        return False
    return instance.runs[task_id].status is TaskStatus.RUNNING


def _is_current(instance: Instance, task_id: str, token: str) -> bool:
    run = instance.runs.get(task_id)
    return not instance.status.is_final and run is not None and is_current(run, token)
