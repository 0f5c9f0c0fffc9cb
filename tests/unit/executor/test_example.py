"""examples/custom_handlers.py does what it says."""

from pathlib import Path

import pytest

from agents.task_executor.custom_handlers import load_custom_handlers
from amp.errors import AmpError

EXAMPLE = Path(__file__).parents[3] / "examples" / "custom_handlers.py"


async def test_example_handlers_work() -> None:
    found = load_custom_handlers(None, str(EXAMPLE))
    assert found.names == ["count_slowly", "score_lead"]
    score = found.handler("score_lead")
    assert score is not None
    assert score({"visits": 7, "country": "DE"}, {}) == {"score": 90, "grade": "hot"}
    with pytest.raises(AmpError, match="visits"):
        score({"visits": "many"}, {})
    told = []

    async def progress(data: object) -> None:
        told.append(data)

    count = found.handler("count_slowly")
    assert count is not None
    assert await count({"steps": 2, "pause_seconds": 0}, {"progress": progress}) == {"counted": 2}
    assert len(told) == 2
    mask = found.transformations["mask_fields"]
    assert mask([{"a": 1, "b": 2}], {"fields": ["a"]}, {}) == [{"a": "***", "b": 2}]
