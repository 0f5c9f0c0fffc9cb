"""A row of the log as SQLite keeps it, and its checksum. Pure: it tells damage, and repairs nothing."""

import zlib

import msgspec

from agents.state_manager.errors import StoreDamaged
from agents.state_manager.storage.sqlite_core import Row
from agents.state_manager.store_clock import from_microseconds, to_microseconds
from orchestration.contracts import EventRecord, NewEvent


def values_of(
    offset: int, instance_id: str, seq: int, event: NewEvent
) -> tuple[int, str, int, str, int, str, int]:
    """Return the values of an event's row."""
    at, data = to_microseconds(event.at), bytes(event.data)
    checksum = checksum_of(offset, instance_id, seq, event.type, at, data)
    return offset, instance_id, seq, event.type, at, str(data, "utf-8"), checksum


def checksum_of(offset: int, instance_id: str, seq: int, type: str, at: int, data: bytes) -> int:
    """Return the CRC-32 of all that a row says."""
    return zlib.crc32(data, zlib.crc32(f"{offset} {instance_id} {seq} {type} {at}".encode()))


def record_of(row: Row) -> EventRecord:
    """Return the event in a row: offset, instance_id, seq, type, at, data as bytes, checksum.

    Raises: StoreDamaged when that is not what was written.
    """
    offset, instance_id, seq, type_, at, data, checksum = row
    if checksum is not None and checksum_of(offset, instance_id, seq, type_, at, data) != checksum:
        raise StoreDamaged(f"event {offset} of the log is not what was written", offset=offset)
    return EventRecord(
        offset=offset,
        instance_id=instance_id,
        seq=seq,
        type=type_,
        at=from_microseconds(at),
        data=msgspec.Raw(data),
    )
