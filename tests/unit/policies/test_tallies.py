from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration import events as ev
from orchestration.contracts import ErrorInfo, EventRecord
from orchestration.status import RecoveryAction, Severity
from orchestration.tallies import (
    UNKNOWN_WORKFLOW,
    Changes,
    FailurePlace,
    OpenInstance,
    Place,
    Tally,
    bucket_of,
    fold,
    total,
)
from orchestration.undecided import MAX_UNDECIDED, Unknown, undecided

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ERROR = ErrorInfo(code="TIMEOUT", message="late")


def records(*happened: tuple[str, ev.Event]) -> list[EventRecord]:
    return [
        EventRecord(
            offset=number,
            instance_id=instance_id,
            seq=number,
            type=ev.type_of(event),
            at=event.at,
            data=msgspec.Raw(ev.encode(event)),
        )
        for number, (instance_id, event) in enumerate(happened, start=1)
    ]


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def started(seconds: float = 0, workflow_id: str = "flow") -> ev.Event:
    return ev.InstanceStarted(
        at=at(seconds), workflow_id=workflow_id, workflow_version="1", definition_hash="h", inputs={}
    )


def folded(*happened: ev.Event) -> tuple[dict[str, OpenInstance], Changes]:
    instances: dict[str, OpenInstance] = {}
    return instances, fold(instances, records(*(("i", event) for event in happened)))


def sums(changes: Changes) -> dict[tuple[str, str], Tally]:
    whole: dict[tuple[str, str], Tally] = {}
    for place, tally in changes.tallies.items():
        whole.setdefault((place.workflow_id, place.task_id), Tally()).add(tally)
    return whole


def test_execution_is_counted_and_timed_from_its_admission() -> None:
    instances, changes = folded(
        started(), ev.InstanceAdmitted(at=at(10)), ev.InstanceCompleted(at=at(40), outputs={})
    )
    tally = sums(changes)["flow", ""]
    assert (tally.started, tally.completed, tally.ended) == (1, 1, 1)
    assert (tally.seconds_sum, tally.seconds_min, tally.seconds_max) == (30, 30, 30)
    assert instances == changes.opened == {}
    [execution] = changes.ended
    assert (execution.status, execution.execution_time, execution.workflow_id) == ("completed", 30, "flow")


def test_failed_execution_tells_code_and_raises_a_finding() -> None:
    _, changes = folded(started(), ev.InstanceFailed(at=at(5), error=ERROR, task_id="pay"))
    assert changes.failures == {FailurePlace(bucket_of(at(5)), "flow", "", "TIMEOUT"): 1}
    [(offset, moment, finding)] = changes.findings
    assert (offset, moment) == (2, at(5))
    assert (finding.type, finding.severity) == ("workflow_failure", "error")
    assert changes.ended[0].error == "TIMEOUT: late"


def test_cancelled_execution_is_no_measure_of_time() -> None:
    _, changes = folded(started(), ev.InstanceCancelled(at=at(5)))
    tally = sums(changes)["flow", ""]
    assert (tally.cancelled, tally.timed) == (1, 0)


def test_task_counts_attempts_retries_losses_and_ends() -> None:
    _, changes = folded(
        started(),
        ev.TaskStarted(at=at(1), task_id="pay", attempt=1, token="1"),
        ev.AttemptFailed(at=at(3), task_id="pay", attempt=1, error=ERROR),
        ev.TaskRetrying(at=at(3), task_id="pay", attempt=2, due_at=at(4)),
        ev.TaskStarted(at=at(4), task_id="pay", attempt=2, token="2"),
        ev.AttemptLost(at=at(5), task_id="pay", attempt=2),
        ev.TaskStarted(at=at(6), task_id="pay", attempt=3, token="3"),
        ev.TaskCompleted(at=at(9), task_id="pay", attempt=3),
        ev.TaskSkipped(at=at(9), task_id="b", reason="condition_false"),
        ev.TaskFailed(at=at(9), task_id="c", error=ERROR),
        ev.TaskCancelled(at=at(9), task_id="d"),
    )
    by_task = sums(changes)
    pay = by_task["flow", "pay"]
    assert (pay.started, pay.completed, pay.retried, pay.lost, pay.errors) == (3, 1, 1, 1, 1)
    assert (pay.timed, pay.seconds_sum) == (2, 5)
    assert by_task["flow", "b"].skipped == by_task["flow", "c"].failed == by_task["flow", "d"].cancelled == 1


