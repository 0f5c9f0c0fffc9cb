"""Lost attempts: who may be dispatched again, whose outcome is unknown, and what settles that."""

from typing import Any

import msgspec
import pytest

from orchestration import commands as cmd
from orchestration import events as ev
from orchestration import losses, machine
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import OnError
from orchestration.errors import IllegalMove
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import Effects, InstanceStatus, RecoveryAction, TaskStatus
from orchestration.turn import MAX_LOSSES
from tests.builders import Play, at, make_plan, make_task

TWICE = RetryPolicy(strategy=RetryStrategy.FIXED_DELAY, max_attempts=2, initial_delay_seconds=10)


def unknown(**look: Any) -> Play:
    """Return an instance whose task `charge` was lost, with its reconcile task `look` called for; `ship` waits."""
    play = Play(
        make_plan(
            make_task(
                "charge", effects=Effects.ONCE, retry=TWICE, reconcile="look", outputs=("receipt", "fee")
            ),
            make_task("look", is_reconcile=True, **look),
            make_task("ship", "charge"),
        )
    )
    play.lose("charge")
    return play


def found(play: Play, verdict: Any) -> None:
    """Let the reconcile task answer."""
    play.send(
        st.AttemptSucceeded(at=play.later(1), task_id="look", token=play.token("look"), primary=verdict)
    )


def of_type(play: Play, kind: type) -> list[Any]:
    return [event for event in play.events if isinstance(event, kind)]


@pytest.mark.parametrize("effects", [Effects.ONCE, Effects.IRREVERSIBLE])
def test_a_lost_attempt_that_must_not_be_repeated_has_an_unknown_outcome(effects: Effects) -> None:
    play = Play(make_plan(make_task("a", effects=effects, retry=TWICE), make_task("b", "a")))
    token = play.token("a")
    play.lose("a", "its agent died")
    run = play.instance.runs["a"]
    assert (run.status, run.token, run.error) == (TaskStatus.OUTCOME_UNKNOWN, token, None)
    assert play.dispatched() == ["a"]
    assert of_type(play, ev.TaskOutcomeUnknown)[0].reason == "its agent died"
    assert play.statuses()["b"] == "pending"
    assert machine.pending_commands(play.plan, play.instance) == ()


@pytest.mark.parametrize("effects", [Effects.NONE, Effects.READ, Effects.IDEMPOTENT])
def test_a_lost_attempt_that_may_be_repeated_is_dispatched_again(effects: Effects) -> None:
    play = Play(make_plan(make_task("a", effects=effects)))
    play.lose("a")
    assert play.dispatched() == ["a", "a"]


def test_a_late_result_settles_an_unknown_outcome() -> None:
    play = Play(make_plan(make_task("a", effects=Effects.ONCE), make_task("b", "a")))
    play.lose("a")
    play.succeed("a", a_out=7)
    assert play.instance.variables["a_out"] == 7
    assert play.dispatched() == ["a", "b"]
    assert of_type(play, ev.LateResult) == []


def test_a_late_error_settles_an_unknown_outcome_as_any_error_would() -> None:
    often = msgspec.structs.replace(TWICE, retry_on_codes=("RATE_LIMIT_EXCEEDED",))
    play = Play(make_plan(make_task("a", effects=Effects.ONCE, retry=often)))
    play.lose("a")
    play.fail("a", "RATE_LIMIT_EXCEEDED")
    assert play.instance.runs["a"].status is TaskStatus.RETRYING


def test_a_late_error_that_does_not_say_whether_it_was_done_leaves_the_outcome_unknown() -> None:
    play = unknown()
    play.fail("charge", "TIMEOUT")
    assert (play.statuses()["charge"], play.statuses()["look"]) == ("outcome_unknown", "running")
    assert [late.error.code for late in of_type(play, ev.LateResult)] == ["TIMEOUT"]
    found(play, {"outcome": "done", "receipt": "r1"})
    assert play.statuses()["charge"] == "completed"


EVERY_CODE = msgspec.structs.replace(TWICE, retry_on_codes=("*",))


