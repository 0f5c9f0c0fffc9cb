"""Which processes offer what, as far as this engine has seen, and which of them are gone after a router was lost.

While a router lives it says at once that an agent is lost. When both go together nobody says it: the processes that
were there before are then compared with those that came back.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from amp.client import MeshClient
from amp.errors import AmpError
from amp.subscriptions import Event
from orchestration import contracts

RETURN_SECONDS = 5.0
"""How long an agent has to come back to another router before it counts as gone."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """A process on the mesh: its session, and what it offers."""

    session_id: str
    capabilities: frozenset[str]


class Peers:
    """The processes on the mesh by agent id. `generation` counts the connections of this engine to a router.

    Args:
        on_gone: Called with processes that are gone since a connection broke, by agent id, and that connection's
            generation.
    """

    def __init__(self, mesh: MeshClient, on_gone: Callable[[Mapping[str, Peer], int], None]) -> None:
        self.generation = 0
        self._known: dict[str, Peer] = {}
        self._mesh = mesh
        self._on_gone = on_gone

    async def listen(self) -> None:
        """Begin to keep account of who is there."""
        await self._mesh.subscribe(contracts.EVENT_AGENT_JOINED, self._joined)
        await self._mesh.subscribe(contracts.EVENT_AGENT_LEFT, self._left)
        self._mesh.on_connected.append(self._connected)
        self._known = await self._look() or {}

    async def _joined(self, event: Event) -> None:
        agent_id, session_id = event.data.get("agent_id"), event.data.get("session_id")
        if isinstance(agent_id, str) and isinstance(session_id, str):
            offered = event.data.get("capabilities")
            capabilities = (
                frozenset(str(each) for each in offered) if isinstance(offered, list) else frozenset()
            )
            self._known[agent_id] = Peer(session_id, capabilities)

    async def _left(self, event: Event) -> None:
        self._known.pop(str(event.data.get("agent_id")), None)

    async def _connected(self) -> None:
        """The connection is back: whoever is another process now is gone, and whoever does not come back in time."""
        before, broken = dict(self._known), self.generation
        self.generation += 1
        found = await self._look()
        if found is None:
            return
        self._known = found
        self._tell({name: peer for name, peer in before.items() if _is_other(found.get(name), peer)}, broken)
        away = {name: peer for name, peer in before.items() if name not in found}
        if away:
            await asyncio.sleep(RETURN_SECONDS)
            if self._mesh.connected and self.generation == broken + 1:
                now = self._known
                gone = {
                    name: peer for name, peer in away.items() if name not in now or _is_other(now[name], peer)
                }
                self._tell(gone, broken)

    def _tell(self, gone: Mapping[str, Peer], generation: int) -> None:
        if gone:
            logger.info("agents_gone", agent_ids=sorted(gone))
            self._on_gone(gone, generation)

    async def _look(self) -> dict[str, Peer] | None:
        try:
            found = await self._mesh.discover()
        except AmpError as error:
            logger.info("peers_not_seen", code=error.code)
            return None
        return {
            str(agent["identity"]["id"]): Peer(
                str(agent["identity"].get("session_id", "")),
                frozenset(str(each["id"]) for each in agent["capabilities"]),
            )
            for agent in found
        }


def _is_other(now: Peer | None, before: Peer) -> bool:
    return now is not None and now.session_id != before.session_id
