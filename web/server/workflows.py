"""Handlers for definitions and for the life of instances: list, create, upload, validate, start, control, status."""

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from amp import crash
from orchestration import contracts
from orchestration.contracts import Contract, DefinitionRecord
from orchestration.definition.errors import DefinitionError, Problem
from orchestration.starts import MAX_KEY_CHARACTERS, is_key
from web.server.bodies import check_value, read_file
from web.server.problems import ProblemError, error_entry
from web.server.table import Answer, Call

if TYPE_CHECKING:
    from orchestration.definition.parse import ParsedDefinition
    from web.server.models import ControlBody, CreateBody, StartBody, ValidateBody

IDEMPOTENCY_KEY = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
"""The header that tells a repeated answer from the first one; the bodies are the same."""
_SUMMARY_FIELDS = ("description", "tags", "input_schema", "output_schema")


async def list_workflows(call: Call) -> Answer:
    """Answer the stored workflows, by id."""
    request = contracts.DefinitionListRequest(limit=call.query.limit, after=call.query.cursor)
    reply = await call.services.backend.ask(contracts.DEFINITION_LIST, request, contracts.DefinitionListReply)
    items = [summary(record) for record in reply.definitions]
    more = len(items) >= call.query.limit
    return Answer(
        {
            "items": items,
            "workflows": {item["id"]: item for item in items},
            "next_cursor": items[-1]["id"] if more else None,
        }
    )


async def get_workflow(call: Call) -> Answer:
    """Answer one workflow's newest definition, its text as it was sent included."""
    record = await call.services.instances.definition(workflow_id=call.path["workflow_id"])
    return Answer(
        {**summary(record), "definition": record.content, "source": record.source, "format": record.format}
    )


def summary(record: DefinitionRecord) -> dict[str, Any]:
    """Return a workflow as lists show it."""
    content = record.content
    tasks = content.get("tasks") or []
    return {
        "id": record.workflow_id,
        "name": record.name or record.workflow_id,
        "version": record.version,
        "hash": record.hash,
        "created_at": record.created_at,
        **{key: content[key] for key in _SUMMARY_FIELDS if content.get(key)},
        "task_count": len(tasks),
    }


async def create_workflow(call: Call) -> Answer:
    """Check and store a definition."""
    body: CreateBody = call.body
    parsed = await _checked(call, body.definition, body.format, "")
    source, format_ = (body.definition, body.format) if isinstance(body.definition, str) else ("", "json")
    return await _store(call, parsed, source=source, source_format=format_, overwrite=body.overwrite)


async def upload_workflow(call: Call) -> Answer:
    """Check and store a definition file, .yaml, .yml or .json."""
    name, content = await read_file(call.request, call.services.settings.max_body_bytes)
    if not name.lower().endswith((".yaml", ".yml", ".json")):
        raise ProblemError(415, "unsupported_file", f"{name[:100]!r} is no .yaml, .yml or .json file")
    from orchestration.definition.parse import format_of  # with the parser; see `_parse`

    source_format = format_of(name)
    parsed = await _checked(call, content, source_format, name[:100])
    return await _store(
        call,
        parsed,
        source=content.decode("utf-8").removeprefix("\ufeff"),
        source_format=source_format,
        overwrite=call.query.overwrite,
    )


async def _store(
    call: Call,
    parsed: "ParsedDefinition",
    *,
    source: str,
    source_format: Literal["yaml", "json"],
    overwrite: bool,
) -> Answer:
    from orchestration.definition.compile import normalize  # with the parser; see `_parse`

    request = contracts.WorkflowCreateRequest(
        definition=normalize(parsed.definition), overwrite=overwrite, source=source, format=source_format
    )
    reply = await call.services.backend.ask(
        contracts.WORKFLOW_CREATE, request, contracts.WorkflowCreated, safe=overwrite
    )
    location = {"Location": f"/api/workflows/{reply.workflow_id}"}
    warnings = [_problem(problem) for problem in parsed.warnings]
    data = {
        "workflow_id": reply.workflow_id,
        "status": reply.status,
        "version": reply.version or parsed.definition.version,
        "warnings": warnings,
    }
    return Answer(data, status=201 if reply.status == "created" else 200, headers=location)


async def validate_workflow(call: Call) -> Answer:
    """Answer {valid, problems}: every finding with its pointer and, for texts, line and column. Nothing is stored."""
    body: ValidateBody = call.body
    try:
        parsed = await _parsed(call, body.definition, body.format, "")
    except DefinitionError as error:
        return Answer({"valid": False, "problems": [_problem(problem) for problem in error.problems]})
    plan_tasks = [task.id for task in parsed.definition.tasks]
    return Answer(
        {
            "valid": True,
            "problems": [_problem(problem) for problem in parsed.warnings],
            "task_ids": plan_tasks,
        }
    )


async def _checked(
    call: Call, definition: object, source_format: Literal["yaml", "json"], name: str
) -> "ParsedDefinition":
    """Return a definition without errors. Raises: ProblemError 422 with all of them."""
    try:
        return await _parsed(call, definition, source_format, name)
    except DefinitionError as error:
        first = error.problems[0]
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        raise ProblemError(
            422,
            "invalid_definition",
            f"{first.describe(name)}{more}",
            title="The definition cannot be used",
            errors=[_problem(problem) for problem in error.problems],
        ) from None


