"""What an agent's process refuses before it begins."""

import pytest

from agents import base
from amp import crash


def test_an_order_to_crash_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Nobody(base.Agent):
        section_name = "workflow_engine"

    monkeypatch.setenv(crash.VARIABLE, "engine.nowhere:1")
    with pytest.raises(SystemExit) as ended:
        base.main(Nobody, [])
    assert ended.value.code == base.EXIT_USAGE
    assert "engine.nowhere" in capsys.readouterr().err
