"""Log lines of every process: JSON for machines, text for people, one place where secrets are masked.

A line is an event name and facts. Facts bound with `bind_context` (instance_id, task_id, correlation_id) are added to
every line of the same asyncio task, also by libraries. No secret, no control character and no unbounded value
leaves here.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from runtime.lean_structlog import structlog
from runtime.settings import LoggingSettings
from runtime.texts import escape_control

EventDict = structlog.typing.EventDict
Processor = structlog.typing.Processor
WrappedLogger = structlog.typing.WrappedLogger

MAX_VALUE_CHARACTERS = 4096
MAX_EXCEPTION_CHARACTERS = 32_768
MAX_ITEMS = 100
MAX_DEPTH = 6
MASK = "***"

QUIET_LOGGERS: Mapping[str, int] = {
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "websockets": logging.WARNING,
    "aiohttp.access": logging.WARNING,
    "asyncio": logging.WARNING,
    "aiosqlite": logging.WARNING,
}
"""Libraries whose finer lines carry URLs or whole frames, which may hold secrets: never below this level."""

_SECRET_NAME = re.compile(
    r"(?i)(^|[_\-.])(password|passwd|passphrase|secrets?|api_?key|apikey|authorization|cookie|credentials?"
    r"|private_key|access_token|refresh_token|auth_token|bearer|token)$"
)
_NOT_SECRET = frozenset({"attempt_token"})
_SECRET_TEXT: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{4,}"), rf"\1 {MASK}"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{0,20}://)[^\s/@:]{0,200}:[^\s/@]{1,200}@"), rf"\1{MASK}@"),
    (
        re.compile(
            r"(?i)([?&;](?:[a-z0-9_-]{0,40}(?:password|secret|token|api_?key|signature))=)[^\s&;#]{1,2000}"
        ),
        rf"\1{MASK}",
    ),
)


def configure(settings: LoggingSettings, *, role: str, stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (standard error by default), as the settings say.

    Args:
        role: Which process this is, the `role` of every JSON line.
    """
    target = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(target)
    handler.setFormatter(_formatter(settings, role, readable=target.isatty()))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level)
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(max(level, root.level))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def bind_context(**facts: Any) -> None:
    """Have every line of this asyncio task, and of those it starts, carry these facts; None leaves one out."""
    structlog.contextvars.bind_contextvars(
        **{name: value for name, value in facts.items() if value is not None}
    )


def mask_secrets(name: str, value: Any, depth: int = 0) -> Any:
    """Return the value bounded in size and without secrets, judged by the names it goes under and by its text."""
    if name not in _NOT_SECRET and _SECRET_NAME.search(name) and value is not None and not _is_number(value):
        return MASK
    if isinstance(value, str):
        return _bounded(_masked_text(value), MAX_VALUE_CHARACTERS)
    if value is None or _is_number(value):
        return value
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        pairs = list(value.items())[:MAX_ITEMS]
        return {str(key): mask_secrets(str(key), item, depth + 1) for key, item in pairs}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [mask_secrets("", item, depth + 1) for item in list(value)[:MAX_ITEMS]]
    return _bounded(_masked_text(str(value)), MAX_VALUE_CHARACTERS)


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))


def _masked_text(text: str) -> str:
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _bounded(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most} more characters)"


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(settings: LoggingSettings, role: str, *, readable: bool) -> logging.Formatter:
    foreign: list[Processor] = [*_shared_processors(), structlog.stdlib.ExtraAdder()]
    head: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    if settings.format is not None:
        return structlog.stdlib.ProcessorFormatter(
            processors=[*head, _clean, _escape, _render_message],
            foreign_pre_chain=foreign,
            fmt=settings.format,
        )
    renderer: list[Processor]
    if readable:
        colors = "NO_COLOR" not in os.environ
        plain = structlog.dev.plain_traceback
        renderer = [_clean, _escape, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    else:
        renderer = [_add_role(role), _clean, structlog.processors.JSONRenderer(serializer=_to_json)]
    return structlog.stdlib.ProcessorFormatter(processors=[*head, *renderer], foreign_pre_chain=foreign)


def _add_role(role: str) -> Processor:
    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {**event, "role": role}

    return add


def _clean(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    cleaned: dict[str, Any] = {}
    for name, value in event.items():
        if name in ("exception", "stack") and isinstance(value, str):
            cleaned[name] = _bounded(_masked_text(value), MAX_EXCEPTION_CHARACTERS)
        else:
            cleaned[str(name)] = mask_secrets(str(name), value)
    return cleaned


def _escape(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Make every value one line. A traceback keeps its lines, indented so that none can pose as a log line."""
    escaped: dict[str, Any] = {}
    for name, value in event.items():
        if name in ("exception", "stack"):
            escaped[name] = "\n".join(f"    {escape_control(line)}" for line in str(value).split("\n"))
        else:
            escaped[escape_control(name)] = _escape_deep(value)
    return escaped


def _escape_deep(value: Any) -> Any:
    if isinstance(value, str):
        return escape_control(value)
    if isinstance(value, dict):
        return {escape_control(key): _escape_deep(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape_deep(item) for item in value]
    return value


def _render_message(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """Return `event fact=value ...`: the message that a format string's `%(message)s` stands for."""
    facts = {**event}
    text = str(facts.pop("event", ""))
    trace = facts.pop("exception", None) or facts.pop("stack", None)
    for name in ("timestamp", "level", "logger"):
        facts.pop(name, None)
    line = " ".join([text, *(f"{name}={_compact(value)}" for name, value in facts.items())])
    return f"{line}\n{trace}" if trace else line


def _compact(value: Any) -> str:
    if isinstance(value, str) and value and not re.search(r"[\s\"=]", value):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _to_json(event: Any, **_options: Any) -> str:
    return json.dumps(event, default=str)
