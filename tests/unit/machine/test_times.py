"""What is due when, by the facts alone: the time limits of tasks and instances."""

from orchestration import commands as cmd
from orchestration import stimuli as st
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import InstanceStatus, RecoveryAction, TaskStatus
from orchestration.times import due_times
from tests.builders import Play, at, make_plan, make_task

OFTEN = RetryPolicy(strategy=RetryStrategy.FIXED_DELAY, max_attempts=9, initial_delay_seconds=10)


def due(play: Play) -> set[tuple[float, str]]:
    """Return what is due, each with its seconds from the start."""
    return {((each.at - at(0)).total_seconds(), each.what) for each in due_times(play.plan, play.instance)}


def test_an_attempt_is_due_when_the_wait_for_an_agent_and_its_own_time_are_over() -> None:
    play = Play(make_plan(make_task("a", timeout_seconds=10, schedule_to_start_seconds=5)))
    assert due(play) == {(3600.0, "global_timeout"), (15.0, "timeout")}
    play.tick(14)
    assert play.asked() == []
    play.tick(1)
    assert play.asked() == ["a"]


def test_all_attempts_together_have_a_limit() -> None:
    play = Play(make_plan(make_task("a", retry=OFTEN, total_timeout_seconds=25)))
    assert (25.0, "total_timeout") in due(play)
    play.fail("a", "TIMEOUT")
    play.tick(10)
    assert play.dispatched() == ["a", "a"]
    play.tick(14)
    error = play.instance.runs["a"].error
    assert error is not None
    assert (error.code, error.retryable, error.details) == ("TOTAL_TIMEOUT", False, {"last_code": "TIMEOUT"})
    assert cmd.CancelAttempt("a", "ins_1/a/2") in play.commands
    assert play.asked() == ["a"]


def test_a_retry_that_would_begin_too_late_is_not_waited_for() -> None:
    play = Play(make_plan(make_task("a", retry=OFTEN, total_timeout_seconds=9)))
    play.fail("a", "TIMEOUT")
    run = play.instance.runs["a"]
    assert run.status is TaskStatus.RUNNING
    assert run.error is not None
    assert run.error.code == "TOTAL_TIMEOUT"
    assert play.asked() == ["a"]


def test_the_error_handler_grants_no_attempt_after_the_limit() -> None:
    play = Play(make_plan(make_task("a", total_timeout_seconds=20)))
    play.fail("a")
    play.decide("a", RecoveryAction.RETRY, delay_seconds=60)
    assert play.statuses() == {"a": "failed"}


def test_the_limit_begins_anew_when_a_person_takes_over() -> None:
    play = Play(make_plan(make_task("a", total_timeout_seconds=20)))
    play.fail("a")
    play.decide("a", RecoveryAction.ESCALATE)
    play.send(st.ResumeOrder(at=play.later(500)))
    assert (522.0, "total_timeout") in due(play)
    play.fail("a")
    play.decide("a", RecoveryAction.ABORT)
    assert play.instance.status is InstanceStatus.FAILED


def test_no_attempt_begins_after_the_limit() -> None:
    play = Play(make_plan(make_task("a", retry=OFTEN, total_timeout_seconds=30)))
    play.fail("a", "TIMEOUT")
    play.send(st.PauseOrder(at=play.later(1)))
    play.send(st.ResumeOrder(at=play.later(100)))
    assert play.dispatched() == ["a"]
    error = play.instance.runs["a"].error
    assert error is not None
    assert error.code == "TOTAL_TIMEOUT"


def test_a_limit_begins_anew_with_another_round() -> None:
    play = Play(make_plan(make_task("a", total_timeout_seconds=20), make_task("b")))
    play.fail("a")
    play.decide("a", RecoveryAction.ABORT)
    play.send(st.RetryOrder(at=play.later(98), task_id="a"))
    assert (120.0, "total_timeout") in due(play)


def test_a_paused_instance_begins_no_retry_and_says_so() -> None:
    play = Play(make_plan(make_task("a", retry=OFTEN)))
    play.fail("a", "TIMEOUT")
    assert (11.0, "retry") in due(play)
    play.send(st.PauseOrder(at=play.later(1), duration_seconds=60))
    assert due(play) == {(3600.0, "global_timeout"), (62.0, "resume")}
    play.tick(60)
    assert play.dispatched() == ["a", "a"]


def test_nothing_is_due_in_an_instance_that_has_ended() -> None:
    play = Play(make_plan(make_task("a")))
    play.succeed("a")
    assert due_times(play.plan, play.instance) == []
    assert due(Play(make_plan(make_task("a")), admit=False)) == set()


def test_every_due_time_says_what_happens_then() -> None:
    play = Play(
        make_plan(make_task("a", retry=OFTEN), make_task("b"), make_task("c", total_timeout_seconds=5))
    )
    play.fail("a", "TIMEOUT")
    reasons = {each.reason for each in due_times(play.plan, play.instance)}
    assert reasons == {
        "time for the whole is up",
        "task a is tried again",
        "the time for an attempt of task b is up",
        "the time for all attempts of task c is up",
    }
