"""What of a value may be shown, and how much: secrets masked, large values cut to a preview.

Both happen to an event before anything folds or sends it, so that the page, the REST answer and the live channel
show the same. Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

MAX_VALUE_BYTES = 16 * 1024
"""JSON size above which a value is shown as a preview; the whole is a request for the task away."""
PREVIEW_CHARACTERS = 512
MIN_SECRET_CHARACTERS = 4
"""Shorter secrets are masked at their own place only: as a part of other texts they would hide everything."""
MAX_SECRETS = 64
MASK = "••••••"
TRUNCATED = "$truncated"

_CUT_FIELDS = ("inputs", "outputs", "updates", "metadata", "details")
_CUT_WHOLE = ("primary",)


def secret_values(schema: Mapping[str, Any] | None, inputs: Mapping[str, Any]) -> frozenset[str]:
    """Return the texts among the inputs that the input schema marks `writeOnly` or `format: password`."""
    found: set[str] = set()
    _collect(schema or {}, inputs, found)
    return frozenset(sorted(found, key=len, reverse=True)[:MAX_SECRETS])


def _collect(schema: Mapping[str, Any], value: object, found: set[str]) -> None:
    if schema.get("writeOnly") is True or schema.get("format") == "password":
        found.update(_texts(value))
        return
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and isinstance(value, Mapping):
        for name, below in properties.items():
            if isinstance(below, Mapping) and name in value:
                _collect(below, value[name], found)


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, Sequence):
        return [text for item in value for text in _texts(item)]
    return []


def masked(value: Any, secrets: frozenset[str]) -> Any:
    """Return the value with every secret text replaced, wherever it occurs."""
    if not secrets:
        return value
    if isinstance(value, str):
        if value in secrets:
            return MASK
        for secret in secrets:
            if len(secret) >= MIN_SECRET_CHARACTERS and secret in value:
                value = value.replace(secret, MASK)
        return value
    if isinstance(value, Mapping):
        return {masked(key, secrets): masked(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, secrets) for item in value]
    return value


def cut(value: Any) -> Any:
    """Return the value, or {"$truncated": {bytes, preview}} when its JSON is larger than `MAX_VALUE_BYTES`."""
    encoded = msgspec.json.encode(value)
    if len(encoded) <= MAX_VALUE_BYTES:
        return value
    preview = encoded[: PREVIEW_CHARACTERS * 4].decode("utf-8", "ignore")[:PREVIEW_CHARACTERS]
    return {TRUNCATED: {"bytes": len(encoded), "preview": preview}}


def shown(event: Mapping[str, Any], secrets: frozenset[str]) -> dict[str, Any]:
    """Return an event as it may be shown."""
    out = {key: masked(value, secrets) for key, value in event.items()}
    for field in _CUT_FIELDS:
        if isinstance(out.get(field), Mapping):
            out[field] = {name: cut(value) for name, value in out[field].items()}
    for field in _CUT_WHOLE:
        if field in out:
            out[field] = cut(out[field])
    if isinstance(out.get("error"), Mapping) and out["error"].get("details"):
        out["error"] = {**out["error"], "details": cut(out["error"]["details"])}
    return out
