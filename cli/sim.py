"""`amp sim`: workflows on simulated machines with seeded faults; every seed is checked and can be run again."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from cli.errors import CommandError, ExitCode
from cli.inputs import parse_pairs
from cli.source import read_source
from orchestration.definition.compile import normalize
from orchestration.definition.document import MAX_TEXT_BYTES
from orchestration.definition.errors import DefinitionError
from orchestration.definition.parse import format_of, parse_text
from simulation.faults import KINDS, Kind
from simulation.many import run_seeds, working_folder
from simulation.run import SeedReport, Subject, command_of, run_seed
from simulation.store import Plant

MAX_SHOWN_FAILURES = 5
"""A run of many seeds ends after so many that broke something."""
PROGRESS_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRequest:
    """What was typed."""

    file: str | None
    values: tuple[str, ...] = ()
    seed: int | None = None
    seeds: int | None = None
    faults: str | None = None
    plant: str = ""
    jobs: int | None = None
    trace: bool = False
    as_json: bool = False


def simulate(request: SimRequest) -> int:
    """Return the exit code after running the seeds: FAILED when one of them broke something."""
    subject, faults, plant = _subject(request), _faults(request.faults), _plant(request.plant)
    if request.trace:
        return _traced(request.seed or 0, subject, faults, plant)
    first = request.seed or 0
    count = request.seeds or (1 if request.seed is not None else 100)
    began = last = time.monotonic()
    done = failed = excused = 0
    for report in run_seeds(
        range(first, first + count),
        subject=subject,
        faults=faults,
        plant=plant,
        jobs=1 if count == 1 else request.jobs,
    ):
        done += 1
        excused += report.excused
        if request.as_json:
            sys.stdout.write(json.dumps(asdict(report)) + "\n")
        if report.findings:
            failed += 1
            _show(report, subject, faults, plant)
            if failed == MAX_SHOWN_FAILURES:
                break
        elif count == 1:
            sys.stdout.write(f"seed {report.seed}: {_summary(report)}\n")
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            sys.stderr.write(f"{done} of {count} seeds\n")
    seconds = time.monotonic() - began
    verdict = f"{failed} broke something" if failed else "all kept every promise"
    sys.stderr.write(
        f"{done} seeds in {seconds:.1f} s: {verdict} ({excused} instances were poisoned by losses)\n"
    )
    return ExitCode.FAILED if failed else ExitCode.OK


def _traced(seed: int, subject: Subject, faults: tuple[Kind, ...], plant: Plant) -> int:
    def write(at: float, who: str, what: str, facts: Mapping[str, Any]) -> None:
        told = " ".join(f"{name}={value}" for name, value in facts.items())
        sys.stdout.write(f"{at:10.4f}  {who:24}  {what} {told}\n"[:500])

    with working_folder() as folder:
        report = run_seed(seed, folder=folder, subject=subject, faults=faults, plant=plant, trace=write)
    if report.findings:
        _show(report, subject, faults, plant)
    sys.stdout.write(f"seed {report.seed}: {_summary(report)}\n")
    return ExitCode.FAILED if report.findings else ExitCode.OK


def _show(report: SeedReport, subject: Subject, faults: tuple[Kind, ...], plant: Plant) -> None:
    lines = [f"seed {report.seed} broke something ({_summary(report)})"]
    lines += [f"  {finding}" for finding in report.findings]
    lines.append(f"  again: {command_of(report.seed, subject, faults, plant)}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _summary(report: SeedReport) -> str:
    kinds = ", ".join(report.kinds) or "no faults"
    return (
        f"{report.virtual_seconds:.0f} virtual seconds, {report.frames} frames, {report.events} events, "
        f"{report.deaths} deaths, {kinds}; hash {report.digest}"
    )


def _subject(request: SimRequest) -> Subject:
    if request.file is None:
        return Subject()
    data = read_source(request.file, most_bytes=MAX_TEXT_BYTES)
    try:
        parsed = parse_text(data, format_of(request.file), source_name=request.file)
    except DefinitionError as error:
        raise CommandError(str(error), ExitCode.INVALID) from None
    definition = normalize(parsed.definition)
    inputs = parse_pairs(request.values, definition.get("input_schema"))
    return Subject(definition=definition, inputs=inputs, file=request.file, values=request.values)


def _faults(text: str | None) -> tuple[Kind, ...]:
    if text is None:
        return KINDS
    wanted = [word.strip() for word in text.split(",") if word.strip() and word.strip() != "none"]
    unknown = [word for word in wanted if word not in KINDS]
    if unknown:
        raise CommandError(
            f"--faults: {', '.join(unknown)} is no kind of fault; there are {', '.join(KINDS)}",
            ExitCode.USAGE,
        )
    return tuple(kind for kind in KINDS if kind in wanted)


def _plant(text: str) -> Plant:
    if text not in get_args(Plant):
        known = ", ".join(name for name in get_args(Plant) if name)
        raise CommandError(f"--plant: there is no bug called {text!r}; there is {known}", ExitCode.USAGE)
    plant: Plant = text  # type: ignore[assignment]
    return plant
