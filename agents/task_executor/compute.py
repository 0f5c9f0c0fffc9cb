"""Where work that would hold up the loop runs: bounded work on a few shared threads, foreign code on its own.

Work for `Compute` is bounded by the data engine's limits or by the size of a file; its threads need not be killed.
Operators' functions are bounded by nothing: each gets a thread that hinders neither other work nor the process's end.
"""

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from agents.task_executor.errors import Overloaded

T = TypeVar("T")

MAX_THREADS = 2
SMALL_NODES = 250
"""Values with up to this many parts are worked on at once: about a millisecond."""

_LOOP = re.compile(r"\bfor\b|\brange\b")


class Compute:
    """A few threads for bounded work. `close` ends them."""

    def __init__(self, threads: int = MAX_THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="task-work")

    async def run(self, work: Callable[[], T], *, small: bool = False) -> T:
        """Return what `work` returns, computed here when it is `small`, else on a thread."""
        if small:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Let the threads finish what they do and end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class ForeignCode:
    """Runs functions that may never return, each on a thread of its own, at most `limit` at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.running = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns. Cancelling stops the waiting; the thread counts until it ends by itself.

        Raises: Overloaded when `limit` threads are taken.
        """
        if self.running >= self._limit:
            raise Overloaded(f"{self._limit} custom functions are still running on this executor")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self.running += 1

        def settle(result: T | None, error: BaseException | None) -> None:
            self.running -= 1
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(cast(T, result))

        def perform() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = work()
            except BaseException as raised:  # boundary: foreign code; the waiting side raises it
                usable = isinstance(raised, Exception) and not isinstance(raised, StopIteration)
                error = raised if usable else RuntimeError(f"raised {type(raised).__name__}")
            with contextlib.suppress(RuntimeError):  # the loop has ended, nobody waits
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=perform, name="foreign-code", daemon=True).start()
        return await done


def is_small(*values: Any, limit: int = SMALL_NODES) -> bool:
    """Return whether the values have at most `limit` parts and as many characters times 64 in all."""
    parts, characters = 0, 0
    pending = list(values)
    while pending:
        value = pending.pop()
        parts += 1
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, dict):
            if parts + len(pending) + len(value) > limit:
                return False
            pending.extend(value.values())
        elif isinstance(value, (list, tuple)):
            if parts + len(pending) + len(value) > limit:
                return False
            pending.extend(value)
        if parts > limit or characters > limit * 64:
            return False
    return True


def has_loops(code: Any) -> bool:
    """Return whether an expression somewhere in `code` may loop: it can cost far more than its data suggests."""
    pending = [code]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            if _LOOP.search(part) is not None:
                return True
        elif isinstance(part, dict):
            pending.extend(part.values())
        elif isinstance(part, (list, tuple)):
            pending.extend(part)
    return False
