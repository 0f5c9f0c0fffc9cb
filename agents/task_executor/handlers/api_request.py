"""What an api_call sends: parameters in, requests ready to send out, or the place in the parameters that is wrong.

This module must never send anything.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

from agents.task_executor.errors import InvalidInput
from agents.task_executor.handlers.base import TaskContext
from agents.task_executor.http_client import HttpRequest, parse_url
from orchestration.contracts import ApiCallRequest, Object

MAX_PARALLEL_REQUESTS = 100
MAX_RETRY_COUNT = 20
MIN_POLLING_SECONDS = 0.05
METHODS_WITH_KEY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
IDEMPOTENCY_HEADER = "idempotency-key"
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

Method = Literal["GET", "POST", "PUT", "DELETE", "PATCH"]
Primitive = str | int | float | bool | None


class Branch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `parallel_requests`."""

    url: str
    name: str = ""
    method: Method = "GET"
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


def calls(request: ApiCallRequest, context: TaskContext) -> dict[str, Call]:
    """Return the requests of a task by branch name, in declaration order; a single one has an empty name.

    Raises: InvalidInput naming the parameter.
    """
    _check(request)
    if not request.parallel_requests:
        alone = Branch(url=request.url, method=request.method, data=request.data, timeout=request.timeout)
        return {"": _call(request, context, alone, "")}
    return {name: _call(request, context, branch, f"/{name}") for name, branch in _branches(request).items()}


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
        if branch.timeout is not None and branch.timeout <= 0:
            raise InvalidInput(f"parallel_requests[{index}].timeout: must be more than 0 seconds")
        name = branch.name or f"request_{index + 1}"
        if name in branches:
            raise InvalidInput(f"parallel_requests[{index}]: the name {name!r} is used twice")
        branches[name] = branch
    return branches


def _call(request: ApiCallRequest, context: TaskContext, branch: Branch, key_suffix: str) -> Call:
    """Return a branch as a request with its URL, headers and body ready to send."""
    headers = _headers({**request.headers, **branch.headers})
    url = parse_url(branch.url)
    body: bytes | None = None
    if branch.data is not None and branch.method == "GET":
        url = url.copy_with(params=url.params.merge(_query(branch.data)))
    elif branch.data is not None:
        body = _body(branch.data, headers)
    attempt = context.attempt
    if attempt is not None and attempt.idempotency_key and branch.method in METHODS_WITH_KEY:
        headers.setdefault(IDEMPOTENCY_HEADER, attempt.idempotency_key + key_suffix)
    return Call(
        request=HttpRequest(method=branch.method, url=url, headers=headers, body=body),
        timeout_seconds=request.timeout if branch.timeout is None else branch.timeout,
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
