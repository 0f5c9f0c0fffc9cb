"""`amp up`: the whole mesh as supervised processes, one log stream, one end."""

import asyncio
import errno
import logging
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from random import Random

from cli.demo import greet
from cli.errors import CommandError, ExitCode
from cli.layout import Layout, MeshOptions, plan_mesh
from cli.life import run_body
from cli.stream import LogStream
from runtime.clock import SystemClock
from runtime.errors import ChildFailed
from runtime.supervisor import Supervisor

OWN_NAME = "amp"
DEMO_TIMEOUT_SECONDS = 60.0


def run_mesh(options: MeshOptions, *, open_browser: bool, demo: bool, once: bool) -> int:
    """Return the exit code after keeping the mesh running until a signal, or until the greeting with `once`.

    Raises: CommandError when the mesh cannot be started.
    """
    logging.basicConfig(level=logging.WARNING, format="amp: %(message)s")
    layout = plan_mesh(options, environment=os.environ, free_port=free_port)
    check_ports(layout.fixed_ports)
    stream = LogStream(sys.stderr, [OWN_NAME, *(child.name for child in layout.children)])
    supervisor = Supervisor(layout.children, emit=stream.emit, clock=SystemClock(), random=Random())

    async def life(stopping: asyncio.Event) -> int:
        async def ready() -> None:
            if demo:
                say(await greet(layout.dashboard_url, timeout_seconds=DEMO_TIMEOUT_SECONDS))
            say(f"dashboard: {layout.dashboard_url}")
            if open_browser:
                await asyncio.to_thread(webbrowser.open, layout.dashboard_url)
            if once:
                stopping.set()
            else:
                stream.emit(OWN_NAME, "ready; Ctrl-C stops everything in order")

        stream.emit(OWN_NAME, f"starting {_names(layout)}")
        try:
            await supervisor.run(stopping, ready)
        except ChildFailed as failure:
            stream.emit(OWN_NAME, "stopped: a process could not be started")
            raise CommandError(str(failure)) from None
        stream.emit(OWN_NAME, "stopped")
        return ExitCode.OK

    return run_body(life)


def say(text: str) -> None:
    """Write one line to standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def check_ports(ports: Sequence[tuple[str, str, int]]) -> None:
    """Check that each (what, host, port) can be listened on.

    Raises: CommandError naming every port that cannot, and the cure.
    """
    problems = []
    for what, host, port in ports:
        try:
            _try_to_listen(host, port)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            problems.append(
                f"{what} cannot use {host}:{port}: {'it is in use' if taken else error.strerror or error}"
            )
    if problems:
        cure = "stop what uses it (another mesh?), or start with --port-offset 100 --data-dir FOLDER"
        raise CommandError("; ".join(problems) + f"; {cure}", ExitCode.CONFLICT)


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _try_to_listen(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def _names(layout: Layout) -> str:
    return ", ".join(child.name for child in layout.children)
