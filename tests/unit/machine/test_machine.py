"""The machine, driven by hand: every rule of the joins, retries, recovery, orders and ends."""

import pytest

from orchestration import commands as cmd
from orchestration import events as ev
from orchestration import machine
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import SCHEDULE_TO_START_SECONDS, Condition, OnError
from orchestration.errors import IllegalMove
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import Effects, InstanceStatus, RecoveryAction, TaskStatus
from orchestration.times import due_times
from orchestration.turn import MAX_LOSSES
from tests.builders import Play, at, make_plan, make_task

TWICE = RetryPolicy(strategy=RetryStrategy.FIXED_DELAY, max_attempts=2, initial_delay_seconds=10)


def names(events: list[ev.Event]) -> list[str]:
    return [ev.type_of(event) for event in events]


def test_a_chain_runs_in_order_and_completes_with_its_outputs() -> None:
    play = Play(make_plan(make_task("a"), make_task("b", "a"), output_names=("b_out",)))
    assert play.dispatched() == ["a"]
    play.succeed("a")
    assert play.dispatched() == ["a", "b"]
    play.succeed("b", b_out=7)
    assert play.instance.status is InstanceStatus.COMPLETED
    assert play.instance.outputs == {"b_out": 7}
    assert names(play.events) == [
        "workflow.started",
        "workflow.admitted",
        "task.started",
        "task.completed",
        "task.started",
        "task.completed",
        "workflow.completed",
    ]


def test_an_instance_without_a_slot_waits_until_it_is_admitted() -> None:
    play = Play(make_plan(make_task("a")), admit=False)
    assert play.instance.status is InstanceStatus.PENDING
    assert play.dispatched() == []
    play.send(st.Admit(at=at(1)))
    assert play.instance.status is InstanceStatus.RUNNING
    assert play.dispatched() == ["a"]


def test_a_join_waits_for_every_dependency() -> None:
    play = Play(make_plan(make_task("a"), make_task("b"), make_task("join", "a", "b")))
    assert play.dispatched() == ["a", "b"]
    play.succeed("b")
    assert "join" not in play.dispatched()
    play.succeed("a")
    assert play.dispatched() == ["a", "b", "join"]


def test_independent_branches_finish_when_another_fails() -> None:
    play = Play(
        make_plan(make_task("a"), make_task("b"), make_task("after_a", "a"), make_task("after_b", "b"))
    )
    play.fail("a")
    play.decide("a", RecoveryAction.ABORT)
    assert play.statuses()["after_a"] == "skipped"
    assert play.instance.status is InstanceStatus.RUNNING
    play.succeed("b")
    play.succeed("after_b")
    assert play.instance.status is InstanceStatus.FAILED
    assert play.instance.failed_task == "a"


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (("completed", "completed"), "running"),
        (("completed", "skipped"), "running"),
        (("skipped", "skipped"), "skipped"),
        (("failed", "completed"), "skipped"),
        (("failed", "skipped"), "skipped"),
    ],
)
def test_join_of_two(ends: tuple[str, str], expected: str) -> None:
    play = Play(make_plan(make_task("a"), make_task("b"), make_task("join", "a", "b"), make_task("free")))
    for task_id, end in zip(("a", "b"), ends, strict=True):
        match end:
            case "completed":
                play.succeed(task_id)
            case "skipped":
                play.send(st.SkipOrder(at=play.later(1), task_id=task_id))
            case _:
                play.fail(task_id)
                play.decide(task_id, RecoveryAction.ABORT)
    assert play.statuses()["join"] == expected


def test_skips_cascade_through_a_chain() -> None:
    play = Play(make_plan(make_task("a"), make_task("b", "a"), make_task("c", "b")))
    play.send(st.SkipOrder(at=play.later(1), task_id="a", reason="not today"))
    assert set(play.statuses().values()) == {"skipped"}
    assert play.instance.status is InstanceStatus.COMPLETED


# --- conditions ---------------------------------------------------------------------------------------------


def conditional(expression: str = "x > 1", required: tuple[str, ...] = ()) -> Condition:
    return Condition(expression=expression, required_outputs=required)


