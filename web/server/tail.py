"""Follows the log: one reader a web process, woken by `log.advanced`, feeding everybody who watches.

A hint may be lost, so a slow sweep reads once in a while, and only while somebody watches. It must never read what
came before it was started: whoever needs the past folds it from the log himself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

from amp.errors import AmpError
from orchestration import contracts
from web.server.mesh import Mesh

logger = logging.getLogger(__name__)

PAGE_EVENTS = 500
SWEEP_SECONDS = 15
"""How long a lost hint can go unnoticed while somebody watches."""
RETRY_SECONDS = (0.5, 10.0)
"""First and longest wait after the log could not be read."""
READ_TIMEOUT_SECONDS = 10
HIGHEST_OFFSET = 2**62

Consume = Callable[[list[contracts.EventRecord]], Awaitable[None]]


class LogTail:
    """Reads what is appended to the log from now on.

    Args:
        consume: Given each page of new events, in order.
        on_other_log: Called when the log is not the one that was read before: a restored or emptied store.
        on_state: Told False when the log cannot be read, True when it can again.
        watched: Whether anybody is interested, for the sweep.
    """

    def __init__(
        self,
        mesh: Mesh,
        consume: Consume,
        *,
        on_state: Callable[[bool], None],
        on_other_log: Callable[[], None],
        watched: Callable[[], bool],
        random: Random,
    ) -> None:
        self._mesh = mesh
        self._consume = consume
        self._on_state = on_state
        self._on_other_log = on_other_log
        self._watched = watched
        self._random = random
        self._wake = asyncio.Event()
        self._position: int | None = None
        self._suspicious = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="web:log-tail")

    async def stop(self) -> None:
        """End. Works twice."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def wake(self, offset: int | None = None) -> None:
        """There may be something new.

        Args:
            offset: The log's newest, as a hint said. One before ours makes us check whether it is the same log.
        """
        if offset is not None and self._position is not None and offset < self._position:
            self._suspicious = True
        self._wake.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self._read_on()
            except AmpError as error:
                failures += 1
                self._on_state(False)
                if failures == 1:
                    logger.warning("log_unreadable", extra={"code": error.code, "reason": error.message})
                await self._pause(failures)
                continue
            if failures:
                logger.info("log_readable_again", extra={"failures": failures})
            failures = 0
            self._on_state(True)
            await self._wait()

    async def _read_on(self) -> None:
        """Read to the end of the log and hand everything over."""
        if self._suspicious and self._position:
            self._suspicious = False
            if (await self._read(self._position - 1, 1)).next < self._position:
                logger.warning("log_rewound", extra={"offset": self._position})
                self._position = None
                self._on_other_log()
        if self._position is None:
            self._position = await self._find_end()
        while True:
            reply = await self._read(self._position, PAGE_EVENTS)
            if reply.events:
                await self._consume(reply.events)
            self._position = max(self._position, reply.next)
            if reply.end or not reply.events:
                return

    async def _find_end(self) -> int:
        """Return the log's newest offset: by doubling and halving, about 40 small reads, whatever its length."""
        low, high = 0, 1
        while high < HIGHEST_OFFSET and (await self._read(high, 1)).events:
            low, high = high, high * 2
        while low < high:
            middle = (low + high) // 2
            if (await self._read(middle, 1)).events:
                low = middle + 1
            else:
                high = middle
        return low

    async def _read(self, after: int, limit: int) -> contracts.LogReadReply:
        return await self._mesh.request(
            contracts.LOG_READ.id,
            contracts.LogReadRequest(after=after, limit=limit),
            reply_type=contracts.LogReadReply,
            timeout_seconds=READ_TIMEOUT_SECONDS,
            resend=True,
        )

    async def _wait(self) -> None:
        """Wait for a hint, or for the sweep when somebody watches."""
        while not self._wake.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._wake.wait()
            if self._watched():
                return

    async def _pause(self, failures: int) -> None:
        """Wait before trying again: doubling, jittered, cut short when a hint or the mesh comes back."""
        first, longest = RETRY_SECONDS
        seconds = min(longest, first * 2 ** min(failures - 1, 10)) * (0.5 + self._random.random() / 2)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
