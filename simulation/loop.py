"""An asyncio event loop on virtual time: when nothing is ready it jumps to the next timer. It never blocks.

One thread, one order: the same program takes the same steps every time. Work for other threads is done at once, in
place. Never give it sockets or child processes: it has none.
"""

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, cast

from simulation.errors import Deadlock, EndlessLoop
from simulation.lives import CURRENT, Killed, Life

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_STEPS_A_SECOND = 200_000
"""Steps within one second of virtual time; more are an endless loop."""
MAX_CLOSING_STEPS = 500_000
CLOSING_STEPS_A_TIME = 5000
"""Steps after which the tasks that are left are cancelled once more."""
MAX_TOLD_TASKS = 30


class _Step(asyncio.Handle):
    """Something to run, and the life that it belongs to."""

    __slots__ = ("life",)
    life: Life | None


class _Timer(asyncio.TimerHandle):
    """Something to run later."""

    __slots__ = ("life",)
    life: Life | None


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs one simulation. `steps` counts what was run."""

    def __init__(self, *, max_steps_a_second: int = MAX_STEPS_A_SECOND) -> None:
        self._running = False
        super().__init__()
        self.steps = 0
        self.failures: list[str] = []
        """What callbacks raised."""
        self._now = 0.0
        self._ready: deque[_Step | _Timer] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._timer_count = 0
        self._max_steps = max_steps_a_second
        self._second = 0
        self._steps_before = 0
        self._closed = False

    # --- running -------------------------------------------------------------------------------------------

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Return the result of `future` after running it to its end.

        Raises: EndlessLoop, Deadlock, or what it raised.
        """
        task: asyncio.Future[T] = asyncio.ensure_future(cast(Awaitable[T], future), loop=self)
        self._run(task.done)
        return task.result()

    def _run(self, done: Callable[[], bool]) -> None:
        events._set_running_loop(self)
        self._running = True
        try:
            while not done():
                if not self._ready:
                    self._jump()
                self._round()
        finally:
            self._running = False
            events._set_running_loop(None)

    def _round(self) -> None:
        """Run what is ready now; what that makes ready comes in the next round."""
        ready = self._ready
        for _ in range(len(ready)):
            step = ready.popleft()
            if step._cancelled:
                continue
            life = step.life
            if life is not None and not life.running:
                life.held.append(step)
                continue
            self.steps += 1
            step._run()
        if self.steps - self._steps_before > self._max_steps:
            raise EndlessLoop(
                f"more than {self._max_steps} steps within the second {self._second} of virtual time; "
                f"next: {list(ready)[:3]}"
            )

    def _jump(self) -> None:
        """Go on to the next timer's time."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise Deadlock("nothing can happen any more; unfinished:\n" + "\n".join(self.unfinished()))
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                self._ready.append(timer)
        if int(self._now) != self._second:
            self._second = int(self._now)
            self._steps_before = self.steps

    def resume(self, steps: list[asyncio.Handle]) -> None:
        """Run steps that were held back, before anything else that becomes ready."""
        self._ready.extend(step for step in steps if isinstance(step, _Step | _Timer))

    def unfinished(self) -> list[str]:
        """Return the tasks that have not ended, each with the line where it waits."""
        told = []
        for task in sorted(asyncio.all_tasks(self), key=lambda task: task.get_name()):
            frames = task.get_stack(limit=1)
            place = f"{frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else "?"
            told.append(f"  {task.get_name()} at {place}")
        return told[:MAX_TOLD_TASKS]

    # --- what asyncio asks of a loop -----------------------------------------------------------------------

    def time(self) -> float:
        """Return the virtual time, in seconds from the start of the simulation."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run `callback` in the next round."""
        step = _Step(callback, args, self, context)
        step.life = CURRENT.get() if context is None else context.get(CURRENT)
        self._ready.append(step)
        return step

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run `callback` in the next round; there are no other threads."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run `callback` after `delay` seconds of virtual time."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run `callback` at a virtual time. Equal times run in the order in which they were set."""
        timer = _Timer(when, callback, args, self, context)
        timer.life = CURRENT.get() if context is None else context.get(CURRENT)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave a cancelled timer where it is; `_jump` passes over it."""

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Return a task of this loop."""
        return asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Return the future of what `func` returns; it is called here and now, whatever the executor."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # boundary: raised where the future is awaited
            future.set_exception(error)
        return future

    def get_debug(self) -> bool:
        """Return False: asyncio's debug mode measures real time."""
        return False

    def is_running(self) -> bool:
        """Return whether it runs now."""
        return self._running

    def is_closed(self) -> bool:
        """Return whether it was closed."""
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what a callback raised. A killed life's end is no failure."""
        error = context.get("exception")
        if isinstance(error, Killed) or self._closed or "handle" not in context:
            return
        self.failures.append(f"{context.get('message')}: {error!r}")

    def end(self, lives: Iterable[Life] = ()) -> None:
        """Cancel every task, of dead lives too, and take nothing more. What they do now has no meaning."""
        for life in lives:
            life.dead = life.frozen = False
            self.resume(life.thaw())
        last = self.steps + MAX_CLOSING_STEPS
        self._max_steps = MAX_CLOSING_STEPS
        self._steps_before = self.steps
        self._run(self._is_idle)
        while (tasks := asyncio.all_tasks(self)) and self.steps < last:
            for task in tasks:
                task.cancel()
            self._steps_before = self.steps
            self._run(self._is_idle)
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def _is_idle(self) -> bool:
        return not self._ready or self.steps > self._steps_before + CLOSING_STEPS_A_TIME

    def close(self) -> None:
        """Take nothing more."""
        self.end()

    def __del__(self) -> None:
        """Let go of nothing: the loop has no file, socket or thread."""
