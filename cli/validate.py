"""`amp validate` and `amp schema`: what a definition must look like, and whether one does."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cli.diagnostics import counted, write_problems
from cli.errors import CommandError, ExitCode
from cli.source import read_source
from orchestration.definition.document import MAX_TEXT_BYTES
from orchestration.definition.errors import DefinitionError, Problem
from orchestration.definition.parse import format_of, parse_text
from orchestration.definition.published import definition_schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found in one file. `refusal` says why it could not be read at all."""

    file: str
    text: str = ""
    problems: tuple[Problem, ...] = ()
    refusal: CommandError | None = None

    def is_valid(self, *, strict: bool) -> bool:
        """Return whether the file may be used; with `strict`, only without warnings."""
        return self.refusal is None and not any(
            strict or problem.severity == "error" for problem in self.problems
        )


def validate_files(files: Sequence[Path], *, strict: bool, as_json: bool) -> int:
    """Return the exit code after writing every problem of every file."""
    checked = [check_file(str(file)) for file in files]
    if as_json:
        sys.stdout.write(json.dumps(_document(checked, strict=strict), indent=2) + "\n")
    else:
        for one in checked:
            _write(one, strict=strict)
    if all(one.is_valid(strict=strict) for one in checked):
        return ExitCode.OK
    refusals = [one.refusal for one in checked if one.refusal is not None]
    only_refusals = all(one.refusal is not None or one.is_valid(strict=strict) for one in checked)
    return refusals[0].exit_code if refusals and only_refusals else ExitCode.INVALID


def check_file(file: str) -> Checked:
    """Return what is found in a file."""
    try:
        data = read_source(file, most_bytes=MAX_TEXT_BYTES)
    except CommandError as refusal:
        return Checked(file=file, refusal=refusal)
    text = data.decode("utf-8", "replace")
    try:
        parsed = parse_text(data, format_of(file), source_name=file)
    except DefinitionError as error:
        return Checked(file=file, text=text, problems=tuple(error.problems))
    return Checked(file=file, text=text, problems=tuple(parsed.warnings))


def print_schema() -> None:
    """Write the JSON Schema of definitions to standard output."""
    sys.stdout.write(json.dumps(definition_schema(), indent=2) + "\n")


def _write(one: Checked, *, strict: bool) -> None:
    if one.refusal is not None:
        sys.stdout.write(f"{one.refusal}\n")
        return
    write_problems(sys.stdout, one.problems, source_name=one.file, text=one.text)
    warnings = sum(problem.severity == "warning" for problem in one.problems)
    errors = len(one.problems) - warnings
    found = [counted(errors, "error")] if errors else []
    found += [counted(warnings, "warning")] if warnings else []
    verdict = "ok" if one.is_valid(strict=strict) else "refused"
    sys.stdout.write(f"{one.file}: {verdict}{': ' + ', '.join(found) if found else ''}\n")


def _document(checked: Sequence[Checked], *, strict: bool) -> dict[str, Any]:
    return {
        "valid": all(one.is_valid(strict=strict) for one in checked),
        "files": [
            {
                "file": one.file,
                "valid": one.is_valid(strict=strict),
                "problems": [msgspec.to_builtins(problem) for problem in one.problems],
                **({"error": str(one.refusal)} if one.refusal is not None else {}),
            }
            for one in checked
        ],
    }
