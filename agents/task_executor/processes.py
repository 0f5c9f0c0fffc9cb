"""Runs one program under its guard: bounded output, bounded time, nothing left behind.

There is never a shell. The guard (`process_guard.py`) holds one end of a pipe, this module the other: closing it, on
purpose or by dying, ends the program and everything it started.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.task_executor.errors import Overloaded
from agents.task_executor.program_records import NO_RECORD
from runtime.settings import SubprocessSettings

GUARD = Path(__file__).with_name("process_guard.py")
READ_STEP_BYTES = 64 * 1024
END_SECONDS = 5.0
"""How long the guard may take to end the family before it is killed itself; the guard's own grace is shorter."""
MAX_OPEN_FILES = 1024
MAX_PROCESSES = 4096
MAX_WRITTEN_FILE_BYTES = 1024**3
NO_PIPE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run. `path` is absolute; `arguments` begins with the name the program sees itself under.

    The program and everything it starts inherit the descriptor `record`, by which a later executor knows them.
    """

    path: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: int
    stdin: bytes | None = None
    record: int = NO_RECORD


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How it ended. A negative `exit_code` is the signal that ended it. `cut` counts bytes of output thrown away."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    stdout_cut: int
    stderr_cut: int


class RunningTooLong(Exception):
    """The time ran out; the program and its family are gone. `finished` holds what it wrote until then."""

    def __init__(self, finished: Finished) -> None:
        super().__init__("the program ran too long")
        self.finished = finished


class _Captured:
    """The first bytes of a stream, up to a limit; the rest is read and counted, so that the program never blocks."""

    def __init__(self, limit: int) -> None:
        self.content = bytearray()
        self.cut = 0
        self._limit = limit

    async def read(self, stream: asyncio.StreamReader) -> None:
        while step := await stream.read(READ_STEP_BYTES):
            room = self._limit - len(self.content)
            self.content += step[:room]
            self.cut += max(0, len(step) - room)


def limits_of(settings: SubprocessSettings) -> dict[str, int]:
    """Return the resource limits of a program, by the names of the `resource` module."""
    return {
        "RLIMIT_CPU": int(settings.cpu_limit_seconds),
        "RLIMIT_AS": settings.memory_limit_bytes,
        "RLIMIT_FSIZE": MAX_WRITTEN_FILE_BYTES,
        "RLIMIT_NOFILE": MAX_OPEN_FILES,
        "RLIMIT_NPROC": MAX_PROCESSES,
        "RLIMIT_CORE": 0,
    }


async def run_program(program: Program, settings: SubprocessSettings, *, timeout_seconds: float) -> Finished:
    """Return how the program ended. Cancelling this ends the program too.

    Raises: RunningTooLong after `timeout_seconds`, Overloaded when no process can be started.
    """
    life_read, life_write = os.pipe()
    life = _Life(life_write)
    try:
        process = await _start(program, settings, life_read)
    except BaseException:
        life.end()
        raise
    finally:
        os.close(life_read)
    out, err = _Captured(settings.max_output_bytes), _Captured(settings.max_output_bytes)
    work = asyncio.ensure_future(_drive(process, program.stdin, out, err))
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.shield(work)
    except TimeoutError:
        await _end(process, life, work)
        raise RunningTooLong(_finished(process, out, err)) from None
    except asyncio.CancelledError:
        await asyncio.shield(_end(process, life, work))
        raise
    finally:
        life.end()
    return _finished(process, out, err)


class _Life:
    """Our end of the guard's pipe, closed once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def end(self) -> None:
        if self._descriptor != NO_PIPE:
            os.close(self._descriptor)
            self._descriptor = NO_PIPE


async def _start(program: Program, settings: SubprocessSettings, life: int) -> asyncio.subprocess.Process:
    limits = json.dumps(limits_of(settings))
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(GUARD),
            str(life),
            str(program.folder),
            limits,
            program.path,
            *program.arguments,
            stdin=asyncio.subprocess.DEVNULL if program.stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(program.environment),
            pass_fds=tuple(each for each in (life, program.folder, program.record) if each >= 0),
            start_new_session=True,
        )
    except OSError as error:
        raise Overloaded(f"no process can be started: {os.strerror(error.errno or 0)}") from None


async def _drive(
    process: asyncio.subprocess.Process, stdin: bytes | None, out: _Captured, err: _Captured
) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    await asyncio.gather(
        _feed(process, stdin), out.read(process.stdout), err.read(process.stderr), process.wait()
    )


async def _feed(process: asyncio.subprocess.Process, stdin: bytes | None) -> None:
    if process.stdin is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(stdin or b"")
        await process.stdin.drain()
    process.stdin.close()


async def _end(process: asyncio.subprocess.Process, life: _Life, work: asyncio.Future[None]) -> None:
    """Have the guard end the family; kill the guard when it does not manage."""
    life.end()
    try:
        async with asyncio.timeout(END_SECONDS):
            await asyncio.shield(work)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await process.wait()


def _finished(process: asyncio.subprocess.Process, out: _Captured, err: _Captured) -> Finished:
    return Finished(
        exit_code=process.returncode if process.returncode is not None else -9,
        stdout=bytes(out.content),
        stderr=bytes(err.content),
        stdout_cut=out.cut,
        stderr_cut=err.cut,
    )
