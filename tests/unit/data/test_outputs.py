"""Which value each declared output gets."""

import pytest

from orchestration.outputs import map_outputs, workflow_outputs


@pytest.mark.parametrize(
    ("names", "result", "outputs", "primary", "expected"),
    [
        (["a"], {"a": 2}, {"a": 1}, {"a": 3}, {"a": 1}),
        (["a"], {"a": 2}, {}, {"a": 3}, {"a": 2}),
        (["a"], {}, {}, {"a": 3}, {"a": 3}),
        (["a"], {}, {}, {"b": 3}, {"a": {"b": 3}}),
        (["a", "b", "c"], {}, {}, {"b": 3}, {"a": {"b": 3}, "b": 3, "c": None}),
        (["x", "y"], {}, {}, "text", {"x": "text", "y": None}),
        (["a"], {"a": 2}, {"a": None}, 3, {"a": None}),
        (["a", "b"], {"b": 2}, {}, None, {"a": None, "b": 2}),
        ([], {"a": 1}, {"a": 1}, 1, {}),
    ],
)
def test_task_outputs(names, result, outputs, primary, expected):
    assert map_outputs(names, result=result, outputs=outputs, primary=primary) == expected


def test_workflow_outputs_take_the_context_first_then_the_newest_task():
    context = {"a": 1, "b": None, "c": 0}
    primaries = [{"b": "new", "x": None}, "text", {"b": "old", "d": 4, "x": 5}]
    assert workflow_outputs(["a", "b", "c", "d", "e", "x"], context, primaries) == {
        "a": 1, "b": "new", "c": 0, "d": 4, "x": None,
    }  # fmt: skip