def test_open_instance_knows_status_and_running_tasks() -> None:
    instances, changes = folded(
        started(),
        ev.InstanceAdmitted(at=at(0)),
        ev.TaskStarted(at=at(1), task_id="pay", attempt=1, token="1"),
        ev.InstancePaused(at=at(2)),
    )
    assert (instances["i"].status, list(instances["i"].tasks)) == ("paused", ["pay"])
    assert changes.opened == instances
    fold(instances, records(("i", ev.InstanceResumed(at=at(3)))))
    assert instances["i"].status == "running"


def test_escalated_recovery_raises_a_finding() -> None:
    def handled(escalated: bool, severity: Severity) -> list[Any]:
        chosen = ev.RecoveryChosen(
            at=at(1), task_id="pay", action=RecoveryAction.ABORT, severity=severity, escalated=escalated
        )
        return [finding for *_, finding in folded(started(), chosen)[1].findings]

    assert handled(False, Severity.HIGH) == []
    [finding] = handled(True, Severity.CRITICAL)
    assert (finding.type, finding.severity) == ("error_escalation", "critical")
    assert handled(True, Severity.HIGH)[0].severity == "error"


LOST = ev.TaskOutcomeUnknown(at=at(2), task_id="pay", attempt=1, token="1", reason="gone")
LOOKS = ev.TaskReconciling(at=at(2), task_id="pay", reconcile="look")
LOOK_FAILED = ev.TaskFailed(at=at(4), task_id="look", error=ERROR)
LOOK_STARTED = ev.TaskStarted(at=at(3), task_id="look", attempt=1, token="l")


@pytest.mark.parametrize(
    ("more", "waits"),
    [
        ([LOST], True),
        ([LOST, LOOKS], False),
        ([LOST, LOOKS, LOOK_STARTED, ev.AttemptFailed(at=at(4), task_id="look", attempt=1, error=ERROR)], False),
        ([LOST, LOOKS, LOOK_STARTED, LOOK_FAILED], True),
        ([LOST, LOOKS, LOOK_STARTED, LOOK_FAILED, LOOK_STARTED], False),
        ([LOST, LOOKS, ev.TaskSkipped(at=at(3), task_id="look", reason="operator")], True),
        ([LOST, LOOKS, LOOK_STARTED, ev.TaskCompleted(at=at(4), task_id="look", attempt=1)], True),
        ([LOST, ev.TaskCompleted(at=at(4), task_id="pay", attempt=1)], False),
        ([LOST, ev.TaskRetrying(at=at(4), task_id="pay", attempt=2, due_at=at(4))], False),
        ([LOST, ev.AttemptFailed(at=at(4), task_id="pay", attempt=1, error=ERROR)], False),
        ([LOST, ev.TaskSkipped(at=at(4), task_id="pay", reason="operator")], False),
        ([LOST, ev.TaskCompleted(at=at(4), task_id="other", attempt=1)], True),
        ([LOST, ev.InstanceCancelled(at=at(4))], False),
    ],
)  # fmt: skip
def test_a_person_must_decide_while_nobody_else_finds_out(more: list[ev.Event], waits: bool) -> None:
    instances, changes = folded(started(), ev.InstanceAdmitted(at=at(0)), *more)
    assert changes.undecided
    found = undecided(instances.values())
    assert [(each.type, each.severity) for each in found] == [("outcome_unknown", "error")] * waits
    for each in found:
        assert "(gone)" in each.description
        assert each.metadata == {"workflow_id": "flow", "workflow_instance_id": "i", "task_id": "pay"}


def test_nobody_is_overwhelmed_with_unknown_outcomes() -> None:
    instances = {
        str(number): OpenInstance(
            instance_id=str(number),
            workflow_id="flow",
            started_at=at(0),
            unknown={"pay": Unknown(since=at(number))},
        )
        for number in reversed(range(MAX_UNDECIDED + 5))
    }
    found = [each.metadata["workflow_instance_id"] for each in undecided(instances.values())]
    assert found == [str(number) for number in range(MAX_UNDECIDED)]


def test_events_of_forgotten_instances_open_nothing() -> None:
    instances, changes = folded(
        ev.TaskStarted(at=at(1), task_id="pay", attempt=1, token="1"), ev.InstanceCompleted(at=at(2))
    )
    assert instances == changes.opened == {}
    assert sums(changes)[UNKNOWN_WORKFLOW, ""].completed == 1


