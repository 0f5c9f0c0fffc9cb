"""What the router remembers of requests that are over, so that one that is asked again is not done again. Pure.

A requester that never hears an answer asks again under the same id. The router cannot know whether the answer was
lost on its way, so it keeps for a while who had the request and how that ended.
"""

from collections import OrderedDict

import msgspec

from amp.session import Session

Key = tuple[str, str]


class Ended(msgspec.Struct, frozen=True):
    """A request that is over.

    `digest` tells a repeat from another request that reuses the id, `process` the agent's process from a later one
    of the same name, `asked_on` the connection it was asked on. `lost`: its agent disappeared before it answered.
    """

    digest: int
    agent_id: str
    process: str | None
    asked_on: int
    lost: bool


class EndedRequests:
    """The last `limit` requests that are over, by requester and message id."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ended: OrderedDict[Key, Ended] = OrderedDict()

    def note(self, key: Key, digest: int, responder: Session, asked_on: int, *, lost: bool = False) -> None:
        """Keep how a request ended."""
        self._ended[key] = Ended(
            digest, responder.agent_id or "", responder.terms.resume_token, asked_on, lost
        )
        if len(self._ended) > self._limit:
            self._ended.popitem(last=False)

    def get(self, key: Key) -> Ended | None:
        """Return how a request ended, or None when it is not known."""
        return self._ended.get(key)

    def forget(self, key: Key) -> None:
        """Take a request for one that was never asked."""
        self._ended.pop(key, None)
