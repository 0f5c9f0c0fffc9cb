"""The router's own process: it says where it listens, stops on a signal, and explains why it cannot start."""

import asyncio
import os
import signal
import socket

import pytest

from amp.router import Router
from amp.router_main import EXIT_UNAVAILABLE, EXIT_USAGE, main, serve


async def test_it_serves_until_it_is_told_to_stop() -> None:
    router = Router()
    serving = asyncio.create_task(serve(router, "127.0.0.1", 0))
    async with asyncio.timeout(5):
        while not router.port:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in await reader.read()
        writer.close()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)


def test_taken_address_and_unsafe_address_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(SystemExit) as taken:
            main(["--port", str(holder.getsockname()[1])])
    with pytest.raises(SystemExit) as unsafe:
        main(["--host", "0.0.0.0", "--port", "0"])
    assert (taken.value.code, unsafe.value.code) == (EXIT_UNAVAILABLE, EXIT_USAGE)
    said = capsys.readouterr().err
    assert "cannot listen on" in said
    assert "--api-key" in said
