"""Who an HTTP request comes from, as far as the router could establish it before the handler runs."""

from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Caller:
    """`proven_agent_id` is bound to the credentials; `agent_id` is that, or what the URL says when nothing is bound."""

    proven_agent_id: str | None
    agent_id: str | None


CALLER = web.RequestKey("caller", Caller)
