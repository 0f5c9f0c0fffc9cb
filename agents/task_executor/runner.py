"""One attempt from its request to its ending: begun at most once, kept where it must not be lost, told to somebody.

An attempt outlives the request that brought it: a duplicate attaches, and when the engine is gone its ending goes to
the instance's inbox. What must not be repeated is in the spool before its effect and again before its answer.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec
import structlog

from agents.task_executor.attempts import Attempts, Ending
from agents.task_executor.errors import Overloaded, SpoolFull, TaskCancelled
from agents.task_executor.execution import Execution, Work
from agents.task_executor.handlers.base import Progress
from agents.task_executor.handover import Handover, put_of_ending
from agents.task_executor.heartbeats import Heartbeats
from agents.task_executor.permission import Permission
from agents.task_executor.recovery import Recovery
from agents.task_executor.spool import State
from agents.task_executor.under_way import NO_SLOT
from amp import crash
from amp.errors import AmpError, ExecutionError
from orchestration.contracts import Attempt
from orchestration.status import UNREPEATABLE
from runtime.clock import Clock
from runtime.logging import bind_context

MAX_CANCELLED_TOKENS = 10_000
LONG_SECONDS = 1.0
"""What took so long is kept until the engine has recorded it, although it could be done again."""

Spawn = Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]]
Measure = Callable[[str, Awaitable[msgspec.Raw]], Awaitable[msgspec.Raw]]

logger = structlog.stdlib.get_logger(__name__)


class AttemptRunner:
    """Runs attempts.

    Args:
        measured: Counts an execution while it runs.
        progress: Returns what a handler calls to tell how far it is.
        max_running: More attempts at once are refused.
    """

    def __init__(
        self,
        attempts: Attempts,
        execution: Execution,
        recovery: Recovery,
        handover: Handover,
        heartbeats: Heartbeats,
        permission: Permission,
        *,
        clock: Clock,
        spawn: Spawn,
        measured: Measure,
        progress: Callable[[Attempt], Progress],
        max_running: int,
    ) -> None:
        self._attempts = attempts
        self._execution = execution
        self._recovery = recovery
        self._handover = handover
        self._heartbeats = heartbeats
        self._permission = permission
        self._clock = clock
        self._spawn = spawn
        self._measured = measured
        self._progress = progress
        self._max_running = max_running
        self._cancelled: OrderedDict[str, None] = OrderedDict()

    async def run(
        self, capability: str, task_type: str | None, parameters: Mapping[str, Any], attempt: Attempt
    ) -> msgspec.Raw:
        """Return the encoded result of an attempt, whoever began it. Raises: AmpError."""
        ending = await self._known_ending(attempt.token)
        if ending is None:
            self._refuse_overload(attempt.token)
            run = self._attempts.begin(
                attempt.token,
                attempt.engine_id,
                lambda: self._spawn(
                    self._attempt(capability, task_type, parameters, attempt), f"attempt {attempt.token}"
                ),
            )
            self._heartbeats.watch(attempt)
            try:
                ending = await run.ending()
            except asyncio.CancelledError:
                if not run.work.cancelled() or attempt.token not in self._cancelled:
                    run.abandoned = True
                    raise
                ending = TaskCancelled("the attempt was cancelled before it began")
        if isinstance(ending, AmpError):
            raise AmpError(ending.code, ending.message, ending.details, severity=ending.severity)
        return ending

    def cancel(self, token: str) -> bool:
        """Stop an attempt; one that comes later under this token is refused. Return whether it was under way."""
        crash.reach("executor.cancel.before")
        self._cancelled[token] = None
        while len(self._cancelled) > MAX_CANCELLED_TOKENS:
            self._cancelled.popitem(last=False)
        run = self._attempts.running.get(token)
        if run is not None and not run.done:
            run.work.cancel()
        return run is not None

    def lose(self, engine_id: str | None) -> tuple[int, int]:
        """Note that an engine, or every one, hears no answer: what runs is for the inbox, and what is not confirmed.

        Return how many attempts are under way for it and how many endings it may not have heard.
        """
        running = self._attempts.abandon(engine_id)
        unconfirmed = self._recovery.spool.tokens(state=State.ENDED, engine_id=engine_id)
        for token in unconfirmed:
            self._spawn(self._recovery.deliver(token), f"tell {token}")
        return running, len(unconfirmed)

    async def _known_ending(self, token: str) -> Ending | None:
        ending = self._attempts.known_ending(token, self._clock.monotonic())
        if ending is None and token not in self._attempts.running and len(self._recovery.spool):
            ending = await self._recovery.known_ending(token)
        return ending

    def _refuse_overload(self, token: str) -> None:
        running = self._attempts.running
        if token not in running and len(running) >= self._max_running:
            raise Overloaded(
                f"{len(running)} attempts are under way here", details={"retry_after_seconds": 1.0}
            )

    # --- one attempt -----------------------------------------------------------------------------------

    async def _attempt(
        self, capability: str, task_type: str | None, parameters: Mapping[str, Any], attempt: Attempt
    ) -> Ending:
        """Perform one attempt to its end, remember the ending, and deliver it when nobody listens.

        A full spool is no ending: the attempt did not begin, and may be asked for again.
        """
        token, started = attempt.token, self._clock.monotonic()
        try:
            ending = await self._ending(capability, task_type, parameters, attempt)
            crash.reach("executor.effect.after")
            run = self._attempts.running[token]
            run.done = True
            await self._keep(attempt, run.engine_id, ending, self._clock.monotonic() - started)
        finally:
            if attempt.heartbeat_seconds > 0:
                self._heartbeats.leave(token)
        if isinstance(ending, SpoolFull):
            self._attempts.drop(token)
        else:
            self._attempts.finish(token, ending, self._clock.monotonic())
        if run.abandoned:
            self._handover.deliver(token, put_of_ending(attempt, ending, self._execution.executor_id()))
        run.tell(ending)
        return ending

    async def _ending(
        self, capability: str, task_type: str | None, parameters: Mapping[str, Any], attempt: Attempt
    ) -> Ending:
        """Return how an attempt ends."""
        guarded, began = attempt.effects in UNREPEATABLE, False

        async def begin() -> None:
            nonlocal began
            await self._permission.begin(attempt)
            began = True

        work = Work(
            task_type=task_type,
            parameters=parameters,
            attempt=attempt,
            timeout_seconds=attempt.timeout_seconds,
            progress=self._progress(attempt),
            begin=begin if guarded else None,
            kept_after_seconds=0.0 if guarded else LONG_SECONDS,
        )
        slot = NO_SLOT
        try:
            slot = self._recovery.enter(attempt)
            if attempt.token in self._cancelled:
                raise TaskCancelled("the attempt was cancelled before it began")
            if guarded:
                await self._recovery.spool.accept(attempt)
            bind_context(
                instance_id=attempt.workflow_instance_id, task_id=attempt.task_id, attempt=attempt.attempt
            )
            return await self._measured(capability, self._execution.enveloped(work))
        except AmpError as error:
            return _said(error, began) if guarded else error
        except asyncio.CancelledError:
            if attempt.token not in self._cancelled:
                raise
            cancelled = TaskCancelled("the attempt was cancelled")
            return _said(cancelled, began) if guarded else cancelled
        finally:
            self._recovery.leave(slot)

    async def _keep(self, attempt: Attempt, engine_id: str, ending: Ending, seconds: float) -> None:
        """Put an ending where it survives this process, when it must, or when the work took long."""
        guarded = attempt.effects in UNREPEATABLE
        if not guarded and seconds < LONG_SECONDS:
            return
        if isinstance(ending, (TaskCancelled, SpoolFull)):
            await self._recovery.settle([attempt.token])
            return
        if isinstance(ending, AmpError):
            ending.details["spooled"] = True
        await self._recovery.spool.keep(attempt, ending, engine_id=engine_id, sync=guarded)


def _said(error: AmpError, began: bool) -> AmpError:
    """Have the error of work that must not be repeated say whether it began, where its code does not tell."""
    if not began:
        error.details["begun"] = False
    elif isinstance(error, ExecutionError):
        error.details["begun"] = True
    return error
