"""How a process ends: codes and signals."""

import asyncio
import gc
import os
import signal

import pytest

from runtime import process
from runtime.errors import RuntimeFault
from runtime.process import run, run_to_end


def test_result_of_main_is_the_exit_code() -> None:
    async def main(stopping: asyncio.Event) -> int:
        return 3

    assert run_to_end(main) == 3
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_asks_main_to_finish(number: signal.Signals) -> None:
    async def main(stopping: asyncio.Event) -> int:
        os.kill(os.getpid(), number)
        await stopping.wait()
        return 0

    assert run_to_end(main) == 0


def test_later_signal_ends_main_at_once() -> None:
    cleaned = []

    async def main(stopping: asyncio.Event) -> int:
        try:
            while True:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.05)
        finally:
            cleaned.append(True)
        return 0

    assert run_to_end(main) == 130
    assert cleaned == [True]


def test_signals_close_together_are_one_request() -> None:
    async def main(stopping: asyncio.Event) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        await stopping.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        return 0

    assert run_to_end(main) == 0


def test_signal_handlers_are_put_back() -> None:
    async def main(stopping: asyncio.Event) -> int:
        return 0

    before = signal.getsignal(signal.SIGINT)
    run_to_end(main)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("error", "code", "event"),
    [(ValueError("a bug"), 1, "process_failed"), (RuntimeFault("no address"), 78, "process_cannot_run")],
)
def test_crash_is_logged_and_tells_whether_to_try_again(
    error: Exception, code: int, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(stopping: asyncio.Event) -> int:
        raise error

    assert run_to_end(main) == code
    assert caplog.messages == [event]


def test_settled_process_walks_what_it_keeps_for_good_no_more() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(700)
    try:
        process.settle()
        assert gc.get_freeze_count() > frozen
        assert gc.get_threshold()[0] > 700
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
