"""Keeps one connection to a router alive: connect, read, heartbeat, and again with jittered backoff when it breaks.

It knows frames, not requests. Its owner is told of an opened link, of every frame, and of the loss.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from random import Random

import msgspec

from amp.link import Link
from amp.transports.base import ConnectFailed, ConnectionClosed, DirectConnection, Transport

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.05
MAX_DELAY_SECONDS = 1.0
"""So that an agent is back well within 2 s of its router."""
STABLE_SECONDS = 5.0
"""A connection that lived this long starts the backoff from the beginning."""


def backoff_seconds(attempt: int, jitter: float) -> float:
    """Return how long to wait before the next attempt to connect, in seconds.

    Args:
        attempt: Failed attempts so far, from 1.
        jitter: Uniform draw in [0, 1).

    Returns: A value in [half the delay, the delay], at most `MAX_DELAY_SECONDS`.
    """
    delay: float = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(attempt - 1, 16))
    return delay * (0.5 + jitter / 2)


class Connector:
    """The connection and its keeping.

    Args:
        on_open: Called with each new link, before anything is read.
        on_frame: Called with each frame.
        on_lost: Called when the link that was opened is gone.
        on_refused: Called when a connection cannot be made. Returns whether to give up.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        random: Random,
        now: Callable[[], datetime],
        heartbeat_interval_seconds: float,
        on_open: Callable[[Link], None],
        on_frame: Callable[[bytes | str], None],
        on_lost: Callable[[], None],
        on_refused: Callable[[ConnectFailed], bool],
    ) -> None:
        self._transport = transport
        self._random = random
        self._now = now
        self._heartbeat_interval_seconds = heartbeat_interval_seconds
        self._on_open = on_open
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._on_refused = on_refused
        self.link: Link | None = None

    async def run(self) -> None:
        """Stay connected until cancelled or told to give up."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            opened_at = loop.time()
            try:
                connection = await self._transport.connect()
            except ConnectFailed as error:
                if self._on_refused(error):
                    return
            else:
                opened_at = loop.time()
                await self._serve(Link(connection))
            attempt = 1 if loop.time() - opened_at >= STABLE_SECONDS else attempt + 1
            await asyncio.sleep(backoff_seconds(attempt, self._random.random()))

    async def _serve(self, link: Link) -> None:
        """Read a connection until it ends."""
        loop = asyncio.get_running_loop()
        writer = loop.create_task(link.write(), name="mesh-write")
        heart = loop.create_task(self._beat(link), name="mesh-heartbeat")
        self.link = link
        try:
            self._on_open(link)
            connection = link.connection
            if isinstance(connection, DirectConnection):
                await connection.listen(self._on_frame)
            while True:
                self._on_frame(await connection.receive())
        except ConnectionClosed as reason:
            logger.debug("mesh_connection_closed", extra={"reason": str(reason)})
        finally:
            self.link = None
            link.end()
            for task in (writer, heart):
                task.cancel()
            self._on_lost()
            await asyncio.gather(writer, heart, return_exceptions=True)
            await link.connection.close()

    async def _beat(self, link: Link) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_interval_seconds)
            beat = {"protocol": "AMP/1.0", "type": "heartbeat", "timestamp": self._now().timestamp()}
            link.push(msgspec.json.encode(beat))
