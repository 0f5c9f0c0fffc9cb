"""How each command of the machine is performed over the mesh, and how its answer comes back as a stimulus.

Nothing is decided here: an answer that does not come, an agent that vanishes and an error each become a stimulus.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from random import Random
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog

from agents.workflow_engine.driver import Driver
from amp.client import MeshClient
from amp.errors import AgentLost, AmpError, Disconnected, InsufficientResources
from orchestration import commands as cmd
from orchestration import contracts, recovery, scope
from orchestration import stimuli as st
from orchestration.contracts import Attempt, ErrorInfo, TaskResult
from orchestration.definition.plan import SCHEDULE_TO_START_SECONDS, TaskPlan
from orchestration.outputs import map_outputs
from orchestration.status import UNREPEATABLE
from orchestration.surroundings import Place
from runtime.clock import Clock
from runtime.settings import WorkflowEngineSettings

MAX_DISPATCHES_IN_FLIGHT = 1000
"""Most attempts of one engine that are on the mesh at once for one capability; more wait here. What nobody offers
keeps no place from what somebody does."""
ANSWER_GRACE_SECONDS = 5.0
"""An executor ends an attempt at its time limit by itself; the engine waits this much longer."""
QUESTION_RETRY_SECONDS = 1.0
BUSY_RETRY_SECONDS = 0.25
CANCEL_TIMEOUT_SECONDS = 5.0
UNREPEATABLE_GRACE_SECONDS = 10.0
"""How long a lost agent has to come back with the result of an attempt that must not be repeated."""
MAX_ERROR_MESSAGE_CHARACTERS = 4000

logger = structlog.get_logger(__name__)


class MeshPerformer:
    """Performs commands with requests to other agents."""

    def __init__(
        self,
        mesh: MeshClient,
        *,
        engine_id: str,
        settings: WorkflowEngineSettings,
        clock: Clock,
        random: Random,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        count_dispatch: Callable[[str], None],
    ) -> None:
        self._mesh = mesh
        self._engine_id = engine_id
        self._settings = settings
        self._clock = clock
        self._random = random
        self._spawn = spawn
        self._count_dispatch = count_dispatch
        self._slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._held: dict[str, str] = {}
        self._awaited: dict[str, datetime] = {}

    def perform(self, driver: Driver, command: cmd.Command) -> None:
        """Begin to perform a command; its outcome is posted to the driver."""
        match command:
            case cmd.Dispatch():
                work = self._dispatch(driver, command)
            case cmd.AskCondition():
                work = self._ask_condition(driver, command.task_id)
            case cmd.AskRecovery():
                work = self._ask_recovery(driver, command.task_id, command.error)
            case cmd.CancelAttempt():
                work = self._cancel(command.token)
            case cmd.AwaitResult():
                work = self._await_result(driver, command.task_id, command.token, whole_time=True)
        self._spawn(work, f"{type(command).__name__} {driver.id}")

    def place_of(self, token: str) -> Place | None:
        """Return where an attempt is as far as this engine alone knows: held back here, or its result awaited."""
        until = self._awaited.get(token)
        if until is not None:
            return Place(state="awaited", until=until)
        if token in self._held:
            capability = self._held[token]
            line = [other for other, wanted in self._held.items() if wanted == capability]
            return Place(state="held", place=line.index(token) + 1, of=len(line))
        return None

    # --- attempts --------------------------------------------------------------------------------------

    async def _dispatch(self, driver: Driver, command: cmd.Dispatch) -> None:
        task = driver.plan.tasks[command.task_id]
        slots = self._slots.setdefault(task.capability, asyncio.Semaphore(MAX_DISPATCHES_IN_FLIGHT))
        if slots.locked():
            self._held[command.token] = task.capability
        async with slots:
            if self._held:
                self._held.pop(command.token, None)
            self._count_dispatch(task.capability)
            try:
                stimulus = await self._attempt(driver, task, command)
            except (AgentLost, Disconnected) as error:
                if task.effects in UNREPEATABLE:
                    run_on = isinstance(error, Disconnected)
                    await self._await_result(driver, task.id, command.token, whole_time=run_on)
                    return
                stimulus = st.AttemptVanished(
                    at=self._clock.now(),
                    task_id=task.id,
                    token=command.token,
                    agent_id=str(error.details.get("agent_id", "")),
                    reason=error.message,
                )
            except AmpError as error:
                stimulus = st.AttemptErrored(
                    at=self._clock.now(),
                    task_id=task.id,
                    token=command.token,
                    error=error_info(error),
                    jitter=self._random.random(),
                )
        driver.post(stimulus)

    async def _attempt(self, driver: Driver, task: TaskPlan, command: cmd.Dispatch) -> st.AnyStimulus:
        """Send an attempt to an agent and return the stimulus that its answer makes."""
        context = self._attempt_context(driver, task, command)
        renders = task.capability in contracts.RENDERS_TEMPLATES
        parameters: Mapping[str, Any] = task.parameters
        if not renders and task.has_templates:
            parameters = await self._render(task, context)
        answer = await self._send(
            task.capability,
            parameters,
            context=context if renders else msgspec.structs.replace(context, variables={}),
            prefer_agent_id=task.agent_id,
            run_seconds=task.timeout_seconds,
            message_id=command.token,
            resend=task.effects not in UNREPEATABLE,
        )
        result = _task_result(answer.result, renders)
        outputs = map_outputs(
            task.output_names, result=result.result, outputs=result.outputs, primary=result.primary
        )
        same = next((name for name, value in outputs.items() if value is result.primary), "")
        return st.AttemptSucceeded(
            at=self._clock.now(),
            task_id=task.id,
            token=command.token,
            outputs=outputs,
            primary=None if same else result.primary,
            primary_output=same,
            metadata={"agent_id": answer.agent_id, **result.metadata},
        )

    def _attempt_context(self, driver: Driver, task: TaskPlan, command: cmd.Dispatch) -> Attempt:
        instance = driver.committed
        return Attempt(
            token=command.token,
            engine_id=self._engine_id,
            workflow_id=instance.workflow_id,
            workflow_instance_id=instance.id,
            task_id=task.id,
            attempt=command.attempt,
            timeout_seconds=task.timeout_seconds,
            idempotency_key=f"{instance.id}/{task.id}/{instance.runs[task.id].round}",
            effects=task.effects,
            variables=scope.task_variables(driver.plan, instance, task, self._clock.now()),
            declared=sorted(driver.plan.declared & (task.references | scope.BUILTINS))
            if not task.whole_context
            else sorted(driver.plan.declared),
            output_names=list(task.output_names),
        )

    async def _render(self, task: TaskPlan, context: Attempt) -> Mapping[str, Any]:
        """Have templates filled for an agent that knows none."""
        answer = await self._send(
            contracts.TEMPLATE_RENDER.id,
            contracts.TemplateRenderRequest(
                parameters=dict(task.parameters), variables=context.variables, declared=context.declared
            ),
            context=None,
            prefer_agent_id=None,
            run_seconds=self._settings.question_timeout_seconds,
            message_id=None,
            resend=True,
        )
        return msgspec.convert(answer.result, contracts.TemplateRenderReply).parameters

    async def _send(
        self,
        capability: str,
        parameters: object,
        *,
        context: Attempt | None,
        prefer_agent_id: str | None,
        run_seconds: float,
        message_id: str | None,
        resend: bool,
    ) -> Any:
        """Send a request, and wait while nobody offers the capability or everybody is busy, within the bound."""
        deadline = asyncio.get_running_loop().time() + SCHEDULE_TO_START_SECONDS
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                return await self._mesh.request_full(
                    capability,
                    parameters,
                    context=context,
                    prefer_agent_id=prefer_agent_id,
                    timeout_seconds=max(left, 0.0) + run_seconds + ANSWER_GRACE_SECONDS,
                    patience_seconds=max(left, 0.0),
                    message_id=message_id,
                    resend=resend,
                    survive_loss=False,
                )
            except InsufficientResources as error:
                wait = float(error.details.get("retry_after_ms", 0)) / 1000 or BUSY_RETRY_SECONDS
                if left <= wait or error.details.get("retry_after_ms") is None:
                    raise
                await asyncio.sleep(wait)

    async def _cancel(self, token: str) -> None:
        """Tell every executor that an attempt's result is no longer wanted."""
        try:
            for agent in await self._mesh.discover(capabilities=[contracts.TASK_CANCEL.id]):
                await self._mesh.request(
                    contracts.TASK_CANCEL.id,
                    contracts.TaskCancelRequest(token=token),
                    agent_id=str(agent["identity"]["id"]),
                    timeout_seconds=CANCEL_TIMEOUT_SECONDS,
                )
        except AmpError as error:
            logger.info("cancel_not_delivered", token=token, code=error.code)

    async def _await_result(self, driver: Driver, task_id: str, token: str, *, whole_time: bool) -> None:
        """Wait for a result that comes through the inbox; without one the attempt's outcome is unknown.

        Args:
            whole_time: The executor may still be at work, so wait until its time limit; else only for a reconnect.
        """
        wait = UNREPEATABLE_GRACE_SECONDS
        if whole_time:
            begun = driver.instance.runs[task_id].attempt_started_at or self._clock.now()
            elapsed = (self._clock.now() - begun).total_seconds()
            wait += max(driver.plan.tasks[task_id].timeout_seconds - elapsed, 0.0)
        self._awaited[token] = self._clock.now() + timedelta(seconds=wait)
        try:
            await asyncio.sleep(wait)
        finally:
            self._awaited.pop(token, None)
        driver.post(
            st.AttemptVanished(
                at=self._clock.now(),
                task_id=task_id,
                token=token,
                reason="the agent was lost and sent no result",
            )
        )

    # --- questions -------------------------------------------------------------------------------------

    async def _ask_condition(self, driver: Driver, task_id: str) -> None:
        """Ask the condition evaluator; while none answers, ask again: the question has no effect."""
        task = driver.plan.tasks[task_id]
        assert task.condition is not None
        request = contracts.ConditionEvaluateRequest(
            expression=task.condition.expression,
            context=scope.condition_context(driver.plan, driver.instance, task, self._clock.now()),
            condition_type=task.condition.condition_type,
            use_cache=False,
        )
        while not driver.lost and not driver.instance.status.is_final:
            try:
                reply = await self._mesh.request(
                    contracts.CONDITION_EVALUATE.id,
                    request,
                    reply_type=contracts.ConditionEvaluateReply,
                    timeout_seconds=self._settings.question_timeout_seconds,
                    patience_seconds=SCHEDULE_TO_START_SECONDS,
                    resend=True,
                )
            except AmpError as error:
                if not error.retryable:
                    driver.post(_condition_failed(task_id, error, self._clock.now()))
                    return
                await asyncio.sleep(QUESTION_RETRY_SECONDS)
                continue
            driver.post(_condition_answer(task_id, reply, self._clock.now()))
            return

    async def _ask_recovery(self, driver: Driver, task_id: str, error: ErrorInfo) -> None:
        """Ask the error handler; when it does not answer in time, decide by the same rules without it."""
        task = driver.plan.tasks[task_id]
        run = driver.instance.runs[task_id]
        context: dict[str, Any] = {
            "workflow_instance_id": driver.id,
            "workflow_id": driver.plan.workflow_id,
            "task_id": task_id,
            "attempt": run.attempt,
            "handler_retries": run.handler_retries,
            "on_error": {"action": str(task.on_error.action), "fallback": task.on_error.fallback},
        }
        request = contracts.ErrorHandleRequest(
            error=msgspec.to_builtins(error),
            context=context,
            auto_recover=False,
        )
        try:
            reply = await self._mesh.request(
                contracts.ERROR_HANDLE.id,
                request,
                reply_type=contracts.ErrorHandleReply,
                timeout_seconds=self._settings.question_timeout_seconds,
                patience_seconds=self._settings.question_timeout_seconds,
                resend=True,
            )
            answer = st.RecoveryAnswer(
                at=self._clock.now(),
                task_id=task_id,
                action=reply.recovery_action,
                severity=reply.severity,
                delay_seconds=reply.delay_seconds,
                reason=reply.reason,
                error_id=reply.error_id,
                escalated=reply.escalated,
            )
        except AmpError as failure:
            logger.warning("error_handler_silent", instance_id=driver.id, task_id=task_id, code=failure.code)
            answer = self._decide_alone(driver, task, error)
        driver.post(answer)

    def _decide_alone(self, driver: Driver, task: TaskPlan, error: ErrorInfo) -> st.RecoveryAnswer:
        run = driver.instance.runs[task.id]
        choice = recovery.choose(
            error,
            recovery.FailureContext(
                at=self._clock.now(),
                workflow_instance_id=driver.id,
                workflow_id=driver.plan.workflow_id,
                task_id=task.id,
                attempt=run.attempt,
                wish=task.on_error.action,
                fallback=task.on_error.fallback,
                retries_granted=run.handler_retries,
                pauses_granted=run.handler_retries,
            ),
            (),
            recovery.RecoveryPolicy(),
        )
        return st.RecoveryAnswer(
            at=self._clock.now(),
            task_id=task.id,
            action=choice.action,
            severity=choice.severity,
            delay_seconds=choice.delay_seconds,
            reason=choice.reason,
            decided_by="workflow-engine",
        )


