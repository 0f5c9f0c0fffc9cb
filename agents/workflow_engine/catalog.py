"""The definitions that the engine knows: checked, stored by the state manager, compiled once.

It never starts anything; loading a definition runs nothing of it.
"""

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog

import runtime.lean_pydantic  # noqa: F401 - before the models import pydantic as it is
from agents.workflow_engine.errors import DefinitionExists, FileRefused, InvalidDefinition, WorkflowNotFound
from amp.client import MeshClient
from orchestration import contracts
from orchestration.definition.compile import compile_plan, definition_hash, load_plan, normalize
from orchestration.definition.document import MAX_TEXT_BYTES
from orchestration.definition.errors import DefinitionError
from orchestration.definition.parse import ParsedDefinition, parse_object, parse_text
from orchestration.definition.plan import Plan

MAX_PLANS = 500
"""Most compiled plans that are kept; others are compiled again when needed."""
STORE_TIMEOUT_SECONDS = 30.0
FORMATS: dict[str, Literal["yaml", "json"]] = {".yaml": "yaml", ".yml": "yaml", ".json": "json"}

logger = structlog.get_logger(__name__)


class Catalog:
    """Definitions by id and plans by hash."""

    def __init__(
        self,
        mesh: MeshClient,
        *,
        folders: tuple[str, ...],
        workflow_timeout_seconds: float,
        task_timeout_seconds: float,
    ) -> None:
        self._mesh = mesh
        self._timeouts = {
            "workflow_timeout_seconds": workflow_timeout_seconds,
            "task_timeout_seconds": task_timeout_seconds,
        }
        self._folders = tuple(Path(folder) for folder in folders)
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self._newest: dict[str, Plan] = {}

    async def create(self, request: contracts.WorkflowCreateRequest) -> contracts.WorkflowCreated:
        """Check and store a definition given as an object, or as its text when that came along."""
        return await self._store(
            await _checked(request.definition, request.source, request.format, "definition"),
            source=request.source,
            format=request.format,
            overwrite=request.overwrite,
        )

    async def load(
        self, path: Path, *, format: Literal["yaml", "json"], overwrite: bool
    ) -> contracts.WorkflowCreated:
        """Check and store the definition in a file.

        Raises: FileRefused, InvalidDefinition, DefinitionExists.
        """
        text = await asyncio.to_thread(_read, path)
        parsed = await _checked(None, text, format, str(path))
        return await self._store(parsed, source=text, format=format, overwrite=overwrite)

    def resolve(self, file_path: str) -> Path:
        """Return the file below one of the workflow folders that a caller named.

        Raises: FileRefused if the path leads out of them or there is no such file.
        """
        for folder in self._folders:
            root = folder.resolve()
            for candidate in (Path(file_path), folder / file_path):
                found = candidate.resolve()
                if found.is_relative_to(root) and found.is_file():
                    return found
        names = ", ".join(str(folder) for folder in self._folders)
        raise FileRefused(f"{file_path!r} is no file below the workflow folders ({names})")

    async def load_folders(self) -> None:
        """Store every definition in the workflow folders. A broken one is logged and hinders no other."""
        for folder in self._folders:
            for path in sorted(folder.glob("*")) if folder.is_dir() else []:
                format = FORMATS.get(path.suffix)
                if format is None:
                    continue
                try:
                    stored = await self.load(path, format=format, overwrite=True)
                    logger.info(
                        "workflow_loaded",
                        workflow_id=stored.workflow_id,
                        path=str(path),
                        status=stored.status,
                    )
                except (InvalidDefinition, FileRefused, DefinitionExists) as error:
                    logger.warning(
                        "workflow_file_refused", path=str(path), reason=error.message, **error.details
                    )

    async def _store(
        self, parsed: ParsedDefinition, *, source: str, format: Literal["yaml", "json"], overwrite: bool
    ) -> contracts.WorkflowCreated:
        plan = compile_plan(parsed.definition, **self._timeouts)
        content = normalize(parsed.definition)
        record = contracts.DefinitionRecord(
            workflow_id=plan.workflow_id,
            version=plan.version,
            name=plan.name,
            hash=definition_hash(content),
            content=content,
            source=source,
            format=format,
        )
        reply = await self._mesh.request(
            contracts.DEFINITION_PUT.id,
            contracts.DefinitionPutRequest(definition=record, overwrite=overwrite),
            reply_type=contracts.DefinitionPutReply,
            patience_seconds=STORE_TIMEOUT_SECONDS,
            resend=True,
        )
        if reply.status == "exists":
            raise DefinitionExists(
                f"workflow {plan.workflow_id!r} version {plan.version} is stored with other content;"
                " give it a new version, or overwrite it",
                {"workflow_id": plan.workflow_id, "version": plan.version},
            )
        self._keep(plan)
        return contracts.WorkflowCreated(
            workflow_id=plan.workflow_id,
            status=reply.status,
            version=plan.version,
            warnings=[msgspec.to_builtins(problem) for problem in parsed.warnings],
        )

    async def newest(self, workflow_id: str) -> Plan:
        """Return the plan of a workflow's newest definition.

        Raises: WorkflowNotFound, naming what there is.
        """
        known = self._newest.get(workflow_id)
        asked = contracts.DefinitionGetRequest(
            workflow_id=workflow_id, known_hash=known.definition_hash if known is not None else ""
        )
        reply = await self._get(asked)
        if known is not None and reply.unchanged:
            return known
        record = reply.definition
        if record is None:
            raise WorkflowNotFound(f"there is no workflow {workflow_id!r}", {"workflow_id": workflow_id})
        plan = self._plans.get(record.hash) or self._keep(load_plan(record.content, **self._timeouts))
        self._newest[workflow_id] = plan
        while len(self._newest) > MAX_PLANS:
            self._newest.pop(next(iter(self._newest)))
        return plan

    async def by_hash(self, hash: str) -> Plan:
        """Return the plan that an instance was started with.

        Raises: WorkflowNotFound.
        """
        plan = self._plans.get(hash)
        if plan is not None:
            self._plans.move_to_end(hash)
            return plan
        record = (await self._get(contracts.DefinitionGetRequest(hash=hash))).definition
        if record is None:
            raise WorkflowNotFound(f"there is no definition with the hash {hash}", {"hash": hash})
        return self._keep(load_plan(record.content, **self._timeouts))

    async def list(self, limit: int) -> list[contracts.DefinitionRecord]:
        """Return the newest definition of each workflow, by id."""
        reply = await self._mesh.request(
            contracts.DEFINITION_LIST.id,
            contracts.DefinitionListRequest(limit=limit),
            reply_type=contracts.DefinitionListReply,
            patience_seconds=STORE_TIMEOUT_SECONDS,
            resend=True,
        )
        return reply.definitions

    async def _get(self, request: contracts.DefinitionGetRequest) -> contracts.DefinitionGetReply:
        return await self._mesh.request(
            contracts.DEFINITION_GET.id,
            request,
            reply_type=contracts.DefinitionGetReply,
            patience_seconds=STORE_TIMEOUT_SECONDS,
            resend=True,
        )

    def _keep(self, plan: Plan) -> Plan:
        self._plans[plan.definition_hash] = plan
        self._plans.move_to_end(plan.definition_hash)
        while len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return plan


async def _checked(
    definition: dict[str, Any] | None, source: str, format: Literal["yaml", "json"], name: str
) -> ParsedDefinition:
    """Return the checked definition; its text is preferred, because then problems have a line and a column."""
    try:
        if source:
            return await asyncio.to_thread(parse_text, source, format, name)
        return await asyncio.to_thread(parse_object, definition)
    except DefinitionError as error:
        problems = [msgspec.to_builtins(problem) for problem in error.problems]
        raise InvalidDefinition(str(error), {"problems": problems}, code=error.code) from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise FileRefused(f"{path} is larger than {MAX_TEXT_BYTES} bytes")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileRefused(f"{path} cannot be read: {error}") from None
