"""Answers where requests are and who could take them: what a requester is told about its own waits. Pure.

It must never show one agent the requests of another.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from amp.discovery import Names
from amp.queues import Pending
from amp.session import Session

if TYPE_CHECKING:
    from amp.routing import Routing


class TrafficQuery(msgspec.Struct, frozen=True, kw_only=True):
    """`capabilities` are looked at for who offers them; `requests` are ids of the asker's unanswered requests."""

    capabilities: Names = []
    requests: Names = []


def traffic(routing: "Routing", asker: Session, query: TrafficQuery) -> dict[str, Any]:
    """Return `{capabilities, requests}`.

    Each capability has `agents`, a list of {id, in_flight, max_in_flight}, and `queued`: how many requests wait for
    it. Each request that is under way has {state, agent_id, place, of}: `state` is `queued` (at `place` of `of`) or
    `assigned` (to `agent_id`); one that the router does not know is left out.
    """
    asked = [
        pending
        for request_id in query.requests
        if (pending := routing.pending.get((asker.agent_id or "", request_id))) is not None
    ]
    places = {
        waiting.key: place
        for queue in {pending.queue for pending in asked if pending.queue is not None}
        for place, waiting in enumerate(routing.queues.waiting(queue), start=1)
    }
    return {
        "capabilities": {name: _offered(routing, name) for name in query.capabilities},
        "requests": {pending.key[1]: _place(routing, pending, places) for pending in asked},
    }


def _offered(routing: "Routing", capability: str) -> dict[str, Any]:
    holders = routing.registry.offers.get(capability, {})
    agents = [
        {"id": name, "in_flight": session.in_flight, "max_in_flight": session.terms.max_in_flight}
        for name, session in sorted(holders.items())
        if not session.draining
    ]
    return {"agents": agents, "queued": routing.queues.depth(("capability", capability))}


def _place(routing: "Routing", pending: Pending, places: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    if pending.queue is not None:
        return {"state": "queued", "place": places[pending.key], "of": routing.queues.depth(pending.queue)}
    responder = pending.responder
    return {"state": "assigned", "agent_id": responder.agent_id if responder is not None else ""}
