"""Notices peers that are silent: a stopped process or a cut network keeps its connection and says nothing more.

One sweep looks at all sockets. Who was quiet for a while is pinged, who stays quiet is given up: its agent is lost
for the mesh, and free to come back on a new connection.
"""

import asyncio
import logging

from amp.server_socket import ServerSocket
from amp.session import Session

logger = logging.getLogger(__name__)

SWEEPS = 4
"""How often, in that time, it is looked who is silent."""
STRANGER_PATIENCE = 3
"""A client that never spoke of our extensions may be busy, and deaf to pings, this many times as long."""


class Watch:
    """The sockets of one router."""

    def __init__(self, lost_after_seconds: float) -> None:
        self._lost_after_seconds = lost_after_seconds
        self._sockets: dict[ServerSocket, Session] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, socket: ServerSocket, session: Session) -> None:
        """Begin to watch a socket."""
        self._sockets[socket] = session
        if self._timer is None:
            self._arm()

    def remove(self, socket: ServerSocket) -> None:
        """Forget a socket."""
        self._sockets.pop(socket, None)

    def stop(self) -> None:
        """Watch nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._lost_after_seconds / SWEEPS, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._sockets:
            return
        self._arm()
        now = asyncio.get_running_loop().time()
        for socket, session in list(self._sockets.items()):
            silent_seconds = now - socket.heard_at
            patience_seconds = self._lost_after_seconds * (1 if session.terms.repeats else STRANGER_PATIENCE)
            if silent_seconds >= patience_seconds:
                logger.warning(
                    "peer_silent",
                    extra={"agent_id": session.agent_id, "silent_seconds": round(silent_seconds, 1)},
                )
                socket.abort()
            elif silent_seconds >= self._lost_after_seconds / SWEEPS:
                socket.ping()
