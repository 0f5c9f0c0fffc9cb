"""What is told about an instance whose row and events do not agree. Pure."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from agents.state_manager.verification import check_definition, check_instance
from orchestration import events as ev
from orchestration.contracts import DefinitionRecord, EventRecord, InstanceRow
from orchestration.definition.compile import definition_hash
from orchestration.documents import row_of
from tests.builders import Play, at, make_plan, make_task

PLAN = make_plan(make_task("a"), make_task("b", "a"))


def records(play: Play) -> list[EventRecord]:
    return [
        EventRecord(
            offset=seq * 10,
            instance_id="ins_1",
            seq=seq,
            type=ev.type_of(event),
            at=event.at,
            data=msgspec.Raw(ev.encode(event)),
        )
        for seq, event in enumerate(play.events, 1)
    ]


def finished() -> tuple[InstanceRow, list[EventRecord]]:
    play = Play(PLAN)
    play.succeed("a")
    play.succeed("b")
    row = row_of(PLAN, play.instance, None)
    return msgspec.structs.replace(row, seq=play.instance.seq, owner="e:1", epoch=1), records(play)


def under_way() -> tuple[InstanceRow, list[EventRecord]]:
    play = Play(PLAN)
    play.succeed("a")
    row = row_of(PLAN, play.instance, at(60))
    return msgspec.structs.replace(row, seq=play.instance.seq, owner="e:1", epoch=1), records(play)


@pytest.mark.parametrize("history", [finished, under_way])
def test_nothing_is_wrong_with_what_the_engine_stored(
    history: Callable[[], tuple[InstanceRow, list[EventRecord]]],
) -> None:
    row, events = history()
    assert check_instance(row, events, PLAN) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"status": "completed"}, "status"),
        ({"task_counts": {"completed": 2}}, "task_counts"),
        ({"completed_at": at(5)}, "completed_at"),
        ({"workflow_id": "other"}, "workflow_id"),
        ({"error_code": "TIMEOUT"}, "error_code"),
        ({"created_at": at(-1)}, "created_at"),
        ({"wake_at": None}, "wake_at"),
        ({"wake_reason": ""}, "wake_reason"),
        ({"seq": 99}, "seq"),
    ],
)
def test_row_that_its_events_do_not_make_is_told_by_its_field(change: dict[str, Any], field: str) -> None:
    row, events = under_way()
    findings = check_instance(msgspec.structs.replace(row, **change), events, PLAN)
    assert {(finding.instance_id, finding.field) for finding in findings} == {("ins_1", field)}


def without(index: int) -> Callable[[list[EventRecord]], list[EventRecord]]:
    return lambda events: events[:index] + events[index + 1 :]


def swapped(events: list[EventRecord]) -> list[EventRecord]:
    first, second = events[0], events[1]
    return [
        msgspec.structs.replace(first, offset=second.offset),
        msgspec.structs.replace(second, offset=first.offset),
        *events[2:],
    ]


def mistyped(events: list[EventRecord]) -> list[EventRecord]:
    return [msgspec.structs.replace(events[0], type="task.completed"), *events[1:]]


def unreadable(events: list[EventRecord]) -> list[EventRecord]:
    return [*events[:-1], msgspec.structs.replace(events[-1], data=msgspec.Raw(b'{"type":"no.such"}'))]


def completed_twice(events: list[EventRecord]) -> list[EventRecord]:
    again = next(event for event in events if event.type == "task.completed")
    last = events[-1]
    moved = msgspec.structs.replace(again, seq=last.seq + 1, offset=last.offset + 1)
    return [*events, moved]


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (without(0), "seq"),
        (without(2), "seq"),
        (without(-1), "seq"),
        (swapped, "offset"),
        (mistyped, "type"),
        (unreadable, "events"),
        (completed_twice, "seq"),
        (lambda events: [], "seq"),
    ],
)
def test_history_that_is_not_whole_is_told(
    spoil: Callable[[list[EventRecord]], list[EventRecord]], field: str
) -> None:
    row, events = under_way()
    findings = check_instance(row, spoil(events), PLAN)
    assert field in {finding.field for finding in findings}
    assert all(finding.problem for finding in findings)


def test_illegal_history_is_told_although_the_row_follows_from_it() -> None:
    row, events = under_way()
    spoiled = completed_twice(events)
    findings = check_instance(msgspec.structs.replace(row, seq=len(spoiled)), spoiled, PLAN)
    assert "events" in {finding.field for finding in findings}
    assert any("completed already" in finding.problem for finding in findings)


def test_instance_without_its_definition_is_told() -> None:
    row, events = finished()
    (finding,) = check_instance(row, events, None)
    assert finding.field == "definition_hash"


def test_definition_is_what_its_hash_says() -> None:
    content = {"id": "flow", "tasks": []}
    record = DefinitionRecord(
        workflow_id="flow", version="1.0", name="Flow", hash=definition_hash(content), content=content
    )
    assert check_definition(record) == []
    (finding,) = check_definition(msgspec.structs.replace(record, content={**content, "name": "x"}))
    assert (finding.field, "flow 1.0" in finding.problem) == ("definition", True)


def test_times_are_compared_to_the_microsecond() -> None:
    row, events = finished()
    assert row.created_at is not None
    shifted = msgspec.structs.replace(row, created_at=row.created_at + timedelta(microseconds=1))
    assert [finding.field for finding in check_instance(shifted, events, PLAN)] == ["created_at"]
