"""Task type `custom`: a function that the operator registered, synchronous or not.

A synchronous handler runs on a thread and cannot be stopped there; its context says when nobody waits any more.
"""

import asyncio
import inspect
import threading
from collections.abc import Mapping
from typing import Any

import structlog

from agents.task_executor.compute import ForeignCode
from agents.task_executor.custom_handlers import CustomHandler, CustomHandlers, closest
from agents.task_executor.errors import NotFound, TaskFailed
from agents.task_executor.handlers.base import Outcome, TaskContext
from amp.errors import AmpError
from orchestration.contracts import CustomTaskReply, CustomTaskRequest

MAX_MESSAGE_CHARACTERS = 300

logger = structlog.stdlib.get_logger(__name__)


class Custom:
    """Performs `custom` tasks with the registered handlers."""

    request_type = CustomTaskRequest

    def __init__(self, handlers: CustomHandlers, foreign: ForeignCode) -> None:
        self._handlers = handlers
        self._foreign = foreign

    async def run(self, request: CustomTaskRequest, context: TaskContext) -> Outcome:
        """Return what the handler returned; outputs are its dict, or {result} when it is something else."""
        handler = self._handlers.handler(request.task_name)
        if handler is None:
            raise NotFound(
                f"no custom handler is called {request.task_name!r}{closest(request.task_name, self._handlers.names)}; "
                "handlers come from task_executor.custom_handlers_module or custom_handlers_path"
            )
        cancelled = threading.Event()
        try:
            result = await self._call(handler, request.parameters, described(context, cancelled))
        except (AmpError, asyncio.CancelledError):
            raise
        except Exception as error:  # boundary: the operator's own code
            logger.warning("custom_handler_failed", task_name=request.task_name, exc_info=error)
            said = str(error)[:MAX_MESSAGE_CHARACTERS]
            raise TaskFailed(
                f"custom handler {request.task_name!r} raised {type(error).__name__}{f': {said}' if said else ''}",
                retryable=True,
            ) from None
        finally:
            cancelled.set()
        outputs = result if isinstance(result, dict) else {"result": result}
        return Outcome(
            result=CustomTaskReply(result=result, task_name=request.task_name),
            outputs=outputs,
            primary=result,
        )

    async def _call(
        self, handler: CustomHandler, parameters: Mapping[str, Any], about: Mapping[str, Any]
    ) -> Any:
        if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):
            return await handler(parameters, about)
        result = await self._foreign.run(lambda: handler(parameters, about))
        return await result if inspect.isawaitable(result) else result


def described(context: TaskContext, cancelled: threading.Event) -> dict[str, Any]:
    """Return the context that a custom handler receives: the variables its parameters refer to, and who it works for.

    `cancelled()` becomes true when the result is no longer wanted; `progress(data)` (awaitable) tells watchers.
    """
    attempt = context.attempt
    about: dict[str, Any] = {
        **context.names,
        "cancelled": cancelled.is_set,
        "progress": context.progress,
        "remaining_seconds": context.remaining_seconds(),
    }
    if attempt is not None:
        about |= {
            "workflow_id": attempt.workflow_id,
            "workflow_instance_id": attempt.workflow_instance_id,
            "task_id": attempt.task_id,
            "attempt": attempt.attempt,
            "idempotency_key": attempt.idempotency_key,
        }
    return about
