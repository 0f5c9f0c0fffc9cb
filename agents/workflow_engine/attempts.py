"""Sends attempts to agents and makes stimuli of what becomes of them: a result, an error, a loss.

Nothing is decided here. A result that reaches an engine which lost the instance meanwhile goes to the inbox, where its
owner finds it: finished work is never thrown away.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from random import Random
from typing import Any, TypeGuard

import msgspec
import structlog

from agents.workflow_engine.driver import Driver, KeptResult
from agents.workflow_engine.flights import Flight
from agents.workflow_engine.inbox import as_recorded
from amp import crash
from amp.client import MeshClient
from amp.envelope import ROUTER_ID
from amp.errors import (
    AgentLost,
    AgentNotFound,
    AmpError,
    CapabilityNotFound,
    Disconnected,
    InsufficientResources,
    InvalidSchema,
    RequestTimeout,
)
from orchestration import contracts, scope
from orchestration import stimuli as st
from orchestration.contracts import Attempt, ErrorInfo, TaskResult
from orchestration.outputs import map_outputs
from orchestration.status import UNREPEATABLE
from runtime.clock import Clock

ANSWER_GRACE_SECONDS = 5.0
"""An executor ends an attempt at its time limit by itself; the engine waits this much longer."""
TAKEN_UP_PATIENCE_SECONDS = 60.0
"""An attempt that is sent again after a restart may wait this long for an agent, whatever is left of its time."""
BUSY_RETRY_SECONDS = 0.25
RENDER_TIMEOUT_SECONDS = 5.0
UNREPEATABLE_GRACE_SECONDS = 10.0
"""How long a lost agent has to come back with the result of an attempt that must not be repeated."""
NOT_BEGUN = "NOT_BEGUN"
"""What an executor answers when an attempt's effect never began and begins no more."""
OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
"""What an executor answers when it was killed in the middle of the attempt, in an earlier life."""
CANCELLED = "TASK_CANCELLED"
NEVER_PLACED = (CapabilityNotFound, AgentNotFound, InsufficientResources, RequestTimeout)

Ending = st.AttemptSucceeded | st.AttemptErrored | st.AttemptVanished

logger = structlog.get_logger(__name__)