async def _parsed(
    call: Call, definition: object, source_format: Literal["yaml", "json"], name: str
) -> "ParsedDefinition":
    """Parse beside the loop: a large text must not hold up everybody else."""
    async with call.services.parsing:
        return await asyncio.to_thread(_parse, definition, source_format, name)


def _parse(definition: object, source_format: Literal["yaml", "json"], name: str) -> "ParsedDefinition":
    # The parser and its libraries take 9 MB; a dashboard that only shows never needs them.
    from orchestration.definition.parse import parse_object, parse_text

    if isinstance(definition, str | bytes):
        return parse_text(definition, source_format, name)
    return parse_object(definition, name)


def _problem(problem: Problem) -> dict[str, Any]:
    entry = error_entry({"pointer": problem.path, "message": problem.message, "code": problem.code})
    entry["severity"] = problem.severity
    if problem.line is not None:
        entry.update(line=problem.line, column=problem.column)
    if problem.hint:
        entry["hint"] = problem.hint
    return entry


async def start_workflow(call: Call) -> Answer:
    """Start an instance; 201 with its id. An `instance_id` that was used before is a conflict.

    A start with the header `Idempotency-Key` that is repeated is answered as it was the first time.
    """
    body: StartBody = call.body
    check_value(body.inputs)
    key = _idempotency_key(call)
    if key and body.instance_id is not None:
        detail = f"give the header {IDEMPOTENCY_KEY} or an instance_id, not both"
        raise ProblemError(
            422, "invalid_body", detail, errors=[{"pointer": "/instance_id", "detail": detail}]
        )
    request = contracts.WorkflowStartRequest(
        workflow_id=call.path["workflow_id"],
        inputs=body.inputs,
        instance_id=body.instance_id,
        idempotency_key=key,
    )
    named = body.instance_id is not None or bool(key)
    reply = await call.services.backend.ask(
        contracts.WORKFLOW_START, request, contracts.WorkflowStarted, safe=named
    )
    crash.reach("dashboard.start.committed")
    if not reply.created:
        raise ProblemError(
            409,
            "instance_exists",
            f"the instance {reply.instance_id!r} was started before",
            title="The instance exists",
            more={"instance_id": reply.instance_id, "current_state": reply.status},
            headers={"Location": f"/api/instances/{reply.instance_id}"},
        )
    data = {
        "instance_id": reply.instance_id,
        "workflow_id": reply.workflow_id or call.path["workflow_id"],
        "status": reply.status,
    }
    headers = {"Location": f"/api/instances/{reply.instance_id}"}
    if reply.replayed:
        headers[REPLAYED] = "true"
    return Answer(data, status=201, headers=headers)


def _idempotency_key(call: Call) -> str:
    """Return the request's idempotency key, empty when it has none. Raises: ProblemError 400 for what can be none."""
    given = call.request.headers.getall(IDEMPOTENCY_KEY, [])
    if not given:
        return ""
    if len(given) > 1 or not is_key(given[0]):
        raise ProblemError(
            400,
            "invalid_idempotency_key",
            f"{IDEMPOTENCY_KEY} is one value of 1 to {MAX_KEY_CHARACTERS} visible ASCII characters",
        )
    return given[0]


async def workflow_status(call: Call) -> Answer:
    """Answer the status document of an instance: {instance, tasks}."""
    request = contracts.WorkflowStatusRequest(instance_id=call.path["instance_id"])
    reply = await call.services.backend.ask(contracts.WORKFLOW_STATUS, request, contracts.WorkflowStatus)
    return Answer({"instance": reply.instance, "tasks": reply.tasks})


async def pause_workflow(call: Call) -> Answer:
    """Dispatch no new task of an instance; running ones finish."""
    return await _control(call, contracts.WORKFLOW_PAUSE)


async def resume_workflow(call: Call) -> Answer:
    """Go on with a paused instance."""
    return await _control(call, contracts.WORKFLOW_RESUME)


async def stop_workflow(call: Call) -> Answer:
    """End an instance; what runs is cancelled, what is done is kept."""
    return await _control(call, contracts.WORKFLOW_STOP)


async def _control(call: Call, contract: Contract) -> Answer:
    body: ControlBody = call.body
    if body.duration is not None and contract is not contracts.WORKFLOW_PAUSE:
        entry = {"pointer": "/duration", "detail": "only a pause has a duration", "code": "not_allowed"}
        raise ProblemError(422, "invalid_body", "/duration: only a pause has a duration", errors=[entry])
    request = contracts.WorkflowControlRequest(
        instance_id=call.path["instance_id"], reason=body.reason, duration=body.duration
    )
    reply = await call.services.backend.ask(contract, request, contracts.WorkflowControlled)
    data = {"instance_id": reply.instance_id, "status": reply.status, "accepted": reply.accepted}
    return Answer(data, status=202, headers={"Location": f"/api/instances/{reply.instance_id}"})
