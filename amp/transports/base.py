"""The seam between the client and the way its frames travel. It only declares."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable


class ConnectionClosed(Exception):
    """The connection is gone. `code` is the WebSocket close code, 1006 when there was none."""

    def __init__(self, reason: str = "the connection is closed", *, code: int = 1006) -> None:
        super().__init__(reason)
        self.code = code


class NotText(Exception):
    """A frame was not text. The connection is still good."""


class ConnectFailed(Exception):
    """No connection could be made. `permanent` means that trying again will not help, for example a refused key."""

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


class Connection(Protocol):
    """One open connection: whole frames, in order."""

    async def send(self, frame: bytes) -> None:
        """Send one frame. It waits while the peer does not read. Raises ConnectionClosed."""
        ...

    async def receive(self) -> bytes | str:
        """Return the next frame. Raises ConnectionClosed, or NotText for a frame to be refused."""
        ...

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close. Works twice."""
        ...


@runtime_checkable
class DirectConnection(Connection, Protocol):
    """A connection that also works without a task in between: the shorter way for real sockets."""

    def write(self, frame: bytes) -> bool:
        """Write one frame at once. Return False, with nothing written, when the peer does not keep up or is gone."""
        ...

    async def listen(self, on_frame: Callable[[bytes | str], None]) -> None:
        """Call `on_frame` with each frame as it arrives. Raises ConnectionClosed at the end."""
        ...


class Transport(Protocol):
    """A way to a router."""

    async def connect(self) -> Connection:
        """Return a new connection. Raises ConnectFailed."""
        ...