def test_a_true_condition_dispatches_the_task() -> None:
    play = Play(make_plan(make_task("a", condition=conditional())))
    assert play.dispatched() == []
    assert play.asked() == ["a"]
    play.send(st.ConditionAnswer(at=at(1), task_id="a", result=True))
    assert play.dispatched() == ["a"]


def test_a_false_condition_skips_the_task() -> None:
    play = Play(make_plan(make_task("a", condition=conditional())))
    play.send(st.ConditionAnswer(at=at(1), task_id="a", result=False))
    assert play.instance.runs["a"].skip_reason == "condition_false"
    assert play.instance.status is InstanceStatus.COMPLETED


def test_a_missing_required_output_skips_without_asking() -> None:
    play = Play(make_plan(make_task("a"), make_task("b", "a", condition=conditional(required=("gone",)))))
    play.succeed("a")
    assert play.instance.runs["b"].skip_reason == "required_output_missing"
    assert play.asked() == []


def test_required_outputs_without_an_expression_need_no_question() -> None:
    condition = Condition(required_outputs=("a_out",))
    play = Play(make_plan(make_task("a"), make_task("b", "a", condition=condition)))
    play.succeed("a")
    assert play.dispatched() == ["a", "b"]


def test_a_condition_that_cannot_be_evaluated_fails_the_task() -> None:
    play = Play(make_plan(make_task("a", condition=conditional())))
    error = ErrorInfo(code="CONDITION_EVALUATION_FAILED", message="no", retryable=False)
    play.send(st.ConditionAnswer(at=at(1), task_id="a", error=error))
    play.decide("a", RecoveryAction.ABORT)
    assert play.instance.error is not None
    assert play.instance.error.code == "CONDITION_EVALUATION_FAILED"


def test_a_second_answer_to_a_condition_changes_nothing() -> None:
    play = Play(make_plan(make_task("a", condition=conditional())))
    play.send(st.ConditionAnswer(at=at(1), task_id="a", result=True))
    step = play.send(st.ConditionAnswer(at=at(2), task_id="a", result=False))
    assert step.events == ()


# --- retries and recovery -----------------------------------------------------------------------------------


def test_failed_task_with_attempts_left_waits_before_retrying() -> None:
    play = Play(make_plan(make_task("a", retry=TWICE)))
    play.fail("a", "TIMEOUT")
    run = play.instance.runs["a"]
    assert run.status is TaskStatus.RETRYING
    assert run.due_at == at(11)
    play.tick(5)
    assert play.dispatched() == ["a"]
    play.tick(5)
    assert play.dispatched() == ["a", "a"]
    assert play.instance.runs["a"].attempt == 2


def test_retry_after_is_honoured_when_it_is_longer() -> None:
    play = Play(make_plan(make_task("a", retry=TWICE)))
    play.fail("a", "TIMEOUT", retry_after_seconds=60)
    assert play.instance.runs["a"].due_at == at(61)


def test_attempts_used_up_ask_the_error_handler() -> None:
    play = Play(make_plan(make_task("a", retry=TWICE)))
    play.fail("a", "TIMEOUT")
    play.tick(10)
    play.fail("a", "TIMEOUT")
    assert play.asked() == ["a"]
    play.decide("a", RecoveryAction.ABORT)
    assert play.instance.status is InstanceStatus.FAILED


@pytest.mark.parametrize(
    ("code", "retryable", "retried"),
    [("TIMEOUT", None, True), ("TIMEOUT", False, False), ("VALIDATION_ERROR", None, False)],
)
def test_which_errors_are_retried(code: str, retryable: bool | None, retried: bool) -> None:
    play = Play(make_plan(make_task("a", retry=TWICE)))
    play.fail("a", code, retryable=retryable)
    assert (play.instance.runs["a"].status is TaskStatus.RETRYING) is retried


def test_recovery_skip_lets_the_rest_go_on() -> None:
    play = Play(make_plan(make_task("a"), make_task("b"), make_task("join", "a", "b")))
    play.fail("a")
    play.decide("a", RecoveryAction.SKIP)
    play.succeed("b")
    play.succeed("join")
    assert play.instance.status is InstanceStatus.COMPLETED


