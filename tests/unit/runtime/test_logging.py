"""Log lines: shape, context, secrets, hostile text."""

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from runtime.logging import (
    MASK,
    MAX_EXCEPTION_CHARACTERS,
    MAX_VALUE_CHARACTERS,
    bind_context,
    configure,
    escape_control,
    mask_secrets,
)
from runtime.settings import LoggingSettings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, show = list(root.handlers), root.level, warnings.showwarning
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    warnings.showwarning = show
    structlog.reset_defaults()


def one_line(output: io.StringIO) -> dict[str, Any]:
    (line,) = output.getvalue().splitlines()
    fields = json.loads(line)
    assert isinstance(fields, dict)
    return fields


def configured(output: io.StringIO, **settings: Any) -> logging.Logger:
    configure(LoggingSettings(**settings), role="test", stream=output)
    return logging.getLogger("tests.logging")


def test_line_in_a_pipe_is_json_with_role_logger_level_and_facts() -> None:
    output = io.StringIO()
    configured(output).info("task_completed", extra={"task_id": "greet", "duration_seconds": 0.5})
    fields = one_line(output)
    assert fields.pop("timestamp").endswith("Z")
    assert fields == {
        "event": "task_completed",
        "level": "info",
        "logger": "tests.logging",
        "role": "test",
        "task_id": "greet",
        "duration_seconds": 0.5,
    }


def test_structlog_and_standard_loggers_give_the_same_line() -> None:
    one, other = io.StringIO(), io.StringIO()
    configured(one).info("agent_ready", extra={"port": 1})
    configure(LoggingSettings(), role="test", stream=other)
    structlog.get_logger("tests.logging").info("agent_ready", port=1)
    first, second = one_line(one), one_line(other)
    assert first | {"timestamp": ""} == second | {"timestamp": ""}


async def test_bound_facts_are_added_to_every_line_of_the_task_and_to_no_other() -> None:
    output = io.StringIO()
    logger = configured(output)

    async def work() -> None:
        bind_context(instance_id="ins_1", task_id=None, correlation_id="msg_1")
        logger.info("inside")

    await asyncio.create_task(work())
    logger.info("outside")
    inside, outside = (json.loads(line) for line in output.getvalue().splitlines())
    assert (inside["instance_id"], inside["correlation_id"]) == ("ins_1", "msg_1")
    assert "task_id" not in inside
    assert "instance_id" not in outside


def test_level_of_the_settings_is_obeyed() -> None:
    output = io.StringIO()
    logger = configured(output, level="WARNING")
    logger.info("quiet")
    structlog.get_logger("tests.logging").info("quiet")
    logger.warning("loud")
    assert one_line(output)["event"] == "loud"


def test_libraries_that_log_urls_stay_quiet_in_debug_mode() -> None:
    output = io.StringIO()
    configured(output, level="DEBUG")
    logging.getLogger("httpx").info("HTTP Request: GET http://h/?token=x")
    logging.getLogger("websockets.client").debug("> TEXT secret")
    assert output.getvalue() == ""


def test_format_of_the_settings_gives_text_with_the_facts_behind_the_event() -> None:
    output = io.StringIO()
    logger = configured(output, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
    logger.warning("task_failed", extra={"reason": "no funds"})
    assert output.getvalue().endswith(' - tests.logging - WARNING - task_failed reason="no funds"\n')


def test_line_on_a_terminal_is_readable() -> None:
    output = Terminal()
    configured(output).info("agent_ready", extra={"port": 8080})
    assert "agent_ready" in output.getvalue()
    assert not output.getvalue().startswith("{")


def test_exception_is_part_of_the_line() -> None:
    output = io.StringIO()
    logger = configured(output)
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("handler_failed")
    assert "ValueError: broken" in one_line(output)["exception"]


@pytest.mark.parametrize("settings", [{"format": "%(message)s"}, {}])
def test_hostile_text_stays_on_its_line(settings: dict[str, Any]) -> None:
    output = Terminal()
    forged = "x\n2026-01-01 root CRITICAL forged\r\x1b[2Jgone\u202e\x9b"
    configured(output, **settings).info("said", extra={"text": forged, "deep": {"a\nb": [forged]}})
    text = output.getvalue()
    assert text.count("\n") == 1
    assert "\x1b[2J" not in text
    assert "\u202e" not in text


def test_exception_cannot_pose_as_a_log_line() -> None:
    output = io.StringIO()
    logger = configured(output, format="%(levelname)s %(message)s")
    try:
        raise ValueError("broken\nCRITICAL forged")
    except ValueError:
        logger.exception("handler_failed")
    assert "\nCRITICAL" not in output.getvalue()


@pytest.mark.parametrize(
    "name",
    ["password", "api_key", "apikey", "Authorization", "token", "access_token", "client_secret", "cookie"],
)
def test_value_under_a_secret_name_is_masked(name: str) -> None:
    assert mask_secrets(name, "hunter2") == MASK
    assert mask_secrets("headers", {name: ["hunter2"]}) == {name: MASK}


@pytest.mark.parametrize("name", ["tokens", "token_count", "attempt_token", "keyboard", "secretary"])
def test_harmless_names_are_not_masked(name: str) -> None:
    assert mask_secrets(name, "value") == "value"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("redis://user:hunter2@host/0", "redis://***@host/0"),
        ("GET http://h/x?api_key=abc&page=2", "GET http://h/x?api_key=***&page=2"),
        ("nothing here", "nothing here"),
    ],
)
def test_secret_inside_text_is_masked(text: str, shown: str) -> None:
    assert mask_secrets("message", text) == shown
    assert mask_secrets("message", {"a": [text]}) == {"a": [shown]}


def test_values_are_bounded() -> None:
    assert len(mask_secrets("text", "x" * 10 * MAX_VALUE_CHARACTERS)) < MAX_VALUE_CHARACTERS + 100
    assert len(mask_secrets("list", list(range(100_000)))) == 100
    nested: list[Any] = []
    for _ in range(1000):
        nested = [nested]
    assert "..." in str(mask_secrets("deep", nested))


def test_exception_text_is_bounded() -> None:
    output = io.StringIO()
    logger = configured(output)
    try:
        raise ValueError("y" * 10 * MAX_EXCEPTION_CHARACTERS)
    except ValueError:
        logger.exception("handler_failed")
    assert len(one_line(output)["exception"]) < MAX_EXCEPTION_CHARACTERS + 100


def test_escape_keeps_letters_of_every_language() -> None:
    assert escape_control("¡Hola, Zoë! 你好 🙂") == "¡Hola, Zoë! 你好 🙂"
    assert escape_control("a\tb\x00\x7f") == "a\\tb\\x00\\x7f"


def test_configuring_again_replaces_the_output() -> None:
    first, second = io.StringIO(), io.StringIO()
    configured(first)
    configured(second).info("once")
    assert first.getvalue() == ""
    assert one_line(second)["event"] == "once"