@pytest.mark.parametrize("retry", [TWICE, EVERY_CODE, RetryPolicy(max_attempts=1)])
@pytest.mark.parametrize("effects", [Effects.ONCE, Effects.IRREVERSIBLE])
@pytest.mark.parametrize("code", ["TIMEOUT", "NETWORK_ERROR", "TASK_CANCELLED", "OUTCOME_UNKNOWN"])
def test_an_error_that_does_not_say_whether_it_was_done_is_never_followed_by_a_blind_attempt(
    code: str, effects: Effects, retry: RetryPolicy
) -> None:
    play = Play(make_plan(make_task("a", effects=effects, retry=retry), make_task("b", "a")))
    play.fail("a", code)
    run = play.instance.runs["a"]
    assert run.status is TaskStatus.OUTCOME_UNKNOWN
    assert run.error is not None
    assert run.error.code == code
    assert of_type(play, ev.AttemptLost)[0].error == run.error
    assert of_type(play, ev.TaskOutcomeUnknown)[0].reason == f"{code}: {code} happened"
    play.tick(100)
    assert (play.dispatched(), play.asked()) == (["a"], [])


def test_the_reconcile_task_finds_out_about_an_attempt_that_was_given_up() -> None:
    play = Play(
        make_plan(
            make_task("charge", effects=Effects.ONCE, retry=TWICE, reconcile="look"),
            make_task("look", is_reconcile=True),
        )
    )
    play.fail("charge", "TIMEOUT")
    assert play.dispatched() == ["charge", "look"]
    found(play, {"outcome": "not_done"})
    assert play.dispatched() == ["charge", "look", "charge"]


@pytest.mark.parametrize(
    ("code", "begun", "named", "open_"),
    [
        ("TIMEOUT", None, (), True),
        ("TIMEOUT", False, (), False),
        ("TIMEOUT", True, (), True),
        ("TIMEOUT", None, ("NETWORK_ERROR",), True),
        ("TIMEOUT", None, ("TIMEOUT",), False),
        ("TIMEOUT", True, ("TIMEOUT",), False),
        ("NETWORK_ERROR", "no", (), True),
        ("NETWORK_ERROR", False, (), False),
        ("RATE_LIMIT_EXCEEDED", None, (), False),
        ("RATE_LIMIT_EXCEEDED", True, (), True),
        ("SCHEDULE_TO_START_TIMEOUT", None, (), False),
        ("TASK_EXECUTION_FAILED", None, (), False),
    ],
)
def test_the_author_then_the_agent_then_the_code_say_whether_an_error_leaves_the_outcome_open(
    code: str, begun: Any, named: tuple[str, ...], open_: bool
) -> None:
    task = make_task("a", effects=Effects.ONCE, named_codes=named)
    error = ErrorInfo(code=code, message="m", details={} if begun is None else {"begun": begun})
    assert losses.leaves_open(task, error) is open_
    for effects in (Effects.NONE, Effects.READ, Effects.IDEMPOTENT):
        assert not losses.leaves_open(msgspec.structs.replace(task, effects=effects), error)


def test_without_a_word_of_the_author_a_timeout_is_an_error_and_a_lost_agent_leaves_the_outcome_unknown() -> (
    None
):
    play = Play(make_plan(make_task("a", effects=Effects.ONCE, effects_declared=False, retry=TWICE)))
    play.fail("a", "TIMEOUT")
    play.tick(10)
    assert play.dispatched() == ["a", "a"]
    play.lose("a")
    assert play.statuses() == {"a": "outcome_unknown"}


def test_without_a_word_of_the_author_the_time_for_all_attempts_fails_the_task() -> None:
    task = make_task("a", effects=Effects.ONCE, effects_declared=False, total_timeout_seconds=20)
    play = Play(make_plan(task))
    play.tick(20)
    assert play.asked() == ["a"]


def test_a_code_that_the_task_itself_names_is_retried_and_then_fails_as_ever() -> None:
    play = Play(make_plan(make_task("a", effects=Effects.ONCE, retry=TWICE, named_codes=["TIMEOUT"])))
    play.fail("a", "TIMEOUT")
    play.tick(10)
    assert play.dispatched() == ["a", "a"]
    play.fail("a", "TIMEOUT")
    assert play.asked() == ["a"]


