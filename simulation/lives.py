"""Which process a piece of code would run in: a life begins with a start and ends with a kill.

Everything that an agent does carries its life in the context of its tasks, callbacks and timers. The loop asks the
life before each of them: what belongs to a frozen life waits, what belongs to a dead one never runs again. So a kill
is a kill: no cleanup, no last message, no effect.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any


class Killed(BaseException):
    """Ends the code that reached a crash point. Only a life that is dead already raises it."""


class Life:
    """One life of one process. `held` is what would have run while it did not."""

    __slots__ = ("dead", "frozen", "held", "name", "running")

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = True
        self.frozen = False
        self.dead = False
        self.held: list[asyncio.Handle] = []

    def freeze(self) -> None:
        """Run nothing of it until `thaw`, as SIGSTOP would."""
        self.frozen = True
        self.running = False

    def thaw(self) -> list[asyncio.Handle]:
        """Let it run again; return what has to run now, in order."""
        self.frozen = False
        if self.dead:
            return []
        self.running = True
        held, self.held = self.held, []
        return held

    def kill(self) -> None:
        """Run nothing of it ever again."""
        self.dead = True
        self.running = False

    def enter(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function` returns when it is called inside this life."""
        context = copy_context()
        context.run(CURRENT.set, self)
        return context.run(function, *arguments)


CURRENT: ContextVar[Life | None] = ContextVar("life", default=None)
"""The life that is running; None for the world around the processes."""
