"""Reads instances for pages and API: rows, documents folded from the log, pages of events.

Documents are kept in a bounded cache and continued from where they were, so that looking again costs only the new
events. It must never answer from the cache without asking the log what is new.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orchestration import contracts
from web.server import values
from web.server.fold import Document, fold, new_document
from web.server.mesh import Backend
from web.server.problems import ProblemError, not_found

PAGE_EVENTS = 500
MAX_FOLDED_EVENTS = 100_000
"""An instance with more events is too large for one page of the dashboard; the events endpoint still pages it."""
MAX_CACHED_DOCUMENTS = 128
MAX_CACHED_DEFINITIONS = 256

_data_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


@dataclass(slots=True)
class View:
    """A folded instance. `secrets` are the texts of its inputs that must not be shown."""

    document: Document
    secrets: frozenset[str] = frozenset()
    input_schema: Mapping[str, Any] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Instances:
    """Answers what instances are and were."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._views: OrderedDict[str, View] = OrderedDict()
        self._definitions: OrderedDict[str, contracts.DefinitionRecord] = OrderedDict()

    def forget(self) -> None:
        """Drop what was folded and read: it belongs to another log."""
        self._views.clear()
        self._definitions.clear()

    async def row(self, instance_id: str) -> contracts.InstanceRow:
        """Return an instance's row. Raises: ProblemError 404."""
        request = contracts.InstanceGetRequest(instance_id=instance_id)
        reply = await self._backend.ask(contracts.INSTANCE_GET, request, contracts.InstanceGetReply)
        if reply.row is None:
            raise not_found("instance", instance_id)
        return reply.row

    async def rows(self, request: contracts.InstanceListRequest) -> contracts.InstanceListReply:
        """Return a page of rows, newest first."""
        return await self._backend.ask(contracts.INSTANCE_LIST, request, contracts.InstanceListReply)

    async def definition(
        self, *, workflow_id: str = "", definition_hash: str = ""
    ) -> contracts.DefinitionRecord:
        """Return the definition with this hash, or a workflow's newest. Raises: ProblemError 404."""
        if definition_hash and definition_hash in self._definitions:
            self._definitions.move_to_end(definition_hash)
            return self._definitions[definition_hash]
        request = contracts.DefinitionGetRequest(workflow_id=workflow_id, hash=definition_hash)
        reply = await self._backend.ask(contracts.DEFINITION_GET, request, contracts.DefinitionGetReply)
        if reply.definition is None:
            raise not_found("workflow", workflow_id or definition_hash)
        self._definitions[reply.definition.hash] = reply.definition
        while len(self._definitions) > MAX_CACHED_DEFINITIONS:
            self._definitions.popitem(last=False)
        return reply.definition

    async def view(self, instance_id: str) -> View:
        """Return the instance folded up to the newest event. Read it before anything else is awaited.

        Raises: ProblemError 404 when there is no such instance, 422 when it has too many events.
        """
        view = self._views.get(instance_id)
        if view is None:
            view = await self._new_view(instance_id)
            view = self._views.setdefault(instance_id, view)
        self._views.move_to_end(instance_id)
        while len(self._views) > MAX_CACHED_DOCUMENTS:
            self._views.popitem(last=False)
        async with view.lock:
            await self._continue(instance_id, view)
        return view

    async def secrets(self, instance_id: str) -> frozenset[str]:
        """Return the texts of an instance's inputs that must not be shown. Raises: ProblemError 404."""
        known = self._views.get(instance_id)
        if known is not None and known.document["seq"] > 0:
            return known.secrets
        view = await self._new_view(instance_id)
        reply = await self.read_log(instance_id, after=0, limit=1)
        inputs = decode(reply.events[0]).get("inputs", {}) if reply.events else {}
        return values.secret_values(view.input_schema, inputs)

    async def _new_view(self, instance_id: str) -> View:
        row = await self.row(instance_id)
        definition = await self.definition(workflow_id=row.workflow_id, definition_hash=row.definition_hash)
        schema = definition.content.get("input_schema")
        document = new_document(instance_id, definition.content)
        document["instance"].update(
            workflow_id=row.workflow_id,
            workflow_name=row.workflow_name or row.workflow_id,
            workflow_version=row.workflow_version,
            definition_hash=row.definition_hash,
        )
        return View(document, input_schema=schema if isinstance(schema, Mapping) else None)

    async def _continue(self, instance_id: str, view: View) -> None:
        while True:
            reply = await self.read_log(instance_id, after=view.document["seq"], limit=PAGE_EVENTS)
            for record in reply.events:
                event = decode(record)
                if event["type"] == "workflow.started":
                    view.secrets = values.secret_values(view.input_schema, event.get("inputs", {}))
                fold(view.document, values.shown(event, view.secrets))
            if reply.end or not reply.events:
                return
            if view.document["seq"] > MAX_FOLDED_EVENTS:
                detail = f"instance {instance_id!r} has more than {MAX_FOLDED_EVENTS} events; page them at …/events"
                raise ProblemError(422, "instance_too_large", detail)

    async def read_log(self, instance_id: str, *, after: int, limit: int) -> contracts.LogReadReply:
        """Return events of one instance after a seq, oldest first."""
        request = contracts.LogReadRequest(after=after, limit=limit, instance_id=instance_id)
        return await self._backend.ask(contracts.LOG_READ, request, contracts.LogReadReply)

    async def events(self, instance_id: str, *, after: int, limit: int) -> dict[str, Any]:
        """Return a page of event records as they may be shown: {items, next_after_seq, end}."""
        view = await self.view(instance_id)
        reply = await self.read_log(instance_id, after=after, limit=limit)
        items = [
            event_record(instance_id, values.shown(decode(event), view.secrets)) for event in reply.events
        ]
        return {"items": items, "next_after_seq": items[-1]["seq"] if items else after, "end": reply.end}

    async def task_values(self, instance_id: str, task_id: str) -> dict[str, Any]:
        """Return what a task gave, uncut: {task_id, outputs, result}. Raises: ProblemError 404."""
        view = await self.view(instance_id)
        if task_id not in view.document["tasks"]:
            raise not_found("task", task_id)
        found: dict[str, Any] = {"task_id": task_id, "outputs": {}, "result": None}
        after, end = 0, False
        while not end:
            request = contracts.LogReadRequest(
                after=after, limit=PAGE_EVENTS, instance_id=instance_id, types=["task.completed"]
            )
            reply = await self._backend.ask(contracts.LOG_READ, request, contracts.LogReadReply)
            for event in map(decode, reply.events):
                if event.get("task_id") == task_id:
                    outputs, primary = event.get("outputs", {}), event.get("primary_output")
                    result = outputs.get(primary) if primary else event.get("primary")
                    found.update(outputs=outputs, result=result)
            end = reply.end or not reply.events or reply.next <= after
            after = reply.next
        shown: dict[str, Any] = values.masked(found, view.secrets)
        return shown


