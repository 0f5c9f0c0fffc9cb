"""`amp run` with nothing running: the whole mesh in one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.errors import ExitCode

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
HELLO = ROOT / "workflows" / "simple_example.yaml"
PATIENCE_SECONDS = 60

SLOW = """\
id: slow
name: Slow
tasks:
  - id: wait
    type: subprocess
    parameters: {command: sleep, args: ["600"]}
"""
FAILING = """\
id: failing
name: Failing
tasks:
  - id: fail
    type: subprocess
    parameters: {command: "false"}
    retry_config: {strategy: none, max_attempts: 1}
  - id: after
    type: data_transform
    depends_on: [fail]
    parameters: {input_data: 1, transformations: []}
"""


def amp(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        **options,
    )


def test_hello_world_prints_its_outputs_and_nothing_else_to_standard_output() -> None:
    done = amp("run", str(HELLO), "-i", "name=Ada", "-i", "language=es")
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout == "greeting: Hola, Ada!\nlanguage: es\n"
    assert "✓ validate_input" in done.stderr
    assert done.stderr.rstrip().endswith("hello-world-workflow completed")
    assert "WARNING" not in done.stderr


def test_json_is_one_document() -> None:
    done = amp("run", str(HELLO), "-i", "name=Ada", "--json")
    document = json.loads(done.stdout)
    assert (document["status"], document["outputs"]["greeting"]) == ("completed", "Hello, Ada!")
    assert document["error"] is None
    assert set(document["tasks"]) == {"validate_input", "transform_data", "generate_output"}


def test_definition_comes_from_standard_input() -> None:
    done = amp("run", "-", "-i", "name=Bo", input=HELLO.read_text())
    assert (done.returncode, done.stdout.splitlines()[0]) == (ExitCode.OK, "greeting: Hello, Bo!")


def test_failure_is_told_and_gives_one(tmp_path: Path) -> None:
    file = tmp_path / "failing.yaml"
    file.write_text(FAILING)
    done = amp("run", str(file), "--json")
    assert done.returncode == ExitCode.FAILED, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "failed"
    assert document["error"]["code"]
    assert document["tasks"]["after"]["status"] == "skipped"
    assert "✕ fail failed" in done.stderr


def test_inputs_that_do_not_fit_are_refused_before_anything_runs() -> None:
    done = amp("run", str(HELLO), "-i", "language=xx")
    assert done.returncode == ExitCode.INVALID
    assert done.stdout == ""
    assert "inputs/language error[" in done.stderr


def test_timeout_ends_the_wait(tmp_path: Path) -> None:
    file = tmp_path / "slow.yaml"
    file.write_text(SLOW)
    done = amp("run", str(file), "--timeout", "1s")
    assert done.returncode == ExitCode.TIMED_OUT, done.stderr
    assert "no end after 1 s" in done.stderr


def test_interrupt_ends_the_run_and_what_it_started(tmp_path: Path) -> None:
    file = tmp_path / "slow.yaml"
    file.write_text(SLOW)
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "run", str(file)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        assert running.stderr.readline().startswith("instance ins_")
        os.kill(running.pid, signal.SIGINT)
        assert running.wait(PATIENCE_SECONDS) == ExitCode.INTERRUPTED


def test_data_folder_keeps_the_log(tmp_path: Path) -> None:
    done = amp("run", str(HELLO), "-i", "name=Ada", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == ExitCode.OK, done.stderr
    assert (tmp_path / "data" / "workflow_state.db").is_file()


def test_files_of_a_run_outlive_it(tmp_path: Path) -> None:
    file = tmp_path / "note.yaml"
    file.write_text(
        "id: note\nname: Note\ntasks:\n  - id: write\n    type: file_operation\n"
        "    parameters: {operation: write, file_path: note.txt, content: kept}\n"
    )
    done = amp("run", str(file), env={**os.environ, "AMP_DATA_DIR": str(tmp_path / "data")})
    assert done.returncode == ExitCode.OK, done.stderr
    assert (tmp_path / "data" / "files" / "note.txt").read_text() == "kept"
    assert not (tmp_path / "data" / "workflow_state.db").exists()


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    program = "import sys, cli.main; print([name for name in ('aiohttp', 'pydantic', 'httpx') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
def test_server_that_cannot_be_reached_is_told(url: str) -> None:
    done = amp("run", str(HELLO), "-i", "name=Ada", "--server", url)
    assert done.returncode == (ExitCode.USAGE if url == "nonsense" else ExitCode.UNREACHABLE)
    assert url in done.stderr
