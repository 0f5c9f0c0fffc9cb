"""What the README shows must work as it stands."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from orchestration.definition.parse import parse_text

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_explained_workflow_is_a_valid_definition() -> None:
    (text,) = [block for block in blocks("yaml") if "tasks:" in block]
    assert parse_text(text, source_name="README.md").warnings == []


def test_the_python_example_compiles() -> None:
    for block in blocks("python"):
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("line", re.findall(r"^amp .*$", README, re.MULTILINE))
def test_every_command_that_is_shown_knows_its_options(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    shown = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    assert all(word in shown for word in words if word.startswith("-"))


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_every_path_that_is_shown_exists() -> None:
    for path in re.findall(r"\b(?:workflows|examples|config|web|tests)/[\w./]+\.(?:py|yaml|json)\b", README):
        assert (ROOT / path).exists(), path