def error_info(error: AmpError) -> ErrorInfo:
    """Return an AMP error as the log keeps it."""
    details = {key: value for key, value in error.details.items() if key != "retryable"}
    retry_after = details.pop("retry_after_seconds", None)
    return ErrorInfo(
        code=error.code,
        message=error.message[:MAX_ERROR_MESSAGE_CHARACTERS],
        details=details,
        retryable=error.retryable if "retryable" in error.details else None,
        retry_after_seconds=float(retry_after) if isinstance(retry_after, int | float) else None,
    )


def _task_result(result: Any, renders: bool) -> TaskResult:
    """Return what an agent answered in one shape; an outside agent's whole answer is its primary value."""
    if renders:
        return msgspec.convert(result, TaskResult)
    if isinstance(result, dict):
        outputs = result.get("outputs")
        return TaskResult(result=result, outputs=outputs if isinstance(outputs, dict) else {}, primary=result)
    return TaskResult(result={"result": result}, primary=result)


def _condition_failed(task_id: str, error: AmpError, at: datetime) -> st.ConditionAnswer:
    info = ErrorInfo(code="CONDITION_EVALUATION_FAILED", message=error.message, retryable=False)
    return st.ConditionAnswer(at=at, task_id=task_id, error=info)


def _condition_answer(
    task_id: str, reply: contracts.ConditionEvaluateReply, at: datetime
) -> st.ConditionAnswer:
    if reply.details.get("evaluation_successful") is False:
        message = str(reply.details.get("error") or "the condition could not be evaluated")
        info = ErrorInfo(code="CONDITION_EVALUATION_FAILED", message=message, retryable=False)
        return st.ConditionAnswer(at=at, task_id=task_id, error=info)
    return st.ConditionAnswer(at=at, task_id=task_id, result=reply.result, details={})
