"""A wire that can be cut: a TCP proxy that stops passing bytes without closing anything, as a broken network does."""

import asyncio
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 64 * 1024


class Link:
    """Passes connections on to one address of this machine until it is cut; healing ends the connections it had."""

    def __init__(self) -> None:
        self._target_port = 0
        self._server: asyncio.Server | None = None
        self._whole = asyncio.Event()
        self._whole.set()
        self._pipes: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port of the loopback interface."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def stop(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        await self._drop()

    def url(self, target: str) -> str:
        """Return the address that leads to `target` over this link."""
        assert self._server is not None
        parts = urlsplit(target)
        self._target_port = parts.port or 0
        port = self._server.sockets[0].getsockname()[1]
        return urlunsplit(parts._replace(netloc=f"127.0.0.1:{port}"))

    def cut(self) -> None:
        """Pass nothing on from now on; nobody is told."""
        self._whole.clear()

    async def heal(self) -> None:
        """Pass on again. What was connected before is lost."""
        await self._drop()
        self._whole.set()

    async def _drop(self) -> None:
        pipes = list(self._pipes)
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pipe = asyncio.create_task(self._pass_on(reader, writer))
        self._pipes.add(pipe)
        pipe.add_done_callback(self._pipes.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        ways: list[asyncio.Task[None]] = []
        try:
            await self._whole.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            writers.append(far_writer)
            ways = [
                asyncio.create_task(self._copy(reader, far_writer)),
                asyncio.create_task(self._copy(far_reader, writer)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass
        finally:
            for way in ways:
                way.cancel()
            for each in writers:
                each.transport.abort()
            await asyncio.gather(*ways, *(each.wait_closed() for each in writers), return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._whole.wait()
            writer.write(data)
            await writer.drain()
