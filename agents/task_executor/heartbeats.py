"""Signs of life for the attempts whose engine wants them: one message an engine, for all of its attempts here.

The messages leave from the same loop as all the work, so an executor whose loop is held up falls silent, as it must.
Attempts without `heartbeat_seconds` are never heard of here and cost nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from amp import crash
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts
from orchestration.contracts import Attempt, TaskBeat

BEATS_IN_TIME = 3
"""How many signs of life an engine gets within the time it waits for one: two of them may be lost."""
MIN_INTERVAL_SECONDS = 0.1
LATE_SECONDS = 1.0
"""A beat that is later than this was held up by something on the loop."""
MAX_PROGRESS_BYTES = 16 * 1024
MAX_BEATS = 1000
"""Most attempts that one message speaks for."""

Spawn = Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]]

logger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _Watched:
    """An attempt that has to show that it lives."""

    seconds: float
    progress: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Engine:
    """The attempts of one engine, and what is sent to it."""

    attempts: dict[str, _Watched] = field(default_factory=dict)
    sooner: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def interval_seconds(self) -> float:
        shortest = min(watched.seconds for watched in self.attempts.values())
        return max(shortest / BEATS_IN_TIME, MIN_INTERVAL_SECONDS)


class Heartbeats:
    """Sends the signs of life.

    Args:
        unwanted: Called with each token that the engine does not want any more.
        count: Called with the outcome of each message: told or not_told.
    """

    def __init__(
        self,
        mesh: Callable[[], MeshClient],
        spawn: Spawn,
        *,
        unwanted: Callable[[str], object],
        count: Callable[[str], object],
    ) -> None:
        self._mesh = mesh
        self._spawn = spawn
        self._unwanted = unwanted
        self._count = count
        self._engines: dict[str, _Engine] = {}

    def watch(self, attempt: Attempt) -> None:
        """Begin to speak for an attempt when its engine wants that; after another engine took over, to that one."""
        if attempt.heartbeat_seconds <= 0:
            return
        progress = self.leave(attempt.token)
        engine = self._engines.get(attempt.engine_id)
        if engine is None:
            engine = self._engines[attempt.engine_id] = _Engine()
            self._spawn(self._speak(attempt.engine_id, engine), f"heartbeats {attempt.engine_id}")
        engine.attempts[attempt.token] = _Watched(attempt.heartbeat_seconds, progress)
        engine.sooner.set()

    def leave(self, token: str) -> Mapping[str, Any]:
        """Speak for an attempt no more; return what it told last."""
        for engine in self._engines.values():
            watched = engine.attempts.pop(token, None)
            if watched is not None:
                engine.sooner.set()
                return watched.progress
        return {}

    def progress(self, token: str, data: Mapping[str, Any]) -> None:
        """Let the next sign of life say how far an attempt is."""
        for engine in self._engines.values():
            if token in engine.attempts and len(msgspec.json.encode(data)) <= MAX_PROGRESS_BYTES:
                engine.attempts[token].progress = data

    async def _speak(self, engine_id: str, engine: _Engine) -> None:
        """Send what is due to one engine until nothing of it is under way here."""
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        while engine.attempts:
            engine.sooner.clear()
            due_at = told_at + engine.interval_seconds
            if await _within(engine.sooner, due_at - loop.time()):
                continue
            late_seconds = loop.time() - due_at
            if late_seconds > LATE_SECONDS:
                logger.warning("heartbeat_late", engine_id=engine_id, late_seconds=round(late_seconds, 3))
            told_at = loop.time()
            await self._tell(engine_id, engine)
        if self._engines.get(engine_id) is engine:
            del self._engines[engine_id]

    async def _tell(self, engine_id: str, engine: _Engine) -> None:
        crash.reach("executor.heartbeat.before")
        beats = [
            TaskBeat(token=token, progress=dict(watched.progress))
            for token, watched in list(engine.attempts.items())[:MAX_BEATS]
        ]
        try:
            reply = await self._mesh().request(
                contracts.TASK_HEARTBEAT.id,
                contracts.TaskHeartbeatRequest(beats=beats),
                reply_type=contracts.TaskHeartbeatReply,
                agent_id=engine_id,
                timeout_seconds=engine.interval_seconds if engine.attempts else MIN_INTERVAL_SECONDS,
            )
        except AmpError as error:
            self._count("not_told")
            logger.debug("heartbeat_not_told", engine_id=engine_id, code=error.code)
            return
        self._count("told")
        for token in reply.unwanted:
            if token in engine.attempts:
                self._unwanted(token)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Return whether something happens within a time."""
    if seconds <= 0:
        return event.is_set()
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
