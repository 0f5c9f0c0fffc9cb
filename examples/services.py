"""The services that `workflows/data_pipeline.json` calls: sample customers, two enrichments, a small warehouse.

    python examples/services.py --port 9000

Everything is deterministic and kept in memory within bounds; restart it to begin anew. Port 0 takes a free port.
"""

import argparse
import asyncio
import hashlib
import signal
from typing import Any

from aiohttp import web

MAX_BODY_BYTES = 1024 * 1024
MAX_IDS = 1_000
MAX_BATCHES = 1_000
MAX_NOTIFICATIONS = 1_000

CUSTOMERS: list[dict[str, Any]] = [
    {"id": "c-01", "name": "Ada Lovelace", "email": "ada@example.com", "age": 36},
    {"id": "c-02", "name": "Alan Turing", "email": "alan@example.com", "age": 41},
    {"id": "c-03", "name": "Grace Hopper", "email": "grace@example.com", "age": 85},
    {"id": "c-04", "name": "Edsger Dijkstra", "email": "edsger@example.com", "age": 72},
    {"id": "c-05", "name": "Barbara Liskov", "email": "barbara@example.com", "age": 60},
    {"id": "c-06", "name": "Ada  Lovelace", "email": "ADA@example.com", "age": 36},
    {"id": "c-07", "name": "Donald Knuth", "email": "donald@example.com", "age": 70},
    {"id": "c-08", "name": "Nobody", "email": "not an address", "age": 30},
    {"id": "c-09", "name": "Margaret Hamilton", "email": "margaret@example.com", "age": 59},
    {"id": "c-10", "name": "Methuselah", "email": "methuselah@example.com", "age": 969},
    {"id": "c-11", "name": "Tony Hoare", "email": "tony@example.com", "age": 66},
    {"id": "c-12", "name": "Frances Allen", "email": "frances@example.com", "age": 68},
    {"id": "c-13", "name": "John McCarthy", "email": "john@example.com"},
    {"id": "c-14", "name": "Radia Perlman", "email": "radia@example.com", "age": 55},
    {"id": "c-15", "name": "Barbara Liskov", "email": "Barbara@Example.com", "age": 60},
]
"""Two of them invalid, two of them duplicates."""

COUNTRIES = ("GB", "US", "NL", "DE", "JP", "ES")
BATCHES = web.AppKey("batches", dict[str, int])
NOTIFICATIONS = web.AppKey("notifications", list[Any])


def make_app() -> web.Application:
    """Return the services as an application that can also be run inside a test."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app[BATCHES] = {}
    app[NOTIFICATIONS] = []
    app.router.add_get("/", index)
    app.router.add_get("/health", health)
    app.router.add_get("/api/customers", customers)
    app.router.add_post("/api/locations", locations)
    app.router.add_post("/api/scores", scores)
    app.router.add_post("/api/warehouse/customers", load)
    app.router.add_get("/api/warehouse", warehouse)
    app.router.add_post("/api/notifications", notify)
    app.router.add_get("/api/notifications", notifications)
    return app


async def index(request: web.Request) -> web.Response:
    """Say what is here."""
    resources = request.app.router.resources()
    return web.json_response({"services": sorted({resource.canonical for resource in resources})})


async def health(_: web.Request) -> web.Response:
    """Say that the services are up."""
    return web.json_response({"status": "healthy"})


async def customers(_: web.Request) -> web.Response:
    """Return the sample customers, flaws included."""
    return web.json_response({"customers": CUSTOMERS})


async def locations(request: web.Request) -> web.Response:
    """Return where customers live, by id."""
    found = [
        {"customer_id": id_, "country": COUNTRIES[_digest(id_) % len(COUNTRIES)]}
        for id_ in await _ids(request)
    ]
    return web.json_response({"locations": found})


async def scores(request: web.Request) -> web.Response:
    """Return credit scores from 50 to 99, by id; one customer is not known here."""
    known = [id_ for id_ in await _ids(request) if id_ != "c-13"]
    return web.json_response(
        {"scores": [{"customer_id": id_, "score": 50 + _digest(id_) % 50} for id_ in known]}
    )


async def load(request: web.Request) -> web.Response:
    """Store a batch of customers. The same batch counts once, however often it is sent."""
    body = await _object(request)
    batch, rows = body.get("batch"), body.get("customers")
    if not isinstance(batch, str) or not isinstance(rows, list):
        raise web.HTTPUnprocessableEntity(text="expected {batch: text, customers: list}")
    batches = request.app[BATCHES]
    is_new = batch not in batches
    batches[batch] = len(rows)
    if len(batches) > MAX_BATCHES:
        del batches[next(iter(batches))]
    return web.json_response({"loaded": len(rows), "batch": batch}, status=201 if is_new else 200)


async def warehouse(request: web.Request) -> web.Response:
    """Return what was loaded, by batch."""
    return web.json_response({"batches": request.app[BATCHES]})


async def notify(request: web.Request) -> web.Response:
    """Take a notification."""
    body = await _object(request)
    kept = request.app[NOTIFICATIONS]
    kept.append(body)
    del kept[:-MAX_NOTIFICATIONS]
    return web.json_response({"notification": len(kept)})


async def notifications(request: web.Request) -> web.Response:
    """Return the newest notifications."""
    return web.json_response({"notifications": request.app[NOTIFICATIONS]})


async def _object(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(body, dict):
        raise web.HTTPUnprocessableEntity(text="expected an object")
    return body


async def _ids(request: web.Request) -> list[str]:
    asked = (await _object(request)).get("customers")
    if not isinstance(asked, list) or not all(isinstance(entry, dict) and "id" in entry for entry in asked):
        raise web.HTTPUnprocessableEntity(text="expected {customers: [{id: text, ...}, ...]}")
    if len(asked) > MAX_IDS:
        raise web.HTTPRequestEntityTooLarge(max_size=MAX_IDS, actual_size=len(asked))
    return [str(entry["id"]) for entry in asked]


def _digest(text: str) -> int:
    """Return the same number for the same text, in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


async def serve(host: str, port: int) -> None:
    """Serve until the process is asked to stop."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(make_app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0][1]
        print(f"http://{host}:{bound}", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="Sample services for the example workflows")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000, help="0 takes a free port")
    arguments = parser.parse_args()
    try:
        asyncio.run(serve(arguments.host, arguments.port))
    except (OSError, OverflowError) as error:
        parser.exit(1, f"cannot serve at {arguments.host}:{arguments.port}: {error}\n")


if __name__ == "__main__":
    main()
