"""The invariants hold for what the machine does, and each kind of damage is found."""

from collections.abc import Callable

import msgspec
import pytest

from orchestration import events as ev
from orchestration import machine
from orchestration import stimuli as st
from orchestration.contracts import ErrorInfo
from orchestration.definition.plan import Condition
from orchestration.documents import row_of
from orchestration.invariants import MAX_FINDINGS, check_history, check_row
from orchestration.retry import RetryPolicy, RetryStrategy
from tests.builders import Play, at, make_plan, make_task

TWICE = RetryPolicy(strategy=RetryStrategy.FIXED_DELAY, max_attempts=2, initial_delay_seconds=1)
Damage = Callable[[list[ev.Event]], list[ev.Event]]


def a_play() -> Play:
    """A chain of three, the first with a retry, the last behind a condition; run to its end."""
    play = Play(
        make_plan(
            make_task("first", retry=TWICE),
            make_task("second", "first"),
            make_task("third", "second", condition=Condition(expression="True")),
        )
    )
    play.fail("first", "NETWORK_ERROR")
    play.tick(60)
    play.succeed("first")
    play.succeed("second")
    play.send(st.ConditionAnswer(at=play.later(1), task_id="third", result=True))
    play.succeed("third")
    assert play.instance.status.is_final
    return play


def index_of(events: list[ev.Event], kind: type, task_id: str = "") -> int:
    return next(
        number
        for number, event in enumerate(events)
        if isinstance(event, kind) and getattr(event, "task_id", "") == task_id
    )


def without(kind: type, task_id: str = "") -> Damage:
    def damage(events: list[ev.Event]) -> list[ev.Event]:
        number = index_of(events, kind, task_id)
        return events[:number] + events[number + 1 :]

    return damage


def again(kind: type, task_id: str = "") -> Damage:
    def damage(events: list[ev.Event]) -> list[ev.Event]:
        number = index_of(events, kind, task_id)
        return [*events[: number + 1], events[number], *events[number + 1 :]]

    return damage


def changed(kind: type, task_id: str = "", /, **fields: object) -> Damage:
    def damage(events: list[ev.Event]) -> list[ev.Event]:
        number = index_of(events, kind, task_id)
        return [
            *events[:number],
            msgspec.structs.replace(events[number], **fields),
            *events[number + 1 :],
        ]

    return damage


def earlier(kind: type, task_id: str, before: type, before_task: str) -> Damage:
    def damage(events: list[ev.Event]) -> list[ev.Event]:
        moved = events[index_of(events, kind, task_id)]
        rest = [event for event in events if event is not moved]
        place = index_of(rest, before, before_task)
        return [*rest[:place], moved, *rest[place:]]

    return damage


