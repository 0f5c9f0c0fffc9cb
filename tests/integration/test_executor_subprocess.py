"""Task type subprocess with real programs: the allow-list, the limits, and that nothing is ever left behind."""

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.task_executor.errors import InvalidInput, NotFound, NotPermitted, TaskError, TaskFailed, TimedOut
from agents.task_executor.files import FileRoot
from agents.task_executor.handlers.base import Outcome, TaskContext
from agents.task_executor.handlers.subprocess_ import Subprocess
from orchestration.contracts import SubprocessRequest
from runtime.settings import SettingsError, SubprocessSettings
from tests.unit.executor.clocks import FixedClock

ALLOWED = ("sh", "echo", "cat", "env", "pwd", "sleep", "true", "false", "missing-program", sys.executable)
WAIT_SECONDS = 10.0


async def _nobody(data: Mapping[str, Any]) -> None:
    pass


class Runner:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.root = FileRoot(folder / "files", max_file_bytes=10_000)
        self.root.prepare(0)
        settings.setdefault("allowed_commands", ALLOWED)
        self.handler = Subprocess(SubprocessSettings(**settings), self.root)

    async def __call__(
        self,
        command: str,
        *args: Any,
        seconds: float = 30,
        written: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Outcome:
        context = TaskContext(
            attempt=None,
            deadline=asyncio.get_running_loop().time() + seconds,
            clock=FixedClock(),
            progress=_nobody,
            parameters=written or {},
        )
        request = msgspec.convert({"command": command, "args": list(args), **more}, SubprocessRequest)
        return await self.handler.run(request, context)


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def eventually(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def test_output_and_exit_code_are_returned(run: Runner) -> None:
    outcome = await run("echo", "hello", 5, True, {"a": 1})
    assert outcome.primary == 'hello 5 true {"a":1}\n'
    assert outcome.outputs == {"exit_code": 0, "stdout": outcome.primary, "success": True}
    assert (outcome.result.exit_code, outcome.result.stderr, outcome.result.success) == (0, "", True)


async def test_nothing_is_read_by_a_shell(run: Runner, tmp_path: Path) -> None:
    pwned = tmp_path / "pwned"
    hostile = f"; touch {pwned} && $(touch {pwned}) `touch {pwned}` | tee {pwned} > {pwned}"
    assert (await run("echo", hostile)).primary == hostile + "\n"
    assert not pwned.exists()


async def test_empty_allow_list_allows_nothing_and_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(NotPermitted, match=r"subprocess\.allowed_commands; it allows nothing"):
        await Runner(tmp_path, allowed_commands=())("echo")


@pytest.mark.parametrize(
    "command", ["ls", "/bin/echo", "./echo", "../bin/echo", "ech", "echo ", "", "echo;ls", "ECHO"]
)
async def test_only_the_exact_texts_of_the_list_are_allowed(run: Runner, command: str) -> None:
    with pytest.raises(NotPermitted, match="allowed_commands"):
        await run(command)


async def test_allowed_but_not_installed_says_so(run: Runner) -> None:
    with pytest.raises(NotFound, match="not installed"):
        await run("missing-program")


async def test_nonzero_exit_fails_the_task_unless_told_otherwise(run: Runner) -> None:
    with pytest.raises(TaskFailed, match="exited with code 3") as caught:
        await run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert caught.value.details["exit_code"] == 3
    assert caught.value.details["stderr"] == "err\n"
    outcome = await run("sh", "-c", "exit 3", fail_on_exit=False)
    assert outcome.outputs == {"exit_code": 3, "stdout": "", "success": False}


async def test_signal_is_reported_as_negative_exit_code(run: Runner) -> None:
    outcome = await run("sh", "-c", "kill -9 $$", fail_on_exit=False)
    assert outcome.result.exit_code == -9
    with pytest.raises(TaskFailed, match="ended by signal 15"):
        await run("sh", "-c", "kill -15 $$")


async def test_environment_is_minimal(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMP_SECRET", "s3cret")
    lines = (await run("env", env={"MINE": "yes", "NUMBER": 5, "NOTHING": None})).primary.splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert names == {"PATH", "LANG", "HOME", "MINE", "NUMBER"}
    assert "NUMBER=5" in lines


def test_relative_path_in_the_allow_list_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'\./tool' must be a plain name or an absolute path"):
        Runner(tmp_path, allowed_commands=("./tool",))


@pytest.mark.parametrize(
    "name",
    [
        "HOME",
        "OPENSSL_CONF",
        "LD_PRELOAD",
        "PATH",
        "PYTHONPATH",
        "BASH_ENV",
        "NODE_OPTIONS",
        "GIT_SSH_COMMAND",
        "IFS",
    ],
)
async def test_variables_that_change_what_runs_are_refused(run: Runner, name: str) -> None:
    with pytest.raises(NotPermitted, match=name):
        await run("env", env={name: "x"})


async def test_program_runs_in_a_folder_below_the_root(run: Runner, tmp_path: Path) -> None:
    (run.root.root / "work").mkdir()
    assert (await run("pwd")).primary.strip() == str(run.root.root)
    assert (await run("pwd", cwd="work")).primary.strip() == str(run.root.root / "work")
    (run.root.root / "link").symlink_to(tmp_path)
    for cwd in ("..", "/", str(tmp_path), "link"):
        with pytest.raises(NotPermitted):
            await run("pwd", cwd=cwd)
    with pytest.raises(NotFound):
        await run("pwd", cwd="nowhere")


async def test_stdin_is_passed_and_closed(run: Runner) -> None:
    assert (await run("cat", stdin="hello")).primary == "hello"
    assert (await run("cat")).primary == ""
    assert (await run("true", stdin="x" * 1_000_000)).outputs["success"] is True


async def test_long_output_is_cut_and_the_program_is_not_blocked(tmp_path: Path) -> None:
    run = Runner(tmp_path, max_output_bytes=1024)
    outcome = await run("sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x")
    assert outcome.primary == "x" * 1024 + "\n[4998976 more bytes cut]"


async def test_output_that_is_no_text_is_shown_with_replacements(run: Runner) -> None:
    assert (await run("sh", "-c", "printf '\\377a'")).primary == "\ufffda"


async def test_timeout_ends_the_whole_family(run: Runner) -> None:
    script = (
        "sleep 300 & echo $!; setsid sleep 300 & echo $!; trap '' TERM; echo $$; while :; do sleep 1; done"
    )
    with pytest.raises(TimedOut, match="ran longer than") as caught:
        await run("sh", "-c", script, timeout=0.5)
    pids = [int(line) for line in caught.value.details["stdout"].split()]
    assert len(pids) == 3
    await eventually(lambda: not any(map(alive, pids)), f"some of {pids} live on")


async def test_the_attempts_deadline_is_a_timeout_too(run: Runner) -> None:
    with pytest.raises(TimedOut):
        await run("sleep", "300", seconds=0.3)


async def test_cancelling_ends_the_whole_family(run: Runner) -> None:
    pidfile = run.root.root / "pid"
    task = asyncio.ensure_future(run("sh", "-c", "sleep 300 & echo $! > pid; wait"))
    await eventually(
        lambda: pidfile.exists() and bool(pidfile.read_text().strip()), "the program never started"
    )
    pid = int(pidfile.read_text())
    assert alive(pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)


async def test_background_processes_do_not_outlive_the_program(run: Runner) -> None:
    started = time.monotonic()
    outcome = await run("sh", "-c", "sleep 300 & echo $!; setsid sh -c 'sleep 300 & sleep 300' & echo $!")
    assert time.monotonic() - started < WAIT_SECONDS
    pids = [int(line) for line in outcome.primary.split()]
    await eventually(lambda: not any(map(alive, pids)), f"some of {pids} live on")


async def test_memory_limit_holds(tmp_path: Path) -> None:
    run = Runner(tmp_path, memory_limit_bytes=200 * 1024 * 1024)
    with pytest.raises(TaskFailed) as caught:
        await run(sys.executable, "-c", "x = bytearray(400 * 1024 * 1024)")
    assert "MemoryError" in caught.value.details["stderr"]


async def test_cpu_limit_holds(tmp_path: Path) -> None:
    run = Runner(tmp_path, cpu_limit_seconds=1)
    with pytest.raises(TaskFailed, match="ended by signal"):
        await run("sh", "-c", "while :; do :; done", seconds=20)


@pytest.mark.parametrize(
    ("args", "more"),
    [
        ([None], {}),
        (["a\0b"], {}),
        (["x"] * 1001, {}),
        (["x" * 200_000], {}),
        ([], {"env": {"A B": "x"}}),
        ([], {"env": {"A": "a\0b"}}),
        ([], {"timeout": 0}),
    ],
)
async def test_unusable_parameters_are_invalid_input(
    run: Runner, args: list[Any], more: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput):
        await run("echo", *args, **more)


@pytest.mark.parametrize(
    ("written", "filled", "allowed"),
    [
        (["{name}"], ["--help"], False),
        (["{a}{b}"], ["-rf"], False),
        (["{name}"], ["plain"], True),
        (["{number}"], [-5], True),
        (["-n", "x"], ["-n", "x"], True),
        (["-{flag}"], ["-v"], True),
        (["--", "{name}"], ["--", "--help"], True),
        (["--name={name}"], ["--name=--help"], True),
    ],
)
async def test_templates_cannot_bring_in_options(
    run: Runner, written: list[Any], filled: list[Any], allowed: bool
) -> None:
    if allowed:
        assert (await run("echo", *filled, written={"args": written})).outputs["success"] is True
    else:
        with pytest.raises(NotPermitted, match="begins with '-'"):
            await run("echo", *filled, written={"args": written})


async def test_program_that_cannot_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    run = Runner(tmp_path, allowed_commands=(str(program),))
    with pytest.raises(TaskFailed, match="code 126") as caught:
        await run(str(program))
    assert "cannot be started" in caught.value.details["stderr"]


EXECUTOR = """
    import asyncio, sys
    from pathlib import Path
    from agents.task_executor.files import FileRoot
    from agents.task_executor.processes import Program, run_program
    from runtime.process import loop_factory
    from runtime.settings import SubprocessSettings

    async def main():
        root = FileRoot(Path(sys.argv[1]), max_file_bytes=1000)
        with root.opened_folder("") as folder:
            script = "setsid sleep 300 & echo $! > a; sleep 300 & echo $! > b; echo $$ > c; wait"
            program = Program(path="/bin/sh", arguments=["sh", "-c", script], environment={"PATH": "/bin:/usr/bin"},
                              folder=folder)
            await run_program(program, SubprocessSettings(), timeout_seconds=300)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
"""


@pytest.mark.processes
async def test_nothing_outlives_an_executor_that_was_killed(tmp_path: Path) -> None:
    executor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(EXECUTOR), str(tmp_path), cwd=os.getcwd()
    )
    files = [tmp_path / name for name in "abc"]
    await eventually(
        lambda: all(file.exists() and file.read_text().strip() for file in files), "the program never started"
    )
    pids = [int(file.read_text()) for file in files]
    assert all(map(alive, pids))
    executor.send_signal(signal.SIGKILL)
    await executor.wait()
    await eventually(lambda: not any(map(alive, pids)), f"some of {pids} live on")


async def test_many_programs_at_once_leak_no_descriptors(run: Runner) -> None:
    async def one(number: int) -> None:
        with contextlib.suppress(TaskError):
            await run("sh", "-c", f"exit {number % 2}")

    await one(0)
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*(one(number) for number in range(20)))
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors leak")
