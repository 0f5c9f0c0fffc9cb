"""What people read about an instance."""

from orchestration import stimuli as st
from orchestration.definition.plan import Condition, OnError
from orchestration.documents import row_of, status_document, wake_reason
from orchestration.masking import MASK, mask_inputs
from orchestration.retry import RetryPolicy
from orchestration.status import Effects, InstanceStatus, RecoveryAction
from tests.builders import Play, at, make_plan, make_task


def test_the_row_counts_tasks_and_names_what_runs() -> None:
    play = Play(make_plan(make_task("a"), make_task("b"), make_task("c", "a", "b")))
    play.succeed("a")
    row = row_of(play.plan, play.instance, at(60))
    assert row.task_counts == {"pending": 1, "running": 1, "completed": 1}
    assert row.current_tasks == ["b"]
    assert row.wake_at == at(60)
    assert row.wake_reason == "b runs or waits for an agent with task-data-transform, attempt 1"


def test_a_final_row_has_no_reason_to_wake() -> None:
    play = Play(make_plan(make_task("a")))
    play.succeed("a")
    row = row_of(play.plan, play.instance, at(60))
    assert (row.status, row.wake_at, row.wake_reason) == (InstanceStatus.COMPLETED, None, "")


def test_a_failed_row_says_why() -> None:
    play = Play(make_plan(make_task("a")))
    play.fail("a", "BROKEN")
    play.decide("a", RecoveryAction.ABORT)
    row = row_of(play.plan, play.instance, None)
    assert (row.error_code, row.error_message) == ("BROKEN", "BROKEN happened")


def test_every_wait_has_its_words() -> None:
    condition = Condition(expression="x")
    spare = make_task("spare", is_fallback=True)
    fallback = OnError(action=RecoveryAction.FALLBACK, fallback="spare")
    play = Play(
        make_plan(
            make_task("asks", condition=condition),
            make_task("waits", retry=RetryPolicy()),
            make_task("broken"),
            make_task("saved", on_error=fallback),
            spare,
        )
    )
    play.fail("waits", "TIMEOUT")
    play.fail("broken")
    play.fail("saved")
    play.decide("saved", RecoveryAction.FALLBACK)
    reason = wake_reason(play.plan, play.instance)
    assert "asks waits for its condition" in reason
    assert "waits is tried again at 2026-01-15T10:00:02.000+00:00" in reason
    assert "broken waits for the error handler" in reason
    assert "saved waits for its fallback" in reason
    play.send(st.PauseOrder(at=play.later(1), reason="lunch"))
    assert wake_reason(play.plan, play.instance) == "paused: lunch"
    waiting = Play(make_plan(make_task("a")), admit=False)
    assert "slot" in wake_reason(waiting.plan, waiting.instance)


def test_an_unknown_outcome_says_who_finds_out() -> None:
    play = Play(
        make_plan(
            make_task("charge", effects=Effects.ONCE, reconcile="look"), make_task("look", is_reconcile=True)
        )
    )
    play.lose("charge")
    assert "charge may have been done; look finds out" in wake_reason(play.plan, play.instance)
    play.succeed("look")
    assert wake_reason(play.plan, play.instance) == (
        "charge may have been done; a person decides (retry, skip or complete the task)"
    )
    about, tasks = status_document(play.plan, play.instance)
    assert about["waits_for"] == wake_reason(play.plan, play.instance)
    assert (tasks["charge"]["status"], tasks["charge"]["lost_attempts"]) == ("outcome_unknown", 1)


def test_a_pause_says_when_it_ends_and_many_waits_are_counted() -> None:
    play = Play(make_plan(*(make_task(f"t{number}") for number in range(9))))
    assert wake_reason(play.plan, play.instance).endswith("; and 4 more")
    play.send(st.PauseOrder(at=at(0), duration_seconds=60))
    assert wake_reason(play.plan, play.instance) == "paused: by request, until 2026-01-15T10:01:00+00:00"


def test_the_status_document_has_the_fields_of_the_api() -> None:
    play = Play(make_plan(make_task("a"), output_names=("a_out",)), {"name": "Ada"})
    play.succeed("a")
    about, tasks = status_document(play.plan, play.instance)
    assert about["id"] == "ins_1"
    assert about["status"] == "completed"
    assert about["inputs"] == {"name": "Ada"}
    assert about["outputs"] == {"a_out": "a"}
    assert about["completed_at"] == "2026-01-15T10:00:01+00:00"
    assert tasks["a"]["attempt_count"] == 1
    assert tasks["a"]["last_error"] is None


def test_the_status_document_shows_errors_with_their_code() -> None:
    play = Play(make_plan(make_task("a")))
    play.fail("a", "BROKEN", details={"status": 500})
    _, tasks = status_document(play.plan, play.instance)
    assert tasks["a"]["last_error"] == {
        "code": "BROKEN",
        "message": "BROKEN happened",
        "details": {"status": 500},
    }


def test_secret_inputs_are_masked_at_any_depth() -> None:
    schema = {
        "properties": {
            "token": {"type": "string", "writeOnly": True},
            "login": {"properties": {"password": {"format": "password"}, "user": {"type": "string"}}},
            "keys": {"items": {"writeOnly": True}},
        }
    }
    inputs = {
        "token": "s3cret",
        "login": {"password": "s3cret", "user": "ada"},
        "keys": ["s3cret"],
        "more": 1,
    }
    masked = mask_inputs(schema, inputs)
    assert masked == {
        "token": MASK,
        "login": {"password": MASK, "user": "ada"},
        "keys": [MASK],
        "more": 1,
    }
    assert inputs["token"] == "s3cret"
    assert mask_inputs(None, {"a": 1}) == {"a": 1}


def test_a_schema_without_end_masks_what_lies_too_deep() -> None:
    schema: dict[str, object] = {}
    schema["properties"] = {"next": schema}
    value: dict[str, object] = {}
    for _ in range(50):
        value = {"next": value}
    assert MASK in str(mask_inputs(schema, value))
