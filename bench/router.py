"""Requests through the router between two agents, against two references in the same run.

    python -m bench.router [--requests N] [--rounds N] [--json]

- hosted: two processes of the mesh. This one asks; the other one answers and hosts the router, as the first agent on a
  machine does. The budget is for this.
- mesh: three processes. The router has one of its own, as under `amp up`, so each message crosses two connections.

The references say what this machine costs today:

- echo: `websockets` on both ends and nothing in between, which is two of the four crossings of a routed request.
  What is named "awake" was measured while processes of the idle class kept the cores from halting: a virtual machine
  may take 50 us and more to wake a halted core, four times a request, and that is the host's figure and not ours.
- bare: a router without a feature, `websockets` and fast JSON on three processes. It finds the receiver of a message
  and forwards it; no identities, no time limits, no bounds, no repeats. The mesh may cost half as much again.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator

import msgspec
import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.hosting import HostingTransport
from amp.transports.websocket import WebSocketTransport
from cli.up import free_port

PAYLOAD_BYTES = 1024
IN_FLIGHT = 100
WARM_UP = 300
START_SECONDS = 15
BUDGET_P50_MICROSECONDS = 200
KEEP_AWAKE = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""
"""It gets what nobody else wants of one core."""
BUDGET_TIMES_BARE = 1.5


async def answer_requests(url: str, *, host_router: bool) -> None:
    """The answering process: gives back what it gets."""

    async def echo(incoming: Incoming) -> object:
        return incoming.parameters

    offer = Offer(capability=Capability(id="bench-echo"), handler=echo, check_input=False)
    transport = HostingTransport(url, host_router=host_router)
    client = MeshClient(AgentIdentity(id="bench-answer"), transport, offers=[offer], max_in_flight=256)
    await client.start(wait_seconds=START_SECONDS)
    assert transport.hosting is host_router
    print("ready", flush=True)
    await asyncio.Event().wait()


async def echo_frames() -> None:
    """The reference's process: a bare echo."""

    async def echo(connection: ServerConnection) -> None:
        async for frame in connection:
            await connection.send(frame)

    async with serve(echo, "127.0.0.1", 0, compression=None) as server:
        print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.Event().wait()


async def route_barely() -> None:
    """The bare router: the connection that says "answer" gets requests, replies go to whoever asked."""
    answering: list[ServerConnection] = []
    askers: dict[str, ServerConnection] = {}

    async def route(connection: ServerConnection) -> None:
        async for frame in connection:
            if frame == "answer":
                answering.append(connection)
                continue
            message = msgspec.json.decode(frame)
            if message["type"] == "request":
                askers[message["id"]] = connection
                await answering[0].send(msgspec.json.encode(message), text=True)
            else:
                await askers.pop(message["to"]).send(msgspec.json.encode(message), text=True)

    async with serve(route, "127.0.0.1", 0, compression=None) as server:
        print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.Event().wait()


async def answer_barely(port: int) -> None:
    """The bare answering process: gives back what it gets."""
    async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection:
        await connection.send("answer")
        print("ready", flush=True)
        async for frame in connection:
            message = msgspec.json.decode(frame)
            reply = {
                "type": "response",
                "id": uuid.uuid4().hex,
                "to": message["id"],
                "result": message["text"],
            }
            await connection.send(msgspec.json.encode(reply), text=True)


def start(*arguments: str, until: str, stderr: bool = False) -> tuple[subprocess.Popen[str], str]:
    """Return a process and the line with which it said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE if not stderr else subprocess.DEVNULL,
        stderr=subprocess.PIPE if stderr else None,
        text=True,
    )
    stream = process.stderr if stderr else process.stdout
    assert stream is not None
    for line in stream:
        if until in line:
            return process, line
    raise RuntimeError(f"{arguments} ended before it was ready")


async def measure(ask: Callable[[], Awaitable[object]], requests: int) -> dict[str, float]:
    """Return latencies one by one, in microseconds, and the throughput with many in flight, in requests a second."""
    for _ in range(WARM_UP):
        await ask()
    times = []
    for _ in range(requests):
        began = time.perf_counter()
        await ask()
        times.append((time.perf_counter() - began) * 1e6)
    times.sort()
    left = requests * 2

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    elapsed = time.perf_counter() - began
    return {
        "p50_us": times[len(times) // 2],
        "p99_us": times[int(len(times) * 0.99)],
        "throughput_per_s": requests * 2 / elapsed,
    }


async def measure_mesh(url: str, requests: int) -> dict[str, float]:
    """Return the figures of requests through the router."""
    client = MeshClient(AgentIdentity(id="bench-ask"), WebSocketTransport(url), max_in_flight=256)
    await client.start(wait_seconds=START_SECONDS)
    text = "x" * PAYLOAD_BYTES
    try:
        return await measure(lambda: client.request("bench-echo", {"text": text}), requests)
    finally:
        await client.stop()


async def measure_echo(port: int, requests: int) -> dict[str, float]:
    """Return the figures of the bare echo. In flight, frames come back in order, so a queue of futures matches them."""
    frame = json.dumps({"text": "x" * PAYLOAD_BYTES})
    async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection:
        waiting: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

        async def read() -> None:
            async for _ in connection:
                (await waiting.get()).set_result(None)

        async def ask() -> None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting.put_nowait(future)
            await connection.send(frame)
            await future

        reader = asyncio.create_task(read())
        try:
            return await measure(ask, requests)
        finally:
            reader.cancel()


async def measure_bare(port: int, requests: int) -> dict[str, float]:
    """Return the figures of requests through the bare router."""
    text = "x" * PAYLOAD_BYTES
    waiting: dict[str, asyncio.Future[object]] = {}
    async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection:

        async def read() -> None:
            async for frame in connection:
                message = msgspec.json.decode(frame)
                waiting.pop(message["to"]).set_result(message["result"])

        async def ask() -> None:
            message_id = uuid.uuid4().hex
            future = waiting[message_id] = asyncio.get_running_loop().create_future()
            frame = msgspec.json.encode({"type": "request", "id": message_id, "text": text})
            await connection.send(frame, text=True)
            await future

        reader = asyncio.create_task(read())
        try:
            return await measure(ask, requests)
        finally:
            reader.cancel()


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep the cores from halting, where the system can do that."""
    cores = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    keepers = [subprocess.Popen([sys.executable, "-c", KEEP_AWAKE, str(core)]) for core in cores]
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.kill()
            keeper.wait()


