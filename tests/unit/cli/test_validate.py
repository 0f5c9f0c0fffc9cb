"""`amp validate`, `amp schema`, `amp version` and what `amp run` checks before it runs anything."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from cli import main as cli_main
from cli.errors import CommandError, ExitCode
from cli.run import RunRequest, prepare
from cli.validate import validate_files

GOOD = """\
id: greet
name: Greet
input_schema:
  type: object
  properties:
    name: {type: string}
    times: {type: integer, default: 1}
  required: [name]
tasks:
  - id: hello
    type: data_transform
    parameters: {input_data: "{name}", transformations: []}
    outputs: [greeting]
"""
BAD = GOOD.replace("outputs:", "depends_on: [helo]\n    outputs:").replace("tasks:", "taks: 1\ntasks:")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {"good.yaml": GOOD, "bad.yaml": BAD}
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in made}


def test_good_file_is_ok(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert validate_files([files["good.yaml"]], strict=False, as_json=False) == ExitCode.OK
    assert capsys.readouterr().out == f"{files['good.yaml']}: ok\n"


def test_every_problem_is_shown_with_its_line(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate_files([files["bad.yaml"]], strict=False, as_json=False) == ExitCode.INVALID
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{files['bad.yaml']}:9:1 error[")
    assert "'taks'" in lines[0]
    assert lines[1:3] == ["  9 | taks: 1", "    | ^"]
    assert any(":14:18 error[" in line and "'hello'" in line for line in lines)
    assert "  14 |     depends_on: [helo]" in lines
    assert "     |                  ^" in lines
    assert lines[-1].startswith(f"{files['bad.yaml']}: refused: ")


def test_one_bad_file_among_good_ones_decides(files: dict[str, Path]) -> None:
    assert validate_files(list(files.values()), strict=False, as_json=True) == ExitCode.INVALID


def test_missing_file_is_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate_files([tmp_path / "none.yaml"], strict=False, as_json=False) == ExitCode.NOT_FOUND
    assert "there is no such file" in capsys.readouterr().out


def test_folder_is_wrong_usage(tmp_path: Path) -> None:
    assert validate_files([tmp_path], strict=False, as_json=False) == ExitCode.USAGE


def test_too_large_file_is_invalid(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("#" * 2 * 1024 * 1024)
    assert validate_files([large], strict=False, as_json=False) == ExitCode.INVALID


def test_json_document_lists_files_and_problems(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    validate_files(list(files.values()), strict=False, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert not document["valid"]
    good, bad = document["files"]
    assert (good["valid"], good["problems"]) == (True, [])
    assert {"code", "message", "path", "line", "column"} <= set(bad["problems"][0])


def test_hostile_file_cannot_draw_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = tmp_path / "evil.yaml"
    evil.write_text('id: "x\\e[2J"\nname: "\u202e"\n"\\e]0;owned\\a": 1\ntasks: []\n')
    assert validate_files([evil], strict=False, as_json=False) == ExitCode.INVALID
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\x07" not in out


def test_schema_accepts_the_good_definition(capsys: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(cli_main.app, ["schema"])
    schema = json.loads(result.output)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"id": "a", "name": "A", "tasks": [{"id": "t", "type": "validation"}]}, schema)


def test_version_names_product_and_protocol() -> None:
    assert json.loads(CliRunner().invoke(cli_main.app, ["version", "--json"]).output)["protocol"] == "AMP/1.0"
    assert CliRunner().invoke(cli_main.app, ["version"]).output.startswith("amp ")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["validate"], 2),
        (["run"], 2),
        (["nonsense"], 2),
        (["up", "--port", "70000"], 2),
        (["up", "--agents", "nobody"], 2),
        (["run", "none.yaml"], 4),
        (["run", "-", "--inputs", "-"], 2),
    ],
)
def test_wrong_usage_ends_with_its_code(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["amp", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli_main.main()
    assert ended.value.code == code


def prepared(files: dict[str, Path], name: str = "good.yaml", **request: Any) -> Any:
    return prepare(RunRequest(workflow=str(files[name]), **request))


def test_job_has_typed_inputs_from_pairs_over_those_from_the_file(
    files: dict[str, Path], tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs.json"
    inputs.write_text('{"name": "Ada", "times": 1, "extra": true}')
    job = prepared(files, inputs=str(inputs), values=("times=3",))
    assert job.inputs == {"name": "Ada", "times": 3, "extra": True}
    assert (job.workflow_id, job.format) == ("greet", "yaml")
    assert job.definition["tasks"][0]["id"] == "hello"


def test_definition_and_inputs_come_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    job = prepare(RunRequest(workflow="-", values=("name=Ada",)))
    assert job is not None
    assert job.inputs == {"name": "Ada"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"name: Bo")))
    assert prepared(files, inputs="-").inputs == {"name": "Bo"}


def test_missing_input_is_told_before_anything_runs(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepared(files) is None
    assert "name" in capsys.readouterr().err


def test_bad_definition_is_told_before_anything_runs(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepared(files, "bad.yaml") is None
    assert "taks" in capsys.readouterr().err


def test_inputs_that_are_not_text_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.json"
    inputs.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CommandError, match="not UTF-8"):
        prepared(files, inputs=str(inputs))