def test_recovery_retry_grants_another_attempt_after_its_delay() -> None:
    play = Play(make_plan(make_task("a")))
    play.fail("a")
    play.decide("a", RecoveryAction.RETRY, delay_seconds=5)
    assert play.dispatched() == ["a"]
    play.tick(5)
    assert play.dispatched() == ["a", "a"]
    assert play.instance.runs["a"].handler_retries == 1


def test_recovery_pause_holds_the_task_and_ends_by_itself() -> None:
    play = Play(make_plan(make_task("a")))
    play.fail("a")
    play.decide("a", RecoveryAction.PAUSE, delay_seconds=30)
    assert play.instance.status is InstanceStatus.PAUSED
    play.tick(10)
    assert play.dispatched() == ["a"]
    play.tick(30)
    assert play.instance.status is InstanceStatus.RUNNING
    assert play.dispatched() == ["a", "a"]


def test_recovery_escalate_waits_for_a_person() -> None:
    play = Play(make_plan(make_task("a")))
    play.fail("a")
    play.decide("a", RecoveryAction.ESCALATE)
    assert play.instance.status is InstanceStatus.PAUSED
    assert play.instance.resume_at is None
    play.send(st.ResumeOrder(at=play.later(1)))
    assert play.dispatched() == ["a", "a"]


@pytest.mark.parametrize("action", [RecoveryAction.ABORT, RecoveryAction.ROLLBACK, RecoveryAction.FALLBACK])
def test_what_cannot_be_done_fails_the_task(action: RecoveryAction) -> None:
    play = Play(make_plan(make_task("a")))
    play.fail("a")
    play.decide("a", action)
    assert play.instance.status is InstanceStatus.FAILED


# --- fallbacks ----------------------------------------------------------------------------------------------


def with_fallback() -> Play:
    main = make_task(
        "main", outputs=["price"], on_error=OnError(action=RecoveryAction.FALLBACK, fallback="spare")
    )
    spare = make_task("spare", outputs=["price"], is_fallback=True)
    return Play(make_plan(main, spare, make_task("after", "main")))


def test_a_fallback_stands_in_and_its_outputs_count() -> None:
    play = with_fallback()
    assert play.dispatched() == ["main"]
    play.fail("main")
    play.decide("main", RecoveryAction.FALLBACK)
    assert play.dispatched() == ["main", "spare"]
    play.succeed("spare", price=5)
    assert play.statuses() == {"main": "completed", "spare": "completed", "after": "running"}
    assert play.instance.variables["price"] == 5


def test_a_fallback_that_fails_fails_the_task() -> None:
    play = with_fallback()
    play.fail("main", "FIRST")
    play.decide("main", RecoveryAction.FALLBACK)
    play.fail("spare", "SECOND")
    play.decide("spare", RecoveryAction.ABORT)
    assert play.instance.status is InstanceStatus.FAILED
    assert play.statuses()["after"] == "skipped"


def test_a_fallback_that_is_not_needed_is_skipped() -> None:
    play = with_fallback()
    play.succeed("main", price=1)
    assert play.instance.runs["spare"].skip_reason == "fallback_not_needed"
    play.succeed("after")
    assert play.instance.status is InstanceStatus.COMPLETED


# --- lost agents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effects", [Effects.NONE, Effects.READ, Effects.IDEMPOTENT])
def test_a_lost_attempt_that_may_be_repeated_is_dispatched_again_at_once(effects: Effects) -> None:
    play = Play(make_plan(make_task("a", effects=effects)))
    play.lose("a")
    assert play.dispatched() == ["a", "a"]
    play.succeed("a")
    assert play.instance.status is InstanceStatus.COMPLETED


def test_an_attempt_lost_during_a_pause_is_dispatched_again_on_resume() -> None:
    play = Play(make_plan(make_task("a")))
    play.send(st.PauseOrder(at=play.later(1)))
    play.lose("a")
    assert play.dispatched() == ["a"]
    assert play.instance.runs["a"].status is TaskStatus.RETRYING
    play.send(st.ResumeOrder(at=play.later(1)))
    assert play.dispatched() == ["a", "a"]
    assert play.instance.runs["a"].attempt == 2


