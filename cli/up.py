"""`amp up`: the whole mesh as supervised processes, one log stream, one end.

The supervisor runs for as long as the mesh, so it starts afresh (`cli.supervise`) without what the command line needed:
21 MB.
"""

import asyncio
import errno
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NoReturn

import msgspec

from cli.errors import CommandError, ExitCode
from cli.layout import Layout, MeshOptions, plan_mesh
from cli.life import run_body
from cli.stream import LogStream
from runtime.clock import SystemClock
from runtime.errors import ChildFailed
from runtime.supervisor import Supervisor

OWN_NAME = "amp"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshRequest:
    """What a person asked for: which mesh, and what is done once it is ready. `once` ends it then."""

    options: MeshOptions
    open_browser: bool = False
    demo: bool = False
    once: bool = False


def become(request: MeshRequest) -> NoReturn:
    """Replace this process by the supervisor of the mesh. Its id, terminal and environment stay the same.

    Raises: CommandError when there is no such mesh.
    """
    plan_mesh(request.options, environment=os.environ, free_port=free_port)
    text = msgspec.json.encode(request, enc_hook=str).decode()
    os.execv(sys.executable, [sys.executable, "-m", "cli.supervise", text])  # noqa: S606 - ourselves, without a shell


def main() -> NoReturn:
    """Run the mesh that the command line holds as JSON, and exit."""
    request = msgspec.json.decode(sys.argv[1], type=MeshRequest, dec_hook=_read)
    try:
        sys.exit(run_mesh(request))
    except CommandError as error:
        sys.stderr.write(f"amp: {error}\n")
        sys.exit(error.exit_code)


def _read(kind: type[Any], value: Any) -> Any:
    return kind(value)


def run_mesh(request: MeshRequest) -> int:
    """Return the exit code after keeping the mesh running until a signal, or until the greeting with `once`.

    Raises: CommandError when the mesh cannot be started.
    """
    logging.basicConfig(level=logging.WARNING, format="amp: %(message)s")
    layout = plan_mesh(request.options, environment=os.environ, free_port=free_port)
    check_ports(layout.fixed_ports)
    stream = LogStream(sys.stderr, [OWN_NAME, *(child.name for child in layout.children)])
    supervisor = Supervisor(layout.children, emit=stream.emit, clock=SystemClock(), random=Random())

    async def life(stopping: asyncio.Event) -> int:
        async def ready() -> None:
            if request.demo:
                say(await greeting(layout.dashboard_url))
            say(f"dashboard: {layout.dashboard_url}")
            if request.open_browser:
                import webbrowser  # few ask for it

                await asyncio.to_thread(webbrowser.open, layout.dashboard_url)
            if request.once:
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

    return run_body(life, new_loop=asyncio.new_event_loop)


async def greeting(dashboard_url: str) -> str:
    """Return what the hello-world workflow says. A process of its own runs it: what that takes is not held for hours.

    Raises: CommandError when it does not complete.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.demo", dashboard_url),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        said, _ = await process.communicate()
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = said.decode("utf-8", "replace").rstrip()
    if code != ExitCode.OK:
        raise CommandError(text, ExitCode(code) if code in list(ExitCode) else ExitCode.FAILED)
    return text


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
