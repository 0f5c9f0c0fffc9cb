"""Every reason why something does not move: one row a code, and a reason for everything that is not final."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from orchestration import machine
from orchestration import stimuli as st
from orchestration.contracts import Reason
from orchestration.definition.plan import Condition, OnError, Plan, TaskPlan
from orchestration.errors import IllegalMove
from orchestration.reasons import CODES
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import Effects, RecoveryAction
from orchestration.surroundings import Offerer, Place, Slots, Surroundings
from orchestration.times import due_times
from orchestration.why import summary as summarize
from orchestration.why import why, why_task
from tests.builders import Play, at, make_plan, make_task
from tests.unit.machine.test_machine_properties import next_stimulus, plans

STEPS = 40
TRANSFORM = "task-data-transform"
TWICE = RetryPolicy(
    strategy=RetryStrategy.FIXED_DELAY, max_attempts=3, initial_delay_seconds=30.0, retry_on_codes=("E",)
)
CONDITION = Condition(expression="amount > 5")


def one_task(**more: Any) -> Play:
    return Play(make_plan(charge(**more)))


def charge(*, agent_id: str | None = None, **more: Any) -> TaskPlan:
    return msgspec.structs.replace(make_task("charge", **more), agent_id=agent_id)


def chain(**more: Any) -> Play:
    return Play(
        make_plan(make_task("charge", **more), make_task("pack", "charge"), make_task("ship", "pack"))
    )


def waiting() -> Play:
    return Play(make_plan(make_task("charge")), admit=False)


def paused(duration: float | None = None) -> Play:
    play = one_task()
    play.send(st.PauseOrder(at=play.later(1), reason="lunch", duration_seconds=duration))
    return play


def failing(**more: Any) -> Play:
    play = one_task(**more)
    play.fail("charge", "E")
    return play


def with_fallback() -> Play:
    return Play(
        make_plan(
            make_task("charge", on_error=OnError(action="auto", fallback="invoice")),
            make_task("invoice", is_fallback=True),
        )
    )


def fallen_back() -> Play:
    play = with_fallback()
    play.fail("charge")
    play.decide("charge", RecoveryAction.FALLBACK)
    return play


def unknown(*, reconcile: str = "") -> Play:
    tasks = [make_task("charge", effects=Effects.ONCE, reconcile=reconcile)]
    if reconcile:
        tasks.append(make_task(reconcile, is_reconcile=True))
    play = Play(make_plan(*tasks))
    play.send(st.AttemptVanished(at=play.later(1), task_id="charge", token=play.token("charge")))
    return play


def completed() -> Play:
    play = one_task()
    play.succeed("charge")
    return play


def stopped() -> Play:
    play = one_task()
    play.send(st.StopOrder(at=play.later(1), reason="wrong day"))
    return play


def failed() -> Play:
    play = one_task()
    play.fail("charge")
    play.decide("charge", RecoveryAction.ABORT)
    return play


def retried(play: Play) -> Play:
    play.fail("charge", "E")
    return play


def around(
    state: Any = None, /, token: str = "ins_1/charge/1", **more: Any
) -> Callable[[Play], Surroundings]:
    offers = more.pop("offers", {TRANSFORM: (Offerer(agent_id="executor-1", in_flight=1, max_in_flight=8),)})
    slots = more.pop("slots", None)
    fields = {key: more.pop(key) for key in list(more) if key in Surroundings.__struct_fields__}
    places = {token: Place(state=state, **more)} if state else {}
    return lambda play: Surroundings(places=places, offers=offers, slots=slots, owner="engine-1", **fields)


FULL = {TRANSFORM: (Offerer(agent_id="executor-1", in_flight=8, max_in_flight=8),)}
SLOTS = Slots(running=8, limit=8, waiting=5, place=3)

Row = tuple[str, str, Callable[[], Play], Callable[[Play], Surroundings], str, str, float | None]
ROWS: list[Row] = [
    # code, task, what happened, surroundings, part of the sentence, held by, until (seconds after the start)
    ("ended", "", completed, around(), "completed at 2026-01-15 10:00:01 UTC", "", None),
    ("ended", "", stopped, around(), "was stopped at 2026-01-15 10:00:01 UTC: wrong day", "", None),
    ("ended", "", failed, around(), "because charge failed with BROKEN: BROKEN happened", "charge", None),
    ("quarantined", "", one_task, around(unreadable="event 3 is of an unknown kind"),
     "set aside: event 3 is of an unknown kind", "engine-1", None),
    ("store_unavailable", "", one_task, around(store_answers=False), "no state manager answers", "state-manager", None),
    ("owner_lost_waiting_for_takeover", "", one_task, around(owner_lives=False, claimable_at=at(15)),
     "its engine engine-1 is gone; any running engine does that after 2026-01-15 10:00:15 UTC", "engine-1", 15),
    ("inbox_pending", "", one_task, around(inbox=2), "2 orders or results wait", "engine-1", None),
    ("waiting_for_slot", "", waiting, around(slots=SLOTS),
     "number 3 of 5 in line for a slot: 8 of 8 instances run", "engine-1", None),
    ("waiting_for_slot", "charge", waiting, around(slots=SLOTS), "charge waits with instance ins_1", "engine-1", None),
    ("paused", "", paused, around(), "is paused: lunch; it goes on when somebody resumes it", "the pause", 3600),
    ("paused", "", lambda: paused(60), around(), "it goes on at 2026-01-15 10:01:01 UTC", "the pause", 61),
    ("outcome_unknown_needs_person", "charge", unknown, around(),
     "Nobody knows whether attempt 1 of charge did its work", "a person", 3600),
    ("reconciling", "charge", lambda: unknown(reconcile="look_up"), around(),
     "look_up finds out what happened. look_up runs", "look_up", 3600),
    ("reconcile_not_called", "look_up",
     lambda: Play(make_plan(make_task("charge", reconcile="look_up", effects=Effects.ONCE),
                            make_task("look_up", is_reconcile=True))),
     around(), "runs only if the outcome of charge is unknown", "charge", 3600),
    ("outcome_unknown_waiting_for_result", "charge", lambda: one_task(effects=Effects.ONCE),
     around("awaited", agent_id="executor-1", until=at(12)),
     "its result is waited for until 2026-01-15 10:00:12 UTC, then a person says", "executor-1", 12),
    ("no_agent_offers_capability", "charge", one_task, around(offers={TRANSFORM: ()}),
     "charge needs task-data-transform, which no agent on the mesh offers", "", 3600),
    ("agents_busy", "charge", one_task, around("queued", place=2, of=7, offers=FULL),
     "at place 2 of 7, until an agent that offers task-data-transform has room (executor-1 has 8 under way)",
     "executor-1", 3600),
    ("agents_busy", "charge", one_task, around(offers=FULL), "charge waits in the mesh, until", "executor-1", 3600),
    ("dispatch_limit", "charge", one_task, around("held", place=11, of=12), "at place 11 of 12", "engine-1", 3600),
    ("preferred_agent_absent", "charge", lambda: one_task(agent_id="gpu-1"), around("queued", place=1, of=1),
     "charge would rather run at gpu-1", "", 3600),
    ("running", "charge", one_task, around("assigned", agent_id="executor-1"),
     "charge runs at executor-1 since 2026-01-15 10:00:00 UTC, attempt 1", "executor-1", 3600),
    ("heartbeat_missing_soon", "charge", lambda: one_task(heartbeat_seconds=1.0),
     around("assigned", agent_id="executor-1", last_sign_at=at(-0.75)),
     "executor-1 has said nothing about charge for 0.8 s; without a sign of life by 2026-01-15 10:00:00 UTC",
     "executor-1", 0.25),
    ("retry_at", "charge", lambda: failing(retry=TWICE), around(),
     "charge is tried again at 2026-01-15 10:00:31 UTC after E; 1 of 3 attempts failed", "the timer", 31),
    ("error_handler_deciding", "charge", failing, around(),
     "charge failed with E: E happened; the error handler decides", "error-handler", 3600),
    ("error_handler_deciding", "charge", failing, around(offers={"error-handle": ()}), "so its engine decides",
     "engine-1", 3600),
    ("waiting_for_fallback", "charge", fallen_back, around(),
     "charge failed and waits for its fallback invoice. invoice runs", "invoice", 3600),
    ("fallback_not_called", "invoice", with_fallback, around(), "runs only if charge fails for good", "charge", 3600),
    ("condition_being_evaluated", "charge", lambda: one_task(condition=CONDITION), around(),
     "to say whether it runs: amount > 5", "", 3600),
    ("starting", "charge", lambda: started_without_facts(), around(), "charge begins now", "engine-1", 3600),
    ("dependency_running", "pack", chain, around("assigned", agent_id="executor-1"),
     "pack waits for charge. charge runs at executor-1", "charge", 3600),
    ("dependency_retrying", "pack", lambda: retried(chain(retry=TWICE)), around(),
     "pack waits for charge. charge is tried again at 2026-01-15 10:00:31 UTC", "charge", 31),
    ("dependency_waiting", "ship", chain, around("assigned", agent_id="executor-1"),
     "ship waits for pack, which waits for charge. charge runs at executor-1", "charge", 3600),
]  # fmt: skip


def started_without_facts() -> Play:
    """A history that ends between a task becoming ready and its attempt: what a crash may leave."""
    play = one_task()
    play.events = play.events[:2]
    play.instance = machine.replay(play.plan, "ins_1", play.events)
    return play


def ask(play: Play, surroundings: Surroundings) -> tuple[Reason, ...]:
    return why(play.plan, play.instance, at(play.now), surroundings)


@pytest.mark.parametrize(
    ("code", "task_id", "make", "see", "words", "held_by", "until"),
    ROWS,
    ids=[f"{row[0]}-{number}" for number, row in enumerate(ROWS)],
)
def test_reason(
    code: str,
    task_id: str,
    make: Callable[[], Play],
    see: Callable[[Play], Surroundings],
    words: str,
    held_by: str,
    until: float | None,
) -> None:
    play = make()
    found = [reason for reason in ask(play, see(play)) if (reason.code, reason.task_id) == (code, task_id)]
    assert len(found) == 1, [reason.sentence for reason in ask(play, see(play))]
    (reason,) = found
    assert words in reason.sentence
    assert reason.sentence.endswith((".", "amount > 5"))
    assert reason.held_by == held_by
    assert reason.until == (at(until) if until is not None else None)
    assert code == "ended" or reason.unblocked_by


def test_every_code_has_a_row() -> None:
    assert {row[0] for row in ROWS} == set(CODES)


def test_every_code_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text("utf-8")
    for code, meaning in CODES.items():
        assert f"| `{code}` | {meaning} |" in page


def test_a_task_that_waits_names_the_cause_at_the_end_of_the_chain() -> None:
    play = chain()
    play.fail("charge")
    (reason,) = why_task(play.plan, play.instance, at(play.now), Surroundings(), "ship")
    assert reason.code == "dependency_waiting"
    assert reason.held_by == "charge"
    assert reason.facts["root_cause"] == "error_handler_deciding"
    assert reason.facts["chain"] == ["pack", "charge"]


def test_a_long_chain_keeps_its_end() -> None:
    tasks = [make_task("t0"), *(make_task(f"t{number}", f"t{number - 1}") for number in range(1, 300))]
    play = Play(make_plan(*tasks))
    (reason,) = why_task(play.plan, play.instance, at(0), Surroundings(), "t299")
    assert reason.held_by == "t0"
    assert len(reason.facts["chain"]) <= 10
    assert len(reason.sentence) < 400


def test_dependencies_that_one_task_holds_up_are_told_together() -> None:
    tasks = [make_task("a"), make_task("b", "a"), make_task("c", "a"), make_task("d", "b", "c")]
    play = Play(make_plan(*tasks))
    (reason,) = why_task(play.plan, play.instance, at(0), Surroundings(), "d")
    assert reason.sentence.startswith("d waits for b, c, all held up by a. a runs")
    assert reason.facts["dependencies"] == ["b", "c"]


def test_a_wide_join_names_some_and_counts_all() -> None:
    tasks = [make_task(f"t{number}") for number in range(40)]
    play = Play(make_plan(*tasks, make_task("join", *(task.id for task in tasks))))
    found = why_task(play.plan, play.instance, at(0), Surroundings(), "join")
    assert len(found) == 10
    assert {reason.facts["open_dependencies"] for reason in found} == {40}


def test_a_paused_instance_says_of_its_running_task_that_it_runs() -> None:
    play = paused()
    codes = {(reason.task_id, reason.code) for reason in ask(play, Surroundings())}
    assert codes == {("", "paused"), ("charge", "running")}


def test_a_retry_that_is_due_during_a_pause_waits_for_the_pause() -> None:
    play = failing(retry=TWICE)
    play.send(st.PauseOrder(at=play.later(1)))
    assert why_task(play.plan, play.instance, at(play.now), Surroundings(), "charge")[0].code == "retry_at"
    assert why_task(play.plan, play.instance, at(40), Surroundings(), "charge")[0].code == "paused"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (completed, "charge completed at 2026-01-15 10:00:01 UTC, with attempt 1."),
        (failed, "charge failed at 2026-01-15 10:00:02 UTC with BROKEN: BROKEN happened."),
        (stopped, "charge was cancelled at 2026-01-15 10:00:01 UTC, when instance ins_1 ended."),
    ],
)
def test_a_final_task_says_how_it_ended(make: Callable[[], Play], words: str) -> None:
    play = make()
    (reason,) = why_task(play.plan, play.instance, at(play.now), Surroundings(), "charge")
    assert (reason.code, reason.sentence) == ("ended", words)


def test_the_summary_is_the_most_urgent_reason_and_counts_the_rest() -> None:
    play = Play(make_plan(make_task("a"), make_task("b"), make_task("c", "a", "b")))
    offers = {TRANSFORM: ()}
    assert summarize(ask(play, Surroundings(offers=offers))).startswith("a needs task-data-transform")
    assert summarize(ask(play, Surroundings())).endswith(" 1 other task is under way.")
    assert summarize(ask(completed(), Surroundings())).startswith("Instance ins_1 completed")
    assert summarize(()) == ""


def test_a_circle_of_calls_is_told_without_end() -> None:
    plan = make_plan(
        make_task("charge", on_error=OnError(action="auto", fallback="invoice")),
        make_task("pack", "charge"),
        make_task("invoice", "pack", is_fallback=True),
    )
    play = Play(plan)
    play.fail("charge")
    play.decide("charge", RecoveryAction.FALLBACK)
    codes = {reason.task_id: reason.code for reason in ask(play, Surroundings())}
    assert codes["charge"] == "waiting_for_fallback"
    assert codes["invoice"] == codes["pack"] == "dependency_waiting"


@some.composite
def anything_around(draw: some.DrawFn, plan: Plan) -> Surroundings:
    states = some.sampled_from(["held", "queued", "assigned", "awaited"])
    tokens = [f"ins_1/{task_id}/{attempt}" for task_id in plan.tasks for attempt in (1, 2)]
    places = draw(some.dictionaries(some.sampled_from(tokens), states, max_size=4))
    offers = draw(
        some.sampled_from([{}, {TRANSFORM: ()}, FULL, {"condition-evaluate": (), "error-handle": ()}])
    )
    return Surroundings(
        places={token: Place(state=state, place=1, of=2) for token, state in places.items()},
        offers=offers,
        owner=draw(some.sampled_from(["", "engine-1"])),
        owner_lives=draw(some.booleans()),
    )


@settings(max_examples=100, deadline=None)
@given(plans(), some.data())
def test_everything_unfinished_has_a_reason(plan: Plan, data: some.DataObject) -> None:
    play = Play(plan, admit=data.draw(some.booleans()))
    surroundings = data.draw(anything_around(plan))
    for _ in range(STEPS):
        found = ask(play, surroundings)
        assert found
        assert all(reason.code in CODES and reason.sentence for reason in found)
        told = {reason.task_id for reason in found}
        for task_id, run in play.instance.runs.items():
            own = why_task(plan, play.instance, at(play.now), surroundings, task_id)
            assert own[0].task_id == task_id
            assert (own[0].code == "ended") == run.status.is_final
            assert play.instance.status.is_final or run.status.is_final or task_id in told
        assert summarize(found)
        stimulus = next_stimulus(play, data)
        if stimulus is None:
            break
        try:
            play.send(stimulus)
        except IllegalMove:
            continue


@settings(max_examples=100, deadline=None)
@given(plans(), some.data())
def test_a_wait_with_an_end_ends_when_the_machine_says_so(plan: Plan, data: some.DataObject) -> None:
    play = Play(plan)
    for _ in range(STEPS):
        due = {due.at for due in due_times(plan, play.instance)}
        for reason in ask(play, Surroundings()):
            assert reason.until is None or play.instance.status.is_final or reason.until in due, reason
        stimulus = next_stimulus(play, data)
        if stimulus is None:
            break
        try:
            play.send(stimulus)
        except IllegalMove:
            continue
