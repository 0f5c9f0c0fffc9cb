"""The inputs of a start against the workflow's input schema, and its outputs against the output schema.

Defaults are filled in recursively (an absent object is created when something below it has a default), extra inputs
are kept: they become context variables. Bounded in size and steps; it must never change what it is given.
"""

from collections.abc import Mapping
from typing import Any

from orchestration.definition.conformance import violations
from orchestration.definition.document import Document
from orchestration.definition.errors import InputError, Problem
from orchestration.definition.values import check_values, copied

MAX_INPUT_BYTES = 512 * 1024
"""Largest inputs of one start, as JSON."""

MAX_INPUT_VALUES = 50_000
MAX_INPUT_DEPTH = 50

_ABSENT = object()


def prepare_inputs(schema: Mapping[str, Any] | None, inputs: object) -> dict[str, Any]:
    """Return a copy of the inputs with the schema's defaults filled in, checked.

    Args:
        schema: A checked input schema; without one any object will do.

    Raises: InputError with every violation; paths are JSON pointers from the inputs.
    """
    if not isinstance(inputs, dict):
        raise InputError([Problem(code="type", message="inputs must be an object")])
    unsafe = check_values(
        Document(inputs),
        what="the inputs",
        max_values=MAX_INPUT_VALUES,
        max_bytes=MAX_INPUT_BYTES,
        max_depth=MAX_INPUT_DEPTH,
    )
    if unsafe:
        raise InputError(unsafe)
    if schema is None:
        return dict(copied(inputs))
    prepared = _with_defaults(schema, copied(inputs), schema, frozenset())
    problems = violations(schema, prepared)
    if problems:
        raise InputError(problems)
    return dict(prepared)


def check_outputs(schema: Mapping[str, Any] | None, outputs: Mapping[str, Any]) -> list[str]:
    """Return how outputs break the output schema, a sentence each; an empty list when they satisfy it."""
    if schema is None:
        return []
    return [
        f"{problem.path or 'the outputs'} {problem.message}" for problem in violations(schema, dict(outputs))
    ]


def _with_defaults(schema: Any, value: Any, root: Mapping[str, Any], followed: frozenset[str]) -> Any:
    """Return the value with defaults below it filled in; `_ABSENT` stays when there is nothing to fill in.

    `followed` holds the references followed since the last value that is there, so that recursive schemas end.
    """
    if not isinstance(schema, dict):
        return value
    if value is _ABSENT and "default" in schema:
        value = copied(schema["default"])
    if value is not _ABSENT:
        followed = frozenset()
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in followed:
        value = _with_defaults(_resolve(root, reference), value, root, followed | {reference})
    for part in schema.get("allOf", ()):
        value = _with_defaults(part, value, root, followed)
    if isinstance(value, dict) or (value is _ABSENT and "properties" in schema):
        value = _object_with_defaults(schema, value, root, followed)
    elif isinstance(value, list) and "items" in schema:
        prefix = len(schema.get("prefixItems", ()))
        rest = [_with_defaults(schema["items"], item, root, frozenset()) for item in value[prefix:]]
        value = value[:prefix] + rest
    return value


def _object_with_defaults(
    schema: Mapping[str, Any], value: Any, root: Mapping[str, Any], followed: frozenset[str]
) -> Any:
    filled: dict[str, Any] = {} if value is _ABSENT else dict(value)
    for name, subschema in schema.get("properties", {}).items():
        inner = _with_defaults(subschema, filled.get(name, _ABSENT), root, followed)
        if inner is not _ABSENT:
            filled[name] = inner
    return _ABSENT if value is _ABSENT and not filled else filled


def _resolve(root: Mapping[str, Any], reference: str) -> Any:
    found: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found[int(name)] if isinstance(found, list) else found[name]
    return found
