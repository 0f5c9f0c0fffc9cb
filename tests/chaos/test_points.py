"""Every place that `amp/crash.py` names is somewhere in the code, and the tests with SIGKILL know how to come to it."""

import re
from pathlib import Path

from amp import crash
from tests.chaos import test_crash_points
from tests.processes import ROOT

PACKAGES = ("amp", "agents", "orchestration", "runtime", "web", "cli")
_REACH = re.compile(r'crash\.reach\(\s*"([a-z_.]+)"')


def placed() -> set[str]:
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {point for file in files for point in _REACH.findall(file.read_text("utf-8"))}


def test_every_named_place_is_in_the_code_and_every_place_in_the_code_is_named() -> None:
    assert placed() == set(crash.POINTS)


def test_a_place_that_is_tested_elsewhere_is_tested_there() -> None:
    for point, file in test_crash_points.ELSEWHERE.items():
        assert point in crash.POINTS
        assert point in (Path(__file__).parent / file).read_text("utf-8"), f"{file} says nothing of {point}"
