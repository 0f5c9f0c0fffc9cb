"""The smallest HTTP/1.1 server that is safe: GET and HEAD, no bodies, one answer a connection, all bounded.

An HTTP library would be the largest thing in an agent that only has to say how it is: 9 MB in each process. Nothing
but what an agent says about itself is served with this.
"""

import asyncio
import http
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_CONNECTIONS = 100
"""More are closed at once, unanswered."""
CONNECTION_SECONDS = 10.0
"""So long a client may take to send its request and to read the answer."""
METHODS = ("GET", "HEAD")

_REQUEST_LINE = re.compile(r"([A-Z]{1,20}) (/[!-~]{0,8000}) HTTP/1\.[01]")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked. `headers` have names in small letters; `path` has no query."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent back. A connection ends with it."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self, *, with_body: bool = True) -> bytes:
        """Return the answer as it goes over the wire."""
        lines = [
            f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return head + self.body if with_body else head


def refusal(status: int, text: str) -> Answer:
    """Return an answer that says why there is no other."""
    return Answer(status=status, body=f"{text}\n".encode())


def parse_head(head: bytes) -> Request | None:
    """Return the request that starts with this head, or None when it is not one that can be read in one way only."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    asked = _REQUEST_LINE.fullmatch(first)
    if asked is None or len(lines) > MAX_HEADERS:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            return None
        name, value = header[1].lower(), header[2].rstrip()
        if name == "host" and name in headers:
            return None
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Request(method=asked[1], path=asked[2].partition("?")[0], headers=headers)


class PlainHttpServer:
    """Answers each request with what `answer` returns, at once and without waiting."""

    def __init__(
        self,
        answer: Callable[[Request], Answer],
        *,
        max_connections: int = MAX_CONNECTIONS,
        connection_seconds: float = CONNECTION_SECONDS,
    ) -> None:
        self._answer = answer
        self._max_connections = max_connections
        self._connection_seconds = connection_seconds
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; 0 takes a free one. Raises OSError when that cannot be done."""
        server = await asyncio.start_server(self._connected, host, port, limit=MAX_HEAD_BYTES)
        self._server = server
        taken: int = server.sockets[0].getsockname()[1]
        return taken

    async def stop(self) -> None:
        """Stop listening and end what is open. Works twice and before `start`."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._max_connections:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._connection_seconds):
                writer.write(await self._answer_to(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # the client went away or is too slow; there is nobody to tell
        finally:
            writer.transport.abort()

    async def _answer_to(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return refusal(431, f"a request has at most {MAX_HEAD_BYTES} bytes").encode()
        request = parse_head(head)
        if request is None:
            return refusal(400, "this is no request that can be understood").encode()
        if request.method not in METHODS:
            refused = Answer(
                status=405, body=b"only GET and HEAD are answered\n", headers={"Allow": "GET, HEAD"}
            )
            return refused.encode()
        with_body = request.method != "HEAD"
        try:
            return self._answer(request).encode(with_body=with_body)
        except Exception:  # boundary: a failing answer becomes an HTTP status
            logger.exception("http_answer_failed", extra={"path": request.path})
            return refusal(500, "the answer could not be made").encode(with_body=with_body)