class Attempts:
    """Performs attempts, one flight each.

    Args:
        generation: Returns the number of the engine's connection to a router.
    """

    def __init__(
        self,
        mesh: MeshClient,
        *,
        engine_id: str,
        clock: Clock,
        random: Random,
        generation: Callable[[], int],
    ) -> None:
        self._mesh = mesh
        self._engine_id = engine_id
        self._clock = clock
        self._random = random
        self._generation = generation

    # --- to an end -------------------------------------------------------------------------------------

    async def send(self, flight: Flight) -> None:
        """Send an attempt, wait for its end and post that."""
        crash.reach("engine.dispatch.before_send")
        try:
            result, agent_id = await self._ask(flight)
        except AmpError as error:
            await self._failed(flight, error)
            return
        crash.reach("engine.result.received")
        kept = KeptResult(agent_id, flight.token) if result.metadata.get("spooled") is True else None
        if flight.driver.lost and not flight.driver.committed.status.is_final:
            await self._hand_on(flight, {"result": msgspec.to_builtins(result)}, kept)
            return
        flight.driver.post(self._success(flight, result, agent_id), kept=kept)

    def _success(self, flight: Flight, result: TaskResult, agent_id: str) -> st.AttemptSucceeded:
        outputs = map_outputs(
            flight.task.output_names, result=result.result, outputs=result.outputs, primary=result.primary
        )
        same = next((name for name, value in outputs.items() if value is result.primary), "")
        metadata = {"agent_id": agent_id, **result.metadata}
        metadata.pop("spooled", None)
        return st.AttemptSucceeded(
            at=self._clock.now(),
            task_id=flight.task.id,
            token=flight.token,
            outputs=outputs,
            primary=None if same else result.primary,
            primary_output=same,
            metadata=metadata,
        )

    async def _failed(self, flight: Flight, error: AmpError) -> None:
        """Post what an attempt's error means: it failed, was never taken, or its agent is lost."""
        unrepeatable = flight.task.effects in UNREPEATABLE
        spooled = error.details.get("spooled") is True
        kept = KeptResult(error.from_agent_id or "", flight.token) if spooled else None
        match error:
            case _ if _is_never_placed(error):
                self._errored(flight, _never_placed(flight, error))
            case AgentLost() | Disconnected() if unrepeatable:
                await self.await_result(flight, whole_time=isinstance(error, Disconnected))
            case AgentLost() | Disconnected():
                self.lost(flight, str(error.details.get("agent_id", "")), error.message)
            case RequestTimeout() if unrepeatable and error.from_agent_id is None:
                self.lost(flight, "", "no answer came in time")
            case AmpError(code=code) if code == OUTCOME_UNKNOWN:
                self.lost(flight, error.from_agent_id or "", error.message)
            case AmpError(code=code) if code == NOT_BEGUN:
                agent_id = error.from_agent_id or ""
                if flight.driver.lost and not flight.driver.committed.status.is_final:
                    await self._hand_on(flight, _never_begun(agent_id, error.message), kept)
                    return
                self.lost(flight, agent_id, error.message, begun=False, kept=kept)
            case AmpError(code=code) if code == CANCELLED and not flight.is_wanted:
                logger.debug("attempt_stopped", instance_id=flight.driver.id, task_id=flight.task.id)
            case _:
                info = error_info(error)
                if flight.driver.lost and not flight.driver.committed.status.is_final:
                    await self._hand_on(flight, {"error": msgspec.to_builtins(info)}, kept)
                    return
                self._errored(flight, info, kept)

    def _errored(self, flight: Flight, info: ErrorInfo, kept: KeptResult | None = None) -> None:
        stimulus = st.AttemptErrored(
            at=self._clock.now(),
            task_id=flight.task.id,
            token=flight.token,
            error=info,
            jitter=self._random.random(),
        )
        flight.driver.post(stimulus, kept=kept)

    def lost(
        self,
        flight: Flight,
        agent_id: str,
        reason: str,
        *,
        begun: bool = True,
        may_be_at_work: bool = False,
        kept: KeptResult | None = None,
    ) -> None:
        """Post that the agent which had an attempt is gone, or that it never began."""
        stimulus = st.AttemptVanished(
            at=self._clock.now(),
            task_id=flight.task.id,
            token=flight.token,
            agent_id=agent_id,
            reason=reason,
            may_be_at_work=may_be_at_work,
            begun=begun,
        )
        flight.driver.post(stimulus, kept=kept)

    async def hand_on(self, driver: Driver, stimulus: Ending, kept: KeptResult | None) -> None:
        """Put an ending that could not be recorded into the inbox of its instance."""
        if isinstance(stimulus, st.AttemptVanished):
            data = _never_begun(stimulus.agent_id, stimulus.reason)
        elif isinstance(stimulus, st.AttemptErrored):
            data = {"error": msgspec.to_builtins(stimulus.error)}
        else:
            named = stimulus.primary_output
            primary = stimulus.outputs.get(named) if named else stimulus.primary
            result = TaskResult(
                result={}, outputs=stimulus.outputs, primary=primary, metadata=stimulus.metadata
            )
            data = {"result": msgspec.to_builtins(result)}
        await self._put(driver, stimulus.task_id, stimulus.token, data, kept)

    async def _hand_on(self, flight: Flight, data: dict[str, Any], kept: KeptResult | None) -> None:
        """Put an ending into the inbox of an instance that another engine owns by now."""
        data = {"attempt": flight.attempt, **data}
        await self._put(flight.driver, flight.task.id, flight.token, data, kept)

    async def _put(
        self, driver: Driver, task_id: str, token: str, data: dict[str, Any], kept: KeptResult | None
    ) -> None:
        request = contracts.InboxPutRequest(
            instance_id=driver.id,
            kind="task_result",
            data={"task_id": task_id, "token": token, **data},
            dedupe_key=token,
        )
        try:
            await self._mesh.request(
                contracts.INBOX_PUT.id,
                request,
                reply_type=contracts.InboxPutReply,
                patience_seconds=TAKEN_UP_PATIENCE_SECONDS,
                resend=True,
            )
        except AmpError as error:
            logger.warning("result_not_handed_on", instance_id=driver.id, code=error.code)
            return
        logger.info("result_handed_on", instance_id=driver.id, task_id=task_id)
        if kept is not None:
            driver.settle(kept)

    async def await_result(self, flight: Flight, *, whole_time: bool) -> None:
        """Wait for a result that comes through the inbox; without one the attempt's outcome is unknown.

        Args:
            whole_time: The executor may still be at work, so wait until its time limit; else only for a reconnect.
        """
        wait = UNREPEATABLE_GRACE_SECONDS
        if whole_time:
            begun = flight.driver.instance.runs[flight.task.id].attempt_started_at or self._clock.now()
            elapsed = (self._clock.now() - begun).total_seconds()
            wait += max(flight.task.timeout_seconds - elapsed, 0.0)
        flight.cut_short = asyncio.Event()
        flight.awaited_until = self._clock.now() + timedelta(seconds=wait)
        try:
            async with asyncio.timeout(wait):
                await flight.cut_short.wait()
            flight.awaited_until = self._clock.now() + timedelta(seconds=UNREPEATABLE_GRACE_SECONDS)
            await asyncio.sleep(min(wait, UNREPEATABLE_GRACE_SECONDS))
        except TimeoutError:
            pass
        self.lost(flight, "", "the agent was lost and sent no result")

    # --- to an agent -----------------------------------------------------------------------------------

    async def _ask(self, flight: Flight) -> tuple[TaskResult, str]:
        """Send an attempt and return its result with the agent that gave it.

        It waits while nobody offers the capability or everybody is busy, within the bound. Raises: AmpError.
        """
        task = flight.task
        context = self._context(flight)
        renders = task.capability in contracts.RENDERS_TEMPLATES
        parameters: Mapping[str, Any] = task.parameters
        if not renders:
            if task.has_templates:
                parameters = await self._render(flight, context)
            context = msgspec.structs.replace(context, variables={})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience(flight)
        message_id, number = flight.token, 0
        while True:
            left = max(deadline - loop.time(), 0.0)
            flight.generation = self._generation()
            try:
                answer = await self._mesh.request_full(
                    task.capability,
                    parameters,
                    context=context,
                    prefer_agent_id=task.agent_id,
                    timeout_seconds=left + task.timeout_seconds + ANSWER_GRACE_SECONDS,
                    patience_seconds=left,
                    queue_seconds=left,
                    message_id=message_id,
                    resend=task.effects not in UNREPEATABLE,
                    survive_loss=False,
                )
                return _task_result(answer.result, renders), answer.agent_id
            except InsufficientResources as error:
                wait = float(error.details.get("retry_after_ms", 0)) / 1000 or BUSY_RETRY_SECONDS
                if left <= wait or error.details.get("retry_after_ms") is None:
                    raise
                await asyncio.sleep(wait)
                number += 1
                message_id = f"{flight.token}~{number}"

    def _patience(self, flight: Flight) -> float:
        """Return how long the attempt may wait for an agent, counted from when it was decided on."""
        seconds = flight.task.schedule_to_start_seconds
        decided_at = flight.driver.committed.runs[flight.task.id].attempt_started_at
        if decided_at is None:
            return seconds
        left = seconds - (self._clock.now() - decided_at).total_seconds()
        return max(left, min(seconds, TAKEN_UP_PATIENCE_SECONDS))

    def _context(self, flight: Flight) -> Attempt:
        instance, plan, task = flight.driver.committed, flight.driver.plan, flight.task
        return Attempt(
            token=flight.token,
            engine_id=self._engine_id,
            workflow_id=instance.workflow_id,
            workflow_instance_id=instance.id,
            task_id=task.id,
            attempt=flight.attempt,
            timeout_seconds=task.timeout_seconds,
            idempotency_key=f"{instance.id}/{task.id}/{instance.runs[task.id].round}",
            heartbeat_seconds=task.heartbeat_seconds,
            effects=task.effects,
            variables=scope.task_variables(plan, instance, task, self._clock.now()),
            declared=sorted(plan.declared & (task.references | scope.BUILTINS))
            if not task.whole_context
            else sorted(plan.declared),
            output_names=list(task.output_names),
        )

    async def _render(self, flight: Flight, context: Attempt) -> Mapping[str, Any]:
        """Have templates filled for an agent that knows none."""
        answer = await self._mesh.request_full(
            contracts.TEMPLATE_RENDER.id,
            contracts.TemplateRenderRequest(
                parameters=dict(flight.task.parameters),
                variables=context.variables,
                declared=context.declared,
            ),
            timeout_seconds=self._patience(flight) + RENDER_TIMEOUT_SECONDS,
            patience_seconds=self._patience(flight),
            resend=True,
        )
        return msgspec.convert(answer.result, contracts.TemplateRenderReply).parameters