def test_a_task_that_loses_three_executors_is_poison() -> None:
    play = Play(make_plan(make_task("a")))
    for _ in range(MAX_LOSSES):
        play.lose("a")
    error = play.instance.runs["a"].error
    assert error is not None
    assert error.code == "POISON_TASK"
    assert play.dispatched() == ["a"] * MAX_LOSSES


def test_the_result_of_a_superseded_attempt_is_kept_but_not_applied() -> None:
    play = Play(make_plan(make_task("a")))
    old = play.token("a")
    play.lose("a")
    play.send(st.AttemptSucceeded(at=play.later(1), task_id="a", token=old, outputs={"a_out": "stale"}))
    assert isinstance(play.events[-1], ev.LateResult)
    assert "a_out" not in play.instance.variables


# --- time ---------------------------------------------------------------------------------------------------


def test_the_time_for_the_whole_ends_the_instance_and_cancels_what_runs() -> None:
    play = Play(make_plan(make_task("a"), make_task("b", "a"), global_timeout_seconds=60))
    step = play.tick(60)
    assert play.instance.status is InstanceStatus.FAILED
    assert play.instance.error is not None
    assert play.instance.error.code == "TIMEOUT_EXCEEDED"
    assert play.statuses() == {"a": "cancelled", "b": "skipped"}
    assert step.commands == (cmd.CancelAttempt("a", "ins_1/a/1"),)


def test_an_attempt_that_nobody_takes_times_out() -> None:
    play = Play(make_plan(make_task("a", timeout_seconds=10), global_timeout_seconds=1e6))
    play.tick(SCHEDULE_TO_START_SECONDS + 10)
    assert play.asked() == ["a"]
    error = play.instance.runs["a"].error
    assert error is not None
    assert error.code == "TIMEOUT"


def test_due_times_name_everything_that_will_wake_the_instance() -> None:
    play = Play(make_plan(make_task("a", retry=TWICE), make_task("b"), global_timeout_seconds=100))
    play.fail("a", "TIMEOUT")
    due = {due.at for due in due_times(play.plan, play.instance)}
    assert at(100) in due
    assert at(11) in due


# --- orders -------------------------------------------------------------------------------------------------


def test_a_paused_instance_dispatches_nothing_and_goes_on_where_it_was() -> None:
    play = Play(make_plan(make_task("a"), make_task("b", "a")))
    play.send(st.PauseOrder(at=play.later(1), reason="lunch"))
    play.succeed("a")
    assert play.dispatched() == ["a"]
    assert play.instance.runs["b"].status is TaskStatus.READY
    play.send(st.ResumeOrder(at=play.later(1)))
    assert play.dispatched() == ["a", "b"]


def test_a_condition_answered_during_a_pause_waits_for_the_resume() -> None:
    play = Play(make_plan(make_task("a", condition=conditional())))
    play.send(st.PauseOrder(at=play.later(1)))
    play.send(st.ConditionAnswer(at=play.later(1), task_id="a", result=True))
    assert play.dispatched() == []
    play.send(st.ResumeOrder(at=play.later(1)))
    assert play.dispatched() == ["a"]


def test_a_pause_before_the_start_leads_back_to_waiting_for_a_slot() -> None:
    play = Play(make_plan(make_task("a")), admit=False)
    play.send(st.PauseOrder(at=play.later(1)))
    play.send(st.ResumeOrder(at=play.later(1)))
    assert play.instance.status is InstanceStatus.PENDING


def test_stop_cancels_what_runs_and_skips_the_rest() -> None:
    play = Play(make_plan(make_task("a"), make_task("b", "a")))
    step = play.send(st.StopOrder(at=play.later(1), reason="enough"))
    assert play.instance.status is InstanceStatus.CANCELLED
    assert play.statuses() == {"a": "cancelled", "b": "skipped"}
    assert any(isinstance(command, cmd.CancelAttempt) for command in step.commands)


def test_a_final_instance_never_changes() -> None:
    play = Play(make_plan(make_task("a")))
    token = play.token("a")
    play.succeed("a")
    step = play.send(st.AttemptSucceeded(at=play.later(1), task_id="a", token=token))
    assert step.events == ()
    for order in (st.PauseOrder(at=at(9)), st.StopOrder(at=at(9)), st.RetryOrder(at=at(9), task_id="a")):
        with pytest.raises(IllegalMove, match="completed"):
            play.send(order)