def test_an_attempt_at_work_when_the_time_for_all_is_up_has_an_unknown_outcome() -> None:
    play = Play(make_plan(make_task("a", effects=Effects.ONCE, total_timeout_seconds=20)))
    play.tick(20)
    assert play.statuses() == {"a": "outcome_unknown"}
    assert "all attempts together" in of_type(play, ev.TaskOutcomeUnknown)[0].reason
    play.send(st.RetryOrder(at=play.later(500), task_id="a", reason="it was not done"))
    assert play.dispatched() == ["a", "a"]
    play.succeed("a")
    assert play.instance.status is InstanceStatus.COMPLETED


def together(play: Play, *stimuli: st.AnyStimulus) -> list[cmd.Command]:
    """Return what is done when these reach the instance in one turn of its driver."""
    before = len(play.commands)
    for stimulus in stimuli:
        play.send(stimulus)
    return machine.without_superseded(play.instance, play.commands[before:])


def test_an_attempt_that_the_same_turn_gave_up_again_is_never_sent() -> None:
    play = Play(
        make_plan(
            make_task("charge", effects=Effects.ONCE, reconcile="look"),
            make_task("look", is_reconcile=True),
            make_task("ship", "charge"),
        )
    )
    token = play.token("charge")
    lost = st.AttemptVanished(at=at(1), task_id="charge", token=token)
    late = st.AttemptSucceeded(at=at(1), task_id="charge", token=token)
    assert together(play, lost, late) == [cmd.Dispatch("ship", 1, "ins_1/ship/1")]
    assert cmd.Dispatch("look", 1, "ins_1/look/1") in play.commands


def test_an_attempt_that_was_sent_in_an_earlier_turn_is_told_to_stop() -> None:
    play = unknown()
    late = st.AttemptSucceeded(at=at(9), task_id="charge", token=play.token("charge"))
    look = play.token("look")
    assert cmd.CancelAttempt("look", look) in together(play, late)


def test_what_the_end_of_the_instance_overtook_is_never_sent() -> None:
    play = Play(make_plan(make_task("a"), make_task("b", "a")))
    done = st.AttemptSucceeded(at=at(1), task_id="a", token=play.token("a"))
    assert together(play, done, st.StopOrder(at=at(1))) == []


def test_the_reconcile_task_runs_only_when_it_is_called_for() -> None:
    play = Play(
        make_plan(
            make_task("charge", effects=Effects.ONCE, reconcile="look"), make_task("look", is_reconcile=True)
        )
    )
    assert play.dispatched() == ["charge"]
    play.succeed("charge")
    assert play.instance.runs["look"].skip_reason == "reconcile_not_needed"
    assert play.instance.status is InstanceStatus.COMPLETED


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ({"outcome": "done", "outputs": {"receipt": "r1", "fee": 3}}, {"receipt": "r1", "fee": 3}),
        ({"outcome": "done", "receipt": "r1", "fee": 3}, {"receipt": "r1", "fee": 3}),
        ({"outcome": "done"}, {"receipt": None, "fee": None}),
    ],
)
def test_work_that_was_done_completes_with_what_the_reconcile_task_found(
    verdict: Any, expected: dict[str, Any]
) -> None:
    play = unknown()
    assert play.dispatched() == ["charge", "look"]
    assert play.instance.runs["charge"].reconciling
    found(play, verdict)
    charge = play.instance.runs["charge"]
    assert (charge.status, charge.outputs, charge.reconciling) == (TaskStatus.COMPLETED, expected, False)
    assert play.dispatched() == ["charge", "look", "ship"]
    assert of_type(play, ev.TaskCompleted)[-1].metadata == {"reconciled_by": "look"}


def test_work_that_was_not_done_is_attempted_again_under_the_same_key() -> None:
    play = unknown()
    found(play, {"outcome": "not_done"})
    charge = play.instance.runs["charge"]
    assert (charge.status, charge.attempt, charge.round, charge.losses) == (TaskStatus.RUNNING, 2, 1, 1)
    assert play.dispatched() == ["charge", "look", "charge"]
    assert of_type(play, ev.TaskRetrying)[0].decided_by == "look"
    play.succeed("charge")
    play.succeed("ship")
    assert play.instance.status is InstanceStatus.COMPLETED