def decode(record: contracts.EventRecord) -> dict[str, Any]:
    """Return an event as one flat object: seq, type, at, and its own fields."""
    event = _data_decoder.decode(record.data)
    event["seq"] = record.seq
    event["type"] = record.type
    event.setdefault("at", record.at.isoformat())
    return event


_RECORD_FIELDS = frozenset({"seq", "type", "at", "task_id"})


def event_record(instance_id: str, event: dict[str, Any]) -> dict[str, Any]:
    """Return an event as the audit trail's clients know it; `data` holds the event's own fields."""
    return {
        "id": f"{instance_id}/{event['seq']}",
        "seq": event["seq"],
        "workflow_instance_id": instance_id,
        "task_id": event.get("task_id"),
        "event_type": event["type"],
        "timestamp": event["at"],
        "data": {key: value for key, value in event.items() if key not in _RECORD_FIELDS},
    }


def row_document(row: contracts.InstanceRow) -> dict[str, Any]:
    """Return a row as lists show it."""
    return {
        "id": row.instance_id,
        "workflow_id": row.workflow_id,
        "workflow_name": row.workflow_name,
        "workflow_version": row.workflow_version,
        "status": row.status,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "completed_at": row.completed_at,
        "updated_at": row.updated_at,
        "wake_at": row.wake_at,
        "wake_reason": row.wake_reason,
        "task_counts": row.task_counts,
        "current_tasks": row.current_tasks,
        "error_code": row.error_code or None,
        "error_message": row.error_message or None,
        "trigger": row.trigger,
        "seq": row.seq,
    }
