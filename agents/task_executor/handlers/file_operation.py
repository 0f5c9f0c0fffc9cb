"""Task type `file_operation`: read, write, append, delete and copy files below the files root.

This module decides what to do; `agents.task_executor.files` does it and keeps it inside the root.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from agents.task_executor import formats
from agents.task_executor.compute import Compute
from agents.task_executor.errors import InvalidInput, TaskError
from agents.task_executor.files import FileRoot
from agents.task_executor.handlers.base import Outcome, TaskContext
from orchestration.contracts import FileOperationReply, FileOperationRequest

MAX_OPERATIONS = 1000


class AdditionalFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `additional_files`: written like the main file."""

    path: str
    content: Any = None
    format: str = ""


class FileOperation:
    """Performs `file_operation` tasks."""

    request_type = FileOperationRequest

    def __init__(self, files: FileRoot, compute: Compute) -> None:
        self._files = files
        self._compute = compute

    async def run(self, request: FileOperationRequest, context: TaskContext) -> Outcome:
        """Return the result of one operation, or of several with `operations`; outputs are the result's keys."""
        steps = _steps(request)
        replies = await self._compute.run(lambda: self._perform_all(steps))
        first, others = replies[0], replies[1:]
        if request.operations:
            listed = [_keys(reply) for reply in replies]
            paths = [produced(reply) for reply in replies]
            result = FileOperationReply(operation="operations", file_path="", files=listed)
            return Outcome(result=result, outputs={"files": listed, "paths": paths}, primary=paths)
        if others:
            first = msgspec.structs.replace(first, files=[_keys(reply) for reply in others])
        return Outcome(result=first, outputs=_keys(first), primary=_primary(first))

    def _perform_all(self, steps: list[FileOperationRequest]) -> list[FileOperationReply]:
        """Return the replies of the steps in order. A failure names its step; what was done before stays done."""
        replies: list[FileOperationReply] = []
        for index, step in enumerate(steps):
            try:
                replies.append(self._perform(step))
            except TaskError as error:
                if len(steps) == 1:
                    raise
                message = f"file {index + 1} of {len(steps)} ({step.operation}): {error.message}"
                raise type(error)(message, details=error.details, retryable=error.retryable) from None
        return replies

    def _perform(self, step: FileOperationRequest) -> FileOperationReply:
        path = step.file_path
        match step.operation:
            case "read":
                content = self._files.read(path)
                data = formats.decode(content, step.format)
                return FileOperationReply(operation="read", file_path=path, content=data, size=len(content))
            case "write":
                content = formats.encode(step.content, step.format)
                self._files.write(path, content)
                return FileOperationReply(operation="write", file_path=path, bytes_written=len(content))
            case "append":
                content = formats.encode(step.content, step.format)
                self._files.append(path, content)
                return FileOperationReply(operation="append", file_path=path, bytes_appended=len(content))
            case "delete":
                return FileOperationReply(
                    operation="delete", file_path=path, deleted=self._files.delete(path)
                )
            case "copy":
                self._files.copy(path, step.destination)
                return FileOperationReply(
                    operation="copy", file_path=path, copied=True, destination=step.destination
                )


def _steps(request: FileOperationRequest) -> list[FileOperationRequest]:
    """Return the single operations that a request asks for, in order, each checked."""
    if request.operations:
        if request.file_path or request.additional_files:
            raise InvalidInput("operations: give either operations or a single operation, not both")
        steps = [_step(value, f"operations[{index}]") for index, value in enumerate(request.operations)]
    else:
        main = msgspec.structs.replace(request, additional_files=[])
        steps = [main, *(_additional(value, index) for index, value in enumerate(request.additional_files))]
    if len(steps) > MAX_OPERATIONS:
        raise InvalidInput(f"operations: more than {MAX_OPERATIONS}")
    for index, step in enumerate(steps):
        place = f"operations[{index}]." if request.operations else ""
        if not step.file_path:
            raise InvalidInput(f"{place}file_path: is missing")
        if step.operation == "copy" and not step.destination:
            raise InvalidInput(f"{place}destination: is missing")
    return steps


def _step(value: Mapping[str, Any], place: str) -> FileOperationRequest:
    try:
        step = msgspec.convert(value, FileOperationRequest, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{place}: {error}") from None
    if step.operations or step.additional_files:
        raise InvalidInput(f"{place}: operations cannot be nested")
    return step


def _additional(value: Mapping[str, Any], index: int) -> FileOperationRequest:
    try:
        extra = msgspec.convert(value, AdditionalFile, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"additional_files[{index}]: {error}") from None
    return FileOperationRequest(
        operation="write", file_path=extra.path, content=extra.content, format=extra.format
    )


def _keys(reply: FileOperationReply) -> dict[str, Any]:
    """Return the keys that the operation has set."""
    keys = msgspec.structs.asdict(reply)
    return {
        key: value
        for key, value in keys.items()
        if value is not None or (key == "content" and _is_read(reply))
    }


def _is_read(reply: FileOperationReply) -> bool:
    return reply.operation == "read"


def produced(reply: FileOperationReply) -> str:
    """Return the path that an operation is about: the new file of a copy, else the one it was given."""
    return reply.destination or reply.file_path


def _primary(reply: FileOperationReply) -> Any:
    match reply.operation:
        case "read":
            return reply.content
        case "delete":
            return {"deleted": reply.deleted}
        case _:
            return produced(reply)
