"""Asks a child's /health over plain HTTP. One short question needs no HTTP library, and its supervisor has no other."""

import asyncio
from urllib.parse import urlsplit

DEFAULT_PORT = 80
MAX_LINE_BYTES = 1024


async def answers_ok(url: str, *, timeout_seconds: float) -> bool:
    """Return whether a GET of this http:// address is answered with 200 in time."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _ask(parts.hostname or "", parts.port or DEFAULT_PORT, parts.netloc, parts.path)
    except (TimeoutError, OSError, ValueError):
        return False


async def _ask(host: str, port: int, netloc: str, path: str) -> bool:
    reader, writer = await asyncio.open_connection(host, port, limit=MAX_LINE_BYTES)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {netloc}\r\nConnection: close\r\n\r\n".encode())
        words = (await reader.readline()).split(maxsplit=2)
        return len(words) >= 2 and words[0].startswith(b"HTTP/1.") and words[1] == b"200"
    finally:
        writer.transport.abort()
