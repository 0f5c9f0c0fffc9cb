"""Which results an engine does not want any more, and which effects may begin."""

import pytest

from agents.workflow_engine.heartbeats import unwanted
from orchestration.contracts import TaskBeat
from orchestration.status import Effects
from tests.builders import Play, make_plan, make_task


def play(task_id: str = "a") -> Play:
    return Play(make_plan(make_task(task_id, effects=Effects.ONCE)))


@pytest.mark.parametrize("begun", [True, False])
def test_the_attempt_under_way_is_wanted(begun: bool) -> None:
    made = play()
    beat = TaskBeat(token=made.token("a"), begun=begun)
    assert unwanted([beat], lambda _: made.instance) == []


def test_an_attempt_of_unknown_outcome_may_end_and_must_not_begin() -> None:
    made = play()
    token = made.token("a")
    made.lose("a")
    begun, asks = TaskBeat(token=token), TaskBeat(token=token, begun=False)
    assert unwanted([begun], lambda _: made.instance) == []
    assert unwanted([asks], lambda _: made.instance) == [token]


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_over_or_was_never_asked_for_is_unwanted(begun: bool) -> None:
    made = play()
    token = made.token("a")
    made.succeed("a")
    tokens = [token, "ins_1/a/9", "ins_1/other/1"]
    beats = [TaskBeat(token=token, begun=begun) for token in tokens]
    assert unwanted(beats, lambda _: made.instance) == tokens


@pytest.mark.parametrize("token", ["ins_9/a/1", "", "nonsense", "///"])
def test_of_an_instance_that_is_not_known_here_nothing_is_said(token: str) -> None:
    assert unwanted([TaskBeat(token=token)], lambda _: None) == []
