"""`amp run`: one workflow from its file to its outputs, on a mesh of its own or on one that runs already."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cli.diagnostics import write_problems
from cli.errors import CommandError, ExitCode
from cli.inputs import MAX_INPUT_BYTES, parse_duration, parse_inputs, parse_pairs
from cli.life import run_body
from cli.progress import Progress, exit_code_of
from cli.source import STANDARD_INPUT, read_source, shown_name
from orchestration.definition.document import MAX_TEXT_BYTES
from orchestration.definition.errors import DefinitionError, InputError
from orchestration.definition.inputs import prepare_inputs
from orchestration.definition.parse import Format, ParsedDefinition, format_of, parse_text
from orchestration.starts import MAX_KEY_CHARACTERS, is_key


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a person asked for on the command line."""

    workflow: str
    values: tuple[str, ...] = ()
    inputs: str | None = None
    server: str | None = None
    as_json: bool = False
    timeout: str | None = None
    idempotency_key: str = ""
    data_dir: Path | None = None
    config: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A checked definition, its text, and checked inputs. `idempotency_key` names the start when it is not empty."""

    workflow_id: str
    definition: dict[str, Any]
    text: str
    format: Format
    inputs: dict[str, Any]
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an instance ended."""

    instance_id: str
    workflow_id: str
    status: str
    outputs: Mapping[str, Any]
    error: Mapping[str, Any] | None
    tasks: Mapping[str, Any]


class Runner(Protocol):
    """Something that runs a job: a mesh in this process, or a server."""

    async def run(self, job: Job, progress: Progress) -> Outcome:
        """Return how the instance ended.

        Raises: CommandError when it cannot be run, or its end cannot be learnt.
        """
        ...


def run_workflow(request: RunRequest) -> int:
    """Return the exit code after running the workflow and writing its outputs to standard output.

    Raises: CommandError when the request cannot be used.
    """
    job = prepare(request)
    if job is None:
        return ExitCode.INVALID
    timeout = parse_duration(request.timeout) if request.timeout is not None else None
    runner = _runner(request)
    progress = Progress(sys.stderr)

    async def body(stopping: asyncio.Event) -> int:
        outcome = await _until(stopping, runner, job, progress, timeout)
        if outcome is None:
            return ExitCode.INTERRUPTED
        write_outcome(outcome, as_json=request.as_json, progress=progress)
        return exit_code_of(outcome.status)

    return run_body(body)


def prepare(request: RunRequest) -> Job | None:
    """Return the job, or None after writing the problems of the definition or its inputs to standard error.

    Raises: CommandError when something cannot be read.
    """
    if request.workflow == STANDARD_INPUT and request.inputs == STANDARD_INPUT:
        raise CommandError(
            "only one of the definition and the inputs can come from standard input", ExitCode.USAGE
        )
    if request.idempotency_key and not is_key(request.idempotency_key):
        raise CommandError(
            f"--idempotency-key takes 1 to {MAX_KEY_CHARACTERS} visible ASCII characters", ExitCode.USAGE
        )
    name = shown_name(request.workflow)
    data = read_source(request.workflow, most_bytes=MAX_TEXT_BYTES)
    text = data.decode("utf-8", "replace")
    kind = "json" if text.lstrip().startswith("{") else format_of(request.workflow)
    try:
        parsed = parse_text(data, kind, source_name=name)
    except DefinitionError as error:
        write_problems(sys.stderr, error.problems, source_name=name, text=text)
        return None
    write_problems(sys.stderr, parsed.warnings, source_name=name, text=text)
    inputs = _given_inputs(request, parsed)
    try:
        prepare_inputs(parsed.definition.input_schema, inputs)
    except InputError as error:
        write_problems(sys.stderr, error.problems, source_name="inputs")
        return None
    definition = parsed.definition.model_dump(mode="json", exclude_unset=True)
    return Job(
        workflow_id=parsed.definition.id,
        definition=definition,
        text=text,
        format=kind,
        inputs=inputs,
        idempotency_key=request.idempotency_key,
    )


def _given_inputs(request: RunRequest, parsed: ParsedDefinition) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    if request.inputs is not None:
        data = read_source(request.inputs, most_bytes=MAX_INPUT_BYTES)
        name = shown_name(request.inputs)
        try:
            inputs = parse_inputs(data.decode("utf-8"), name)
        except UnicodeDecodeError:
            raise CommandError(f"{name}: not UTF-8", ExitCode.INVALID) from None
    return {**inputs, **parse_pairs(request.values, parsed.definition.input_schema)}


def _runner(request: RunRequest) -> Runner:
    if request.server is not None:
        from cli.remote import RemoteRunner

        return RemoteRunner(request.server)
    from cli.local import LocalRunner

    return LocalRunner(config=request.config, data_dir=request.data_dir)


async def _until(
    stopping: asyncio.Event, runner: Runner, job: Job, progress: Progress, timeout_seconds: float | None
) -> Outcome | None:
    """Return the outcome, or None when somebody pressed Ctrl-C before.

    Raises: CommandError (timed out) when the time is up.
    """
    asked = asyncio.ensure_future(stopping.wait())
    running = asyncio.ensure_future(runner.run(job, progress))
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.wait({asked, running}, return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else None
    except TimeoutError:
        raise CommandError(f"no end after {timeout_seconds:g} s", ExitCode.TIMED_OUT) from None
    finally:
        asked.cancel()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(asked, running, return_exceptions=True)


def write_outcome(outcome: Outcome, *, as_json: bool, progress: Progress) -> None:
    """Write the outputs to standard output and how it ended to standard error."""
    error = outcome.error or {}
    if as_json:
        document = {
            "instance_id": outcome.instance_id,
            "workflow_id": outcome.workflow_id,
            "status": outcome.status,
            "outputs": outcome.outputs,
            "error": outcome.error,
            "tasks": outcome.tasks,
        }
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    else:
        for name, value in outcome.outputs.items():
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            sys.stdout.write(f"{name}: {shown}\n")
    sys.stdout.flush()
    reason = f": {error.get('code', '')} {error.get('message', '')}".rstrip(": ") if error else ""
    progress.say(f"{outcome.workflow_id} {outcome.status}{reason}")
