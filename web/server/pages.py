"""Handlers for the pages, their files and the WebSockets."""

from aiohttp import web

from web.server.problems import ProblemError
from web.server.sockets import MAX_MESSAGE_BYTES, SUBPROTOCOL, LegacySession, Session
from web.server.table import Call

PAGES = ("/", "/workflows", "/workflows/{workflow_id}", "/instances", "/instances/{instance_id}")
"""Addresses that the page's own router knows. Every other address is a real 404."""


async def get_page(call: Call) -> web.StreamResponse:
    """Answer the page; its script shows what the address asks for."""
    return call.services.assets.page()


async def get_monitoring(call: Call) -> web.StreamResponse:
    """Send the older address of the overview to the overview."""
    return web.Response(status=308, headers={"Location": "/"})


async def get_asset(call: Call) -> web.StreamResponse:
    """Answer a file of the page."""
    found = call.services.assets.file(call.request, call.path["digest"], call.path["name"])
    if found is None:
        raise ProblemError(404, "not_found", "there is nothing at this address", title="Not found")
    return found


async def live_socket(call: Call) -> web.StreamResponse:
    """Become the live channel `amp.ui.v1`."""
    socket = web.WebSocketResponse(protocols=(SUBPROTOCOL,), max_msg_size=MAX_MESSAGE_BYTES, compress=False)
    return await _serve(call, socket, Session)


async def legacy_socket(call: Call) -> web.StreamResponse:
    """Become the older stream of {type, data} messages."""
    socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, compress=False, heartbeat=30)
    return await _serve(call, socket, LegacySession)


async def _serve(
    call: Call, socket: web.WebSocketResponse, session: type[Session] | type[LegacySession]
) -> web.StreamResponse:
    clients = call.services.sockets
    if not socket.can_prepare(call.request):
        raise ProblemError(
            426, "upgrade_required", "this address speaks WebSocket", headers={"Upgrade": "websocket"}
        )
    if len(clients) >= call.services.settings.max_live_clients:
        raise ProblemError(
            503,
            "too_many_clients",
            "too many live connections (web.max_live_clients)",
            headers={"Retry-After": "5"},
        )
    clients.add(socket)
    try:
        await socket.prepare(call.request)
        await session(call.request, socket, call.services.hub).run()
        await socket.close()
    finally:
        clients.discard(socket)
    return socket
