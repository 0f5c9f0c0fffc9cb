"""When frames leave: the first at once, a burst together, in order, and nothing lost while the peer is slow."""

import asyncio
import json
from collections.abc import Callable

import pytest

from amp.link import Cork, Link
from amp.transports.base import ConnectionClosed


class Wire:
    """A connection that notes each write; `open` is whether the peer keeps up."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.open = True
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self, frame: bytes) -> bool:
        if self.open:
            self.writes.append(frame)
        return self.open

    async def send(self, frame: bytes) -> None:
        while not self.open:
            await asyncio.sleep(0)
        self.writes.append(frame)

    async def receive(self) -> bytes:
        raise ConnectionClosed

    async def listen(self, on_frame: Callable[[bytes | str], None]) -> None:
        await self.gone

    async def close(self, code: int = 1000, reason: str = "") -> None:
        return None

    @property
    def numbers(self) -> list[int]:
        """What has been written, batches taken apart."""
        said = [json.loads(frame) for frame in self.writes]
        return [number for each in said for number in (each if isinstance(each, list) else [each])]


@pytest.fixture
async def wire() -> Wire:
    return Wire()


def push(link: Link, numbers: range) -> None:
    for number in numbers:
        assert link.push(b"%d" % number)


async def test_the_first_frame_leaves_at_once_and_the_rest_of_the_round_together(wire: Wire) -> None:
    link = Link(wire)
    link.batching = True
    push(link, range(5))
    assert wire.writes == [b"0"]
    await asyncio.sleep(0)
    assert wire.writes == [b"0", b"[1,2,3,4]"]
    push(link, range(5, 6))
    assert wire.writes[2:] == [b"5"]


async def test_a_cork_holds_back_and_gathers_what_an_arrival_brings(wire: Wire) -> None:
    cork = Cork()
    other = Wire()
    links = [Link(each, cork=cork) for each in (wire, other)]
    for link in links:
        link.batching = True
    with cork:
        for link in links:
            push(link, range(3))
        assert wire.writes == other.writes == []
    assert wire.writes == other.writes == [b"[0,1,2]"]
    push(links[0], range(3, 4))
    assert wire.writes[1:] == [b"3"]


async def test_a_cork_is_drawn_when_the_handling_fails(wire: Wire) -> None:
    cork = Cork()
    link = Link(wire, cork=cork)

    def handle() -> None:
        with cork:
            push(link, range(1))
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        handle()
    assert wire.writes == [b"0"]
    assert not cork.is_in


@pytest.mark.parametrize("corked", [False, True])
async def test_everything_arrives_in_order_while_the_peer_is_slow_now_and_then(
    wire: Wire, corked: bool
) -> None:
    cork = Cork()
    link = Link(wire, cork=cork)
    link.batching = True
    writer = asyncio.create_task(link.write())
    for start in range(0, 200, 10):
        wire.open = start % 40 != 0
        if corked:
            with cork:
                push(link, range(start, start + 10))
        else:
            push(link, range(start, start + 10))
        if start % 30 == 0:
            await asyncio.sleep(0)
    wire.open = True
    await link.flush(5)
    assert wire.numbers == list(range(200))
    link.end()
    await writer


async def test_a_full_or_closed_outbox_takes_nothing(wire: Wire) -> None:
    wire.open = False
    link = Link(wire, max_frames=2)
    assert [link.push(b"1") for _ in range(3)] == [True, True, False]
    assert [link.push(b"1", reserve=2) for _ in range(3)] == [True, True, False]
    link.end()
    assert not link.push(b"1", reserve=9)
