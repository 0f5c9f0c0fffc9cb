"""Task type `api_call`: one HTTP request, several at once, or one repeated until the other side is done.

With an attempt, one attempt is one HTTP try: the engine owns the retries, so that there is one budget. Called directly,
`retry_count` tries are made here. This module must never repeat a request that was answered below 400, polls apart.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

from agents.task_executor.errors import InvalidInput, TaskError, TimedOut
from agents.task_executor.handlers.base import Outcome, TaskContext
from agents.task_executor.handlers.http_status import body_of, error_for_status, retry_after_seconds
from agents.task_executor.http_client import HttpAnswer, HttpClient, HttpRequest, parse_url
from orchestration import expressions
from orchestration.contracts import ApiCallReply, ApiCallRequest, Object

MAX_PARALLEL_REQUESTS = 100
MAX_RETRY_COUNT = 20
MAX_BACKOFF_SECONDS = 60.0
MIN_POLLING_SECONDS = 0.05
DEFAULT_POLLING_SECONDS = 5.0
PENDING_WORDS = frozenset({"pending", "running", "queued", "in_progress", "processing", "waiting"})
PENDING_FIELDS = ("status", "state", "approval_status")
METHODS_WITH_KEY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
IDEMPOTENCY_HEADER = "idempotency-key"
HEADERS_NOT_RETURNED = frozenset({"set-cookie"})
HEADERS_NOT_SETTABLE = frozenset(
    {
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "upgrade",
        "te",
        "trailer",
        "proxy-authorization",
    }
)
"""They decide about the connection, not about the request, or would let a task speak in another host's name."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")

Sleep = Callable[[float], Awaitable[None]]
Primitive = str | int | float | bool | None


class Branch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `parallel_requests`."""

    url: str
    name: str = ""
    method: Literal["GET", "POST", "PUT", "DELETE", "PATCH"] = "GET"
    headers: Object = {}
    data: Any = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request with how it is judged and repeated."""

    request: HttpRequest
    timeout_seconds: float
    tries: int
    fail_on_status: bool


