"""How a process runs: the event loop, the signals, the end. No pid file: whoever started it knows it."""

import asyncio
import contextlib
import gc
import importlib.util
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from runtime.errors import RuntimeFault

logger = logging.getLogger(__name__)

GC_YOUNG_OBJECTS = 10_000
"""So many more containers than were freed are looked through at once; Python's own 700 is meant for small scripts."""
GC_GENERATIONS = 10
EXIT_FAILURE = 1
EXIT_UNUSABLE = 78
"""The process cannot run as it is set up, and would not the next time either (EX_CONFIG of sysexits.h)."""
EXIT_INTERRUPTED = 130
SAME_REQUEST_SECONDS = 1.0
"""Signals this close together are one request: some senders signal the process and then its group."""

Main = Callable[[asyncio.Event], Coroutine[Any, Any, int]]
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def run(main: Main) -> NoReturn:
    """Run `main` on the best event loop there is and exit with what it returns.

    Args:
        main: Receives an event that SIGTERM or SIGINT sets: finish and return. A second signal cancels it.
    """
    sys.exit(run_to_end(main))


def run_to_end(main: Main, *, new_loop: NewLoop | None = None) -> int:
    """Return the exit code of `main`, run as `run` does, on the loop that `new_loop` makes or the best there is.

    1 after a crash, 78 when the process cannot run as it is set up, 130 after a second signal.
    """
    with asyncio.Runner(loop_factory=new_loop or loop_factory()) as runner:
        try:
            return runner.run(_with_signals(main))
        except asyncio.CancelledError:
            return EXIT_INTERRUPTED
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except RuntimeFault as fault:
            logger.error("process_cannot_run", extra={"code": fault.code, "reason": str(fault)})
            return EXIT_FAILURE if fault.retryable else EXIT_UNUSABLE
        except Exception:  # boundary: a main
            logger.exception("process_failed")
            return EXIT_FAILURE


def settle() -> None:
    """Have the garbage collector leave alone what a started process keeps for good, and look less often.

    A full collection walks every object that the imports made, again and again; it took a quarter of a busy agent's
    time. Reference counting frees nearly everything here at once, so looking later costs little memory.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG_OBJECTS, GC_GENERATIONS, GC_GENERATIONS)


def loop_factory() -> NewLoop:
    """Return what makes an event loop: uvloop's when it is installed, else the standard one."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


async def _with_signals(main: Main) -> int:
    stopping = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    asked_at = 0.0

    def received(name: str) -> None:
        nonlocal asked_at
        if stopping.is_set():
            if loop.time() - asked_at < SAME_REQUEST_SECONDS:
                return
            logger.warning("stopping_at_once", extra={"signal": name})
            task.cancel()
        else:
            logger.info("stopping", extra={"signal": name})
            asked_at = loop.time()
            stopping.set()

    with contextlib.ExitStack() as handlers:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, received, number.name)
            handlers.callback(loop.remove_signal_handler, number)
        return await main(stopping)