def is_ending(stimulus: st.AnyStimulus) -> TypeGuard[Ending]:
    """Return whether nobody but the engine that it reached may know this of an attempt: how it ended for good.

    A loss is none: whoever owns the instance next waits for the result itself, or has the work done again.
    """
    if isinstance(stimulus, st.AttemptVanished):
        return not stimulus.begun
    return isinstance(stimulus, st.AttemptSucceeded | st.AttemptErrored)


def _never_begun(agent_id: str, reason: str) -> dict[str, Any]:
    """Return what the inbox keeps of an attempt that never began."""
    return {"lost": {"begun": False, "agent_id": agent_id, "reason": reason}}


def error_info(error: AmpError) -> ErrorInfo:
    """Return an AMP error as the log keeps it."""
    return as_recorded(ErrorInfo(code=error.code, message=error.message, details=error.details))


def _is_never_placed(error: AmpError) -> bool:
    """Return whether the mesh, not an agent, says that nobody took the attempt in time."""
    if isinstance(error, Disconnected):
        return error.details.get("sent") is False
    if isinstance(error, RequestTimeout):
        return error.from_agent_id == ROUTER_ID and error.details.get("reason") == "queued"
    if isinstance(error, InsufficientResources):
        return error.details.get("retry_after_ms") is not None
    return isinstance(error, NEVER_PLACED) and error.from_agent_id == ROUTER_ID


def _never_placed(flight: Flight, error: AmpError) -> ErrorInfo:
    seconds = flight.task.schedule_to_start_seconds
    return ErrorInfo(
        code="SCHEDULE_TO_START_TIMEOUT",
        message=f"no agent with {flight.task.capability} took the task within {seconds:g} s: {error.message}",
        details={"capability": flight.task.capability, "cause": error.code},
    )


def _task_result(result: Any, renders: bool) -> TaskResult:
    """Return what an agent answered in one shape; an outside agent's whole answer is its primary value.

    Raises: InvalidSchema when one of our own capabilities is offered by somebody who answers something else.
    """
    if renders:
        try:
            return msgspec.convert(result, TaskResult)
        except msgspec.ValidationError as error:
            message = f"the agent's answer is no task result: {error}"
            raise InvalidSchema(message, {"begun": True}, retryable=False) from None
    if isinstance(result, dict):
        outputs = result.get("outputs")
        return TaskResult(result=result, outputs=outputs if isinstance(outputs, dict) else {}, primary=result)
    return TaskResult(result={"result": result}, primary=result)
