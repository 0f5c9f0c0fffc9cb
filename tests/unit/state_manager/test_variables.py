"""The variables of an instance, as its events say."""

from typing import Any

import msgspec

from agents.state_manager.storage.base import Storage
from agents.state_manager.variables import Variables
from orchestration import events as ev
from orchestration.contracts import NewEvent
from tests.unit.state_manager.store_values import START, make_batch


def event(fact: ev.Event) -> NewEvent:
    return NewEvent(type=ev.type_of(fact), at=fact.at, data=msgspec.Raw(ev.encode(fact)))


def started(**inputs: Any) -> NewEvent:
    return event(
        ev.InstanceStarted(
            at=START, workflow_id="wf", workflow_version="1", definition_hash="h", inputs=inputs
        )
    )


def completed(task_id: str, **outputs: Any) -> NewEvent:
    return event(ev.TaskCompleted(at=START, task_id=task_id, attempt=1, outputs=outputs))


def updated(replace: bool = False, **updates: Any) -> NewEvent:
    return event(ev.VariablesUpdated(at=START, updates=updates, replace=replace, description="by hand"))


async def test_variables_are_inputs_outputs_and_updates_in_order(storage: Storage) -> None:
    variables = Variables(storage)
    events = [started(a=1, b=1), event(ev.InstanceAdmitted(at=START)), completed("t", b=2, c=2)]
    await storage.append([make_batch(events=events)])
    row = await storage.get_instance("i1")
    assert row is not None
    folded = await variables.of(row)
    assert (folded.variables, folded.seq) == ({"a": 1, "b": 2, "c": 2}, 3)
    await storage.append([make_batch(expected_seq=3, events=[updated(a=None), completed("u", d=4)])])
    row = await storage.get_instance("i1")
    assert row is not None
    folded = await variables.of(row)
    assert folded.variables == {"a": None, "b": 2, "c": 2, "d": 4}
    assert [(change.seq, change.description) for change in folded.changes] == [
        (1, "inputs"),
        (3, "outputs of t"),
        (4, "by hand"),
        (5, "outputs of u"),
    ]
    await storage.append([make_batch(expected_seq=5, events=[updated(replace=True, z=1)])])
    row = await storage.get_instance("i1")
    assert row is not None
    assert (await variables.of(row)).variables == {"z": 1}


async def test_fold_of_a_long_log_reads_page_by_page_and_keeps_a_bounded_history(storage: Storage) -> None:
    events = [started(), *(completed(f"t{number}", n=number) for number in range(1200))]
    await storage.append([make_batch(events=events)])
    row = await storage.get_instance("i1")
    assert row is not None
    folded = await Variables(storage).of(row)
    assert (folded.variables, folded.seq, len(folded.changes)) == ({"n": 1199}, 1201, 50)


async def test_remembered_folds_are_bounded(storage: Storage) -> None:
    variables = Variables(storage)
    for number in range(300):
        await storage.append([make_batch(f"i{number}", events=[started(n=number)])])
        row = await storage.get_instance(f"i{number}")
        assert row is not None
        assert (await variables.of(row)).variables == {"n": number}
    assert len(variables._folded) == 256