class ApiCall:
    """Performs `api_call` tasks over one HTTP client."""

    request_type = ApiCallRequest

    def __init__(self, http: HttpClient, *, sleep: Sleep = asyncio.sleep) -> None:
        self._http = http
        self._sleep = sleep

    async def run(self, request: ApiCallRequest, context: TaskContext) -> Outcome:
        """Return the answer as status_code, response (the body) and success; primary is the body."""
        _check(request)
        if request.parallel_requests:
            return await self._parallel(request, context)
        started = asyncio.get_running_loop().time()
        call = _call(request, context, request.method, request.url, request.headers, request.data, "")
        reply, body = await self._perform(request, call, context, started)
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
            execution_time=round(asyncio.get_running_loop().time() - started, 6),
        )
        return reply, body

    # --- several at once -------------------------------------------------------------------------------

    async def _parallel(self, request: ApiCallRequest, context: TaskContext) -> Outcome:
        started = asyncio.get_running_loop().time()
        branches = _branches(request)
        calls = {
            name: _call(
                request,
                context,
                branch.method,
                branch.url,
                {**request.headers, **branch.headers},
                branch.data,
                f"/{name}",
                timeout=branch.timeout,
            )
            for name, branch in branches.items()
        }
        work = [self._perform(request, call, context, started) for call in calls.values()]
        results = await asyncio.gather(*work, return_exceptions=True)
        answers = _answers(dict(zip(calls, results, strict=True)))
        bodies = {name: body for name, (_, body) in answers.items()}
        reply = ApiCallReply(
            status_code=max(reply.status_code for reply, _ in answers.values()),
            response_data=bodies,
            headers={},
            success=all(reply.success for reply, _ in answers.values()),
            execution_time=round(asyncio.get_running_loop().time() - started, 6),
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
        number = 0
        while True:
            number += 1
            answer = await self._with_retries(call, context)
            body = body_of(answer)
            if not polls or not _is_pending(request.until, answer, body, context):
                return answer, body
            waited = asyncio.get_running_loop().time() - started
            if waited + interval > patience:
                raise TimedOut(
                    f"still pending after {number} polls in {waited:.1f} seconds (max_wait_time: {patience:g})",
                    details={"polls": number, "last_status_code": answer.status},
                )
            await context.progress({"polls": number, "status_code": answer.status})
            await self._sleep(interval)

    # --- one request -----------------------------------------------------------------------------------

    async def _with_retries(self, call: Call, context: TaskContext) -> HttpAnswer:
        for number in range(1, call.tries + 1):
            try:
                return await self._try(call, context)
            except TaskError as error:
                if number == call.tries or not error.retryable:
                    raise
                asked = float(error.details.get("retry_after_seconds", 0.0))
                wait_seconds = max(min(2.0 ** (number - 1), MAX_BACKOFF_SECONDS), asked)
                if wait_seconds >= context.remaining_seconds():
                    raise
            await self._sleep(wait_seconds)
        raise AssertionError("a call has at least one try")

    async def _try(self, call: Call, context: TaskContext) -> HttpAnswer:
        timeout_seconds = min(call.timeout_seconds, context.remaining_seconds())
        answer = await self._http.send(call.request, timeout_seconds=timeout_seconds)
        if call.fail_on_status and answer.status >= 400:
            wait_seconds = retry_after_seconds(answer.headers.get("retry-after"), context.now())
            raise error_for_status(answer, wait_seconds)
        return answer


def _check(request: ApiCallRequest) -> None:
    if request.timeout <= 0:
        raise InvalidInput("timeout: must be more than 0 seconds")
    if not 0 <= request.retry_count <= MAX_RETRY_COUNT:
        raise InvalidInput(f"retry_count: must be from 0 to {MAX_RETRY_COUNT}")
    if request.polling_interval is not None and request.polling_interval < MIN_POLLING_SECONDS:
        raise InvalidInput(f"polling_interval: must be at least {MIN_POLLING_SECONDS} seconds")
    if request.max_wait_time is not None and request.max_wait_time <= 0:
        raise InvalidInput("max_wait_time: must be more than 0 seconds")
    if not request.parallel_requests and not request.url:
        raise InvalidInput("url: is missing; give url, or parallel_requests with a url each")
    if request.parallel_requests and request.url:
        raise InvalidInput("url: give either url or parallel_requests, not both")


def _branches(request: ApiCallRequest) -> dict[str, Branch]:
    """Return the branches of a parallel call by name, in declaration order."""
    if len(request.parallel_requests) > MAX_PARALLEL_REQUESTS:
        raise InvalidInput(f"parallel_requests: more than {MAX_PARALLEL_REQUESTS}")
    branches: dict[str, Branch] = {}
    for index, value in enumerate(request.parallel_requests):
        try:
            branch = msgspec.convert(value, Branch, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"parallel_requests[{index}]: {error}") from None
        name = branch.name or f"request_{index + 1}"
        if name in branches:
            raise InvalidInput(f"parallel_requests[{index}]: the name {name!r} is used twice")
        branches[name] = branch
    return branches


def _answers(
    results: Mapping[str, tuple[ApiCallReply, Any] | BaseException],
) -> dict[str, tuple[ApiCallReply, Any]]:
    """Return the branches' answers, or raise the first failure in declaration order, with all of them in its details.

    The failure is retryable only when every failed branch is.
    """
    failed = {name: result for name, result in results.items() if isinstance(result, BaseException)}
    for error in failed.values():
        if not isinstance(error, TaskError):
            raise error
    if failed:
        errors = {name: error for name, error in failed.items() if isinstance(error, TaskError)}
        name, first = next(iter(errors.items()))
        waits = [float(error.details.get("retry_after_seconds", 0.0)) for error in errors.values()]
        details: dict[str, Any] = {
            **first.details,
            "branches": {
                key: {"code": error.code, "message": error.message} for key, error in errors.items()
            },
        }
        if max(waits) > 0:
            details["retry_after_seconds"] = max(waits)
        raise type(first)(
            f"parallel request {name!r}: {first.message}",
            details=details,
            retryable=all(error.retryable for error in errors.values()),
        )
    return {name: result for name, result in results.items() if not isinstance(result, BaseException)}


def merged(bodies: Mapping[str, Any]) -> dict[str, Any]:
    """Return the branches' bodies in one object, later keys over earlier; a body that is no object keeps its name."""
    together: dict[str, Any] = {}
    for name, body in bodies.items():
        together.update(body if isinstance(body, dict) else {name: body})
    return together


def _call(
    request: ApiCallRequest,
    context: TaskContext,
    method: str,
    url_text: str,
    headers: Mapping[str, Any],
    data: Any,
    key_suffix: str,
    *,
    timeout: float | None = None,
) -> Call:
    """Return the call with its URL, headers and body ready to send."""
    sent = _headers(headers)
    url = parse_url(url_text)
    body: bytes | None = None
    if method == "GET":
        if data is not None:
            url = url.copy_with(params=url.params.merge(_query(data)))
    elif data is not None:
        body = _body(data, sent)
    attempt = context.attempt
    if attempt is not None and attempt.idempotency_key and method in METHODS_WITH_KEY:
        sent.setdefault(IDEMPOTENCY_HEADER, attempt.idempotency_key + key_suffix)
    return Call(
        request=HttpRequest(method=method, url=url, headers=sent, body=body),
        timeout_seconds=request.timeout if timeout is None else timeout,
        tries=1 if attempt is not None else request.retry_count + 1,
        fail_on_status=request.fail_on_status,
    )


def _headers(headers: Mapping[str, Any]) -> dict[str, str]:
    sent: dict[str, str] = {}
    for name, value in headers.items():
        if value is None:
            continue
        key = name.lower()
        if key in HEADERS_NOT_SETTABLE:
            raise InvalidInput(f"headers.{name}: belongs to the connection and cannot be set")
        if not isinstance(value, str | int | float):
            raise InvalidInput(f"headers.{name}: must be text or a number")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidInput(f"headers: {name!r} is no header name")
        if not text.isascii() or any(character < " " and character != "\t" for character in text):
            raise InvalidInput(f"headers.{name}: contains a control character or a character outside ASCII")
        sent[key] = text
    return sent


def _query(data: Any) -> list[tuple[str, Primitive]]:
    """Return `data` as query parameters: lists repeat the name, nulls are left out, nested values become JSON."""
    if not isinstance(data, Mapping):
        raise InvalidInput("data: must be an object when the method is GET, it becomes the query string")
    pairs: list[tuple[str, Primitive]] = []
    for name, value in data.items():
        values = value if isinstance(value, list | tuple) else [value]
        pairs.extend((name, _text(item)) for item in values if item is not None)
    return pairs


def _body(data: Any, sent: dict[str, str]) -> bytes:
    """Return the body: JSON, unless the task's content-type says that its text or its form goes out as it is."""
    content_type = sent.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/x-www-form-urlencoded" and isinstance(data, Mapping):
        return urlencode(_query(data)).encode()
    if isinstance(data, str) and content_type and not content_type.endswith(("/json", "+json")):
        return data.encode()
    sent.setdefault("content-type", "application/json")
    return msgspec.json.encode(data)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


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
        return not expressions.evaluate(until, names, declared=context.declared, now=context.now())
    if answer.status == 202:
        return True
    if not isinstance(body, dict):
        return False
    words = (body.get(field) for field in PENDING_FIELDS)
    return any(isinstance(word, str) and word.lower() in PENDING_WORDS for word in words)
