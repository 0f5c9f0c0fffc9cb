"""Reading the log from an offset on: for agents that must miss nothing and never depend on having got a message.

The hint `log.advanced` only says when to look. A lost hint costs nothing but time, and not much of that: a reader
looks again by itself now and then.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from amp.client import MeshClient
from amp.errors import AmpError
from amp.subscriptions import Event
from orchestration import contracts
from orchestration.contracts import EventRecord, LogReadReply, LogReadRequest

logger = logging.getLogger(__name__)

READ_ROWS = 500
READ_TIMEOUT_SECONDS = 10.0
READ_PATIENCE_SECONDS = 60.0
GATHER_SECONDS = 0.2
"""How long a reader waits after a hint, so that a busy log is read in batches and takes little from those who write."""
LOOK_AGAIN_SECONDS = 15.0
"""How long a reader trusts the silence of the hints."""
RETRY_SECONDS = 1.0

Apply = Callable[[Sequence[EventRecord], int], Awaitable[None]]


class LogReader:
    """Feeds `apply` with the log's events in order, each once.

    Args:
        types: Only these types of events.
        after: The offset that was applied last.
        apply: Takes the events and the offset to read after next time, in that order, one call at a time. When it
            raises, the reader ends; what it did not apply is read again by the next one.
        on_rewound: Called when the log ends before our offset: another log is there now. Reading begins anew.
    """

    def __init__(
        self,
        mesh: MeshClient,
        *,
        types: Sequence[str],
        after: int,
        apply: Apply,
        on_rewound: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.offset = after
        self.newest = after
        self.caught_up = asyncio.Event()
        self._mesh = mesh
        self._types = list(types)
        self._apply = apply
        self._on_rewound = on_rewound
        self._hinted = asyncio.Event()
        self._suspicious = False

    async def run(self) -> None:
        """Read until cancelled."""
        await self._mesh.subscribe(contracts.EVENT_LOG_ADVANCED, self._take_hint)
        self._mesh.on_connected.append(self._look)
        while True:
            self._hinted.clear()
            try:
                await self._catch_up()
            except AmpError as error:
                self.caught_up.clear()
                logger.warning("log_read_failed", extra={"code": error.code, "offset": self.offset})
                await asyncio.sleep(RETRY_SECONDS)
                continue
            await self._wait_for_hint()

    async def _wait_for_hint(self) -> None:
        try:
            async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                await self._hinted.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER_SECONDS)

    async def _catch_up(self) -> None:
        """Apply everything that is there now."""
        if self._suspicious and not await self._log_reaches_us():
            await self._start_over()
        self._suspicious = False
        while True:
            reply = await self._read(LogReadRequest(after=self.offset, limit=READ_ROWS, types=self._types))
            if reply.events or reply.next != self.offset:
                await self._apply(reply.events, reply.next)
                self.offset = reply.next
            if reply.end:
                self.newest = max(self.newest, self.offset)
                self.caught_up.set()
                return

    async def _read(self, request: LogReadRequest) -> LogReadReply:
        return await self._mesh.request(
            contracts.LOG_READ.id,
            request,
            reply_type=LogReadReply,
            timeout_seconds=READ_TIMEOUT_SECONDS,
            patience_seconds=READ_PATIENCE_SECONDS,
            resend=True,
        )

    async def _log_reaches_us(self) -> bool:
        """Return whether the log goes as far as we have read. Hints may be late, so they prove nothing.

        The event that we read last may have been purged since; how far the log goes is told all the same.
        """
        reply = await self._read(LogReadRequest(after=self.offset - 1, limit=1))
        return reply.next >= self.offset

    async def _start_over(self) -> None:
        logger.warning("log_rewound", extra={"offset": self.offset})
        if self._on_rewound is not None:
            await self._on_rewound()
        self.offset = self.newest = 0

    async def _take_hint(self, event: Event) -> None:
        offset = event.data.get("offset")
        if isinstance(offset, int):
            self._suspicious = self._suspicious or offset < self.offset
            self.newest = max(self.newest, offset)
        self._hinted.set()

    async def _look(self) -> None:
        self._hinted.set()
