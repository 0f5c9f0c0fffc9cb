"""`amp up`: the whole mesh as processes, used through its dashboard, and gone without a trace."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from cli.errors import ExitCode

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 60
SECTIONS = (
    "WORKFLOW_ENGINE",
    "TASK_EXECUTOR",
    "STATE_MANAGER",
    "CONDITION_EVALUATOR",
    "ERROR_HANDLER",
    "MONITOR_AGENT",
)


def environment() -> dict[str, str]:
    """Return an environment in which every port is a free one."""
    ports = {f"AMP_{section}__PORT": "0" for section in SECTIONS}
    redis = {"AMP_STATE_MANAGER__USE_REDIS": "false", "AMP_DATABASE__REDIS_ENABLED": "false"}
    return {**os.environ, **ports, **redis, "AMP_MESH__ROUTER_URL": "ws://127.0.0.1:0/amp/v1/ws"}


def command(tmp_path: Path, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "cli",
        "up",
        "--port",
        "0",
        "--data-dir",
        str(tmp_path / "data"),
        *arguments,
    ]


class Mesh:
    """A running `amp up` and what it has said."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process = process
        self.log = log
        self.url = ""

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("dashboard: "):
                self.url = line.removeprefix("dashboard: ").strip()
                return
        raise AssertionError(self.log.read_text())

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals) -> tuple[int, list[psutil.Process]]:
        """Return the exit code and the processes that were left behind."""
        children = self.children()
        os.kill(self.process.pid, number)
        code = self.process.wait(PATIENCE_SECONDS)
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
        return code, [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def mesh(tmp_path: Path, *arguments: str) -> Iterator[Mesh]:
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command(tmp_path, *arguments),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        running = Mesh(process, log)
        try:
            running.wait_until_ready()
            yield running
        finally:
            if process.poll() is None:
                process.kill()


def test_demo_greets_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "--demo", "--once"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == ExitCode.OK, done.stderr
    greeting, address = done.stdout.splitlines()
    assert greeting == "Hello, AMP User!"
    assert address.startswith("dashboard: http://localhost:")


def test_mesh_runs_a_workflow_for_amp_run_and_stops_in_order(tmp_path: Path) -> None:
    with mesh(tmp_path, "--scale", "executor=2") as running:
        assert len(running.children()) == 9
        done = subprocess.run(
            [
                *(sys.executable, "-m", "cli", "run", "workflows/simple_example.yaml"),
                *("-i", "name=Ada", "--json", "--server", running.url),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == ExitCode.OK, done.stderr
        document = json.loads(done.stdout)
        assert document["outputs"]["greeting"] == "Hello, Ada!"
        assert all(f"✓ {task}" in done.stderr for task in document["tasks"])
        assert f"{running.url}/instances/{document['instance_id']}" in done.stderr
        code, left = running.end(signal.SIGINT)
    assert (code, left) == (ExitCode.OK, [])
    said = running.log.read_text()
    assert said.index("router_ready") < said.index("state ") < said.index("engine ")
    assert said.rstrip().endswith("stopped")
    assert "killed" not in said


def test_killed_agent_comes_back_and_the_mesh_goes_on(tmp_path: Path) -> None:
    with mesh(tmp_path) as running:
        engine = next(one for one in running.children() if "agents.workflow_engine" in one.cmdline())
        engine.kill()
        start = f"{running.url}/api/workflows/hello-world-workflow/start"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while httpx.post(start, json={"inputs": {"name": "Ada"}}, timeout=PATIENCE_SECONDS).is_error:
            assert time.monotonic() < deadline, running.log.read_text()
        assert "it was ended by signal SIGKILL; starting it again" in running.log.read_text()
        code, left = running.end(signal.SIGTERM)
    assert (code, left) == (ExitCode.OK, [])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with mesh(tmp_path) as running:
        _, left = running.end(signal.SIGKILL)
    assert left == []


def test_taken_port_is_told_with_the_cure(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "cli", "up", "--port", str(port), "--data-dir", str(tmp_path)],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
    assert done.returncode == ExitCode.CONFLICT
    assert f"the dashboard cannot use 127.0.0.1:{port}: it is in use" in done.stderr
    assert "--port-offset" in done.stderr


def test_process_that_cannot_start_ends_everything_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    done = subprocess.run(
        command(tmp_path),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == ExitCode.FAILED
    assert "state cannot start" in done.stderr
