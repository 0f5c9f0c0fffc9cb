"""One supervised process: start it, read its lines, know when it is ready, start it again, stop it.

The child leads a process group of its own, so a Ctrl-C in the terminal reaches the supervisor alone and the order of
the end stays ours. When the supervisor dies without a word, the kernel kills the child (Linux).
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from runtime.clock import Clock
from runtime.errors import ChildFailed
from runtime.probe import answers_ok

MAX_LINE_BYTES = 64 * 1024
READ_BYTES = 64 * 1024
TAIL_LINES = 12
"""How many of its last lines a failed start shows."""
PROBE_TIMEOUT_SECONDS = 2.0
FIRST_PROBE_DELAY_SECONDS = 0.02
MAX_PROBE_DELAY_SECONDS = 0.5
READER_GRACE_SECONDS = 1.0
ANNOUNCEMENT = "health_listening"
"""The event of the log line by which a child says where its /health is."""
FATAL_EXIT_CODES = frozenset({2, 78})
"""Wrong usage and unusable configuration: the same start would fail the same way."""
_PR_SET_PDEATHSIG = 1

Emit = Callable[[str, str], None]
"""Takes the child's name and one line of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run.

    `environment` is added to ours. `health_url` is None when the child says it in a log line. Children start in
    ascending order of `stage` and stop in ascending order of `stop_stage`.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    health_url: str | None = None
    stage: int = 0
    stop_stage: int = 0
    ready_timeout_seconds: float = 60.0
    stop_timeout_seconds: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How often a child that ended is started again.

    The first time at once: work waits. When it ends again before it lived for `stable_seconds` it is in a crash
    loop, and the wait doubles from `first_delay_seconds` to `max_delay_seconds`, with jitter. A child that was never
    ready is given up after `max_failed_starts`.
    """

    first_delay_seconds: float = 0.5
    max_delay_seconds: float = 15.0
    stable_seconds: float = 5.0
    max_failed_starts: int = 3

    def delay_seconds(self, failures: int, jitter: float) -> float:
        """Return the wait before the next start, in seconds.

        Args:
            failures: Ends in a row, from 1.
            jitter: Uniform draw in [0, 1).
        """
        if failures <= 1:
            return 0.0
        ceiling = min(self.max_delay_seconds, self.first_delay_seconds * 2.0 ** min(failures - 2, 16))
        return ceiling * (0.5 + jitter / 2)


class Child:
    """Keeps one process running until `stop`."""

    def __init__(
        self,
        spec: ChildSpec,
        *,
        emit: Emit,
        clock: Clock,
        random: Random,
        policy: RestartPolicy,
    ) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.pid: int | None = None
        self.starts = 0
        self._emit = emit
        self._clock = clock
        self._random = random
        self._policy = policy
        self._health_url: asyncio.Future[str] | None = None
        self._stop_requested = asyncio.Event()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._ever_ready = False

    async def run(self) -> None:
        """Start the process, and again when it ends, until `stop` is called.

        Raises: ChildFailed when it never became ready.
        """
        failures = 0
        while not self._stop_requested.is_set():
            began = self._clock.monotonic()
            code = await self._live_once()
            if self._stop_requested.is_set():
                return
            stable = self._clock.monotonic() - began >= self._policy.stable_seconds
            failures = 1 if stable else failures + 1
            self._give_up_if_hopeless(code, failures)
            delay = self._policy.delay_seconds(failures, self._random.random())
            when = f"in {delay:.1f} s" if delay else "at once"
            self._emit(self.spec.name, f"{_end_in_words(code)}; starting it again {when}")
            if delay:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop_requested.wait(), delay)

    async def stop(self) -> None:
        """Ask the process to end, wait for it as long as its specification says, then kill it. Works twice."""
        self._stop_requested.set()
        pid = self.pid
        if pid is None:
            return
        _signal_process(pid, signal.SIGTERM)
        deadline = self._clock.monotonic() + self.spec.stop_timeout_seconds
        while self.pid == pid:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                self._emit(
                    self.spec.name, f"still running after {self.spec.stop_timeout_seconds:g} s; killed"
                )
                self.kill()
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), left)

    def kill(self) -> None:
        """End the process and its descendants at once."""
        self._stop_requested.set()
        if self.pid is not None:
            _signal_group(self.pid, signal.SIGKILL)

    async def _live_once(self) -> int:
        """Run the process to its end and return its exit code, negative for a signal."""
        process = await asyncio.create_subprocess_exec(
            *self.spec.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self.spec.environment},
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
        self._ended = asyncio.Event()
        self._tail.clear()
        self.pid = process.pid
        self.starts += 1
        if self._stop_requested.is_set():
            self.kill()
        self._health_url = asyncio.get_running_loop().create_future()
        if self.spec.health_url is not None:
            self._health_url.set_result(self.spec.health_url)
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [asyncio.ensure_future(self._read(stream)) for stream in (process.stdout, process.stderr)]
        gate = asyncio.ensure_future(self._become_ready())
        try:
            return await process.wait()
        finally:
            gate.cancel()
            self.ready.clear()
            _signal_group(process.pid, signal.SIGKILL)
            await asyncio.wait(readers, timeout=READER_GRACE_SECONDS)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(gate, *readers, return_exceptions=True)
            self.pid = None
            self._ended.set()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        """Pass on every line; a line that is too long comes in pieces."""
        rest = b""
        while chunk := await stream.read(READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line)
            if len(rest) > MAX_LINE_BYTES:
                self._take(rest)
                rest = b""
        self._take(rest)

    def _take(self, raw: bytes) -> None:
        for start in range(0, len(raw), MAX_LINE_BYTES):
            line = raw[start : start + MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
            if not line:
                continue
            self._tail.append(line)
            self._look_for_announcement(line)
            self._emit(self.spec.name, line)

    def _look_for_announcement(self, line: str) -> None:
        if ANNOUNCEMENT not in line or self._health_url is None or self._health_url.done():
            return
        url = _announced_url(line)
        if url is not None:
            self._health_url.set_result(url)

    async def _become_ready(self) -> None:
        """Set `ready` once /health answers 200; end the process when that takes too long."""
        try:
            async with asyncio.timeout(self.spec.ready_timeout_seconds):
                assert self._health_url is not None
                url = await self._health_url
                delay = FIRST_PROBE_DELAY_SECONDS
                while not await answers_ok(url, timeout_seconds=PROBE_TIMEOUT_SECONDS):
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, MAX_PROBE_DELAY_SECONDS)
        except TimeoutError:
            self._emit(self.spec.name, f"not ready after {self.spec.ready_timeout_seconds:g} s")
            if self.pid is not None:
                _signal_group(self.pid, signal.SIGKILL)
            return
        self._ever_ready = True
        self.ready.set()

    def _give_up_if_hopeless(self, code: int, failures: int) -> None:
        if self._ever_ready:
            return
        if code in FATAL_EXIT_CODES or failures >= self._policy.max_failed_starts:
            tail = "\n".join(f"  {line}" for line in self._tail)
            raise ChildFailed(
                f"{self.spec.name} cannot start: {_end_in_words(code)}; its last lines:\n{tail}"
            )


def _announced_url(line: str) -> str | None:
    """Return the /health address in a child's own announcement, or None when the line is something else."""
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    if not isinstance(fields, dict) or fields.get("event") != ANNOUNCEMENT:
        return None
    url = fields.get("url")
    return f"{url}/health" if isinstance(url, str) else None


def _end_in_words(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"it was ended by signal {name}"


def _signal_process(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _die_with(parent: int) -> Callable[[], None] | None:
    """Return what a child runs before its program so that the kernel kills it when `parent` dies. None elsewhere."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL.value, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec
