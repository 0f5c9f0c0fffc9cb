"""Who is gone after a router was lost: told by the sessions that come back."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from agents.workflow_engine import peers
from agents.workflow_engine.peers import Peer, Peers
from amp.errors import Disconnected
from amp.subscriptions import Event
from orchestration import contracts


class FakeMesh:
    """A mesh client whose router can be lost."""

    def __init__(self, **sessions: str) -> None:
        self.sessions = sessions
        self.connected = True
        self.on_connected: list[Callable[[], Awaitable[None]]] = []
        self.handlers: dict[str, Callable[[Event], Awaitable[None]]] = {}

    async def subscribe(self, pattern: str, handler: Callable[[Event], Awaitable[None]]) -> None:
        self.handlers[pattern] = handler

    async def discover(self) -> list[dict[str, Any]]:
        if not self.connected:
            raise Disconnected("no router")
        return [
            {"identity": {"id": name, "session_id": session}, "capabilities": [{"id": f"{name}-work"}]}
            for name, session in self.sessions.items()
        ]

    async def come_back(self, **sessions: str) -> None:
        self.sessions = sessions
        for callback in self.on_connected:
            await callback()

    async def say(self, event_type: str, **data: Any) -> None:
        await self.handlers[event_type](Event(event_type, data, "router"))


class Seen:
    def __init__(self) -> None:
        self.gone: list[tuple[list[str], int]] = []

    def __call__(self, gone: Mapping[str, Peer], generation: int) -> None:
        self.gone.append((sorted(gone), generation))


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "RETURN_SECONDS", 0.0)


async def listening(mesh: FakeMesh) -> Seen:
    seen = Seen()
    await Peers(mesh, seen).listen()  # type: ignore[arg-type]
    return seen


async def test_agents_that_come_back_as_they_were_are_not_gone() -> None:
    mesh = FakeMesh(a="1", b="1")
    seen = await listening(mesh)
    await mesh.come_back(a="1", b="1", c="1")
    assert seen.gone == []


async def test_an_agent_that_is_another_process_now_is_gone() -> None:
    mesh = FakeMesh(a="1", b="1")
    seen = await listening(mesh)
    await mesh.come_back(a="2", b="1")
    await mesh.come_back(a="2", b="2")
    assert seen.gone == [(["a"], 0), (["b"], 1)]


async def test_an_agent_that_does_not_come_back_in_time_is_gone() -> None:
    mesh = FakeMesh(a="1", b="1")
    seen = await listening(mesh)
    await mesh.come_back(b="1")
    assert seen.gone == [(["a"], 0)]


async def test_agents_that_came_and_left_before_are_known() -> None:
    mesh = FakeMesh(a="1")
    seen = await listening(mesh)
    await mesh.say(contracts.EVENT_AGENT_JOINED, agent_id="b", session_id="1", capabilities=["cut"])
    await mesh.say(contracts.EVENT_AGENT_LEFT, agent_id="a", session_id="1", capabilities=[])
    await mesh.come_back(a="9", b="2")
    assert seen.gone == [(["b"], 0)]


async def test_what_could_not_be_seen_is_compared_after_the_next_loss() -> None:
    mesh = FakeMesh(a="1")
    seen = await listening(mesh)
    mesh.connected = False
    await mesh.come_back(a="2")
    mesh.connected = True
    await mesh.come_back(a="3")
    assert seen.gone == [(["a"], 1)]
