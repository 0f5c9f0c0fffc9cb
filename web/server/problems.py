"""Every error a person or program gets over HTTP, as RFC 9457 `application/problem+json`.

A problem says what happened, where, and what would have been right. It must never carry a traceback, a secret or
the inside of another process.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from amp.errors import AmpError

PROBLEM_CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "/problems/"
MAX_ERRORS = 100
"""Most entries of `errors` in one answer."""
MAX_DETAIL_CHARACTERS = 2000
RETRY_AFTER_SECONDS = 2
"""What a client is told to wait when an agent is absent and nobody knows better."""


class ProblemError(Exception):
    """A request that cannot be answered as asked.

    Args:
        code: Machine name, such as `instance_not_found`; the last part of the problem's `type`.
        errors: Each {pointer, detail, code} and, for texts, line and column.
        more: Further members, such as `current_state`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        title: str = "",
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail[:MAX_DETAIL_CHARACTERS]
        self.title = title or HTTPStatus(status).phrase
        self.errors = list(errors[:MAX_ERRORS])
        self.headers = dict(headers or {})
        self.more = dict(more or {})


def not_found(what: str, identifier: str) -> ProblemError:
    """Return the 404 for a thing of our vocabulary: `instance`, `workflow`, `task`."""
    return ProblemError(
        404, f"{what}_not_found", f"there is no {what} {identifier!r}", title=f"No such {what}"
    )


def response(problem: ProblemError, *, path: str, trace_id: str) -> web.Response:
    """Return the HTTP response of a problem."""
    document: dict[str, Any] = {
        "type": TYPE_PREFIX + problem.code,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": path,
        "code": problem.code,
        "trace_id": trace_id,
        **problem.more,
    }
    if problem.errors:
        document["errors"] = problem.errors
    return web.Response(
        status=problem.status,
        body=msgspec.json.encode(document),
        content_type=PROBLEM_CONTENT_TYPE,
        headers=problem.headers,
    )


_NOT_FOUND = {
    "WORKFLOW_NOT_FOUND": "workflow_not_found",
    "INSTANCE_NOT_FOUND": "instance_not_found",
    "TASK_NOT_FOUND": "task_not_found",
    "RESOURCE_NOT_FOUND": "not_found",
}
_INVALID = {
    "INVALID_INPUT": ("invalid_inputs", "The inputs do not fit the workflow"),
    "INVALID_WORKFLOW_DEFINITION": ("invalid_definition", "The definition cannot be used"),
    "CIRCULAR_DEPENDENCY": ("invalid_definition", "The definition cannot be used"),
    "VALIDATION_ERROR": ("invalid_request", "The request cannot be used"),
    "INVALID_PARAMETERS": ("invalid_request", "The request cannot be used"),
    "INVALID_SCHEMA": ("invalid_request", "The request cannot be used"),
}
_CONFLICT = {
    "ILLEGAL_STATE": "state_conflict",
    "WORKFLOW_EXISTS": "workflow_exists",
}
_CONFLICT_FACTS = ("current_state", "allowed", "instance_id", "workflow_id", "task_id")
_ABSENT = frozenset({"AGENT_NOT_FOUND", "CAPABILITY_NOT_FOUND"})
_BUSY = frozenset({"RATE_LIMIT_EXCEEDED", "INSUFFICIENT_RESOURCES", "RESOURCE_NOT_AVAILABLE"})


def from_mesh(error: AmpError, capability: str) -> ProblemError:
    """Return what a caller is told when the mesh could not answer a request for `capability`."""
    code, details = error.code, error.details or {}
    if code in _NOT_FOUND:
        return ProblemError(404, _NOT_FOUND[code], error.message, title="Not found")
    if code in _INVALID:
        name, title = _INVALID[code]
        errors = _errors(details)
        return ProblemError(422, name, sum_up(errors) or error.message, title=title, errors=errors)
    if code == "IDEMPOTENCY_KEY_REUSED":
        return ProblemError(422, "idempotency_key_reused", error.message, title="The key was used before")
    if code in _CONFLICT:
        known: dict[str, Any] = {key: details[key] for key in _CONFLICT_FACTS if key in details}
        return ProblemError(409, _CONFLICT[code], error.message, title="Not possible now", more=known)
    if code in _ABSENT:
        detail = f"no agent on the mesh offers {capability!r} right now; is it running?"
        return _unavailable("agent_absent", detail, "An agent is absent", details)
    if code in _BUSY:
        return _unavailable("busy", error.message, "Too much to do", details)
    if code == "NETWORK_ERROR":
        return _unavailable("mesh_unavailable", error.message, "The mesh is not reachable", details)
    if code == "TIMEOUT":
        detail = f"no answer to {capability!r} in time; it may still take effect"
        return ProblemError(504, "timeout", detail, headers=_retry_after(details))
    return ProblemError(502, "agent_failed", f"{capability}: {error.message}", more={"agent_code": code})


def _unavailable(code: str, detail: str, title: str, details: Mapping[str, Any]) -> ProblemError:
    return ProblemError(503, code, detail, title=title, headers=_retry_after(details))


def _retry_after(details: Mapping[str, Any]) -> dict[str, str]:
    milliseconds = details.get("retry_after_ms")
    seconds = RETRY_AFTER_SECONDS
    if isinstance(milliseconds, int | float) and 0 < milliseconds < 3_600_000:
        seconds = max(1, round(milliseconds / 1000))
    return {"Retry-After": str(seconds)}


def _errors(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the problems an agent listed in its error's details, in our shape."""
    listed = details.get("problems") or details.get("errors") or []
    return [error_entry(entry) for entry in listed if isinstance(entry, Mapping)][:MAX_ERRORS]


def error_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return one listed problem as {pointer, detail, code, line?, column?, hint?, severity?}."""
    out: dict[str, Any] = {
        "pointer": str(entry.get("pointer", entry.get("path", ""))),
        "detail": str(entry.get("message", entry.get("detail", "")))[:MAX_DETAIL_CHARACTERS],
        "code": str(entry.get("code", "invalid")),
    }
    out.update({key: entry[key] for key in ("line", "column", "hint", "severity") if entry.get(key)})
    return out


def sum_up(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return the first of several problems as a sentence, and how many more there are."""
    if not errors:
        return ""
    first = f"{errors[0]['pointer'] or '/'}: {errors[0]['detail']}"
    return first if len(errors) == 1 else f"{first} (and {len(errors) - 1} more)"


def unknown_field(name: str, known: Collection[str]) -> str:
    """Return the sentence about a field that does not exist, with the nearest one that does."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"unknown field {name!r}; did you mean {close[0]!r}?"
    return f"unknown field {name!r}" + (f"; known here: {', '.join(sorted(known))}" if known else "")