def test_the_reconcile_task_runs_again_when_the_next_attempt_is_lost_too() -> None:
    play = unknown()
    found(play, {"outcome": "not_done"})
    play.lose("charge")
    look = play.instance.runs["look"]
    assert (look.status, look.attempt, look.round) == (TaskStatus.RUNNING, 2, 2)
    found(play, {"outcome": "done", "receipt": "r2"})
    assert play.instance.variables["receipt"] == "r2"


def test_a_task_that_loses_every_agent_and_never_does_its_work_is_poison() -> None:
    play = unknown()
    for _ in range(MAX_LOSSES - 1):
        found(play, {"outcome": "not_done"})
        play.lose("charge")
    found(play, {"outcome": "not_done"})
    error = play.instance.runs["charge"].error
    assert error is not None
    assert error.code == "POISON_TASK"
    assert play.asked()[-1] == "charge"


@pytest.mark.parametrize("verdict", [None, "done", {}, {"outcome": "maybe"}, {"outcome": True}, [1]])
def test_an_answer_that_decides_nothing_leaves_it_to_a_person(verdict: Any) -> None:
    play = unknown()
    found(play, verdict)
    charge = play.instance.runs["charge"]
    assert (charge.status, charge.reconciling) == (TaskStatus.OUTCOME_UNKNOWN, False)
    assert play.instance.status is InstanceStatus.RUNNING


def test_a_reconcile_task_that_fails_decides_nothing_and_fails_nothing() -> None:
    play = unknown()
    play.fail("look")
    play.decide("look", RecoveryAction.ABORT)
    assert play.instance.runs["charge"].status is TaskStatus.OUTCOME_UNKNOWN
    play.send(st.CompleteOrder(at=play.later(1), task_id="charge", outputs={"receipt": "r3"}))
    play.succeed("ship")
    assert play.statuses() == {"charge": "completed", "look": "failed", "ship": "completed"}
    assert play.instance.status is InstanceStatus.COMPLETED


def test_a_reconcile_task_whose_dependency_failed_decides_nothing() -> None:
    play = Play(
        make_plan(
            make_task("login"),
            make_task("charge", effects=Effects.ONCE, reconcile="look"),
            make_task("look", "login", is_reconcile=True),
        )
    )
    play.fail("login")
    play.decide("login", RecoveryAction.ABORT)
    assert play.statuses()["look"] == "pending"
    play.lose("charge")
    assert play.instance.runs["look"].skip_reason == "dependency_failed"
    assert not play.instance.runs["charge"].reconciling


def test_a_reconcile_task_waits_for_what_it_depends_on() -> None:
    play = Play(
        make_plan(
            make_task("login"),
            make_task("charge", effects=Effects.ONCE, reconcile="look"),
            make_task("look", "login", is_reconcile=True),
        )
    )
    play.lose("charge")
    assert play.statuses()["look"] == "pending"
    play.succeed("login")
    assert play.dispatched() == ["login", "charge", "look"]


def test_a_late_result_makes_the_reconcile_task_needless() -> None:
    play = unknown()
    look = play.token("look")
    play.succeed("charge")
    assert play.instance.runs["look"].skip_reason == "reconcile_not_needed"
    assert cmd.CancelAttempt("look", look) in play.commands


def test_nothing_is_looked_for_or_attempted_while_paused() -> None:
    play = unknown()
    play.send(st.PauseOrder(at=play.later(1)))
    found(play, {"outcome": "not_done"})
    assert play.instance.runs["charge"].status is TaskStatus.RETRYING
    assert play.dispatched() == ["charge", "look"]
    play.send(st.ResumeOrder(at=play.later(1)))
    assert play.dispatched() == ["charge", "look", "charge"]


# --- a person decides ---------------------------------------------------------------------------------------


