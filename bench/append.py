"""Durable appends through the state manager's storage, against bare SQLite commits in the same run.

    python -m bench.append [--appends N] [--rounds N] [--json]

One event and its instance's row, durable when answered: one by one, and from 500 instances at once. The reference
writes the same bytes to the same disk with stdlib sqlite3 and nothing around it: one commit an event, and one commit
for 100 events. Rounds of ours and of the reference alternate, so both see the same machine.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import uvloop

from agents.state_manager.errors import StoreLost
from agents.state_manager.storage.sqlite import SqliteStorage
from agents.state_manager.store_clock import StoreClock
from orchestration.contracts import AppendBatch, AppendRequest, InstanceRow, NewEvent
from orchestration.status import InstanceStatus
from runtime.clock import SystemClock

APPENDS = 1000
ROUNDS = 5
FOLDER = ".tmp"
INSTANCES = 500
GROUP_ROWS = 100
WARM_UP = 50
BUDGET_P50_MICROSECONDS = 600
EVENT = (
    b'{"type":"task.completed","task_id":"charge","attempt":1,"outputs":{"receipt":"' + b"x" * 160 + b'"}}'
)
NOW = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)

_DECODER = msgspec.json.Decoder(AppendRequest)


def make_request(instance_id: str, seq: int) -> bytes:
    """Return a state-append as it comes off the wire."""
    row = InstanceRow(
        instance_id=instance_id,
        workflow_id="bench",
        workflow_version="1.0",
        workflow_name="Bench",
        definition_hash="0" * 64,
        status=InstanceStatus.RUNNING,
        created_at=NOW,
        updated_at=NOW,
        wake_reason="task charge runs",
        task_counts={"completed": seq, "running": 1},
        current_tasks=["charge"],
    )
    event = NewEvent(type="task.completed", at=NOW, data=msgspec.Raw(EVENT))
    batch = AppendBatch(
        instance_id=instance_id, owner="bench:1", epoch=1, expected_seq=seq, events=[event], row=row
    )
    return msgspec.json.encode(AppendRequest(batches=[batch]))


async def append(storage: SqliteStorage, request: bytes) -> None:
    """Do what the capability does: decode, store, encode."""
    outcomes = await storage.append(_DECODER.decode(request).batches)
    assert outcomes[0].status == "ok", outcomes
    msgspec.json.encode(outcomes)


async def measure_single(storage: SqliteStorage, name: str, count: int) -> list[float]:
    """Return the seconds of each of `count` appends, one after the other."""
    requests = [make_request(name, seq) for seq in range(count + WARM_UP)]
    times = []
    for request in requests:
        begun = time.perf_counter()
        await append(storage, request)
        times.append(time.perf_counter() - begun)
    return times[WARM_UP:]


async def measure_concurrent(storage: SqliteStorage, name: str, count: int) -> tuple[float, list[float]]:
    """Return appends a second and the seconds of each, with `INSTANCES` instances that each append in turn."""
    each = max(1, count // INSTANCES)
    work = [[make_request(f"{name}-{number}", seq) for seq in range(each)] for number in range(INSTANCES)]
    times: list[float] = []

    async def drive(requests: list[bytes]) -> None:
        for request in requests:
            begun = time.perf_counter()
            await append(storage, request)
            times.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(drive(requests) for requests in work))
    return INSTANCES * each / (time.perf_counter() - begun), times


def measure_bare(path: Path, commits: int, rows_a_commit: int) -> list[float]:
    """Return the seconds of each commit of plain sqlite3 with the same durability."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS events (offset INTEGER PRIMARY KEY AUTOINCREMENT, data TEXT)"
    )
    rows = [(EVENT.decode(),)] * rows_a_commit
    times = []
    for _ in range(commits + WARM_UP):
        begun = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO events (data) VALUES (?)", rows)
        connection.execute("COMMIT")
        times.append(time.perf_counter() - begun)
    connection.close()
    return times[WARM_UP:]


def quantile(times: list[float], share: float) -> float:
    """Return the given quantile in microseconds."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] * 1e6


async def run_round(folder: Path, number: int, count: int) -> dict[str, float]:
    """Measure ours and the reference once."""
    bare = measure_bare(folder / "bare.db", count, 1)
    grouped = measure_bare(folder / "bare.db", max(10, count // GROUP_ROWS), GROUP_ROWS)
    storage = SqliteStorage(folder / "ours.db", StoreClock(SystemClock()), _lost)
    await storage.start()
    single = await measure_single(storage, f"single-{number}", count)
    rate, concurrent = await measure_concurrent(storage, f"many-{number}", count * 10)
    await storage.stop()
    return {
        "bare_commit_p50_us": quantile(bare, 0.5),
        "bare_grouped_rows_a_second": GROUP_ROWS / statistics.median(grouped),
        "append_p50_us": quantile(single, 0.5),
        "append_p99_us": quantile(single, 0.99),
        "concurrent_appends_a_second": rate,
        "concurrent_p50_us": quantile(concurrent, 0.5),
        "concurrent_p99_us": quantile(concurrent, 0.99),
    }


def _lost(lost: StoreLost) -> None:
    raise SystemExit(f"the store was lost: {lost.message}")


async def measure(rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Return median, lowest and highest of every figure over the rounds."""
    # A folder of the checkout: a temporary file system in memory would not sync anything.
    os.makedirs(FOLDER, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="bench-append-") as folder:
        results = [await run_round(Path(folder), number, count) for number in range(rounds)]
    return {
        name: {
            "median": statistics.median(values),
            "lowest": min(values),
            "highest": max(values),
        }
        for name in results[0]
        if (values := [result[name] for result in results])
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.append", description=__doc__)
    parser.add_argument("--appends", type=int, default=APPENDS, help="appends one by one in each round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    figures = uvloop.run(measure(options.rounds, options.appends))
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, figure in figures.items():
        print(f"{name:32} {figure['median']:12,.0f}   ({figure['lowest']:,.0f} .. {figure['highest']:,.0f})")
    p50, bare = figures["append_p50_us"]["median"], figures["bare_commit_p50_us"]["median"]
    print(
        f"an append takes {p50 / bare:.2f} times a bare commit; budget {BUDGET_P50_MICROSECONDS} us: {p50:.0f} us"
    )


if __name__ == "__main__":
    main()
