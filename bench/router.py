"""Requests through the router between two processes, against a bare WebSocket echo in the same run.

    python -m bench.router [--requests N] [--rounds N] [--json]

Three processes of the mesh: this one asks, one answers, one routes. The reference is `websockets` on both ends with
nothing in between: what one hop costs on this machine today. A request through the router crosses four such hops
halves (there and back on two connections), so the ratio to the echo says what the mesh adds.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from amp.capability import Capability, Incoming, Offer
from amp.client import AgentIdentity, MeshClient
from amp.transports.websocket import WebSocketTransport

PAYLOAD_BYTES = 1024
IN_FLIGHT = 100
WARM_UP = 300
START_SECONDS = 15
BUDGET_P50_MICROSECONDS = 200


async def answer_requests(url: str) -> None:
    """The answering process: gives back what it gets."""

    async def echo(incoming: Incoming) -> object:
        return incoming.parameters

    offer = Offer(capability=Capability(id="bench-echo"), handler=echo, check_input=False)
    client = MeshClient(
        AgentIdentity(id="bench-answer"), WebSocketTransport(url), offers=[offer], max_in_flight=256
    )
    await client.start(wait_seconds=START_SECONDS)
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


def run(requests: int, rounds: int) -> dict[str, object]:
    """Return the medians over the rounds, and their spread."""
    processes: list[subprocess.Popen[str]] = []
    try:
        router, line = start("amp.router", "--port", "0", until="router_ready", stderr=True)
        processes.append(router)
        url = next(word for word in line.split() if word.startswith("ws://"))
        processes.append(start("bench.router", "--answer", url, until="ready")[0])
        echo, line = start("bench.router", "--echo", until="ready")
        processes.append(echo)
        port = int(line.split()[1])
        mesh, bare = [], []
        for _ in range(rounds):
            bare.append(uvloop.run(measure_echo(port, requests)))
            mesh.append(uvloop.run(measure_mesh(url, requests)))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=10)
    figures: dict[str, object] = {}
    for name, rows in (("mesh", mesh), ("echo", bare)):
        figures[name] = {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}
        figures[f"{name}_spread"] = {
            key: [round(min(row[key] for row in rows), 1), round(max(row[key] for row in rows), 1)]
            for key in rows[0]
        }
    p50 = statistics.median(row["p50_us"] for row in mesh)
    figures["ratio_p50"] = round(p50 / statistics.median(row["p50_us"] for row in bare), 2)
    figures["budget_p50_us"] = BUDGET_P50_MICROSECONDS
    figures["within_budget"] = p50 <= BUDGET_P50_MICROSECONDS
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
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        uvloop.run(answer_requests(options.answer))
    elif options.echo:
        uvloop.run(echo_frames())
    else:
        figures = run(options.requests, options.rounds)
        if options.json:
            print(json.dumps(figures))
        else:
            for name, value in figures.items():
                print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
