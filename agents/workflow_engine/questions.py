"""Asks the condition evaluator and the error handler what the machine wants to know. The questions have no effect.

Nothing is decided here, except by the error handler's own rules while no error handler answers.
"""

import asyncio
from datetime import datetime
from typing import Any

import msgspec
import structlog

from agents.workflow_engine.driver import Driver
from amp import crash
from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts, recovery, scope
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import SCHEDULE_TO_START_SECONDS, TaskPlan
from runtime.clock import Clock

QUESTION_RETRY_SECONDS = 1.0

logger = structlog.get_logger(__name__)


class Question:
    """A question under way. `driver` is who wants the answer: another one when the instance is taken up anew."""

    __slots__ = ("driver", "task_id")

    def __init__(self, driver: Driver, task_id: str) -> None:
        self.driver = driver
        self.task_id = task_id


class Questions:
    """Asks, and returns the answers as stimuli."""

    def __init__(self, mesh: MeshClient, clock: Clock, *, timeout_seconds: float) -> None:
        self._mesh = mesh
        self._clock = clock
        self._timeout_seconds = timeout_seconds

    async def ask_condition(self, question: Question) -> st.AnyStimulus | None:
        """Ask the condition evaluator, again and again while none answers; None when nobody wants to know any more."""
        driver, task_id = question.driver, question.task_id
        task = driver.plan.tasks[task_id]
        assert task.condition is not None
        request = contracts.ConditionEvaluateRequest(
            expression=task.condition.expression,
            context=scope.condition_context(driver.plan, driver.instance, task, self._clock.now()),
            condition_type=task.condition.condition_type,
            use_cache=False,
        )
        while not question.driver.lost and not question.driver.instance.status.is_final:
            try:
                reply = await self._mesh.request(
                    contracts.CONDITION_EVALUATE.id,
                    request,
                    reply_type=contracts.ConditionEvaluateReply,
                    timeout_seconds=self._timeout_seconds,
                    patience_seconds=SCHEDULE_TO_START_SECONDS,
                    resend=True,
                )
            except AmpError as error:
                if not error.retryable:
                    return _condition_failed(task_id, error.message, self._clock.now())
                await asyncio.sleep(QUESTION_RETRY_SECONDS)
                continue
            crash.reach("engine.condition.answered")
            return _condition_answer(task_id, reply, self._clock.now())
        return None

    async def ask_recovery(self, question: Question, error: ErrorInfo) -> st.AnyStimulus:
        """Ask the error handler; when it does not answer in time, decide by the same rules without it."""
        driver, task_id = question.driver, question.task_id
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
            error=msgspec.to_builtins(error), context=context, auto_recover=False
        )
        try:
            reply = await self._mesh.request(
                contracts.ERROR_HANDLE.id,
                request,
                reply_type=contracts.ErrorHandleReply,
                timeout_seconds=self._timeout_seconds,
                patience_seconds=self._timeout_seconds,
                resend=True,
            )
        except AmpError as failure:
            logger.warning("error_handler_silent", instance_id=driver.id, task_id=task_id, code=failure.code)
            return self._decide_alone(driver, task, error)
        crash.reach("engine.recovery.answered")
        return st.RecoveryAnswer(
            at=self._clock.now(),
            task_id=task_id,
            action=reply.recovery_action,
            severity=reply.severity,
            delay_seconds=reply.delay_seconds,
            reason=reply.reason,
            error_id=reply.error_id,
            escalated=reply.escalated,
        )

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


def _condition_failed(task_id: str, message: str, at: datetime) -> st.ConditionAnswer:
    info = ErrorInfo(code="CONDITION_EVALUATION_FAILED", message=message, retryable=False)
    return st.ConditionAnswer(at=at, task_id=task_id, error=info)


def _condition_answer(
    task_id: str, reply: contracts.ConditionEvaluateReply, at: datetime
) -> st.ConditionAnswer:
    if reply.details.get("evaluation_successful") is False:
        message = str(reply.details.get("error") or "the condition could not be evaluated")
        return _condition_failed(task_id, message, at)
    return st.ConditionAnswer(at=at, task_id=task_id, result=reply.result, details={})
