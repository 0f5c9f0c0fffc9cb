"""From raw parameters to an encoded answer: fill templates, decode, run the handler in time, bound the result.

It knows handlers and contracts, but neither the mesh nor tokens. Every failure leaves here as an AmpError.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from agents.task_executor.compute import Compute, has_loops, is_small
from agents.task_executor.custom_handlers import closest
from agents.task_executor.errors import InvalidInput, ResultTooLarge, TaskFailed, TimedOut
from agents.task_executor.handlers.base import Outcome, Progress, TaskContext, TaskHandler
from amp import crash
from amp.errors import AmpError, ExecutionError, InvalidParameters
from orchestration import templates
from orchestration.contracts import Attempt, TaskExecuteRequest
from orchestration.expressions.errors import DataError
from runtime.clock import Clock

VIEWS_OF_RESULT = 3
"""An answer shows the same data as result, outputs and primary, so it may be this many times a result's size."""

logger = structlog.stdlib.get_logger(__name__)
_ENCODER = msgspec.json.Encoder()


class EncodedResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`contracts.TaskResult` whose result is encoded already."""

    result: msgspec.Raw
    outputs: Mapping[str, Any] = {}
    primary: Any = None
    metadata: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One task to perform: its parameters as they came, and for whom.

    Without a `task_type` the parameters are those of `task-execute`, which name it. `begin` is awaited when all is
    ready and the effect comes next; it may refuse. An answer that took `kept_after_seconds` or longer is kept in the
    spool, and says so.
    """

    task_type: str | None
    parameters: Mapping[str, Any]
    attempt: Attempt | None
    timeout_seconds: float
    progress: Progress
    begin: Callable[[], Awaitable[None]] | None = None
    kept_after_seconds: float = math.inf


