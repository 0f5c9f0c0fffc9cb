"""The document lists every log event and every metric, and none that does not exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = (ROOT / "docs/observability.md").read_text("utf-8")
PACKAGES = ("agents", "amp", "runtime", "web")
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def calls() -> Iterator[ast.Call]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call):
                    yield node


def logged() -> set[str]:
    names = set()
    for call in calls():
        if not (isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS and call.args):
            continue
        owner = call.func.value
        called = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        first = call.args[0]
        if (
            called.endswith("logger")
            and isinstance(first, ast.Constant)
            and re.fullmatch("[a-z_]+", first.value)
        ):
            names.add(first.value)
    return names


def measured() -> set[str]:
    names = set()
    for call in calls():
        kind = getattr(call.func, "id", "")
        first = call.args[0] if call.args else None
        if kind in ("Counter", "Gauge", "Histogram") and isinstance(first, ast.Constant):
            names.add(f"{first.value}_total" if kind == "Counter" else str(first.value))
    return names


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def first_column(text: str) -> set[str]:
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}


def test_every_log_event_is_in_the_document_and_no_other() -> None:
    assert first_column(section("Log lines")) == logged()


def test_every_metric_is_in_the_document() -> None:
    assert {name for name in measured() if f"`{name}`" not in section("Metrics")} == set()