def run(requests: int, rounds: int) -> dict[str, object]:
    """Return the medians over the rounds, and their spread."""
    processes: list[subprocess.Popen[str]] = []
    try:
        router, line = start("amp.router", "--port", "0", until="router_ready", stderr=True)
        processes.append(router)
        url = next(word for word in line.split() if word.startswith("ws://"))
        processes.append(start("bench.router", "--answer", url, until="ready")[0])
        hosted_url = f"ws://127.0.0.1:{free_port()}/amp/v1/ws"
        processes.append(start("bench.router", "--answer", hosted_url, "--host", until="ready")[0])
        echo, line = start("bench.router", "--echo", until="ready")
        processes.append(echo)
        echo_port = int(line.split()[1])
        relay, line = start("bench.router", "--bare", until="ready")
        processes.append(relay)
        bare_port = int(line.split()[1])
        processes.append(start("bench.router", "--bare-answer", str(bare_port), until="ready")[0])
        hosted, mesh, plain, bare, hosted_awake, plain_awake = [], [], [], [], [], []
        for _ in range(rounds):
            plain.append(uvloop.run(measure_echo(echo_port, requests)))
            bare.append(uvloop.run(measure_bare(bare_port, requests)))
            mesh.append(uvloop.run(measure_mesh(url, requests)))
            hosted.append(uvloop.run(measure_mesh(hosted_url, requests)))
            with awake():
                plain_awake.append(uvloop.run(measure_echo(echo_port, requests)))
                hosted_awake.append(uvloop.run(measure_mesh(hosted_url, requests)))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=10)
    figures: dict[str, object] = {}
    measured = {
        "hosted": hosted,
        "hosted_awake": hosted_awake,
        "mesh": mesh,
        "bare": bare,
        "echo": plain,
        "echo_awake": plain_awake,
    }
    for name, rows in measured.items():
        figures[name] = {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}
        figures[f"{name}_spread"] = {
            key: [round(min(row[key] for row in rows), 1), round(max(row[key] for row in rows), 1)]
            for key in rows[0]
        }
    p50 = statistics.median(row["p50_us"] for row in mesh)
    for name, rows in (("bare", bare), ("echo", plain)):
        figures[f"times_{name}_p50"] = round(p50 / statistics.median(row["p50_us"] for row in rows), 2)
    figures["budget_p50_us"] = BUDGET_P50_MICROSECONDS
    for end in ("", "_awake"):
        p50 = statistics.median(row["p50_us"] for row in measured[f"hosted{end}"])
        figures[f"within_budget{end}"] = p50 <= BUDGET_P50_MICROSECONDS
    figures["budget_times_bare"] = BUDGET_TIMES_BARE
    figures["within_budget_of_bare"] = figures["times_bare_p50"] <= BUDGET_TIMES_BARE
    return figures


def main() -> None:
    """Run one role."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000, help="requests a round, one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--answer", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--host", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare-answer", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        uvloop.run(answer_requests(options.answer, host_router=options.host))
    elif options.echo:
        uvloop.run(echo_frames())
    elif options.bare:
        uvloop.run(route_barely())
    elif options.bare_answer:
        uvloop.run(answer_barely(options.bare_answer))
    else:
        figures = run(options.requests, options.rounds)
        if options.json:
            print(json.dumps(figures))
        else:
            for name, value in figures.items():
                print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
