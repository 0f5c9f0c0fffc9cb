"""Task type file_operation: results, outputs and primary values of each operation."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.task_executor.compute import Compute
from agents.task_executor.errors import InvalidInput, NotFound, NotPermitted
from agents.task_executor.files import FileRoot
from agents.task_executor.handlers.base import Outcome, TaskContext
from agents.task_executor.handlers.file_operation import FileOperation
from orchestration.contracts import FileOperationRequest
from tests.unit.executor.clocks import FixedClock


async def _nobody(data: Mapping[str, Any]) -> None:
    pass


class Operator:
    def __init__(self, folder: Path, compute: Compute) -> None:
        self.files = FileRoot(folder, max_file_bytes=100_000)
        self.files.prepare(0)
        self._handler = FileOperation(self.files, compute)

    async def __call__(self, **parameters: Any) -> Outcome:
        context = TaskContext(
            attempt=None,
            deadline=asyncio.get_running_loop().time() + 10,
            clock=FixedClock(),
            progress=_nobody,
        )
        return await self._handler.run(msgspec.convert(parameters, FileOperationRequest), context)


@pytest.fixture
async def operate(tmp_path: Path) -> AsyncIterator[Operator]:
    compute = Compute()
    yield Operator(tmp_path, compute)
    compute.close()


def keys(outcome: Outcome) -> Any:
    return msgspec.to_builtins(outcome.result)


async def test_write_answers_path_and_size(operate: Operator) -> None:
    outcome = await operate(operation="write", file_path="a/report.json", content={"a": 1})
    assert keys(outcome) == {"operation": "write", "file_path": "a/report.json", "bytes_written": 7}
    assert outcome.outputs == keys(outcome)
    assert outcome.primary == "a/report.json"
    assert operate.files.read("a/report.json") == b'{"a":1}'


async def test_content_that_is_no_text_is_json_whatever_the_extension(operate: Operator) -> None:
    await operate(file_path="model.pkl", content=[1, "x"])
    assert operate.files.read("model.pkl") == b'[1,"x"]'


async def test_read_answers_content(operate: Operator) -> None:
    operate.files.write("x.json", b'{"a": 1}')
    plain = await operate(operation="read", file_path="x.json")
    assert (plain.primary, plain.outputs["size"]) == ('{"a": 1}', 8)
    parsed = await operate(operation="read", file_path="x.json", format="json")
    assert parsed.primary == {"a": 1}
    operate.files.write("null.json", b"null")
    assert (await operate(operation="read", file_path="null.json", format="json")).outputs["content"] is None


async def test_append_copy_and_delete(operate: Operator) -> None:
    appended = await operate(operation="append", file_path="log", content="line\n")
    await operate(operation="append", file_path="log", content={"a": 1}, format="jsonl")
    copied = await operate(operation="copy", file_path="log", destination="b/log")
    deleted = await operate(operation="delete", file_path="*")
    nothing = await operate(operation="delete", file_path="nothing-*")
    assert (appended.outputs["bytes_appended"], appended.primary) == (5, "log")
    assert operate.files.read("b/log") == b'line\n{"a":1}\n'
    assert (copied.outputs["copied"], copied.outputs["destination"], copied.primary) == (
        True,
        "b/log",
        "b/log",
    )
    assert (deleted.outputs["deleted"], deleted.primary) == (1, {"deleted": 1})
    assert nothing.primary == {"deleted": 0}


async def test_operations_run_in_order_and_primary_is_their_paths(operate: Operator) -> None:
    outcome = await operate(
        operations=[
            {"operation": "write", "file_path": "a.csv", "content": [{"x": 1}], "format": "csv"},
            {"operation": "copy", "file_path": "a.csv", "destination": "b.csv"},
            {"operation": "read", "file_path": "b.csv", "format": "csv"},
            {"operation": "delete", "file_path": "a.*"},
        ]
    )
    assert outcome.primary == ["a.csv", "b.csv", "b.csv", "a.*"]
    assert outcome.outputs["files"][2]["content"] == [{"x": "1"}]
    assert outcome.outputs["files"][3] == {"operation": "delete", "file_path": "a.*", "deleted": 1}
    assert keys(outcome)["operation"] == "operations"


async def test_additional_files_are_written_too(operate: Operator) -> None:
    outcome = await operate(
        file_path="main.txt",
        content="main",
        additional_files=[
            {"path": "side.json", "content": [1]},
            {"path": "side.yaml", "content": [1], "format": "yaml"},
        ],
    )
    assert outcome.primary == "main.txt"
    assert [file["file_path"] for file in outcome.outputs["files"]] == ["side.json", "side.yaml"]
    assert operate.files.read("side.yaml") == b"- 1\n"


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"content": "x"}, "file_path: is missing"),
        ({"operation": "copy", "file_path": "x"}, "destination: is missing"),
        ({"operations": [{"operation": "write"}]}, r"operations\[0\].file_path"),
        ({"operations": [{"operation": "burn", "file_path": "x"}]}, r"operations\[0\]: Invalid enum"),
        ({"operations": [{"file_path": "x", "operations": [{}]}]}, "nested"),
        ({"file_path": "x", "operations": [{"file_path": "x"}]}, "not both"),
        ({"file_path": "x", "content": "x", "additional_files": [{"content": 1}]}, r"additional_files\[0\]"),
        ({"file_path": "x", "content": "x", "format": "xml"}, "format: 'xml' is unknown"),
        ({"operations": [{"file_path": "x"}] * 1001}, "more than 1000"),
    ],
)
async def test_unusable_parameters_are_invalid_input(
    operate: Operator, parameters: dict[str, Any], place: str
) -> None:
    with pytest.raises(InvalidInput, match=place):
        await operate(**parameters)


async def test_refusals_of_the_root_pass_through(operate: Operator) -> None:
    with pytest.raises(NotPermitted):
        await operate(file_path="../x", content="x")
    with pytest.raises(NotPermitted, match=r"file 2 of 2 \(write\)"):
        await operate(file_path="x", content="x", additional_files=[{"path": "/etc/x", "content": "x"}])
    with pytest.raises(NotFound):
        await operate(operation="copy", file_path="nothing", destination="x")
