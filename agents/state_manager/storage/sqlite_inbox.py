"""What happens to instances from outside, in SQLite, until their owners consume it (which an append does)."""

import json
import sqlite3

import msgspec

from agents.state_manager.errors import StoreBusy
from agents.state_manager.fencing import (
    MAX_INBOX_ITEMS,
    check_inbox,
    encoded,
)
from agents.state_manager.storage.base import MAX_PAGE_BYTES
from agents.state_manager.storage.sqlite_core import Row, SqliteCore
from agents.state_manager.store_clock import (
    from_microseconds,
)
from orchestration.contracts import (
    InboxItem,
    InboxPutReply,
    InboxPutRequest,
    InboxReadReply,
    InboxReadRequest,
)
from orchestration.status import InstanceStatus

_READ_OWNER = "SELECT owner, status FROM instances WHERE instance_id = ?"
_READ_KEY = "SELECT inbox_id FROM inbox_keys WHERE instance_id = ? AND dedupe_key = ?"
_COUNT_INBOX = "SELECT COUNT(*) FROM inbox WHERE instance_id = ?"
_INSERT_INBOX = "INSERT INTO inbox (instance_id, kind, data, at) VALUES (?, ?, ?, ?)"
_INSERT_KEY = "INSERT INTO inbox_keys (instance_id, dedupe_key, inbox_id) VALUES (?, ?, ?)"
_READ_INBOX = """
SELECT inbox.inbox_id, inbox.instance_id, inbox.kind, inbox.data, inbox.at
FROM inbox JOIN instances ON instances.instance_id = inbox.instance_id
WHERE instances.owner = :owner AND (:ids IS NULL OR inbox.instance_id IN (SELECT value FROM json_each(:ids)))
ORDER BY inbox.inbox_id LIMIT :limit"""


class InboxTables(SqliteCore):
    """The inboxes."""

    async def put_inbox(self, request: InboxPutRequest) -> tuple[InboxPutReply, str]:
        """Store an entry for an open instance, once for each dedupe key; return the reply and the owner to tell."""
        data = encoded(request.data, "data")
        check_inbox(request, data)
        return await self.write(lambda connection: self._put_inbox(connection, request, data.decode()))

    def _put_inbox(
        self, connection: sqlite3.Connection, request: InboxPutRequest, data: str
    ) -> tuple[InboxPutReply, str]:
        found = connection.execute(_READ_OWNER, (request.instance_id,)).fetchone()
        if found is None:
            return InboxPutReply(inbox_id=0, found=False, open=False), ""
        owner, status = str(found[0]), InstanceStatus(found[1])
        if status.is_final:
            return InboxPutReply(inbox_id=0, found=True, open=False, status=status), owner
        key = request.dedupe_key
        known = None if key is None else connection.execute(_READ_KEY, (request.instance_id, key)).fetchone()
        if known is not None:
            return InboxPutReply(inbox_id=known[0], found=True, open=True, status=status), owner
        (waiting,) = connection.execute(_COUNT_INBOX, (request.instance_id,)).fetchone()
        if waiting >= MAX_INBOX_ITEMS:
            raise StoreBusy(f"{waiting} entries wait in the inbox of {request.instance_id!r} already")
        values = (request.instance_id, request.kind, data, self.now(connection))
        inbox_id = connection.execute(_INSERT_INBOX, values).lastrowid or 0
        if key is not None:
            connection.execute(_INSERT_KEY, (request.instance_id, key, inbox_id))
        return InboxPutReply(inbox_id=inbox_id, found=True, open=True, status=status), owner

    async def read_inbox(self, request: InboxReadRequest) -> InboxReadReply:
        """Return what waits for the instances of an owner, oldest first."""
        values = {
            "owner": request.owner,
            "ids": json.dumps(request.instance_ids) if request.instance_ids else None,
            "limit": request.limit,
        }
        rows, _ = await self.read_some(_READ_INBOX, values, lambda row: len(row[3]), MAX_PAGE_BYTES)
        return InboxReadReply(items=[_inbox_item(row) for row in rows])


def _inbox_item(row: Row) -> InboxItem:
    inbox_id, instance_id, kind, data, at = row
    return InboxItem(
        inbox_id=inbox_id,
        instance_id=instance_id,
        kind=kind,
        data=msgspec.json.decode(data),
        at=from_microseconds(at),
    )
