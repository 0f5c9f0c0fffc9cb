"""Every promise of docs/guarantees.md names a test that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
FAULTS = GUARANTEES.partition("## What happens at a fault")[2].partition("\n## ")[0]
ROWS = [line for line in FAULTS.splitlines() if line.startswith("| ")][1:]
PROOF = re.compile(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip() for row in ROWS])
def test_each_fault_names_a_test_that_exists(row: str) -> None:
    proofs = PROOF.findall(row.split("|")[-2])
    assert proofs
    for name, file in proofs:
        assert re.search(rf"def {name}\b", (ROOT / file).read_text("utf-8")), f"{file} has no {name}"


def test_the_table_is_found() -> None:
    assert len(ROWS) >= 20
