"""What is wrong with what a store holds of an instance: its rows and events against each other. Pure.

The facts are judged by the rules of `orchestration.invariants`; what is added here is what a store can get wrong by
itself: gaps, order, checksums, entries that belong to nobody. It states findings; it repairs nothing.
"""

import re
from collections.abc import Iterable, Sequence

import msgspec

from orchestration import events as ev
from orchestration.contracts import DefinitionRecord, EventRecord, InstanceRow
from orchestration.definition.compile import definition_hash
from orchestration.definition.plan import Plan
from orchestration.invariants import check_history, check_row
from orchestration.machine import replay

MAX_FINDINGS = 1000
"""Most findings that one verification tells; what is so broken needs a copy, not a longer list."""
_ROW_FIELD = re.compile(r"the row's (\w+) ")
_UNREPLAYABLE = (ValueError, KeyError, TypeError, AttributeError, msgspec.ValidationError)


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is wrong. `field` names what of the instance (or of the store, without one) is concerned."""

    field: str
    problem: str
    instance_id: str = ""


def check_instance(row: InstanceRow, events: Sequence[EventRecord], plan: Plan | None) -> list[Finding]:
    """Return what is wrong with an instance: its row and all its events, in the order of their seq."""
    findings = [*_check_order(row.instance_id, events)]
    if len(events) != row.seq:
        findings.append(_of(row, "seq", f"the row has seq {row.seq}, the log {len(events)} events"))
    if plan is None:
        return [*findings, _of(row, "definition_hash", f"there is no definition {row.definition_hash}")]
    if findings:
        return findings
    try:
        facts = [ev.decode(record.data) for record in events]
        findings += [
            _of(row, "type", f"event {record.seq} is stored as {record.type} and is {ev.type_of(fact)}")
            for record, fact in zip(events, facts, strict=True)
            if record.type != ev.type_of(fact)
        ]
        findings += [_of(row, "events", text) for text in check_history(plan, row.instance_id, facts)]
        instance = replay(plan, row.instance_id, facts)
        findings += [_of(row, _field_of(text), text) for text in check_row(plan, instance, row)]
    except _UNREPLAYABLE as error:
        findings.append(_of(row, "events", f"they cannot be replayed: {type(error).__name__}: {error}"))
    return findings


def _check_order(instance_id: str, events: Sequence[EventRecord]) -> Iterable[Finding]:
    offset = 0
    for seq, record in enumerate(events, 1):
        if record.seq != seq:
            problem = f"event {seq} is missing; the next one in the log is {record.seq}"
            yield Finding(instance_id=instance_id, field="seq", problem=problem)
            return
        if record.offset <= offset:
            problem = f"event {seq} has offset {record.offset}, the one before it {offset}"
            yield Finding(instance_id=instance_id, field="offset", problem=problem)
        offset = record.offset


def check_definition(record: DefinitionRecord) -> list[Finding]:
    """Return whether a stored definition is still what its hash says."""
    actual = definition_hash(record.content)
    if actual == record.hash:
        return []
    place = f"definition {record.workflow_id} {record.version}"
    return [
        Finding(field="definition", problem=f"{place} is stored as {record.hash} and its content is {actual}")
    ]


def _of(row: InstanceRow, field: str, problem: str) -> Finding:
    return Finding(instance_id=row.instance_id, field=field, problem=problem)


def _field_of(text: str) -> str:
    """Return which column a sentence about a row is about."""
    match = _ROW_FIELD.match(text)
    if match is not None:
        return match[1]
    return "wake_reason" if "wake reason" in text else "wake_at"
