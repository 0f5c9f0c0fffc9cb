"""What a route is: method, path, handler and names of models. One table serves, checks and can describe the API."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web

from runtime.clock import Clock
from runtime.settings import WebSettings
from web.server.assets import Assets
from web.server.instances import Instances
from web.server.live import Hub
from web.server.mesh import Backend
from web.server.overview import Lists
from web.server.problems import ProblemError

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""What an id in a path may look like. Anything else names nothing."""
NO_QUERY = "NoQuery"
"""The model of a query string without parameters."""


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers work with.

    `parsing` bounds how many definitions are parsed at a time, each in a thread. `sockets` are the open live
    connections.
    """

    settings: WebSettings
    backend: Backend
    instances: Instances
    lists: Lists
    hub: Hub
    assets: Assets
    clock: Clock
    parsing: asyncio.Semaphore
    sockets: set[web.WebSocketResponse]


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request. `body` and `query` are instances of the route's models."""

    request: web.Request
    services: Services
    path: Mapping[str, str]
    body: Any
    query: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler returns; `data` is encoded as JSON."""

    data: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Answer | web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row of the table.

    `kind` json: the body is JSON and the answer too. form: the handler reads a multipart form. socket: the request
    becomes a WebSocket. file: a page or one of its files. `body` and `query` are names in `web.server.models`, which
    the first request that needs it loads. `what` names the thing that each id in the path stands for.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    summary: str
    body: str = ""
    query: str = NO_QUERY
    reply: type | None = None
    statuses: tuple[int, ...] = (200,)
    kind: Literal["json", "form", "socket", "file"] = "json"
    what: Mapping[str, str] = field(default_factory=dict)


def checked_path(route: Route, found: Mapping[str, str]) -> dict[str, str]:
    """Return the path's ids. Raises: ProblemError 404 for what can be no id."""
    for name, value in found.items():
        if name in route.what and not IDENTIFIER.fullmatch(value):
            raise ProblemError(
                404, f"{route.what[name]}_not_found", f"there is no {route.what[name]} {value[:100]!r}"
            )
    return dict(found)


def encoded(answer: Answer) -> web.Response:
    """Return the JSON response of an answer."""
    return web.Response(
        body=msgspec.json.encode(answer.data),
        status=answer.status,
        headers=dict(answer.headers),
        content_type="application/json",
    )
