"""Time and chance come in from outside: what reads them by itself could not be simulated, or run again."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agents", "amp", "orchestration", "simulation")

FORBIDDEN_CALLS = frozenset(
    {
        "time.time", "time.monotonic", "time.perf_counter", "time.time_ns", "time.monotonic_ns", "time.sleep",
        "datetime.now", "datetime.utcnow", "datetime.today", "date.today",
        "uuid.uuid1", "uuid.uuid4", "uuid4", "os.urandom", "secrets.token_hex", "secrets.token_bytes",
        "secrets.randbelow", "secrets.choice", "SystemRandom", "random.SystemRandom",
        "random.random", "random.randint", "random.choice", "random.uniform", "random.shuffle", "random.sample",
        "random.getrandbits", "threading.Thread", "Thread", "ThreadPoolExecutor", "ProcessPoolExecutor",
        "asyncio.as_completed",
    }
)  # fmt: skip
"""What reads the machine's clock or its chance, or takes an order of its own."""

ALLOWED = {
    "agents/base.py": {"Random"},
    "agents/condition_evaluator/agent.py": {"ThreadPoolExecutor"},
    "agents/state_manager/writer.py": {"threading.Thread"},
    "agents/task_executor/compute.py": {"ThreadPoolExecutor", "threading.Thread"},
    "agents/task_executor/files.py": {"secrets.token_hex"},
    "agents/task_executor/process_guard.py": {"time.monotonic", "time.sleep"},
    "agents/task_executor/program_records.py": {"secrets.token_hex", "time.sleep"},
    "agents/task_executor/under_way.py": {"secrets.token_hex"},
    "amp/client.py": {"datetime.now", "SystemRandom"},
    "amp/router.py": {"datetime.now", "SystemRandom"},
    "amp/transports/websocket.py": {"os.urandom"},
}
"""The defaults of real processes, threads whose work the simulation does in place, and what no simulation runs."""


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Return the forbidden calls in a module, by line and name. `random` is often the name of an injected Random."""
    nodes = list(ast.walk(tree))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("Random", "random.Random") and not node.args:
                yield node.lineno, "Random"
            elif name in FORBIDDEN_CALLS and (not name.startswith("random.") or "random" in imported):
                yield node.lineno, name


def modules() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def test_no_module_reads_the_clock_or_chance_by_itself() -> None:
    found = [
        f"{path}:{line}: {name}"
        for file in modules()
        if (path := file.relative_to(ROOT).as_posix())
        for line, name in calls(ast.parse(file.read_text()))
        if name not in ALLOWED.get(path, set())
    ]
    assert found == []


def test_every_exception_is_still_needed() -> None:
    used = {
        path: {name for _, name in calls(ast.parse((ROOT / path).read_text()))} & names
        for path, names in ALLOWED.items()
    }
    assert used == ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        "time.time()",
        "import random; random.random()",
        "datetime.now(UTC)",
        "Random()",
        "uuid4()",
        "threading.Thread(target=f)",
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert list(calls(ast.parse(code)))


def test_chance_with_a_seed_is_no_finding() -> None:
    assert list(calls(ast.parse("Random(7)"))) == []
