"""Who may append what: the decision behind every write to the log, and the bounds of what is written.

Pure, and shared by all storages, so that they cannot differ. Never touches a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from agents.state_manager.errors import InvalidRequest
from orchestration.contracts import (
    AppendBatch,
    AppendOutcome,
    DefinitionRecord,
    InboxPutRequest,
    InstanceRow,
    NewEvent,
)
from orchestration.status import InstanceStatus

OPEN_STATUSES = tuple(status for status in InstanceStatus if not status.is_final)
"""Statuses of instances that somebody must still drive."""

MAX_ID_LENGTH = 256
MAX_NUMBER = 2**62
"""Above every offset, seq, epoch and time in microseconds."""
MAX_BATCHES = 1000
MAX_BATCH_EVENTS = 20_000
MAX_EVENT_BYTES = 4 * 1024 * 1024
MAX_INBOX_DATA_BYTES = 4 * 1024 * 1024
MAX_INBOX_ITEMS = 10_000
"""Most entries that one instance's inbox holds at a time."""
MAX_DEFINITION_BYTES = 4 * 1024 * 1024
MAX_LEASE_SECONDS = 3600.0
MAX_CLAIMED_ROWS = 200
"""Most instances that one claim hands over, so that their rows fit into one frame."""
MAX_ROW_TEXT_CHARS = 2000
MAX_ROW_TASKS = 100

Verdict = Literal["create", "extend", "repeat?", "conflict", "stale_owner"]


@dataclass(frozen=True, slots=True)
class Position:
    """Where the store stands with an instance: who owns it and what its last event is."""

    owner: str
    epoch: int
    seq: int


def judge_append(stored: Position | None, batch: AppendBatch) -> Verdict:
    """Return what to do with a batch.

    `repeat?` means that the owner's own events may be stored already (its answer was lost): when those after
    `expected_seq` are the same bytes the batch has succeeded before, otherwise it is a conflict.
    """
    if stored is None:
        return "create" if batch.expected_seq == 0 and batch.epoch == 1 and batch.events else "conflict"
    if (stored.owner, stored.epoch) != (batch.owner, batch.epoch):
        return "stale_owner"
    if stored.seq == batch.expected_seq:
        return "extend"
    if batch.events and stored.seq >= batch.expected_seq + len(batch.events):
        return "repeat?"
    return "conflict"


def check_batches(batches: Sequence[AppendBatch]) -> list[str]:
    """Return for each batch why no storage could take it, empty when it can.

    Raises: InvalidRequest when there are too many.
    """
    if len(batches) > MAX_BATCHES:
        raise InvalidRequest(f"{len(batches)} batches in one append; at most {MAX_BATCHES}")
    return [_refusal(f"batches[{index}]", batch) for index, batch in enumerate(batches)]


def _refusal(place: str, batch: AppendBatch) -> str:
    try:
        _check_batch(place, batch)
    except InvalidRequest as refusal:
        return refusal.message
    return ""


def refused(batch: AppendBatch, reason: str) -> AppendOutcome:
    """Return the outcome of a batch that breaks a bound."""
    return AppendOutcome(
        instance_id=batch.instance_id, status="refused", seq=batch.expected_seq, reason=reason
    )


def _check_batch(place: str, batch: AppendBatch) -> None:
    check_id(batch.instance_id, f"{place}.instance_id")
    check_id(batch.owner, f"{place}.owner")
    if batch.row.instance_id != batch.instance_id:
        raise InvalidRequest(
            f"{place}.row is of {batch.row.instance_id!r}, the batch of {batch.instance_id!r}"
        )
    check_number(batch.expected_seq, f"{place}.expected_seq")
    if check_number(batch.epoch, f"{place}.epoch") < 1:
        raise InvalidRequest(f"{place}.epoch starts at 1")
    for inbox_id in batch.consumed_inbox_ids:
        check_number(inbox_id, f"{place}.consumed_inbox_ids")
    if len(batch.events) > MAX_BATCH_EVENTS:
        raise InvalidRequest(f"{place} has {len(batch.events)} events; at most {MAX_BATCH_EVENTS}")
    for number, event in enumerate(batch.events):
        _check_event(f"{place}.events[{number}]", event)
    row = batch.row
    for name in ("created_at", "started_at", "completed_at", "updated_at", "wake_at"):
        check_time(getattr(row, name), f"{place}.row.{name}")


