"""The seam to the mesh: what the dashboard needs of an AMP client, and one way to ask it.

Everything the dashboard knows comes through here. It must never name an agent: a capability is the contract.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from amp.errors import AmpError
from amp.subscriptions import EventHandler
from orchestration.contracts import Contract
from web.server import problems

Reply = TypeVar("Reply")


class Mesh(Protocol):
    """The part of `amp.client.MeshClient` that is used here; tests give a double."""

    on_connected: list[Callable[[], Awaitable[None]]]
    on_disconnected: list[Callable[[], Awaitable[None]]]

    @property
    def connected(self) -> bool:
        """Whether the client is registered at the router now."""
        ...

    async def request(
        self,
        capability: str,
        parameters: object,
        *,
        reply_type: type[Reply],
        timeout_seconds: float = 30.0,
        patience_seconds: float = 0.0,
        resend: bool = False,
    ) -> Reply:
        """Return the reply of an agent with the capability."""
        ...

    async def subscribe(self, pattern: str, handler: EventHandler) -> None:
        """Have events whose type matches the pattern handed over."""
        ...

    async def discover(
        self, *, capabilities: Sequence[str] = (), pattern: str | None = None
    ) -> list[dict[str, Any]]:
        """Return who is on the mesh."""
        ...


class Backend:
    """Asks the mesh on behalf of an HTTP request, and turns its errors into problems."""

    def __init__(self, mesh: Mesh, *, timeout_seconds: float) -> None:
        self.mesh = mesh
        self.timeout_seconds = timeout_seconds

    async def ask(
        self, contract: Contract, request: object, reply_type: type[Reply], *, safe: bool = True
    ) -> Reply:
        """Return the reply to a contract's request.

        Args:
            safe: Repeating it changes nothing, so it is sent again when the connection breaks.

        Raises: ProblemError.
        """
        try:
            return await self.mesh.request(
                contract.id, request, reply_type=reply_type, timeout_seconds=self.timeout_seconds, resend=safe
            )
        except AmpError as error:
            raise problems.from_mesh(error, contract.id) from error
