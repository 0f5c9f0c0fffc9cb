"""The engine's clock follows the wall clock, but a wall clock that is set does not move what is due."""

from datetime import UTC, datetime, timedelta

import pytest

from runtime.clock import SLEW, SlewedClock, SystemClock

START = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)


class Machine:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.ahead = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.elapsed + self.ahead)

    def monotonic(self) -> float:
        return self.elapsed


def seconds(clock: SlewedClock) -> float:
    return (clock.now() - START).total_seconds()


def test_it_shows_the_wall_time_while_nobody_sets_it() -> None:
    machine = Machine()
    clock = SlewedClock(machine)
    machine.elapsed = 1000.0
    assert seconds(clock) == 1000.0


@pytest.mark.parametrize("jump", [-3600.0, 3600.0, 86_400.0 * 3650])
def test_a_wall_clock_that_is_set_moves_it_by_a_tenth_of_the_time_at_most(jump: float) -> None:
    machine = Machine()
    clock = SlewedClock(machine)
    machine.ahead = jump
    assert seconds(clock) == 0.0
    machine.elapsed = 100.0
    assert seconds(clock) == pytest.approx(100.0 + 100.0 * SLEW * (1 if jump > 0 else -1))


@pytest.mark.parametrize("jump", [-60.0, 60.0])
def test_it_is_right_again_after_a_while(jump: float) -> None:
    machine = Machine()
    clock = SlewedClock(machine)
    machine.ahead = jump
    shown = []
    for _ in range(100):
        machine.elapsed += 10.0
        shown.append(seconds(clock))
    assert shown == sorted(shown)
    assert seconds(clock) == machine.elapsed + jump


def test_the_machines_own_clock_never_goes_back() -> None:
    clock = SystemClock()
    times = [clock.monotonic() for _ in range(100)]
    assert times == sorted(times)
    assert clock.now().tzinfo is UTC
