"""AMP over plain HTTP: post a message, poll for what came back, or call and wait.

A poll names no agent, so a poller is known by its token, by the path it uses (`/agents/{id}`), or by a cookie set
when it posted. Messages for it wait in a bounded mailbox. A post that is repeated (the reference client does so after
a server error) is taken once.
"""

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from amp.caller import CALLER
from amp.codec import Control, Refusal, decode
from amp.envelope import Envelope, MessageType
from amp.errors import AmpError, InvalidSchema, RequestTimeout
from amp.mailbox import CallBox, Mailbox
from amp.session import INVOKE, Session, SessionTerms

if TYPE_CHECKING:
    from amp.router import Member, Router

logger = logging.getLogger(__name__)

COOKIE = "amp_session"
POLLER_LIFE_SECONDS = 60.0
"""A poller that neither posted nor polled for so long has left."""
MAX_POLLERS = 1024
MAX_SEEN_MESSAGES = 10_000
MAX_CALLS = 1024


@dataclass(slots=True, eq=False)
class _Poller:
    agent_id: str
    cookie: str
    member: "Member"
    mailbox: Mailbox
    seen_at: float


class HttpBinding:
    """The pollers and calls of one router."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self._pollers: dict[str, _Poller] = {}
        self._by_cookie: dict[str, _Poller] = {}
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._calls = 0
        self._sweep: asyncio.TimerHandle | None = None

    def add_routes(self, app: web.Application) -> None:
        """Add the binding's routes, at the root and below an agent's own base path."""
        for base in ("", "/agents/{agent_id}"):
            app.router.add_post(f"{base}/amp/v1/messages", self._post)
            app.router.add_get(f"{base}/amp/v1/messages/poll", self._poll)
            for version in ("amp", "aip"):
                app.router.add_post(f"{base}/{version}/v1/invoke", self._invoke)

    def stop(self) -> None:
        """Forget the pollers."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for poller in list(self._pollers.values()):
            self._drop(poller)

    # --- post and poll --------------------------------------------------------------------------------------

    async def _post(self, request: web.Request) -> web.Response:
        text = await request.text()
        item = self._read(text)
        if isinstance(item, Control):
            return web.json_response({"message_id": None})
        message = item.message
        poller = self._poller_of(request, message.source.agent_id)
        response = web.json_response({"message_id": message.id})
        response.set_cookie(COOKIE, poller.cookie, httponly=True, samesite="Strict", path="/")
        key = (poller.agent_id, message.id)
        if key in self._seen:
            return response
        self._seen[key] = None
        if len(self._seen) > MAX_SEEN_MESSAGES:
            self._seen.popitem(last=False)
        self._router.accept(poller.member.session, item, text)
        return response

    async def _poll(self, request: web.Request) -> web.Response:
        poller = self._by_cookie.get(request.cookies.get(COOKIE, ""))
        named = request[CALLER].agent_id
        if named is not None and (poller is None or poller.agent_id != named):
            poller = self._pollers.get(named)
        if poller is None:
            return web.Response(status=204)
        poller.seen_at = asyncio.get_running_loop().time()
        frames = poller.mailbox.take()
        if not frames:
            return web.Response(status=204)
        body = b'{"messages":[' + b",".join(frames) + b"]}"
        return web.Response(body=body, content_type="application/json")

    def _read(self, text: str) -> Envelope | Control:
        limit = self._router.limits.max_frame_bytes
        if len(text) > limit:
            raise AmpError(
                "INSUFFICIENT_RESOURCES",
                f"the message is larger than {limit} bytes",
                {"status": 413, "limit_bytes": limit},
            )
        items, batched = decode(text)
        if batched or len(items) != 1:
            raise InvalidSchema("post one envelope at a time")
        item = items[0]
        if isinstance(item, Refusal):
            raise item.error
        return item

    def _poller_of(self, request: web.Request, agent_id: str) -> _Poller:
        """Return the poller that posts as `agent_id`, a new one if need be. Raises AuthenticationFailed."""
        now = asyncio.get_running_loop().time()
        poller = self._pollers.get(agent_id)
        if poller is not None and self._router.routing.registry.agents.get(agent_id) is poller.member.session:
            poller.seen_at = now
            return poller
        if poller is not None:
            self._drop(poller)
        mailbox = Mailbox(asyncio.get_running_loop().time)
        session = Session(key=self._router.new_key(), kind="http", pinned_agent_id=request[CALLER].agent_id)
        self._router.routing.registry.holder_to_replace(session, agent_id)
        if len(self._pollers) >= MAX_POLLERS:
            raise AmpError(
                "INSUFFICIENT_RESOURCES", "too many agents poll this router", {"retry_after_ms": 1000}
            )
        member = self._router.admit_session(session, mailbox)
        self._router.claim(member.session, agent_id)
        poller = _Poller(agent_id, self._router.new_token(), member, mailbox, now)
        self._pollers[agent_id] = self._by_cookie[poller.cookie] = poller
        self._schedule()
        return poller

    def _schedule(self) -> None:
        if self._sweep is None and self._pollers:
            earliest = min(poller.seen_at for poller in self._pollers.values())
            self._sweep = asyncio.get_running_loop().call_at(
                earliest + POLLER_LIFE_SECONDS + 0.1, self._drop_gone
            )

    def _drop_gone(self) -> None:
        self._sweep = None
        now = asyncio.get_running_loop().time()
        for poller in list(self._pollers.values()):
            if poller.seen_at + POLLER_LIFE_SECONDS <= now:
                self._drop(poller)
        self._schedule()

    def _drop(self, poller: _Poller) -> None:
        self._pollers.pop(poller.agent_id, None)
        self._by_cookie.pop(poller.cookie, None)
        self._router.dismiss(poller.member)

    # --- call and wait --------------------------------------------------------------------------------------

    async def _invoke(self, request: web.Request) -> web.Response:
        text = await request.text()
        item = self._read(text)
        if isinstance(item, Control) or item.message.type != MessageType.REQUEST:
            raise InvalidSchema("invoke takes a request")
        if self._calls >= MAX_CALLS:
            raise AmpError("INSUFFICIENT_RESOURCES", "too many calls are under way", {"retry_after_ms": 1000})
        box = CallBox()
        session = Session(key=self._router.new_key(), kind=INVOKE, pinned_agent_id=request[CALLER].agent_id)
        session.terms = SessionTerms(max_frame_bytes=self._router.limits.max_frame_bytes)
        member = self._router.admit_session(session, box)
        self._calls += 1
        try:
            self._router.accept(session, item, text)
            async with asyncio.timeout(item.message.headers.effective_timeout_ms / 1000):
                body = await box.answer
        except TimeoutError:
            error = RequestTimeout("no agent answered in time")
            body = self._router.error_frame(session, item.message.id, error)
        finally:
            self._calls -= 1
            self._router.dismiss(member)
        return web.Response(body=body, content_type="application/json")
