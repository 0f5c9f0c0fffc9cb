"""`amp sim`: what is typed, what is written, and how it ends."""

import json
from pathlib import Path

import pytest

from cli.errors import CommandError, ExitCode
from cli.sim import SimRequest, simulate

ROOT = Path(__file__).resolve().parents[2]


def test_a_seed_says_what_it_was_and_its_hash(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(SimRequest(file=None, seed=3)) == ExitCode.OK
    shown = capsys.readouterr()
    assert shown.out.startswith("seed 3: ")
    assert "hash " in shown.out
    assert "all kept every promise" in shown.err


@pytest.mark.parametrize("file", ["workflows/simple_example.yaml", "examples/shout.yaml"])
def test_a_workflow_of_ones_own_is_simulated(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    request = SimRequest(file=str(ROOT / file), seeds=2, jobs=1, as_json=True)
    assert simulate(request) == ExitCode.OK
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["seed"] for report in reports] == [0, 1]
    assert all(report["events"] for report in reports)


def test_a_seed_that_broke_something_is_told_with_the_command_that_repeats_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = SimRequest(
        file=None, seed=0, seeds=200, jobs=1, faults="kill,crash", plant="answer-before-commit"
    )
    assert simulate(request) == ExitCode.FAILED
    out = capsys.readouterr().out
    assert "broke something" in out
    assert "again: amp sim --seed" in out
    assert "--faults kill,crash --plant answer-before-commit" in out


def test_a_trace_names_time_process_and_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(SimRequest(file=None, seed=3, faults="none", trace=True)) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert any("workflow-engine#1" in line and "instance_started" in line for line in lines)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (SimRequest(file=None, faults="rain"), "rain is no kind of fault; there are kill, crash"),
        (SimRequest(file=None, plant="rain"), "there is no bug called 'rain'; there is answer-before-commit"),
        (SimRequest(file="nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_makes_no_sense_is_refused(request_: SimRequest, sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        simulate(request_)