def test_retry_order_runs_a_failed_task_and_what_was_skipped_after_it_again() -> None:
    play = Play(make_plan(make_task("a"), make_task("b", "a"), make_task("c", "b"), make_task("other")))
    play.fail("a")
    play.decide("a", RecoveryAction.ABORT)
    assert play.statuses()["c"] == "skipped"
    play.send(st.RetryOrder(at=play.later(1), task_id="a"))
    for task_id in ("a", "b", "c", "other"):
        play.succeed(task_id)
    assert play.instance.status is InstanceStatus.COMPLETED


def test_a_join_waits_again_for_what_was_skipped_before_it() -> None:
    play = Play(
        make_plan(make_task("a"), make_task("b", "a"), make_task("other"), make_task("join", "b", "other"))
    )
    play.fail("a")
    play.decide("a", RecoveryAction.ABORT)
    play.send(st.RetryOrder(at=play.later(1), task_id="a"))
    play.succeed("other")
    assert play.statuses()["join"] == "pending"
    play.succeed("a")
    play.succeed("b")
    assert play.statuses()["join"] == "running"


def test_a_skipped_task_is_not_run_again_once_others_went_on_without_it() -> None:
    play = Play(make_plan(make_task("a"), make_task("b"), make_task("after", "a", "b")))
    play.fail("a")
    play.decide("a", RecoveryAction.SKIP)
    play.succeed("b")
    with pytest.raises(IllegalMove, match="after went on without task a"):
        play.send(st.RetryOrder(at=play.later(1), task_id="a"))


def test_orders_about_unknown_or_finished_tasks_are_refused() -> None:
    play = Play(make_plan(make_task("a"), make_task("b")))
    play.succeed("a")
    for order in (
        st.RetryOrder(at=at(5), task_id="nope"),
        st.SkipOrder(at=at(5), task_id="a"),
        st.RetryOrder(at=at(5), task_id="a"),
    ):
        with pytest.raises(IllegalMove):
            play.send(order)


def test_variables_set_from_outside_are_seen_by_later_tasks() -> None:
    play = Play(make_plan(make_task("a")), {"x": 1})
    play.send(st.UpdateOrder(at=play.later(1), updates={"y": 2}))
    assert play.instance.variables == {"x": 1, "y": 2}
    play.send(st.UpdateOrder(at=play.later(1), updates={"z": 3}, replace=True))
    assert play.instance.variables == {"z": 3}


# --- outputs and recovery after a crash ---------------------------------------------------------------------


def test_outputs_that_break_their_schema_are_a_warning() -> None:
    schema = {"type": "object", "properties": {"a_out": {"type": "integer"}}}
    play = Play(make_plan(make_task("a"), output_schema=schema, output_names=("a_out",)))
    play.succeed("a", a_out="text")
    assert "workflow.output_mismatched" in names(play.events)
    assert play.instance.status is InstanceStatus.COMPLETED


def test_what_was_under_way_is_done_again_after_a_crash() -> None:
    plan = make_plan(
        make_task("repeat"),
        make_task("once", effects=Effects.ONCE),
        make_task("asks", condition=conditional()),
        make_task("broken"),
        make_task("waits", retry=TWICE),
    )
    play = Play(plan)
    play.fail("broken")
    play.fail("waits", "TIMEOUT")
    rebuilt = machine.replay(plan, "ins_1", play.events)
    commands = {command.task_id: command for command in machine.pending_commands(plan, rebuilt)}
    assert commands == {
        "repeat": cmd.Dispatch("repeat", 1, "ins_1/repeat/1"),
        "once": cmd.AwaitResult("once", "ins_1/once/1"),
        "asks": cmd.AskCondition("asks"),
        "broken": cmd.AskRecovery("broken", ErrorInfo(code="BROKEN", message="BROKEN happened")),
    }


def test_replay_refuses_a_history_without_its_start() -> None:
    with pytest.raises(ValueError, match="not its start"):
        machine.replay(make_plan(make_task("a")), "ins_1", [ev.InstanceAdmitted(at=at(0))])
    with pytest.raises(ValueError, match="no events"):
        machine.replay(make_plan(make_task("a")), "ins_1", [])
