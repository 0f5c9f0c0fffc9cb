"""The wires: frames take time and keep their order, until a fault is set."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from amp.transports.base import ConnectFailed, ConnectionClosed
from amp.transports.memory import MemoryConnection
from simulation.loop import VirtualLoop
from simulation.network import LATENCY_SECONDS, Line, SimulatedNetwork, WiredConnection

FRAMES = [b"%d" % number for number in range(50)]


async def received(connection: MemoryConnection) -> list[bytes]:
    """Return every frame that arrives within a minute, to the connection's end."""
    frames: list[bytes] = []
    try:
        async with asyncio.timeout(60):
            while True:
                frames.append(await connection.receive())
    except (TimeoutError, ConnectionClosed):
        return frames


def carried(
    act: Callable[[Line, WiredConnection], Coroutine[Any, Any, None]], frames: list[bytes] = FRAMES
) -> list[bytes]:
    """Return what the router gets of an agent's frames when `act` happens right after they were sent."""
    loop = VirtualLoop()
    network = SimulatedNetwork(loop, "seed", lambda name, frame: None)
    served: list[MemoryConnection] = []
    network.serve(served.append)

    async def run() -> list[bytes]:
        client = network.connect("agent")
        reading = asyncio.ensure_future(received(served[0]))
        await act(network.line("agent"), client)
        for frame in frames:
            await client.send(frame)
        return await reading

    return loop.run_until_complete(run())


async def nothing(line: Line, connection: WiredConnection) -> None:
    """Be a good line."""


async def drop(line: Line, connection: WiredConnection) -> None:
    line.up.drop_rate = 0.5


async def duplicate(line: Line, connection: WiredConnection) -> None:
    line.up.duplicate_rate = 0.5


async def reorder(line: Line, connection: WiredConnection) -> None:
    line.up.reorder_rate = 0.5


async def delay(line: Line, connection: WiredConnection) -> None:
    line.up.delay_rate, line.up.max_delay_seconds = 0.5, 10


def test_a_good_line_delivers_everything_in_order() -> None:
    assert carried(nothing) == FRAMES


def test_a_frame_takes_its_time() -> None:
    loop = VirtualLoop()
    network = SimulatedNetwork(loop, "seed", lambda name, frame: None)
    served: list[MemoryConnection] = []
    network.serve(served.append)

    async def run() -> float:
        await network.connect("agent").send(b"x")
        await served[0].receive()
        return loop.time()

    assert loop.run_until_complete(run()) == LATENCY_SECONDS


def test_frames_get_lost() -> None:
    frames = carried(drop)
    assert 0 < len(frames) < len(FRAMES)
    assert frames == [frame for frame in FRAMES if frame in frames]


def test_frames_come_twice() -> None:
    frames = carried(duplicate)
    assert len(frames) > len(FRAMES)
    assert set(frames) == set(FRAMES)


def test_frames_come_out_of_order() -> None:
    frames = carried(reorder)
    assert frames != FRAMES
    assert sorted(frames) == sorted(FRAMES)


def test_a_late_frame_holds_up_those_behind_it() -> None:
    assert carried(delay) == FRAMES


@pytest.mark.parametrize(("blockade", "arrive"), [("drop", []), ("hold", FRAMES)])
def test_a_blockade_loses_frames_or_holds_them(blockade: Any, arrive: list[bytes]) -> None:
    async def block(line: Line, connection: WiredConnection) -> None:
        line.up.blockade = blockade
        asyncio.get_running_loop().call_later(5, line.up.open)

    assert carried(block) == arrive


def test_what_a_killed_agent_has_sent_may_still_arrive_but_nothing_after() -> None:
    loop = VirtualLoop()
    network = SimulatedNetwork(loop, "seed", lambda name, frame: None)
    served: list[MemoryConnection] = []
    network.serve(served.append)

    async def run() -> list[list[bytes]]:
        from random import Random

        outcomes = []
        random = Random(1)
        for _ in range(20):
            client = network.connect("agent")
            await client.send(b"last")
            network.line("agent").die(random)
            with pytest.raises(ConnectionClosed):
                await client.send(b"too late")
            outcomes.append(await received(served[-1]))
        return outcomes

    outcomes = loop.run_until_complete(run())
    assert [] in outcomes
    assert [b"last"] in outcomes
    assert all(outcome in ([], [b"last"]) for outcome in outcomes)


def test_nobody_is_reached_while_no_router_serves_or_the_line_is_blocked() -> None:
    loop = VirtualLoop()
    network = SimulatedNetwork(loop, "seed", lambda name, frame: None)
    with pytest.raises(ConnectFailed):
        network.connect("agent")
    network.serve(lambda connection: None)
    network.line("agent").down.blockade = "drop"
    with pytest.raises(ConnectFailed):
        network.connect("agent")
    network.heal()
    assert not network.connect("agent").closed
