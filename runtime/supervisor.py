"""Several processes as one: started in order, each when the ones before it are ready, and stopped in order."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

from runtime.children import Child, ChildSpec, Emit, RestartPolicy
from runtime.clock import Clock

MAX_CHILDREN = 100


class Supervisor:
    """Keeps children running.

    Args:
        emit: Receives every line of every child.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        emit: Emit,
        clock: Clock,
        random: Random,
        policy: RestartPolicy | None = None,
    ) -> None:
        if len(specs) > MAX_CHILDREN:
            raise ValueError(f"{len(specs)} processes; at most {MAX_CHILDREN} are supervised together")
        restarts = policy or RestartPolicy()
        self.children = [
            Child(spec, emit=emit, clock=clock, random=random, policy=restarts) for spec in specs
        ]
        self._runs: set[asyncio.Task[None]] = set()

    async def run(self, stopping: asyncio.Event, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Start everything, call `on_ready`, and stop everything in order once `stopping` is set.

        When this is cancelled there is no time: everything is killed.

        Raises: ChildFailed when a child never becomes ready, and whatever `on_ready` raises.
        """
        try:
            if await self._unless(stopping, self.start()):
                await self._unless(stopping, self._stay(on_ready))
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            await self.stop()

    async def start(self) -> None:
        """Start stage after stage. Return when every child is ready.

        Raises: ChildFailed when one never becomes ready.
        """
        for stage in _grouped(self.children, lambda child: child.spec.stage):
            self._runs |= {asyncio.ensure_future(child.run()) for child in stage}
            await self._first_failure(asyncio.gather(*(child.ready.wait() for child in stage)))

    async def stop(self) -> None:
        """Stop everything in the order of the stop stages. Works twice and before `start`."""
        try:
            for stage in _grouped(self.children, lambda child: child.spec.stop_stage):
                await asyncio.gather(*(child.stop() for child in stage))
            await asyncio.gather(*self._runs, return_exceptions=True)
        except asyncio.CancelledError:
            self.kill()
            raise

    def kill(self) -> None:
        """End all processes at once."""
        for child in self.children:
            child.kill()

    async def _stay(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        await self._first_failure(asyncio.ensure_future(on_ready()))
        await self._first_failure(asyncio.get_running_loop().create_future())

    async def _first_failure(self, wanted: asyncio.Future[Any]) -> None:
        """Return when `wanted` is done. Raise what it raises, or why a child was given up before."""
        try:
            while not wanted.done():
                waiting: set[asyncio.Future[Any]] = {wanted, *(run for run in self._runs if not run.done())}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for run in self._runs:
                    if run.done():
                        run.result()
            wanted.result()
        finally:
            wanted.cancel()
            await asyncio.gather(wanted, return_exceptions=True)

    async def _unless(self, stopping: asyncio.Event, work: Awaitable[None]) -> bool:
        """Return whether `work` came to its end before `stopping` was set; it is cancelled when not."""
        asked = asyncio.ensure_future(stopping.wait())
        doing = asyncio.ensure_future(work)
        try:
            await asyncio.wait({asked, doing}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
                return True
            return False
        finally:
            asked.cancel()
            doing.cancel()
            await asyncio.gather(asked, doing, return_exceptions=True)


def _grouped(children: Sequence[Child], stage: Callable[[Child], int]) -> list[list[Child]]:
    """Return the children by stage, ascending."""
    return [list(group) for _, group in itertools.groupby(sorted(children, key=stage), key=stage)]
