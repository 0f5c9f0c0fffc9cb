"""What an HTTP answer means for a task: its body as data, its status as an error. Values in, values out."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from agents.task_executor.errors import (
    InvalidInput,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    RateLimited,
    TaskError,
    TaskFailed,
    TimedOut,
    Unreachable,
)
from agents.task_executor.http_client import HttpAnswer, shown

MAX_RETRY_AFTER_SECONDS = 86_400.0
MAX_EXCERPT_CHARACTERS = 500

_ERRORS: dict[int, type[TaskError]] = {
    400: InvalidInput,
    401: NotAuthenticated,
    403: NotPermitted,
    404: NotFound,
    408: TimedOut,
    410: NotFound,
    422: InvalidInput,
    425: Unreachable,
    429: RateLimited,
}
"""By status. 5xx are NETWORK_ERROR; other 4xx fail the task for good."""
NOT_PROCESSED = frozenset({425, 501})
"""The peer says that it did not begin, under a code that does not tell (RFC 8470, 5.2; RFC 9110, 15.6.2)."""


def body_of(answer: HttpAnswer) -> Any:
    """Return the body as data when it is JSON, else as {"text": ...}."""
    try:
        return msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {"text": text_of(answer)}


def text_of(answer: HttpAnswer) -> str:
    """Return the body as text in the encoding that the answer names, unreadable bytes replaced."""
    encoding = (
        answer.headers.get("content-type", "").lower().partition("charset=")[2].split(";")[0].strip("\"' ")
    )
    try:
        return answer.body.decode(encoding or "utf-8", "replace")
    except LookupError:
        return answer.body.decode("utf-8", "replace")


def error_for_status(answer: HttpAnswer, wait_seconds: float | None) -> TaskError:
    """Return the error of an answer with a status of 400 or more, with the peer's wish to wait in its details."""
    kind = _ERRORS.get(answer.status, Unreachable if answer.status >= 500 else TaskFailed)
    place = shown(answer.url)
    details: dict[str, Any] = {
        "status_code": answer.status,
        "url": place,
        "response_excerpt": text_of(answer)[:MAX_EXCERPT_CHARACTERS],
    }
    if wait_seconds is not None:
        details["retry_after_seconds"] = wait_seconds
    if answer.status in NOT_PROCESSED:
        details["begun"] = False
    retryable = kind.default_retryable if answer.status != 501 else False
    return kind(f"{place} answered with status {answer.status}", details=details, retryable=retryable)


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """Return the wait that a Retry-After header asks for, in seconds from 0 to a day, or None.

    Source: RFC 9110, 10.2.3: a number of seconds or an HTTP date.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    try:
        due = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if due.tzinfo is None:
        due = due.replace(tzinfo=UTC)
    return max(0.0, min((due - now).total_seconds(), MAX_RETRY_AFTER_SECONDS))
