"""The short way to a router on this machine: a Unix socket beside its loopback port. There is one on Linux only.

The same WebSocket runs over it as over the port, under the same rules, without the cost of TCP. Its name follows from
the address, lives in the abstract namespace (no file, gone with the process, one for each network namespace, as
loopback is), and proves nothing: a client uses it only when the process behind it runs under its own user or as root.
It must never be the only way in.
"""

import contextlib
import logging
import os
import socket
import struct
import sys

from amp.security import is_loopback

logger = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")
"""What SO_PEERCRED tells (unix(7)): process, user, group."""


def near_listener(host: str, port: int, backlog: int) -> socket.socket | None:
    """Return a listening socket beside the port; None where there is none, or it cannot be had, which is logged."""
    name = _name(host, port)
    if name is None:
        return None
    listener = _socket()
    try:
        listener.bind(name)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        logger.warning(
            "short_way_unusable", extra={"socket": name.lstrip("\0"), "reason": error.strerror or str(error)}
        )
        return None
    return listener


def near_connection(host: str, port: int) -> socket.socket | None:
    """Return a connected socket to the router at a loopback address, or None when it must be reached by its port."""
    name = _name(host, port)
    if name is None:
        return None
    connection = _socket()
    with contextlib.suppress(OSError):  # nobody is there (yet), or too many wait to be let in
        connection.connect(name)
        if _peer_user(connection) in (os.geteuid(), 0):
            return connection
    connection.close()
    return None


def _name(host: str, port: int) -> str | None:
    if sys.platform != "linux" or not port or not is_loopback(host):
        return None
    address = "127.0.0.1" if host == "localhost" else host.strip("[]")
    return f"\0amp-router@{address}:{port}"


def _socket() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    return connection


def _peer_user(connection: socket.socket) -> int:
    """Return the user under which the process runs that listens at the other end."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(said)[1]
    return user
