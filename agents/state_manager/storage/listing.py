"""How a listing of instances filters, orders and counts, for storages without an index. Pure."""

import base64
import binascii
from collections import Counter
from collections.abc import Iterable

from agents.state_manager.errors import InvalidRequest
from agents.state_manager.fencing import MAX_ID_LENGTH, check_number, check_time
from agents.state_manager.store_clock import to_microseconds
from orchestration.contracts import InstanceListReply, InstanceListRequest, InstanceRow


def write_cursor(row: InstanceRow) -> str:
    """Return the text that names a row's place in a listing."""
    place = f"{to_microseconds(row.created_at)}:{row.instance_id}"
    return base64.urlsafe_b64encode(place.encode()).decode()


def read_cursor(cursor: str) -> tuple[int, str]:
    """Return the place that `write_cursor` named. Raises InvalidRequest when it did not write the cursor."""
    try:
        created_at, _, instance_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
        return check_number(int(created_at), "cursor"), instance_id
    except (binascii.Error, ValueError):
        raise InvalidRequest("cursor must come from `next_cursor` of the page before") from None


def check_listing(request: InstanceListRequest) -> None:
    """Raise InvalidRequest when a filter breaks a bound."""
    check_time(request.created_after, "created_after")
    check_time(request.created_before, "created_before")
    if len(request.text or "") > MAX_ID_LENGTH:
        raise InvalidRequest(f"text has {len(request.text or '')} characters; at most {MAX_ID_LENGTH}")


class Listing:
    """One request for a page of instances. Raises InvalidRequest when a filter breaks a bound."""

    def __init__(self, request: InstanceListRequest) -> None:
        check_listing(request)
        self._request = request
        self._before = read_cursor(request.cursor) if request.cursor else None

    def page(self, rows: Iterable[InstanceRow]) -> InstanceListReply:
        """Return the page among these rows."""
        request = self._request
        matching = [row for row in rows if self._matches(row)]
        counts = Counter(str(row.status) for row in matching)
        wanted = [row for row in matching if not request.statuses or row.status in request.statuses]
        places = sorted(((_place(row), row) for row in wanted), key=lambda item: item[0], reverse=True)
        after = [row for place, row in places if self._before is None or place < self._before]
        found = after[: request.limit]
        return InstanceListReply(
            rows=found,
            next_cursor=write_cursor(found[-1]) if len(after) > request.limit else None,
            total=len(wanted),
            counts=dict(counts),
        )

    def _matches(self, row: InstanceRow) -> bool:
        request = self._request
        texts = (row.instance_id, row.workflow_id, row.workflow_name, row.error_message)
        return (
            (not request.workflow_id or row.workflow_id == request.workflow_id)
            and (not request.owner or row.owner == request.owner)
            and (request.created_after is None or row.created_at > request.created_after)
            and (request.created_before is None or row.created_at < request.created_before)
            and (not request.text or any(request.text.lower() in text.lower() for text in texts))
        )


def _place(row: InstanceRow) -> tuple[int, str]:
    return to_microseconds(row.created_at), row.instance_id