@dataclass(slots=True, kw_only=True)
class Execution:
    """Performs work with a table of handlers."""

    handlers: Mapping[str, TaskHandler]
    clock: Clock
    compute: Compute
    executor_id: Callable[[], str]
    max_result_bytes: int

    async def plain(self, work: Work) -> msgspec.Raw:
        """Return the encoded public reply of the work's capability, for a stranger who called it."""
        outcome, _, _ = await self._outcome(work)
        return self._encoded(outcome.result)

    async def enveloped(self, work: Work) -> msgspec.Raw:
        """Return the encoded TaskResult of the work."""
        outcome, task_type, seconds = await self._outcome(work)
        metadata = {
            "task_id": work.attempt.task_id
            if work.attempt is not None
            else str(work.parameters.get("task_id", "")),
            "task_type": task_type,
            "executor_id": self.executor_id(),
            "execution_time": seconds,
            "timestamp": self.clock.now().isoformat(),
        }
        if seconds >= work.kept_after_seconds:
            metadata["spooled"] = True
        answer = EncodedResult(
            result=self._encoded(outcome.result),
            outputs=outcome.outputs,
            primary=outcome.primary,
            metadata=metadata,
        )
        return self._encoded(answer, limit=self.max_result_bytes * VIEWS_OF_RESULT)

    async def _outcome(self, work: Work) -> tuple[Outcome, str, float]:
        """Return the outcome, the task's type and the seconds it took. Raises AmpError."""
        started = self.clock.monotonic()
        deadline = asyncio.get_running_loop().time() + work.timeout_seconds
        try:
            async with asyncio.timeout(work.timeout_seconds) as limit:
                outcome, task_type = await self._run(work, deadline)
        except AmpError:
            raise
        except DataError as error:
            raise as_amp_error(error) from None
        except Exception as error:  # boundary: an agent's dispatch
            if isinstance(error, TimeoutError) and limit.expired():
                raise TimedOut(f"the task did not finish within {work.timeout_seconds:g} seconds") from None
            logger.error("task_handler_failed", task_type=work.task_type, exc_info=error)
            raise ExecutionError(
                "the task's handler failed unexpectedly; the executor's log says why", retryable=False
            ) from None
        return outcome, task_type, round(self.clock.monotonic() - started, 6)

    async def _run(self, work: Work, deadline: float) -> tuple[Outcome, str]:
        attempt = work.attempt
        parameters = work.parameters
        if attempt is not None:
            scope = templates.Scope(
                variables=attempt.variables, declared=frozenset(attempt.declared), now=self.clock.now()
            )
            parameters = await filled(parameters, scope, self.compute)
        names = attempt.variables if attempt is not None else {}
        written, task_type = work.parameters, work.task_type
        if task_type is None:
            envelope = decoded(parameters, TaskExecuteRequest, stranger=attempt is None)
            parameters, task_type = envelope.task_config, envelope.task_type
            written = _object(work.parameters.get("task_config"))
            names = names or envelope.workflow_context
        handler = self._handler(task_type)
        request = decoded(parameters, handler.request_type, stranger=attempt is None)
        context = TaskContext(
            attempt=attempt,
            names=names,
            declared=tuple(attempt.declared) if attempt is not None else (),
            deadline=deadline,
            clock=self.clock,
            progress=work.progress,
            parameters=written,
        )
        if work.begin is not None:
            await work.begin()
        crash.reach("executor.task.accepted")
        return await handler.run(request, context), task_type

    def _handler(self, task_type: str) -> TaskHandler:
        handler = self.handlers.get(task_type)
        if handler is None:
            raise InvalidInput(f"task_type: {task_type!r} is unknown{closest(task_type, self.handlers)}")
        return handler

    def _encoded(self, value: Any, *, limit: int | None = None) -> msgspec.Raw:
        """Return `value` as JSON of at most `limit` bytes, by default those of one result."""
        limit = self.max_result_bytes if limit is None else limit
        try:
            encoded = _ENCODER.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise TaskFailed(f"the result cannot be expressed as JSON: {error}") from None
        if len(encoded) > limit:
            raise ResultTooLarge(
                f"the result has {len(encoded)} bytes, more than {limit} (task_executor.max_result_bytes); "
                "write large data to a file and pass its path",
                details={"size_bytes": len(encoded), "limit_bytes": limit},
            )
        return msgspec.Raw(encoded)


async def filled(parameters: Mapping[str, Any], scope: templates.Scope, compute: Compute) -> dict[str, Any]:
    """Return the parameters with every template replaced, worked out off the loop when that may take a while.

    Raises: TemplateError.
    """
    small = is_small(parameters, scope.variables) and not has_loops(parameters)
    rendered: dict[str, Any] = await compute.run(lambda: templates.render(parameters, scope), small=small)
    return rendered


def decoded(parameters: Mapping[str, Any], kind: type[msgspec.Struct], *, stranger: bool) -> Any:
    """Return parameters as a contract's struct.

    A stranger must keep to the announced schema (INVALID_PARAMETERS); what templates produced may be text where a
    number is wanted (else INVALID_INPUT).
    """
    try:
        return msgspec.convert(parameters, kind, strict=stranger)
    except msgspec.ValidationError as error:
        message = _explained(str(error), kind)
    if stranger:
        raise InvalidParameters(message, retryable=False)
    raise InvalidInput(message)


def _explained(message: str, kind: type[msgspec.Struct]) -> str:
    """Return msgspec's sentence, with a suggestion when it complains about an unknown field."""
    _, _, rest = message.partition("unknown field `")
    if not rest:
        return message
    return message + closest(rest.partition("`")[0], kind.__struct_fields__)


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def as_amp_error(error: DataError) -> AmpError:
    """Return the data engine's error in the form that crosses the mesh."""
    details = {
        name: value
        for name in ("path", "position", "name", "index")
        if (value := getattr(error, name, None)) not in (None, "")
    }
    return AmpError(error.code, error.message, details, retryable=False)
