"""Ports for processes of tests: none that the kernel hands out by itself, none that another test worker takes.

A port that was found by binding port 0 is the kernel's to give away again before its owner is up: to the next one who
binds port 0, and every agent of a test does. So ports come from below that range, in a slice for each worker.
"""

import itertools
import os
import socket

FIRST_PORT = 20_000
END_PORT = 32_000
"""Below 32768, where Linux begins to hand out ports by itself."""
WORKERS = 16
"""How many workers of one run get a slice of their own."""

_SLICE = (END_PORT - FIRST_PORT) // WORKERS
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_offsets = itertools.count(os.getpid())
"""Runs side by side begin at different places."""


def free_port() -> int:
    """Return a port of the loopback interface on which nobody listens, and that this process did not return lately."""
    for _ in range(_SLICE):
        port = FIRST_PORT + _worker * _SLICE + next(_offsets) % _SLICE
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"none of {_SLICE} ports from {FIRST_PORT + _worker * _SLICE} is free")
