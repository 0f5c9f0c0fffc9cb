"""Inputs that the author marked as secret are shown as stars: `writeOnly: true` or `format: password` in the schema."""

from collections.abc import Mapping
from typing import Any

MASK = "********"
MAX_DEPTH = 20
"""Deepest nesting of an input schema that is looked at; what lies deeper is masked as a whole."""


def mask_inputs(schema: Mapping[str, Any] | None, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs as they may be shown. Values are copied only where something is masked."""
    if not isinstance(schema, Mapping):
        return dict(inputs)
    masked = _masked(schema, inputs, 0)
    return masked if isinstance(masked, dict) else {}


def _masked(schema: Any, value: Any, depth: int) -> Any:
    if not isinstance(schema, Mapping):
        return value
    if depth > MAX_DEPTH or schema.get("writeOnly") is True or schema.get("format") == "password":
        return MASK
    properties = schema.get("properties")
    if isinstance(value, Mapping) and isinstance(properties, Mapping):
        return {key: _masked(properties.get(key), held, depth + 1) for key, held in value.items()}
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [_masked(schema["items"], held, depth + 1) for held in value]
    return value
