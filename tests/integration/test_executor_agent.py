"""The executor on a mesh with real sockets, programs and files behind it."""

import asyncio
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from agents.task_executor import TaskExecutor
from agents.task_executor.errors import Unreachable
from agents.task_executor.http_client import HttpClient, HttpRequest, parse_url
from amp.client import AgentIdentity, MeshClient
from amp.errors import AmpError
from amp.router import Router
from amp.transports.memory import MemoryNetwork
from orchestration import contracts
from runtime.settings import HttpSettings, Settings, SubprocessSettings, TaskExecutorSettings
from tests.integration.executor_servers import hello, serving
from tests.integration.test_executor_subprocess import alive, eventually

SHELL = ("sh",)


@asynccontextmanager
async def engine_with_executor(folder: Path) -> AsyncIterator[tuple[MeshClient, TaskExecutor]]:
    network, router = MemoryNetwork(), Router()
    router.serve_memory(network)
    settings = Settings(
        data_dir=str(folder),
        task_executor=TaskExecutorSettings(
            http=HttpSettings(allowed_networks=("127.0.0.0/8",)),
            subprocess=SubprocessSettings(allowed_commands=SHELL),
        ),
    )
    executor = TaskExecutor(settings, transport=network.transport(), serve_http=False)
    await executor.start(wait_seconds=5)
    engine = MeshClient(AgentIdentity(id="engine"), network.transport())
    await engine.start(wait_seconds=5)
    try:
        async with asyncio.timeout(60):
            yield engine, executor
    finally:
        await engine.stop(drain_seconds=0)
        await executor.stop()
        await router.stop()


def attempt(token: str, **variables: Any) -> contracts.Attempt:
    return contracts.Attempt(
        token=token,
        engine_id="engine",
        workflow_id="w",
        workflow_instance_id="ins_1",
        task_id="task",
        attempt=1,
        timeout_seconds=30,
        idempotency_key=f"key-{token}",
        variables=variables,
    )


async def test_cancelling_an_attempt_ends_its_program(tmp_path: Path) -> None:
    async with engine_with_executor(tmp_path) as (engine, _):
        pidfile = tmp_path / "files" / "pid"
        work = asyncio.ensure_future(
            engine.request(
                "task-subprocess",
                {"command": "sh", "args": ["-c", "sleep 300 & echo $! > pid; wait"]},
                context=attempt("t1"),
            )
        )
        await eventually(lambda: pidfile.exists() and bool(pidfile.read_text().strip()), "never started")
        pid = int(pidfile.read_text())
        assert (await engine.request("task-cancel", {"token": "t1"}))["found"]
        with pytest.raises(AmpError, match="TASK_CANCELLED"):
            await work
        assert not alive(pid)


async def test_stopping_the_executor_ends_programs_that_outlast_its_drain(tmp_path: Path) -> None:
    async with engine_with_executor(tmp_path) as (engine, executor):
        executor.agent_section = replace(executor.agent_section, drain_timeout_seconds=0.05)
        pidfile = tmp_path / "files" / "pid"
        work = asyncio.ensure_future(
            engine.request(
                "task-subprocess",
                {"command": "sh", "args": ["-c", "echo $$ > pid; sleep 300"]},
                context=attempt("t1"),
            )
        )
        await eventually(lambda: pidfile.exists() and bool(pidfile.read_text().strip()), "never started")
        pid = int(pidfile.read_text())
        await executor.stop()
        await asyncio.gather(work, return_exceptions=True)
        await eventually(lambda: not alive(pid), "the program lives on")


async def test_cancelling_an_attempt_hangs_up_its_request(tmp_path: Path) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(never) as server, engine_with_executor(tmp_path) as (engine, _):
        work = asyncio.ensure_future(
            engine.request("task-api-call", {"url": server.url()}, context=attempt("t1"))
        )
        await eventually(lambda: bool(server.requests), "the request never came")
        await engine.request("task-cancel", {"token": "t1"})
        with pytest.raises(AmpError, match="TASK_CANCELLED"):
            await work
        await eventually(lambda: server.requests[0].transport is None, "the connection stays open")


async def test_a_workflows_parallel_requests_run_through_task_execute(tmp_path: Path) -> None:
    async with serving(hello) as server, engine_with_executor(tmp_path) as (engine, _):
        result = await engine.request(
            "task-execute",
            {
                "task_type": "api_call",
                "task_config": {
                    "parallel_requests": [
                        {"name": "a", "url": "{base}/a", "method": "POST", "data": {"who": "{name}"}},
                        {"name": "b", "url": "{base}/b?x={name}"},
                    ]
                },
            },
            context=attempt("t1", base=server.url("").rstrip("/"), name="Ada"),
            reply_type=contracts.TaskResult,
        )
    assert result.outputs == {"a": {"hello": "world"}, "b": {"hello": "world"}}
    assert result.primary == {"hello": "world"}
    by_path = {request.path: request for request in server.requests}
    assert by_path["/a"].headers["idempotency-key"] == "key-t1/a"
    assert by_path["/b"].query_string == "x=Ada"


async def test_files_of_one_task_are_there_for_the_next(tmp_path: Path) -> None:
    async with engine_with_executor(tmp_path) as (engine, _):
        await engine.request(
            "task-file-operation",
            {"operation": "write", "file_path": "out/{day}.csv", "content": "{rows}", "format": "csv"},
            context=attempt("t1", day="monday", rows=[{"a": 1}, {"a": 2}]),
        )
        listed = await engine.request(
            "task-subprocess", {"command": "sh", "args": ["-c", "cat monday.csv"], "cwd": "out"}
        )
    assert listed["stdout"] == "a\n1\n2\n"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program to make a certificate")
async def test_certificate_that_nobody_signed_is_refused_for_good(tmp_path: Path) -> None:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    made = await asyncio.to_thread(
        subprocess.run,
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files],
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"tls": True})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    url = parse_url(f"https://127.0.0.1:{runner.addresses[0][1]}/")
    for verify in (True, False):
        http = HttpClient(HttpSettings(allowed_networks=("127.0.0.0/8",), verify_tls=verify))
        request = HttpRequest(method="GET", url=url)
        if verify:
            with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED") as caught:
                await http.send(request, timeout_seconds=5)
            assert not caught.value.retryable
        else:
            assert (await http.send(request, timeout_seconds=5)).body == b'{"tls": true}'
        await http.close()
    await runner.cleanup()


@pytest.mark.processes
async def test_executor_runs_as_a_process_and_refuses_bad_settings(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("task_executor:\n  http:\n    allowed_networks: ['10.0.0.0/99']\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agents.task_executor",
        "--config",
        str(config),
        "--data-dir",
        str(tmp_path),
        "--port",
        "0",
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        _, stderr = await process.communicate()
    assert process.returncode not in (0, None)
    assert b"allowed_networks" in stderr