def put_before(kind: type, task_id: str, event: ev.Event) -> Damage:
    def damage(events: list[ev.Event]) -> list[ev.Event]:
        place = index_of(events, kind, task_id)
        return [*events[:place], event, *events[place:]]

    return damage


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (without(ev.InstanceStarted), "not the start"),
        (again(ev.InstanceStarted), "started already"),
        (again(ev.TaskCompleted, "first"), "completed already"),
        (again(ev.InstanceCompleted), "completed already"),
        (without(ev.TaskCompleted, "second"), "before second was final"),
        (without(ev.TaskCompleted, "third"), "completed while task third was running"),
        (without(ev.ConditionEvaluated, "third"), "without its condition"),
        (changed(ev.ConditionEvaluated, "third", result=False), "without its condition"),
        (again(ev.TaskStarted, "second"), "goes from attempt 1 to 1"),
        (changed(ev.TaskStarted, "second", attempt=3), "goes from attempt 0 to 3"),
        (changed(ev.TaskStarted, "second", token="other"), "has the token 'other'"),
        (changed(ev.TaskCompleted, "first", attempt=1), "while attempt 2 was current"),
        (earlier(ev.TaskCompleted, "second", ev.TaskStarted, "second"), "while attempt 0 was current"),
        (
            put_before(ev.TaskCompleted, "second", ev.TaskSkipped(at=at(9), task_id="second", reason="x")),
            "task second was skipped already",
        ),
        (
            put_before(ev.TaskStarted, "second", ev.InstancePaused(at=at(9))),
            "started while the instance was paused",
        ),
        (
            put_before(ev.TaskCompleted, "second", ev.InstanceCancelled(at=at(9))),
            "the instance ended while task second was running",
        ),
        (
            put_before(
                ev.TaskStarted,
                "second",
                ev.TaskFailed(at=at(9), task_id="first", error=ErrorInfo(code="X", message="x")),
            ),
            "task first was completed already",
        ),
        (changed(ev.TaskStarted, "second", task_id="nobody"), "unknown task 'nobody'"),
        (
            put_before(
                ev.TaskStarted,
                "second",
                ev.AttemptFailed(
                    at=at(9), task_id="first", attempt=2, error=ErrorInfo(code="X", message="x")
                ),
            ),
            "task first was completed already",
        ),
        (lambda events: [], "no events"),
    ],
)
def test_each_kind_of_damage_is_found(damage: Damage, finding: str) -> None:
    play = a_play()
    assert check_history(play.plan, "ins_1", play.events) == []

    findings = check_history(play.plan, "ins_1", damage(list(play.events)))

    assert any(finding in text for text in findings), findings


def test_more_attempts_than_were_granted_are_found() -> None:
    play = Play(make_plan(make_task("first", retry=TWICE)))
    error = ErrorInfo(code="NETWORK_ERROR", message="x")
    events = list(play.events)
    for attempt in (1, 2, 3):
        if attempt > 1:
            events.append(
                ev.TaskStarted(
                    at=at(attempt), task_id="first", attempt=attempt, token=f"ins_1/first/{attempt}"
                )
            )
        events.append(ev.AttemptFailed(at=at(attempt), task_id="first", attempt=attempt, error=error))

    assert check_history(play.plan, "ins_1", events) == [
        "task first failed 3 times in a round; 2 attempts were granted"
    ]


def test_findings_are_bounded() -> None:
    play = a_play()
    assert len(check_history(play.plan, "ins_1", [*play.events, *play.events * 10])) == MAX_FINDINGS


def test_a_row_is_what_its_events_make() -> None:
    play = Play(make_plan(make_task("first"), make_task("second", "first")))
    row = msgspec.structs.replace(
        row_of(play.plan, play.instance, at(60)), seq=play.instance.seq, owner="e", epoch=1
    )
    assert check_row(play.plan, play.instance, row) == []

    behind = msgspec.structs.replace(row, seq=row.seq - 1)
    assert check_row(play.plan, play.instance, behind) == [
        f"the row's seq is {row.seq - 1}, the events make it {row.seq}"
    ]
    other = msgspec.structs.replace(row, task_counts={"running": 2})
    assert "task_counts" in check_row(play.plan, play.instance, other)[0]


def test_an_unfinished_row_must_say_when_and_why_it_wakes() -> None:
    play = Play(make_plan(make_task("first")))
    row = msgspec.structs.replace(row_of(play.plan, play.instance, None), seq=play.instance.seq)
    silent = msgspec.structs.replace(row, wake_reason="")

    assert len(check_row(play.plan, play.instance, silent)) == 2

    play.succeed("first")
    ended = msgspec.structs.replace(row_of(play.plan, play.instance, None), seq=play.instance.seq)
    assert check_row(play.plan, play.instance, ended) == []
    assert check_row(play.plan, play.instance, msgspec.structs.replace(ended, wake_at=at(1))) != []


def test_replay_and_the_check_agree_on_who_the_instance_is() -> None:
    play = a_play()
    assert machine.replay(play.plan, "ins_1", play.events) == play.instance
    assert "has the token" in check_history(play.plan, "ins_2", play.events)[0]
