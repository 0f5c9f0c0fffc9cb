"""Every event that is logged is documented, and nothing is documented that is not logged."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("amp", "agents", "runtime", "web", "cli")
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


def logged() -> Iterator[str]:
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if "node_modules" not in file.parts:
                yield from _events(ast.parse(file.read_text()))


def _events(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=logger, attr=level), args=[ast.Constant(value=str(name)), *_]
            ) if level in LEVELS and "log" in ast.unparse(logger):
                yield name.split()[0]


def test_events_of_the_code_are_those_of_the_documentation() -> None:
    text = (ROOT / "docs" / "observability.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)` \| [A-Z]", text, re.MULTILINE))
    assert set(logged()) == documented