def test_a_person_says_that_it_was_not_done() -> None:
    play = unknown()
    found(play, "no idea")
    play.send(st.RetryOrder(at=play.later(1), task_id="charge", reason="the bank has nothing"))
    charge = play.instance.runs["charge"]
    assert (charge.status, charge.attempt, charge.round, charge.losses) == (TaskStatus.RUNNING, 2, 1, 0)
    assert of_type(play, ev.TaskRetrying)[0].reason == "the bank has nothing"


def test_a_person_decides_before_the_reconcile_task_does() -> None:
    play = unknown()
    play.send(st.RetryOrder(at=play.later(1), task_id="charge"))
    assert play.instance.runs["look"].skip_reason == "reconcile_not_needed"
    assert play.dispatched() == ["charge", "look", "charge"]


def test_a_person_skips_a_task_of_unknown_outcome() -> None:
    play = unknown()
    token = play.token("charge")
    play.send(st.SkipOrder(at=play.later(1), task_id="charge", reason="never mind"))
    assert play.statuses() == {"charge": "skipped", "look": "skipped", "ship": "skipped"}
    assert cmd.CancelAttempt("charge", token) in play.commands
    assert play.instance.status is InstanceStatus.COMPLETED


def test_a_person_says_that_it_was_done_and_what_it_gave() -> None:
    play = unknown()
    play.send(
        st.CompleteOrder(at=play.later(1), task_id="charge", outputs={"receipt": "r9"}, reason="I saw it")
    )
    assert play.instance.runs["charge"].outputs == {"receipt": "r9", "fee": None}
    assert of_type(play, ev.TaskCompleted)[-1].metadata == {"completed_by": "operator", "reason": "I saw it"}
    assert "ship" in play.dispatched()


def test_only_an_unknown_outcome_can_be_said_to_be_done() -> None:
    play = Play(make_plan(make_task("a")))
    for task_id in ("a", "nowhere"):
        with pytest.raises(IllegalMove):
            play.send(st.CompleteOrder(at=at(1), task_id=task_id))


def test_a_person_has_a_failed_reconcile_task_look_again() -> None:
    play = unknown()
    play.fail("look")
    play.decide("look", RecoveryAction.ABORT)
    play.send(st.RetryOrder(at=play.later(1), task_id="look"))
    assert play.instance.runs["charge"].reconciling
    found(play, {"outcome": "done", "receipt": "r1"})
    assert play.statuses()["charge"] == "completed"


def test_a_failed_reconcile_task_does_not_look_again_once_the_outcome_is_known() -> None:
    play = unknown()
    play.fail("look")
    play.decide("look", RecoveryAction.ABORT)
    play.send(st.RetryOrder(at=play.later(1), task_id="charge"))
    with pytest.raises(IllegalMove, match="outcome of task charge is known"):
        play.send(st.RetryOrder(at=play.later(1), task_id="look"))


# --- limits -------------------------------------------------------------------------------------------------


def test_the_time_for_the_whole_ends_an_instance_whose_outcome_is_unknown() -> None:
    play = Play(make_plan(make_task("a", effects=Effects.ONCE), global_timeout_seconds=60))
    play.lose("a")
    play.tick(60)
    assert play.instance.status is InstanceStatus.FAILED
    assert play.statuses() == {"a": "cancelled"}
    assert cmd.CancelAttempt("a", "ins_1/a/1") in play.commands


def test_no_answer_in_time_of_work_that_must_not_be_repeated_is_an_unknown_outcome() -> None:
    task = make_task("a", effects=Effects.ONCE, retry=TWICE, timeout_seconds=10, schedule_to_start_seconds=5)
    play = Play(make_plan(task))
    play.tick(15)
    assert play.statuses() == {"a": "outcome_unknown"}
    assert play.dispatched() == ["a"]


def test_a_silent_agent_is_told_to_stop_when_another_attempt_begins() -> None:
    play = Play(make_plan(make_task("a")))
    play.send(
        st.AttemptVanished(
            at=play.later(1),
            task_id="a",
            token=play.token("a"),
            reason="no sign of life",
            may_be_at_work=True,
        )
    )
    assert cmd.CancelAttempt("a", "ins_1/a/1") in play.commands
    assert play.dispatched() == ["a", "a"]


