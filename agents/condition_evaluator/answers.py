"""Answers that are kept for a while, by the caller's own key. Bounded; the ones used longest ago leave first."""

from collections import OrderedDict
from collections.abc import Callable

from orchestration.contracts import ConditionEvaluateReply

MAX_KEY_CHARACTERS = 500

Key = tuple[str, ...]


class AnswerCache:
    """Replies by key, each for `ttl_seconds`.

    Args:
        monotonic: The time that only grows, in seconds.
    """

    def __init__(self, max_entries: int, ttl_seconds: float, monotonic: Callable[[], float]) -> None:
        self._max_entries = max_entries
        self._ttl_seconds = ttl_seconds
        self._monotonic = monotonic
        self._entries: OrderedDict[Key, tuple[float, ConditionEvaluateReply]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> ConditionEvaluateReply | None:
        """Return the reply that is kept, None when there is none or it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._monotonic() >= entry[0]:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry[1]

    def put(self, key: Key, reply: ConditionEvaluateReply) -> None:
        """Keep a reply."""
        self._entries[key] = (self._monotonic() + self._ttl_seconds, reply)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
