"""Finding the operator's handlers, and calling them."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agents.task_executor.compute import ForeignCode
from agents.task_executor.custom_handlers import CustomHandlers, load_custom_handlers
from agents.task_executor.errors import TaskFailed
from agents.task_executor.handlers.base import Outcome, TaskContext
from agents.task_executor.handlers.custom import Custom
from amp.errors import AmpError
from orchestration.contracts import Attempt, CustomTaskRequest
from runtime.settings import SettingsError
from tests.unit.executor.clocks import FixedClock


def loaded(folder: Path, text: str) -> CustomHandlers:
    (folder / "mine.py").write_text(text)
    return load_custom_handlers(None, str(folder / "mine.py"))


def test_without_settings_there_are_none() -> None:
    found = load_custom_handlers(None, None)
    assert (found.names, dict(found.transformations)) == ([], {})


def test_dictionaries_and_register_both_count(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        "HANDLERS = {'a': lambda p, c: 1}\nTRANSFORMS = {'t': lambda d, c, x: d}\n"
        "def register(executor):\n    executor.register_handler('b', lambda p, c: 2)\n"
        "    executor.register_transformation('u', lambda d, c, x: d)\n",
    )
    assert found.names == ["a", "b"]
    assert set(found.transformations) == {"t", "u"}


def test_module_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_handlers_of_a_test.py").write_text("HANDLERS = {'a': print}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_custom_handlers("named_handlers_of_a_test", None).names == ["a"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "neither HANDLERS nor TRANSFORMS"),
        ("HANDLERS = [1]", "must be a dictionary"),
        ("HANDLERS = {'a': 5}", "cannot be called"),
        ("HANDLERS = {5: print}", "must be text"),
        ("HANDLERS = {'a': print}\ndef register(e): e.register_handler('a', print)", "registered twice"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
        ("def register(executor):\n    raise ValueError('no')", "ValueError: no"),
    ],
)
def test_module_that_cannot_be_used_is_a_settings_error(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        loaded(tmp_path, text)


def test_missing_modules_and_double_settings_are_settings_errors(tmp_path: Path) -> None:
    for module, path in (
        ("no.such.module", None),
        (None, str(tmp_path / "no.py")),
        ("a", "b"),
        (None, str(tmp_path)),
    ):
        with pytest.raises(SettingsError, match="custom_handlers"):
            load_custom_handlers(module, path)
    (tmp_path / "text.txt").write_text("HANDLERS = {}")
    with pytest.raises(SettingsError, match="no Python file"):
        load_custom_handlers(None, str(tmp_path / "text.txt"))


async def _nobody(data: Mapping[str, Any]) -> None:
    pass


async def call(handler: Any, parameters: dict[str, Any] | None = None) -> Outcome:
    handlers = CustomHandlers()
    handlers.register_handler("it", handler)
    attempt = Attempt(
        token="t",
        engine_id="e",
        workflow_id="w",
        workflow_instance_id="i",
        task_id="task",
        attempt=2,
        timeout_seconds=5,
        idempotency_key="key",
        variables={"name": "Ada"},
    )
    context = TaskContext(
        attempt=attempt,
        deadline=asyncio.get_running_loop().time() + 5,
        clock=FixedClock(),
        progress=_nobody,
        names=attempt.variables,
    )
    request = CustomTaskRequest(task_name="it", parameters=parameters or {})
    return await Custom(handlers, ForeignCode(4)).run(request, context)


async def test_synchronous_asynchronous_and_object_handlers_are_called() -> None:
    async def later(params: Any, context: Any) -> Any:
        return params["a"] + 1

    class Doubling:
        async def __call__(self, params: Any, context: Any) -> Any:
            return params["a"] + 2

    for handler, expected in (
        (lambda params, context: params["a"], 1),
        (later, 2),
        (Doubling(), 3),
        (lambda params, context: later(params, context), 2),
    ):
        outcome = await call(handler, {"a": 1})
        assert outcome.primary == expected
        assert outcome.outputs == {"result": expected}


async def test_dict_of_the_handler_is_the_outputs() -> None:
    outcome = await call(lambda params, context: {"greeting": f"Hi {context['name']}"})
    assert outcome.outputs == outcome.primary == {"greeting": "Hi Ada"}


async def test_handler_knows_for_whom_it_works() -> None:
    seen: dict[str, Any] = {}
    await call(lambda params, context: seen.update(context))
    facts = {
        name: seen[name]
        for name in ("workflow_id", "workflow_instance_id", "task_id", "attempt", "idempotency_key")
    }
    assert facts == {
        "workflow_id": "w",
        "workflow_instance_id": "i",
        "task_id": "task",
        "attempt": 2,
        "idempotency_key": "key",
    }
    assert 0 < seen["remaining_seconds"] <= 5


async def test_handlers_own_error_codes_pass_and_other_exceptions_become_task_failures() -> None:
    def coded(params: Any, context: Any) -> None:
        raise AmpError("ORDER_CLOSED", "the order is closed", retryable=False)

    def broken(params: Any, context: Any) -> None:
        raise ValueError("x" * 1000)

    with pytest.raises(AmpError, match="ORDER_CLOSED"):
        await call(coded)
    with pytest.raises(TaskFailed) as caught:
        await call(broken)
    assert caught.value.retryable
    assert len(caught.value.message) < 400


def test_names_are_bounded() -> None:
    handlers = CustomHandlers()
    for number in range(1000):
        handlers.register_handler(str(number), print)
    with pytest.raises(ValueError, match="more than 1000"):
        handlers.register_handler("one more", print)
