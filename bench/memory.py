"""What an idle mesh costs: memory of each process and processor time of all, for router, agents, dashboard, supervisor.

    python -m bench.memory [--idle-seconds N] [--json]

It starts `amp up` on free ports with a data folder of its own, waits until all is ready, lets it settle, reads /proc
and ends what it started. RSS counts a page that several processes share once for each of them, PSS divides it among
them: the budget is for RSS, which is the harder one. The reference, measured in the same run, is a Python process
that has imported asyncio and nothing else: what one process costs before it holds a line of ours.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.workflows import AGENTS
from cli.up import free_port

BUDGET_RSS_MEGABYTES = 350
BUDGET_CPU_PERCENT = 1.0
START_SECONDS = 60.0
SETTLE_SECONDS = 5.0
STOP_SECONDS = 30.0
READY_LINE = "ready; Ctrl-C stops everything in order"
REFERENCE = "import asyncio, sys; print('ready', flush=True); sys.stdin.read()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one process holds, in megabytes of 2**20 bytes, and what it used of one processor, in percent."""

    name: str
    rss: float
    pss: float
    cpu_percent: float


@contextlib.contextmanager
def mesh(folder: Path) -> Iterator[int]:
    """Run `amp up` as a person would, and yield its process id once everything is ready."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AMP_")}
    environment |= {f"AMP_{agent.upper()}__PORT": "0" for agent in AGENTS}
    environment |= {
        "AMP_MESH__ROUTER_URL": f"ws://127.0.0.1:{free_port()}/amp/v1/ws",
    }
    command = [sys.executable, "-m", "cli", "up", "--port", "0", "--data-dir", str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait_until_ready(process)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes]) -> None:
    """Read the log to its end in a thread of its own, and return at the line that says that all is ready."""
    assert process.stderr is not None
    stream = process.stderr
    said: queue.SimpleQueue[bool] = queue.SimpleQueue()
    tail: list[str] = []

    def read() -> None:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            tail[:] = [*tail[-11:], line]
            if READY_LINE in line:
                said.put(True)
        said.put(False)

    threading.Thread(target=read, daemon=True).start()
    try:
        ready = said.get(timeout=START_SECONDS)
    except queue.Empty:
        ready = False
    if not ready:
        raise SystemExit("the mesh did not start; its last lines:\n" + "\n".join(tail))


@contextlib.contextmanager
def bare_process() -> Iterator[int]:
    """Run the reference, and yield its process id."""
    command = [sys.executable, "-c", REFERENCE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def processes_of(supervisor: int) -> dict[int, str]:
    """Return the supervisor and its children by process id, with the names that their command lines give them."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return {supervisor: "supervisor", **{int(pid): _name(int(pid)) for pid in children}}


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    for word in words[1:]:
        if word.startswith("agents.") or word == "amp.router":
            return word.partition(".")[2]
        if word.endswith("web/app.py"):
            return "dashboard"
    return " ".join(words).strip()


def _memory(pid: int) -> tuple[float, float]:
    """Return RSS and PSS in megabytes."""
    kilobytes = {
        name: int(rest.split()[0])
        for name, _, rest in (
            line.partition(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        )
    }
    return kilobytes["Rss"] / 1024, kilobytes["Pss"] / 1024


def _cpu_seconds(pid: int) -> float:
    """Return the processor time that the process has used, by the scheduler's account, which has no ticks."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) / 1e9 for task in Path(f"/proc/{pid}/task").iterdir()
    )


def measure(names: Mapping[int, str], idle_seconds: float) -> list[Cost]:
    """Return what each process costs after `idle_seconds` in which nobody asked anything of it."""
    begun, before = time.monotonic(), {pid: _cpu_seconds(pid) for pid in names}
    time.sleep(idle_seconds)
    elapsed, after = time.monotonic() - begun, {pid: _cpu_seconds(pid) for pid in names}
    costs = []
    for pid, name in names.items():
        rss, pss = _memory(pid)
        costs.append(
            Cost(name=name, rss=rss, pss=pss, cpu_percent=(after[pid] - before[pid]) / elapsed * 100)
        )
    return costs


def table(costs: Sequence[Cost], total: Cost, bare: Cost) -> str:
    """Return the figures as people read them."""
    lines = [f"{'process':<22}{'RSS MB':>9}{'PSS MB':>9}{'CPU %':>9}{'x bare RSS':>12}"]
    lines += [
        f"{cost.name:<22}{cost.rss:>9.1f}{cost.pss:>9.1f}{cost.cpu_percent:>9.2f}{cost.rss / bare.rss:>12.2f}"
        for cost in (*sorted(costs, key=lambda cost: -cost.rss), total, bare)
    ]
    lines.append(
        f"budget: {BUDGET_RSS_MEGABYTES} MB RSS {_verdict(total.rss, BUDGET_RSS_MEGABYTES)},"
        f" {BUDGET_CPU_PERCENT:g} % CPU {_verdict(total.cpu_percent, BUDGET_CPU_PERCENT)}"
    )
    return "\n".join(lines)


def _verdict(value: float, budget: float) -> str:
    return "kept" if value < budget else f"missed by {value - budget:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="how long to watch the idle mesh")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        print("memory is read from Linux' /proc, which is not here; nothing measured", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as name, mesh(Path(name)) as supervisor, bare_process() as reference:
        time.sleep(SETTLE_SECONDS)
        costs = measure(processes_of(supervisor), options.idle_seconds)
        rss, pss = _memory(reference)
        bare = Cost(name="bare asyncio process", rss=rss, pss=pss, cpu_percent=0.0)
    total = Cost(
        name="all",
        rss=sum(cost.rss for cost in costs),
        pss=sum(cost.pss for cost in costs),
        cpu_percent=sum(cost.cpu_percent for cost in costs),
    )
    if options.json:
        print(
            json.dumps(
                {"processes": [asdict(cost) for cost in costs], "all": asdict(total), "bare": asdict(bare)}
            )
        )
    else:
        print(table(costs, total, bare))


if __name__ == "__main__":
    main()
