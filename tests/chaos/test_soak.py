"""A short run of the soak: a few kinds of processes are killed at random, and everything that was promised holds."""

from pathlib import Path

import pytest

from tests.chaos.soak import Course, soak

INSTANCES = 150
KILLS = 15


@pytest.mark.chaos
@pytest.mark.timeout(300)
async def test_random_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    code = await soak(INSTANCES, KILLS, 1, tmp_path, said.append)
    assert code == 0, "\n".join(said)
    assert any(line.split() == ["lost", "0"] for line in said)


def test_a_pause_is_the_time_without_a_new_event_while_something_is_open() -> None:
    course = Course(began=0.0)
    course.see(1, 10, 1.0)
    course.see(1, 10, 3.0)
    course.see(1, 11, 4.0)
    course.see(0, 12, 5.0)
    course.see(0, 12, 20.0)
    course.see(1, 13, 21.0)
    assert course.longest_pause == 2.0
