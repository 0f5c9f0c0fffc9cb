"""Task type `api_call`: one HTTP request, several at once, or one repeated until the other side is done.

With an attempt, one attempt is one HTTP try: the engine owns the retries, so that there is one budget. Called directly,
`retry_count` tries are made here. This module must never repeat a request that was answered below 400, polls apart.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from agents.task_executor.errors import TaskError, TimedOut, Unreachable
from agents.task_executor.handlers.api_request import Call, calls
from agents.task_executor.handlers.base import Outcome, TaskContext
from agents.task_executor.handlers.http_status import body_of, error_for_status, retry_after_seconds
from agents.task_executor.http_client import HttpAnswer, HttpClient
from orchestration import expressions
from orchestration.contracts import ApiCallReply, ApiCallRequest

MAX_BACKOFF_SECONDS = 60.0
DEFAULT_POLLING_SECONDS = 5.0
PENDING_WORDS = frozenset({"pending", "running", "queued", "in_progress", "processing", "waiting"})
PENDING_FIELDS = ("status", "state", "approval_status")
HEADERS_NOT_RETURNED = frozenset({"set-cookie"})

Sleep = Callable[[float], Awaitable[None]]


class ApiCall:
    """Performs `api_call` tasks over one HTTP client."""

    request_type = ApiCallRequest

    def __init__(self, http: HttpClient, *, sleep: Sleep = asyncio.sleep) -> None:
        self._http = http
        self._sleep = sleep

    async def run(self, request: ApiCallRequest, context: TaskContext) -> Outcome:
        """Return the answer as status_code, response (the body) and success; primary is the body."""
        started = context.clock.monotonic()
        ready = calls(request, context)
        if request.parallel_requests:
            return await self._parallel(request, ready, context, started)
        reply, body = await self._perform(request, ready[""], context, started)
        return Outcome(
            result=reply,
            outputs={"status_code": reply.status_code, "response": body, "success": reply.success},
            primary=body,
        )

    async def _perform(
        self, request: ApiCallRequest, call: Call, context: TaskContext, started: float
    ) -> tuple[ApiCallReply, Any]:
        answer, body = await self._until_settled(request, call, context, started)
        reply = ApiCallReply(
            status_code=answer.status,
            response_data=body,
            headers={
                name: value for name, value in answer.headers.items() if name not in HEADERS_NOT_RETURNED
            },
            success=answer.status < 400,
            execution_time=round(context.clock.monotonic() - started, 6),
        )
        return reply, body

    # --- several at once -------------------------------------------------------------------------------

    async def _parallel(
        self, request: ApiCallRequest, ready: Mapping[str, Call], context: TaskContext, started: float
    ) -> Outcome:
        work = [self._perform(request, call, context, started) for call in ready.values()]
        results = await asyncio.gather(*work, return_exceptions=True)
        answers = _answers(dict(zip(ready, results, strict=True)))
        bodies = {name: body for name, (_, body) in answers.items()}
        reply = ApiCallReply(
            status_code=max(reply.status_code for reply, _ in answers.values()),
            response_data=bodies,
            headers={},
            success=all(reply.success for reply, _ in answers.values()),
            execution_time=round(context.clock.monotonic() - started, 6),
        )
        return Outcome(result=reply, outputs=bodies, primary=merged(bodies))

    # --- until the other side is done ------------------------------------------------------------------

    async def _until_settled(
        self, request: ApiCallRequest, call: Call, context: TaskContext, started: float
    ) -> tuple[HttpAnswer, Any]:
        polls = request.polling_interval is not None or request.until is not None
        interval = (
            request.polling_interval if request.polling_interval is not None else DEFAULT_POLLING_SECONDS
        )
        patience = request.max_wait_time if request.max_wait_time is not None else context.remaining_seconds()
        number = failures = 0
        while True:
            number += 1
            wait_seconds = interval
            try:
                answer = await self._with_retries(call, context)
                body = body_of(answer)
                if not polls or not _is_pending(request.until, answer, body, context):
                    return answer, body
                failures, status = 0, answer.status
            except TaskError as error:
                # Once polling has begun, a read that fails for now is one more unanswered poll.
                failures += 1
                if number > 1:
                    error.details["begun"] = True
                repeatable = number > 1 and error.retryable and call.request.method == "GET"
                if not repeatable or failures > request.retry_count:
                    raise
                status = error.details.get("status_code", 0)
                wait_seconds = max(interval, _asked_wait(error))
            waited = context.clock.monotonic() - started
            if waited + wait_seconds > patience:
                raise TimedOut(
                    f"still pending after {number} polls in {waited:.1f} seconds (max_wait_time: {patience:g})",
                    details={"polls": number, "last_status_code": status},
                )
            await context.progress({"polls": number, "status_code": status})
            await self._sleep(wait_seconds)

    # --- one request -----------------------------------------------------------------------------------

    async def _with_retries(self, call: Call, context: TaskContext) -> HttpAnswer:
        for number in range(1, call.tries + 1):
            try:
                return await self._try(call, context)
            except TaskError as error:
                if number == call.tries or not error.retryable:
                    raise
                wait_seconds = max(min(2.0 ** (number - 1), MAX_BACKOFF_SECONDS), _asked_wait(error))
                if wait_seconds >= context.remaining_seconds():
                    raise
            await self._sleep(wait_seconds)
        raise AssertionError("a call has at least one try")

    async def _try(self, call: Call, context: TaskContext) -> HttpAnswer:
        timeout_seconds = min(call.timeout_seconds, context.remaining_seconds())
        answer = await self._http.send(call.request, timeout_seconds=timeout_seconds)
        if call.fail_on_status and answer.status >= 400:
            wait_seconds = retry_after_seconds(answer.headers.get("retry-after"), context.clock.now())
            error = error_for_status(answer, wait_seconds)
            if answer.url is not call.request.url:  # redirected
                error.details["begun"] = True
            raise error
        return answer


def _asked_wait(error: TaskError) -> float:
    """Return how long the peer asked to wait, in seconds."""
    return float(error.details.get("retry_after_seconds", 0.0))


def _answers(
    results: Mapping[str, tuple[ApiCallReply, Any] | BaseException],
) -> dict[str, tuple[ApiCallReply, Any]]:
    """Return the branches' answers, or raise the first failure in declaration order, with all of them in its details.

    It says whether the work of any branch may have begun. The failure is retryable only when every failed branch is.
    """
    failed = {name: result for name, result in results.items() if isinstance(result, BaseException)}
    for error in failed.values():
        if not isinstance(error, TaskError):
            raise error
    if failed:
        errors = {name: error for name, error in failed.items() if isinstance(error, TaskError)}
        name, first = next(iter(errors.items()))
        waits = [_asked_wait(error) for error in errors.values()]
        details: dict[str, Any] = {
            **{name: value for name, value in first.details.items() if name != "begun"},
            "branches": {
                key: {"code": error.code, "message": error.message} for key, error in errors.items()
            },
        }
        begun = _begun(results.values())
        if begun is not None:
            details["begun"] = begun
        if max(waits) > 0:
            details["retry_after_seconds"] = max(waits)
        raise type(first)(
            f"parallel request {name!r}: {first.message}",
            details=details,
            retryable=all(error.retryable for error in errors.values()),
        )
    return {name: result for name, result in results.items() if not isinstance(result, BaseException)}


def _begun(results: Collection[object]) -> bool | None:
    """Return whether the work of failed branches together may have begun; None when their code tells.

    One branch that did its work, or may have, is enough.
    """
    said = [error.details.get("begun") for error in results if isinstance(error, TaskError)]
    unclear = any(
        isinstance(error, TimedOut | Unreachable) and error.details.get("begun") is None for error in results
    )
    if len(said) < len(results) or True in said or unclear:
        return True
    return False if all(word is False for word in said) else None


def merged(bodies: Mapping[str, Any]) -> dict[str, Any]:
    """Return the branches' bodies in one object, later keys over earlier; a body that is no object keeps its name."""
    together: dict[str, Any] = {}
    for name, body in bodies.items():
        together.update(body if isinstance(body, dict) else {name: body})
    return together


def _is_pending(until: str | None, answer: HttpAnswer, body: Any, context: TaskContext) -> bool:
    """Return whether the other side is still at work. An explicit `until` decides alone."""
    if until is not None:
        names = {
            **context.names,
            **(body if isinstance(body, dict) else {}),
            "response": body,
            "body": body,
            "status_code": answer.status,
            "headers": dict(answer.headers),
        }
        return not expressions.evaluate(until, names, declared=context.declared, now=context.clock.now())
    if answer.status == 202:
        return True
    if not isinstance(body, dict):
        return False
    words = (body.get(field) for field in PENDING_FIELDS)
    return any(isinstance(word, str) and word.lower() in PENDING_WORDS for word in words)
