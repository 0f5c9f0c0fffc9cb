"""The small process between the executor and a program it runs: nothing that the program started outlives the executor.

It runs alone (`python -I -S process_guard.py LIFE_FD FOLDER_FD LIMITS PROGRAM ARGUMENTS...`) and imports only the
standard library. It starts the program in a session of its own with limits, waits for it, and kills the program's
whole family when the program ends, or when LIFE_FD closes: because the executor wants that, or because it died.
Its exit status is the program's.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time

GRACE_SECONDS = 1.0
KILL_ROUNDS = 100
CANNOT_START = 126
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Run the program and return its wait status."""
    life, folder = int(arguments[0]), int(arguments[1])
    limits: dict[str, int] = json.loads(arguments[2])
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    program = os.fork()
    if program == 0:
        _become(arguments[3], arguments[4:], folder, limits)
    status = _wait(program, life, wake_read)
    _kill_family(program)
    return status


def _become(program: str, arguments: list[str], folder: int, limits: dict[str, int]) -> None:
    """Turn this fork into the program. Never returns."""
    try:
        os.setsid()
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(CANNOT_START)
        os.fchdir(folder)
        for name, value in limits.items():
            _limit(getattr(resource, name, None), value)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.execve(program, arguments, dict(os.environ))  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(2, f"{program}: cannot be started: {error.strerror}\n".encode())
    finally:
        os._exit(CANNOT_START)


def _limit(which: int | None, value: int) -> None:
    if which is not None:
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _wait(program: int, life: int, wake: int) -> int:
    """Return the program's wait status; when LIFE_FD closes first, end its family and return the status then."""
    ordered = False
    deadline: float | None = None
    while True:
        done, status = os.waitpid(program, os.WNOHANG)
        if done:
            return status
        watched = [wake] if ordered else [wake, life]
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = select.select(watched, [], [], timeout)[0]
        if wake in ready:
            os.read(wake, 4096)
        if life in ready:
            ordered, deadline = True, time.monotonic() + GRACE_SECONDS
            _signal_group(program, signal.SIGTERM)
        if deadline is not None and time.monotonic() >= deadline:
            _signal_group(program, signal.SIGKILL)
            deadline = time.monotonic() + GRACE_SECONDS


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _kill_family(group: int) -> None:
    """Kill the program's group and whoever left it: they became our children when their parents died."""
    for _ in range(KILL_ROUNDS):
        _signal_group(group, signal.SIGKILL)
        for child in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _children() -> list[int]:
    """Return the ids of our children, where the system lists processes in /proc."""
    own = str(os.getpid())
    found = []
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    for name in names:
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if len(fields) > 1 and fields[1] == own:
            found.append(int(name))
    return found


def _prctl(option: int, value: int) -> None:
    """Set a property of this process where the system is Linux; elsewhere LIFE_FD alone guards the family."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _end_like(status: int) -> None:
    """Exit as the program did: with its code, or by its signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    _end_like(main(sys.argv[1:]))
