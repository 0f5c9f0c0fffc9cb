"""Appends of many instances, gathered into as few requests as possible.

While one request is on its way the next batches gather: no artificial delay, and under load one request carries
many instances. It decides nothing about an instance.
"""

import asyncio
from collections import deque

import structlog

from amp.client import MeshClient
from amp.errors import AmpError
from orchestration import contracts

MAX_BATCHES_A_REQUEST = 256
MAX_EVENT_BYTES_A_REQUEST = 2 * 1024 * 1024
MAX_REQUESTS_IN_FLIGHT = 2
APPEND_TIMEOUT_SECONDS = 30.0
RETRY_SECONDS = 0.5
"""Wait after a refused append (a full disk, a state manager that starts) before it is tried again."""

logger = structlog.get_logger(__name__)


class LogWriter:
    """One a process. `append` returns when the batch is durable or refused."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh
        self._waiting: deque[tuple[contracts.AppendBatch, asyncio.Future[contracts.AppendOutcome]]] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._sending = 0

    async def append(self, batch: contracts.AppendBatch) -> contracts.AppendOutcome:
        """Store a batch durably and return what became of it. It waits as long as the state manager is away."""
        future: asyncio.Future[contracts.AppendOutcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, future))
        if self._sending < MAX_REQUESTS_IN_FLIGHT:
            self._sending += 1
            sender = asyncio.get_running_loop().create_task(self._send())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return await future

    async def stop(self) -> None:
        """Give up what has not been sent; nobody was told that it happened."""
        for sender in list(self._senders):
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    async def _send(self) -> None:
        """Send until nothing waits. It counts itself out in the same breath in which it finds nothing more."""
        try:
            while self._waiting:
                taken = self._take()
                try:
                    await self._store(taken)
                finally:
                    for _, future in taken:
                        if not future.done():
                            future.cancel()
        finally:
            self._sending -= 1

    def _take(self) -> list[tuple[contracts.AppendBatch, asyncio.Future[contracts.AppendOutcome]]]:
        taken: list[tuple[contracts.AppendBatch, asyncio.Future[contracts.AppendOutcome]]] = []
        size = 0
        while self._waiting and len(taken) < MAX_BATCHES_A_REQUEST and size < MAX_EVENT_BYTES_A_REQUEST:
            batch, future = self._waiting.popleft()
            size += sum(len(bytes(event.data)) for event in batch.events)
            taken.append((batch, future))
        return taken

    async def _store(
        self, taken: list[tuple[contracts.AppendBatch, asyncio.Future[contracts.AppendOutcome]]]
    ) -> None:
        request = contracts.AppendRequest(batches=[batch for batch, _ in taken])
        while True:
            try:
                reply = await self._mesh.request(
                    contracts.STATE_APPEND.id,
                    request,
                    reply_type=contracts.AppendReply,
                    timeout_seconds=APPEND_TIMEOUT_SECONDS,
                    patience_seconds=APPEND_TIMEOUT_SECONDS,
                    resend=True,
                )
                break
            except AmpError as error:
                logger.warning(
                    "append_refused", code=error.code, error_message=error.message, batches=len(taken)
                )
                await asyncio.sleep(RETRY_SECONDS)
        for (_, future), outcome in zip(taken, reply.outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
