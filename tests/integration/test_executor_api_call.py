"""Task type api_call against real local servers: results, errors, retries, polls, parallel requests."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from agents.task_executor.errors import InvalidInput, NotFound, RateLimited, TaskError, TaskFailed, TimedOut
from agents.task_executor.handlers.api_call import ApiCall
from agents.task_executor.handlers.base import Outcome, TaskContext
from agents.task_executor.http_client import HttpClient
from orchestration.contracts import ApiCallRequest, Attempt
from runtime.settings import HttpSettings
from tests.integration.executor_servers import Server, hello, serving
from tests.unit.executor.clocks import FixedClock

ATTEMPT = Attempt(
    token="t",
    engine_id="e",
    workflow_id="w",
    workflow_instance_id="i",
    task_id="call",
    attempt=1,
    timeout_seconds=30,
    idempotency_key="key-1",
    variables={"wanted": "done"},
)


class Caller:
    """One handler with waits that pass at once and are remembered."""

    def __init__(self, http: HttpClient) -> None:
        self.waits: list[float] = []
        self.progress: list[Mapping[str, Any]] = []
        self.handler = ApiCall(http, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def _tell(self, data: Mapping[str, Any]) -> None:
        self.progress.append(data)

    async def __call__(
        self, *, attempt: Attempt | None = None, seconds: float = 30, **parameters: Any
    ) -> Outcome:
        context = TaskContext(
            attempt=attempt,
            deadline=asyncio.get_running_loop().time() + seconds,
            clock=FixedClock(),
            progress=self._tell,
            names=attempt.variables if attempt else {},
        )
        return await self.handler.run(msgspec.convert(parameters, ApiCallRequest), context)


@asynccontextmanager
async def calling() -> AsyncIterator[Caller]:
    http = HttpClient(HttpSettings(allowed_networks=("127.0.0.0/8",)))
    try:
        yield Caller(http)
    finally:
        await http.close()


def answering(*statuses: int, headers: Mapping[str, str] | None = None) -> Any:
    """Return a handler that answers with these statuses in turn, the last one for ever."""
    left = list(statuses)

    async def handler(request: web.Request) -> web.StreamResponse:
        status = left.pop(0) if len(left) > 1 else left[0]
        return web.json_response({"status": "ok", "code": status}, status=status, headers=headers)

    return handler


async def test_get_answers_with_body_status_and_headers() -> None:
    async def cookie(request: web.Request) -> web.StreamResponse:
        response = web.json_response({"id": 7})
        response.set_cookie("session", "s3cret")
        return response

    async with serving(cookie) as server, calling() as call:
        outcome = await call(url=server.url("/x?z=0"), data={"a": 1, "b": ["x", "y"], "c": None, "d": True})
    assert outcome.primary == {"id": 7}
    assert outcome.outputs == {"status_code": 200, "response": {"id": 7}, "success": True}
    reply = outcome.result
    assert (reply.status_code, reply.response_data, reply.success) == (200, {"id": 7}, True)
    assert reply.execution_time > 0
    assert "set-cookie" not in reply.headers
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert server.requests[0].query_string == "z=0&a=1&b=x&b=y&d=true"


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"plain", "text/plain", {"text": "plain"}),
        (b"", "application/json", {"text": ""}),
        ("grün".encode("latin-1"), "text/plain; charset=latin-1", {"text": "grün"}),
        (b"\xff", "text/plain; charset=nonsense", {"text": "\ufffd"}),
        (b"[" * 50_000, "application/json", {"text": "[" * 50_000}),
        (b"[1, 2]", "text/html", [1, 2]),
    ],
)
async def test_body_that_is_no_json_becomes_text(body: bytes, content_type: str, expected: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": content_type})

    async with serving(handler) as server, calling() as call:
        assert (await call(url=server.url())).primary == expected


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_data_becomes_a_json_body(method: str) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        return web.json_response({"got": await request.json(), "type": request.content_type})

    async with serving(echo) as server, calling() as call:
        outcome = await call(url=server.url(), method=method, data={"a": [1, None]})
        assert outcome.primary == {"got": {"a": [1, None]}, "type": "application/json"}


@pytest.mark.parametrize(
    ("content_type", "data", "expected"),
    [
        ("application/x-www-form-urlencoded", {"a": 1, "b": "x y"}, "a=1&b=x+y"),
        ("text/csv", "a,b\n1,2\n", "a,b\n1,2\n"),
        ("application/vnd.api+json", "text", '"text"'),
    ],
)
async def test_content_type_decides_how_the_body_is_written(
    content_type: str, data: Any, expected: str
) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        return web.json_response({"got": await request.text(), "type": request.content_type})

    async with serving(echo) as server, calling() as call:
        outcome = await call(
            url=server.url(), method="POST", data=data, headers={"Content-Type": content_type}
        )
    assert outcome.primary == {"got": expected, "type": content_type}


async def test_idempotency_key_of_the_attempt_is_sent_unless_the_task_sets_one() -> None:
    async with serving(hello) as server, calling() as call:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            await call(url=server.url(), method=method, attempt=ATTEMPT)
        await call(url=server.url(), method="POST", attempt=ATTEMPT, headers={"IDEMPOTENCY-KEY": "mine"})
        await call(url=server.url(), method="POST")
    keys = [request.headers.get("idempotency-key") for request in server.requests]
    assert keys == [None, "key-1", "key-1", "key-1", "key-1", "mine", None]


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, "INVALID_INPUT", False),
        (401, "AUTHENTICATION_FAILED", False),
        (403, "PERMISSION_DENIED", False),
        (404, "RESOURCE_NOT_FOUND", False),
        (408, "TIMEOUT", True),
        (409, "TASK_EXECUTION_FAILED", False),
        (422, "INVALID_INPUT", False),
        (425, "NETWORK_ERROR", True),
        (429, "RATE_LIMIT_EXCEEDED", True),
        (500, "NETWORK_ERROR", True),
        (501, "NETWORK_ERROR", False),
        (503, "NETWORK_ERROR", True),
    ],
)
async def test_status_decides_the_error(status: int, code: str, retryable: bool) -> None:
    async with serving(answering(status)) as server, calling() as call:
        with pytest.raises(TaskError) as caught:
            await call(url=server.url("/?token=s3cret"), attempt=ATTEMPT)
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert caught.value.details["status_code"] == status
    assert '"status": "ok"' in caught.value.details["response_excerpt"]
    assert "s3cret" not in str(caught.value.details) + caught.value.message
    assert len(server.requests) == 1


async def test_fail_on_status_false_turns_errors_and_retries_off() -> None:
    async with serving(answering(503)) as server, calling() as call:
        outcome = await call(url=server.url(), fail_on_status=False)
    assert outcome.outputs["success"] is False
    assert outcome.outputs["status_code"] == 503
    assert len(server.requests) == 1


async def test_direct_call_retries_with_growing_waits() -> None:
    async with serving(answering(500, 503, 425, 200)) as server, calling() as call:
        assert (await call(url=server.url())).outputs["success"] is True
    assert call.waits == [1, 2, 4]
    assert len(server.requests) == 4


async def test_direct_call_gives_up_after_retry_count() -> None:
    async with serving(answering(500)) as server, calling() as call:
        with pytest.raises(TaskError):
            await call(url=server.url(), retry_count=1)
        assert len(server.requests) == 2
        with pytest.raises(NotFound):
            async with serving(answering(404)) as other:
                await call(url=other.url())
        assert len(other.requests) == 1


async def test_attempt_of_an_engine_is_one_try() -> None:
    async with serving(answering(500)) as server, calling() as call:
        with pytest.raises(TaskError):
            await call(url=server.url(), attempt=ATTEMPT)
    assert len(server.requests) == 1
    assert call.waits == []


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("Thu, 15 Jan 2026 10:01:00 GMT", 60.0),
        ("Thu, 15 Jan 2026 09:00:00 GMT", 0.0),
        ("999999999", 86_400.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
async def test_retry_after_is_understood(header: str, seconds: float | None) -> None:
    async with serving(answering(429, headers={"Retry-After": header})) as server, calling() as call:
        with pytest.raises(RateLimited) as caught:
            await call(url=server.url(), attempt=ATTEMPT)
    assert caught.value.details.get("retry_after_seconds") == seconds


async def test_direct_call_waits_as_long_as_the_peer_asks_but_not_beyond_its_time() -> None:
    async with serving(answering(429, 200, headers={"Retry-After": "9"})) as server, calling() as call:
        await call(url=server.url())
        assert call.waits == [9]
    async with serving(answering(429, 200, headers={"Retry-After": "90"})) as server, calling() as call:
        with pytest.raises(RateLimited):
            await call(url=server.url(), seconds=30)
        assert call.waits == []


def sequence(*bodies: Any, status: int = 200) -> Any:
    left = list(bodies)

    async def handler(request: web.Request) -> web.StreamResponse:
        body = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(body, int):
            return web.json_response({}, status=body)
        return web.json_response(body, status=status)

    return handler


@pytest.mark.parametrize(
    "bodies",
    [
        [202, 202, {"status": "done"}],
        [{"status": "pending"}, {"state": "RUNNING"}, {"approval_status": "approved"}],
        [{"status": "in_progress"}, {"status": "queued"}, []],
        [{"status": "waiting"}, {"status": "processing"}, {"status": 5}],
    ],
)
async def test_poll_repeats_while_the_other_side_is_at_work(bodies: list[Any]) -> None:
    async with serving(sequence(*bodies)) as server, calling() as call:
        outcome = await call(url=server.url(), polling_interval=2, max_wait_time=60, attempt=ATTEMPT)
    assert outcome.primary == bodies[-1]
    assert call.waits == [2, 2]
    assert [told["polls"] for told in call.progress] == [1, 2]


async def test_until_overrides_the_usual_signs() -> None:
    bodies = [{"status": "completed", "ready": False}, {"status": "pending", "ready": "done"}]
    async with serving(sequence(*bodies)) as server, calling() as call:
        outcome = await call(
            url=server.url(), until="ready == wanted and status_code == 200", attempt=ATTEMPT
        )
    assert outcome.primary["ready"] == "done"
    assert call.waits == [5]


async def test_pending_answer_without_polling_is_the_answer() -> None:
    async with serving(sequence({"status": "pending"})) as server, calling() as call:
        assert (await call(url=server.url())).primary == {"status": "pending"}
    assert len(server.requests) == 1


async def test_poll_that_never_settles_is_a_timeout() -> None:
    async with serving(sequence({"status": "pending"})) as server, calling() as call:
        with pytest.raises(TimedOut, match="still pending after 1 polls"):
            await call(url=server.url(), polling_interval=2, max_wait_time=1)
        with pytest.raises(TimedOut):
            await call(url=server.url(), polling_interval=2, seconds=1)
    assert call.waits == []


async def echo_name(request: web.Request) -> web.StreamResponse:
    if request.path.startswith("/fail"):
        return web.json_response({}, status=int(request.path[5:]))
    if request.path == "/list":
        return web.json_response([1])
    return web.json_response(
        {request.path[1:]: 1, "last": request.path[1:], "key": request.headers.get("idempotency-key")}
    )


async def test_parallel_requests_are_merged_in_declaration_order() -> None:
    async with serving(echo_name) as server, calling() as call:
        outcome = await call(
            headers={"x-all": "1"},
            parallel_requests=[
                {"name": "one", "url": server.url("/a"), "headers": {"x-one": "1"}},
                {"url": server.url("/list")},
                {"name": "two", "url": server.url("/b"), "method": "POST", "data": {}},
            ],
            attempt=ATTEMPT,
        )
    assert outcome.primary == {"a": 1, "last": "b", "key": "key-1/two", "request_2": [1], "b": 1}
    assert list(outcome.outputs) == ["one", "request_2", "two"]
    assert outcome.outputs["one"] == {"a": 1, "last": "a", "key": None}
    assert (outcome.result.status_code, outcome.result.success) == (200, True)
    assert all(request.headers["x-all"] == "1" for request in server.requests)
    assert sum("x-one" in request.headers for request in server.requests) == 1


async def test_parallel_requests_run_at_the_same_time() -> None:
    arrived = asyncio.Barrier(3)

    async def together(request: web.Request) -> web.StreamResponse:
        async with asyncio.timeout(5):
            await arrived.wait()
        return web.json_response({})

    async with serving(together) as server, calling() as call:
        await call(parallel_requests=[{"url": server.url()}, {"url": server.url()}, {"url": server.url()}])


async def test_failed_branch_fails_the_task_and_names_all_failures() -> None:
    def branches(server: Server, *paths: str) -> list[dict[str, Any]]:
        return [{"name": path, "url": server.url(f"/{path}")} for path in paths]

    async with serving(echo_name) as server, calling() as call:
        with pytest.raises(TaskError) as caught:
            await call(parallel_requests=branches(server, "a", "fail503", "fail404"), attempt=ATTEMPT)
        assert (caught.value.code, caught.value.retryable) == ("NETWORK_ERROR", False)
        assert set(caught.value.details["branches"]) == {"fail503", "fail404"}
        assert "'fail503'" in caught.value.message
        with pytest.raises(TaskError) as caught:
            await call(parallel_requests=branches(server, "fail503", "fail429"), attempt=ATTEMPT)
        assert caught.value.retryable


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({}, "url"),
        ({"url": "ftp://x"}, "url"),
        ({"url": "http://127.0.0.1/", "timeout": 0}, "timeout"),
        ({"url": "http://127.0.0.1/", "retry_count": -1}, "retry_count"),
        ({"url": "http://127.0.0.1/", "retry_count": 1000}, "retry_count"),
        ({"url": "http://127.0.0.1/", "polling_interval": 0}, "polling_interval"),
        ({"url": "http://127.0.0.1/", "max_wait_time": -1}, "max_wait_time"),
        ({"url": "http://127.0.0.1/", "data": [1]}, "data"),
        ({"url": "http://127.0.0.1/", "headers": {"Host": "x"}}, "headers.Host"),
        (
            {"url": "http://127.0.0.1/", "headers": {"Transfer-Encoding": "chunked"}},
            "headers.Transfer-Encoding",
        ),
        ({"url": "http://127.0.0.1/", "headers": {"x": "a\r\ny: b"}}, "headers.x"),
        ({"url": "http://127.0.0.1/", "headers": {"x": ["a"]}}, "headers.x"),
        ({"url": "http://127.0.0.1/", "headers": {"x": "ü"}}, "headers.x"),
        ({"url": "http://127.0.0.1/", "headers": {"x y": "a"}}, "no header name"),
        ({"url": "http://127.0.0.1/", "parallel_requests": [{"url": "http://127.0.0.1/"}]}, "either"),
        ({"parallel_requests": [{}]}, r"parallel_requests\[0\]"),
        ({"parallel_requests": [{"url": "http://x/", "nonsense": 1}]}, r"parallel_requests\[0\]"),
        ({"parallel_requests": [{"name": "a", "url": "http://x/"}] * 2}, "used twice"),
        ({"parallel_requests": [{"url": "http://x/"}] * 101}, "more than 100"),
    ],
)
async def test_unusable_parameters_are_invalid_input(parameters: dict[str, Any], place: str) -> None:
    async with calling() as call:
        with pytest.raises(InvalidInput, match=place):
            await call(**parameters)


async def test_null_header_is_left_out_and_numbers_are_text() -> None:
    async with serving(hello) as server, calling() as call:
        await call(url=server.url(), headers={"x-null": None, "x-number": 5, "x-flag": True})
    headers = server.requests[0].headers
    assert "x-null" not in headers
    assert (headers["x-number"], headers["x-flag"]) == ("5", "true")


async def test_too_many_redirects_fail_for_good() -> None:
    async def loop(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/")

    async with serving(loop) as server, calling() as call:
        with pytest.raises(TaskFailed):
            await call(url=server.url())
    assert len(server.requests) == 6


async def test_poll_outlives_failures_that_pass() -> None:
    bodies = [{"status": "pending"}, 503, 503, {"status": "pending"}, 500, {"status": "done"}]
    async with serving(sequence(*bodies)) as server, calling() as call:
        outcome = await call(
            url=server.url(), polling_interval=2, max_wait_time=60, retry_count=2, attempt=ATTEMPT
        )
    assert outcome.primary == {"status": "done"}
    async with serving(sequence({"status": "pending"}, 503)) as server, calling() as call:
        with pytest.raises(TaskError, match="503"):
            await call(url=server.url(), polling_interval=2, max_wait_time=60, retry_count=2, attempt=ATTEMPT)
    assert len(server.requests) == 4
    async with serving(sequence({"status": "pending"}, 404)) as server, calling() as call:
        with pytest.raises(NotFound):
            await call(url=server.url(), polling_interval=2, max_wait_time=60, attempt=ATTEMPT)


async def reset(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def see_other(request: web.Request) -> web.StreamResponse:
    if request.path == "/gone":
        raise web.HTTPNotFound
    raise web.HTTPSeeOther("/gone" if request.path == "/" else "http://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("handler", "parameters", "code", "begun"),
    [
        (reset, {}, "NETWORK_ERROR", None),
        (answering(503), {}, "NETWORK_ERROR", None),
        (answering(425), {}, "NETWORK_ERROR", False),
        (answering(501), {}, "NETWORK_ERROR", False),
        (answering(422), {}, "INVALID_INPUT", None),
        (see_other, {}, "RESOURCE_NOT_FOUND", True),
        (see_other, {"url": "/refused"}, "NETWORK_ERROR", True),
        (sequence({"status": "pending"}, 404), {"polling_interval": 1}, "RESOURCE_NOT_FOUND", True),
    ],
)
async def test_an_error_says_whether_the_work_may_have_begun_where_its_code_does_not(
    handler: Any, parameters: dict[str, Any], code: str, begun: bool | None
) -> None:
    async with serving(handler) as server, calling() as call:
        given = {"method": "POST", **parameters, "url": server.url(parameters.get("url", "/"))}
        with pytest.raises(TaskError) as caught:
            await call(attempt=ATTEMPT, **given)
    assert (caught.value.code, caught.value.details.get("begun")) == (code, begun)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://no-such-host.invalid/"])
async def test_what_never_got_a_connection_did_not_begin(url: str) -> None:
    async with calling() as call:
        with pytest.raises(TaskError) as caught:
            await call(url=url, method="POST", attempt=ATTEMPT)
    assert (caught.value.code, caught.value.details["begun"]) == ("NETWORK_ERROR", False)


@pytest.mark.parametrize(
    ("paths", "begun"),
    [
        (["a", "fail429"], True),
        (["fail503", "fail404"], True),
        (["fail404", "fail429"], None),
        (["fail425", "fail425"], False),
        (["fail425", "fail404"], None),
    ],
)
async def test_one_branch_that_may_have_done_its_work_is_enough(paths: list[str], begun: bool | None) -> None:
    async with serving(echo_name) as server, calling() as call:
        branches = [{"url": server.url(f"/{path}"), "method": "POST"} for path in paths]
        with pytest.raises(TaskError) as caught:
            await call(parallel_requests=branches, attempt=ATTEMPT)
    assert caught.value.details.get("begun") is begun