def test_unreadable_event_is_counted_and_passed_over() -> None:
    broken = EventRecord(
        offset=1,
        instance_id="i",
        seq=1,
        type="workflow.started",
        at=NOW,
        data=msgspec.Raw(b'{"workflow_id": 5}'),
    )
    assert fold({}, [broken]).unreadable == 1
    assert fold({}, records(("i", ev.LateResult(at=NOW, task_id="t", attempt=1)))) == Changes()


def test_clock_that_went_back_gives_no_negative_time() -> None:
    _, changes = folded(started(10), ev.InstanceCompleted(at=at(0)))
    assert sums(changes)["flow", ""].seconds_sum == 0
    assert changes.ended[0].execution_time == 0


MOVES = ("task", "fail", "pause", "complete", "failed", "cancelled")


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, ev.Event]]:
    """Return the events of several instances, interleaved."""
    happened: list[tuple[str, ev.Event]] = []
    alive: list[str] = []
    seconds = 0.0
    for number in range(draw(st.integers(1, 30))):
        seconds += draw(st.floats(0, 100))
        if not alive or draw(st.booleans()):
            alive.append(f"i{number}")
            happened.append((alive[-1], started(seconds, draw(st.sampled_from(["flow", "other"])))))
            continue
        name = draw(st.sampled_from(alive))
        task = draw(st.sampled_from(["a", "b"]))
        match draw(st.sampled_from(MOVES)):
            case "task":
                begun = ev.TaskStarted(at=at(seconds), task_id=task, attempt=1, token="x")
                happened.append((name, begun))
                happened.append((name, ev.TaskCompleted(at=at(seconds + 1), task_id=task, attempt=1)))
            case "fail":
                happened.append(
                    (name, ev.AttemptFailed(at=at(seconds), task_id=task, attempt=1, error=ERROR))
                )
                happened.append((name, ev.TaskFailed(at=at(seconds), task_id=task, error=ERROR)))
            case "pause":
                happened.append((name, ev.InstancePaused(at=at(seconds))))
            case "complete":
                alive.remove(name)
                happened.append((name, ev.InstanceCompleted(at=at(seconds))))
            case "failed":
                alive.remove(name)
                happened.append((name, ev.InstanceFailed(at=at(seconds), error=ERROR)))
            case _:
                alive.remove(name)
                happened.append((name, ev.InstanceCancelled(at=at(seconds))))
    return happened


def merged(parts: list[Changes]) -> tuple[dict[Place, Tally], Counter[FailurePlace], list[str]]:
    tallies: dict[Place, Tally] = {}
    failures: Counter[FailurePlace] = Counter()
    ended: list[str] = []
    for part in parts:
        for place, tally in part.tallies.items():
            tallies.setdefault(place, Tally()).add(tally)
        failures.update(part.failures)
        ended.extend(each.instance_id for each in part.ended)
    for tally in tallies.values():
        tally.seconds_sum = round(tally.seconds_sum, 6)
    return tallies, failures, ended


@given(history=histories(), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_counts_do_not_depend_on_how_the_log_is_cut(
    history: list[tuple[str, ev.Event]], cuts: list[int]
) -> None:
    log = records(*history)
    whole_open: dict[str, OpenInstance] = {}
    cut_open: dict[str, OpenInstance] = {}
    whole = fold(whole_open, log)
    places = sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    parts = [fold(cut_open, log[first:last]) for first, last in pairwise(places)]
    assert merged(parts) == merged([whole])
    assert cut_open == whole_open


@given(history=histories())
def test_totals_equal_those_counted_from_the_events(history: list[tuple[str, ev.Event]]) -> None:
    instances: dict[str, OpenInstance] = {}
    changes = fold(instances, records(*history))
    counted = Counter(ev.type_of(event) for _, event in history)
    workflows = total(tally for place, tally in changes.tallies.items() if not place.task_id)
    tasks = total(tally for place, tally in changes.tallies.items() if place.task_id)
    assert workflows.started == counted["workflow.started"]
    assert workflows.completed == counted["workflow.completed"]
    assert workflows.failed == counted["workflow.failed"]
    assert workflows.cancelled == counted["workflow.cancelled"]
    assert len(instances) == workflows.started - workflows.ended
    assert tasks.started == counted["task.started"]
    assert tasks.completed == counted["task.completed"]
    assert tasks.failed == counted["task.failed"]
    assert tasks.errors == counted["task.attempt_failed"]
    assert len(changes.findings) == counted["workflow.failed"]