def _check_event(place: str, event: NewEvent) -> None:
    if not event.type or len(event.type) > MAX_ID_LENGTH:
        raise InvalidRequest(f"{place}.type must have 1 to {MAX_ID_LENGTH} characters")
    if len(event.data) > MAX_EVENT_BYTES:
        raise InvalidRequest(f"{place}.data has {len(event.data)} bytes; at most {MAX_EVENT_BYTES}")
    check_time(event.at, f"{place}.at")
    try:
        str(event.data, "utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{place}.data is not UTF-8") from None


def check_time(at: datetime | None, place: str) -> None:
    """Raise InvalidRequest when a time has no zone."""
    if at is not None and at.tzinfo is None:
        raise InvalidRequest(f"{place} has no time zone; write it in UTC, such as 2024-01-15T10:00:00Z")


def check_number(value: int, place: str) -> int:
    """Return the number. Raises InvalidRequest when no store could hold it."""
    if not 0 <= value <= MAX_NUMBER:
        raise InvalidRequest(f"{place} must be from 0 to {MAX_NUMBER}")
    return value


def check_id(value: str, place: str) -> None:
    """Raise InvalidRequest when an id is empty, too long or not printable."""
    if not value or len(value) > MAX_ID_LENGTH or not value.isprintable():
        raise InvalidRequest(f"{place} must be 1 to {MAX_ID_LENGTH} printable characters")


def encoded(value: object, place: str) -> bytes:
    """Return a value as JSON. Raises InvalidRequest when it is nested too deeply."""
    try:
        return msgspec.json.encode(value)
    except RecursionError:
        raise InvalidRequest(f"{place} is nested too deeply") from None


def check_inbox(request: InboxPutRequest, data: bytes) -> None:
    """Raise InvalidRequest when an entry for an inbox breaks a bound. `data` is the encoded `request.data`."""
    check_id(request.instance_id, "instance_id")
    check_id(request.kind, "kind")
    if request.dedupe_key is not None:
        check_id(request.dedupe_key, "dedupe_key")
    if len(data) > MAX_INBOX_DATA_BYTES:
        raise InvalidRequest(f"data has {len(data)} bytes; at most {MAX_INBOX_DATA_BYTES}")


def check_lease_seconds(seconds: float) -> None:
    """Raise InvalidRequest when a lease would end at once or (almost) never."""
    if not 0 < seconds <= MAX_LEASE_SECONDS:
        raise InvalidRequest(f"lease_seconds must be above 0 and at most {MAX_LEASE_SECONDS:g}")


def stored_row(batch: AppendBatch, stored: InstanceRow | None, now: datetime) -> InstanceRow:
    """Return the row that a successful batch leaves behind.

    The owner, epoch and seq are the store's business. Who an instance is (its workflow and creation) is what its
    first row said. Texts and lists that only serve to be shown are cut to their bounds.
    """
    row = batch.row
    changes: dict[str, object] = {"owner": batch.owner, "epoch": batch.epoch}
    changes["seq"] = batch.expected_seq + len(batch.events)
    if row.updated_at is None:
        changes["updated_at"] = now
    if stored is not None:
        changes["workflow_id"] = stored.workflow_id
        changes["created_at"] = stored.created_at
    changes.update(_cuts(row))
    return msgspec.structs.replace(row, **changes)


def _cuts(row: InstanceRow) -> dict[str, object]:
    changes: dict[str, object] = {}
    for name in ("error_message", "wake_reason", "workflow_name"):
        if len(text := getattr(row, name)) > MAX_ROW_TEXT_CHARS:
            changes[name] = text[: MAX_ROW_TEXT_CHARS - 1] + "…"
    if len(row.current_tasks) > MAX_ROW_TASKS:
        changes["current_tasks"] = row.current_tasks[:MAX_ROW_TASKS]
    return changes


def check_definition(definition: DefinitionRecord, content: bytes) -> None:
    """Raise InvalidRequest when a definition breaks a bound. `content` is the encoded content."""
    check_id(definition.workflow_id, "definition.workflow_id")
    check_id(definition.version, "definition.version")
    check_id(definition.hash, "definition.hash")
    size = len(content) + len(definition.source)
    if size > MAX_DEFINITION_BYTES:
        raise InvalidRequest(
            f"the definition has {size} bytes with its source; at most {MAX_DEFINITION_BYTES}"
        )


def judge_definition(
    content_hash: str, in_force: str | None, *, known: bool, overwrite: bool
) -> Literal["created", "updated", "unchanged", "exists"]:
    """Return what becomes of a definition.

    Args:
        content_hash: The new content's.
        in_force: The hash stored for the same workflow and version.
        known: Whether any version of the workflow is stored.
    """
    if in_force is None:
        return "updated" if known else "created"
    if in_force == content_hash:
        return "unchanged"
    return "updated" if overwrite else "exists"
