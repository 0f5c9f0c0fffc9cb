"""Where bounded computation runs: small work at once, large work on a few threads, so that the loop stays awake.

The work that comes here is bounded by the data engine's own limits; a thread cannot be killed and need not be.
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

MAX_THREADS = 2
SMALL_NODES = 250
"""Values with up to this many parts are worked on at once: about a millisecond."""

_LOOP = re.compile(r"\bfor\b|\brange\b")


class Compute:
    """A few threads for computation and blocking file work. `close` ends them."""

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
        elif isinstance(value, list | tuple):
            if parts + len(pending) + len(value) > limit:
                return False
            pending.extend(value)
        if parts > limit or characters > limit * 64:
            return False
    return True


def has_loops(code: Any) -> bool:
    """Return whether an expression somewhere in `code` may loop: it can cost far more than its data suggests."""
    if isinstance(code, str):
        return _LOOP.search(code) is not None
    if isinstance(code, dict):
        return any(has_loops(part) for part in code.values())
    return isinstance(code, list | tuple) and any(has_loops(part) for part in code)
