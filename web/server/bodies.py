"""Reads what a request carries: JSON bodies and files, bounded and checked before anybody looks at them.

The content type decides the parser. Keys that occur twice, values that JSON does not have, texts that are no Unicode
and nesting without end are refused here, once, with their place.
"""

import json
import math
from typing import TYPE_CHECKING, Any

from aiohttp import BodyPartReader, hdrs, web

from web.server.problems import ProblemError
from web.server.table import NO_QUERY

if TYPE_CHECKING:
    from web.server.models import Model

MAX_DEPTH = 100
MAX_NODES = 200_000
MAX_INTEGER = 2**63
JSON_TYPE = "application/json"
FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""What another site's form can send without asking first: refused even without a body."""


class _DuplicateKeyError(ValueError):
    pass


async def read_bytes(request: web.BaseRequest, limit: int) -> bytes:
    """Return the whole body. Raises: ProblemError 413 beyond `limit` bytes, 415 when it is compressed."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise ProblemError(
            415, "compressed_body", "compressed request bodies are not taken; send it as it is"
        )
    if request.content_length is not None and request.content_length > limit:
        raise too_large(limit)
    body = bytearray()
    async for chunk in request.content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


def too_large(limit: int) -> ProblemError:
    """Return the 413."""
    return ProblemError(
        413, "body_too_large", f"the body may have at most {limit} bytes (web.max_body_bytes)"
    )


async def read_model(request: web.BaseRequest, model: str, limit: int) -> "Model":
    """Return the JSON body as the model of this name; no body at all counts as {}.

    Raises: ProblemError 400 for what is no JSON, 413, 415, 422 for what does not fit, every problem at once.
    """
    given = hdrs.CONTENT_TYPE in request.headers
    if given and request.content_type in FORM_TYPES:
        raise _wrong_type(f"{request.content_type!r} is not taken here; send {JSON_TYPE}")
    body = await read_bytes(request, limit)
    if body and not given:
        raise _wrong_type(f"a body needs the header Content-Type: {JSON_TYPE}")
    if body and request.content_type != JSON_TYPE:
        raise _wrong_type(f"{request.content_type!r} is not taken here; send {JSON_TYPE}")
    value = parse_json(body) if body else {}
    if not isinstance(value, dict):
        raise ProblemError(400, "invalid_json", "the body must be a JSON object")
    from web.server import models  # pydantic, with the first body

    return models.checked(model, value, where="body")


def _wrong_type(detail: str) -> ProblemError:
    return ProblemError(415, "unsupported_media_type", detail)


def read_query(request: web.BaseRequest, model: str) -> "Model | None":
    """Return the query string as the model of this name, None when there can be no parameters.

    Raises: ProblemError 400 for unknown, repeated or wrong parameters.
    """
    given: dict[str, str] = {}
    for key, value in request.query.items():
        if key in given:
            raise ProblemError(400, "invalid_query", f"{key!r} is given twice")
        given[key] = value
    if model == NO_QUERY and not given:
        return None
    from web.server import models  # pydantic, with the first query

    return models.checked(model, given, where="query")


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text.

    Raises: ProblemError 400 naming line and column, or the key or number that cannot be taken.
    """
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise ProblemError(400, "invalid_json", f"the body is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        place = {
            "pointer": "",
            "detail": error.msg,
            "code": "json",
            "line": error.lineno,
            "column": error.colno,
        }
        detail = f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise ProblemError(400, "invalid_json", detail, errors=[place]) from None
    except RecursionError:
        raise ProblemError(400, "invalid_json", f"the body is nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise ProblemError(400, "invalid_json", f"the body cannot be taken: {error}") from None
    check_value(value)
    return value


def check_value(value: Any) -> None:
    """Refuse what no other process could read: too deep, too many parts, numbers and texts that JSON cannot carry.

    Raises: ProblemError 400.
    """
    waiting: list[tuple[Any, int]] = [(value, 1)]
    nodes = 0
    while waiting:
        item, depth = waiting.pop()
        nodes += 1
        reason = _fault(item)
        if depth > MAX_DEPTH:
            reason = f"the body is nested deeper than {MAX_DEPTH}"
        elif nodes > MAX_NODES:
            reason = f"the body has more than {MAX_NODES} values"
        if reason:
            raise ProblemError(400, "invalid_json", reason)
        if isinstance(item, dict):
            waiting.extend((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            waiting.extend((part, depth + 1) for part in item)


def _fault(item: Any) -> str:
    if isinstance(item, str) and not item.isascii():
        try:
            item.encode("utf-8")
        except UnicodeEncodeError:
            return "the body has text with a lone surrogate, which is no Unicode"
    elif isinstance(item, float) and not math.isfinite(item):
        return "the body has a number too large for a float"
    elif isinstance(item, int) and not -MAX_INTEGER <= item < MAX_INTEGER:
        return "the body has an integer of more than 64 bits; send it as text"
    return ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _DuplicateKeyError(f"the key {twice[:100]!r} occurs twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


async def read_file(request: web.BaseRequest, limit: int) -> tuple[str, bytes]:
    """Return name and content of the one file in a multipart form, field `file`.

    Raises: ProblemError 400, 413, 415.
    """
    if request.content_type != "multipart/form-data":
        raise ProblemError(
            415, "unsupported_media_type", "send the file as multipart/form-data, field `file`"
        )
    if request.content_length is not None and request.content_length > limit + 16 * 1024:
        raise too_large(limit)
    try:
        reader = await request.multipart()
        part = await reader.next()
        while part is not None and getattr(part, "name", None) != "file":
            part = await reader.next()
        if not isinstance(part, BodyPartReader):
            raise ProblemError(400, "file_missing", "the form has no field `file`")
        body = bytearray()
        while chunk := await part.read_chunk():
            body += chunk
            if len(body) > limit:
                raise too_large(limit)
    except (ValueError, AssertionError, web.HTTPException) as error:
        raise ProblemError(400, "invalid_form", f"the form cannot be read: {error}") from None
    return part.filename or "upload", bytes(body)
