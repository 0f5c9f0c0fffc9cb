"""What waits to be sent to one browser: bounded, the latest value a list item, events in order or not at all.

Pure bookkeeping, no I/O. A browser that reads too slowly loses its event subscriptions (it is told to resync) and
gets only the newest values of lists; nothing it does can slow the log's reader.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

MAX_EVENTS = 2000
MAX_EVENT_BYTES = 4 * 1024 * 1024
MAX_CONTROL_FRAMES = 200


class Outbox:
    """Frames for one client."""

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._patches: dict[int, tuple[int, dict[str, Any]]] = {}
        self._events: dict[int, list[bytes]] = {}
        self._bounds: dict[int, tuple[int, int]] = {}
        self._event_count = 0
        self._event_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether the client must read before it may ask for more."""
        return len(self._control) >= MAX_CONTROL_FRAMES

    def control(self, frame: Mapping[str, Any]) -> None:
        """Add a frame that is neither patch nor event."""
        self._control.append(msgspec.json.encode(frame))

    def patch(self, subscription_id: int, seq: int, data: Mapping[str, Any]) -> None:
        """Add a list's change. What still waits for the same subscription is merged, the latest wins."""
        _, waiting = self._patches.get(subscription_id, (0, {}))
        merged = {**waiting, **data}
        if "items" in waiting and "items" in data:
            merged["items"] = {**waiting["items"], **data["items"]}
        self._patches[subscription_id] = (seq, merged)

    def events(self, subscription_id: int, events: Sequence[Mapping[str, Any]]) -> bool:
        """Add an instance's events, in order. False when there is no room: then none of them is kept, and the
        client was told to subscribe again from the last seq it saw."""
        encoded = [msgspec.json.encode(event) for event in events]
        size = sum(map(len, encoded))
        if self._event_count + len(encoded) > MAX_EVENTS or self._event_bytes + size > MAX_EVENT_BYTES:
            self.forget(subscription_id)
            self.control({"op": "resync", "id": subscription_id})
            return False
        first, _ = self._bounds.get(subscription_id, (events[0]["seq"], 0))
        self._bounds[subscription_id] = (first, events[-1]["seq"])
        self._events.setdefault(subscription_id, []).extend(encoded)
        self._event_count += len(encoded)
        self._event_bytes += size
        return True

    def forget(self, subscription_id: int) -> None:
        """Drop what waits for a subscription that ended."""
        self._patches.pop(subscription_id, None)
        self._bounds.pop(subscription_id, None)
        dropped = self._events.pop(subscription_id, [])
        self._event_count -= len(dropped)
        self._event_bytes -= sum(map(len, dropped))

    def take(self) -> list[bytes]:
        """Return every frame that waits, oldest kind first, and empty the box."""
        frames = list(self._control)
        self._control.clear()
        for subscription_id, (seq, data) in self._patches.items():
            frames.append(
                msgspec.json.encode({"op": "patch", "id": subscription_id, "seq": seq, "data": data})
            )
        self._patches.clear()
        for subscription_id, events in self._events.items():
            first, last = self._bounds[subscription_id]
            head = {"op": "events", "id": subscription_id, "from": first, "to": last}
            frames.append(msgspec.json.encode({**head, "events": [msgspec.Raw(event) for event in events]}))
        self._events.clear()
        self._bounds.clear()
        self._event_count = self._event_bytes = 0
        return frames