def test_silence_of_every_agent_is_poison() -> None:
    play = Play(make_plan(make_task("a")))
    for _ in range(MAX_LOSSES):
        play.send(
            st.AttemptVanished(at=play.later(1), task_id="a", token=play.token("a"), may_be_at_work=True)
        )
    error = play.instance.runs["a"].error
    assert error is not None
    assert error.code == "POISON_TASK"


def test_a_loss_of_a_superseded_attempt_changes_nothing() -> None:
    play = unknown()
    step = play.send(st.AttemptVanished(at=play.later(1), task_id="charge", token="ins_1/charge/1"))
    assert step.events == ()


# --- an executor that knows that it never began -------------------------------------------------------------


def never_began(play: Play, task_id: str) -> None:
    play.send(
        st.AttemptVanished(
            at=play.later(1),
            task_id=task_id,
            token=play.token(task_id),
            agent_id="task-executor-1",
            reason="killed before it began",
            begun=False,
        )
    )


def test_work_that_never_began_is_done_elsewhere_although_it_must_not_be_repeated() -> None:
    play = Play(make_plan(make_task("a", effects=Effects.ONCE)))
    never_began(play, "a")
    assert play.dispatched() == ["a", "a"]
    assert [event.decided_by for event in of_type(play, ev.TaskRetrying)] == ["task-executor-1"]
    assert of_type(play, ev.TaskOutcomeUnknown) == []
    play.succeed("a", a_out=1)
    assert play.instance.status is InstanceStatus.COMPLETED


def test_an_unknown_outcome_is_settled_by_who_knows_that_it_never_began() -> None:
    play = unknown()
    never_began(play, "charge")
    assert play.statuses()["charge"] == "running"
    assert play.statuses()["look"] == "skipped"
    assert play.dispatched().count("charge") == 2


def test_agents_that_always_vanish_before_they_begin_are_poison() -> None:
    play = Play(make_plan(make_task("a", effects=Effects.ONCE)))
    for _ in range(MAX_LOSSES):
        never_began(play, "a")
    error = play.instance.runs["a"].error
    assert error is not None
    assert error.code == "POISON_TASK"


def test_a_second_word_about_a_known_loss_changes_nothing() -> None:
    play = unknown()
    step = play.send(st.AttemptVanished(at=play.later(1), task_id="charge", token=play.token("charge")))
    assert step.events == ()


# --- late results -------------------------------------------------------------------------------------------


def test_a_late_result_is_kept_with_what_it_gave() -> None:
    play = Play(make_plan(make_task("a")))
    old = play.token("a")
    play.lose("a")
    error = ErrorInfo(code="LATE", message="too late")
    play.send(st.AttemptSucceeded(at=play.later(1), task_id="a", token=old, outputs={"a_out": 1}))
    play.send(st.AttemptErrored(at=play.later(1), task_id="a", token=old, error=error, jitter=0.0))
    late = of_type(play, ev.LateResult)
    assert [(each.attempt, each.outputs, each.error) for each in late] == [
        (1, {"a_out": 1}, None),
        (1, {}, error),
    ]
    assert play.statuses() == {"a": "running"}


def test_the_recorded_result_that_comes_twice_is_noted_once() -> None:
    play = Play(make_plan(make_task("a"), make_task("b", "a")))
    token = play.token("a")
    play.succeed("a")
    step = play.send(st.AttemptSucceeded(at=play.later(1), task_id="a", token=token, outputs={"a_out": "a"}))
    assert step.events == ()


def test_a_failed_task_of_unknown_outcome_may_have_a_fallback() -> None:
    fallback = OnError(action=RecoveryAction.FALLBACK, fallback="spare")
    play = Play(
        make_plan(
            make_task("a", effects=Effects.ONCE, on_error=fallback), make_task("spare", is_fallback=True)
        )
    )
    play.lose("a")
    play.fail("a", "REFUSED")
    play.decide("a", RecoveryAction.FALLBACK)
    play.succeed("spare")
    assert play.statuses() == {"a": "completed", "spare": "completed"}
