"""Bounds on plain data from outside: only JSON values, none too deep, too many or too large, nothing cyclic."""

from typing import Any

import msgspec

from orchestration.definition.document import MAX_DEPTH, MAX_TEXT_BYTES, MAX_VALUES, Document
from orchestration.definition.errors import MAX_PROBLEMS, Path, Problem, quoted

MIN_INTEGER = -(2**63)
MAX_INTEGER = 2**63 - 1

UNSAFE_CODES = frozenset({"too-deep", "too-large"})
"""Findings after which a value must not be walked."""


def check_values(
    document: Document,
    *,
    what: str = "the definition",
    max_values: int = MAX_VALUES,
    max_bytes: int = MAX_TEXT_BYTES,
    max_depth: int = MAX_DEPTH,
) -> list[Problem]:
    """Return what keeps a value from being JSON within bounds; an empty list means it is safe to walk and store.

    The walk keeps its own stack and ends at the bounds, so depth, cycles and shared branches cannot hurt it.
    """
    problems: list[Problem] = []
    pending: list[tuple[Any, Path, int]] = [(document.value, (), 1)]
    seen = 0
    size = 0
    while pending and len(problems) < MAX_PROBLEMS:
        value, path, depth = pending.pop()
        seen += 1
        if isinstance(value, dict | list) and depth > max_depth:
            message = f"{what} is nested deeper than {max_depth} levels"
            return [*problems, document.problem("too-deep", message, path[:3])]
        size += len(value) if isinstance(value, str) else 1
        if seen + len(pending) > max_values or size > max_bytes:
            message = f"{what} has more than {max_values:,} values or {max_bytes:,} bytes"
            return [*problems, document.problem("too-large", message, ())]
        if isinstance(value, dict):
            for key, inner in value.items():
                size += len(key) if isinstance(key, str) else 1
                wrong = _wrong_key(key)
                if wrong:
                    problems.append(document.problem("bad-key", wrong, path, at_key=True))
                else:
                    pending.append((inner, (*path, key), depth + 1))
        elif isinstance(value, list):
            if len(value) > max_values:
                return [
                    *problems,
                    document.problem("too-large", f"{what} has more than {max_values:,} values", path),
                ]
            pending.extend((inner, (*path, index), depth + 1) for index, inner in enumerate(value))
        else:
            wrong = _wrong_scalar(value)
            if wrong:
                problems.append(document.problem("bad-value", wrong, path))
    if not problems and len(msgspec.json.encode(document.value)) > max_bytes:
        problems.append(document.problem("too-large", f"{what} is larger than {max_bytes:,} bytes", ()))
    return problems


def sound_copy(value: Any) -> Any:
    """Return a deep copy in which what `check_values` found to be no JSON is null, or left out where it is a key.

    The copy is safe to look at, so that everything else that is wrong can be said too. Never call it after a finding
    with one of UNSAFE_CODES.
    """
    if isinstance(value, dict):
        return {_sound_text(key): sound_copy(inner) for key, inner in value.items() if isinstance(key, str)}
    if isinstance(value, list):
        return [sound_copy(inner) for inner in value]
    if isinstance(value, str):
        return _sound_text(value)
    return None if _wrong_scalar(value) else value


def _sound_text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def copied(value: Any) -> Any:
    """Return a deep copy of a value that `check_values` found nothing wrong with."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [copied(inner) for inner in value]
    return value


def _wrong_key(key: object) -> str:
    if not isinstance(key, str):
        return f"a key must be text, not {type(key).__name__}"
    return _wrong_text(key, f"the key {quoted(key)}")


def _wrong_scalar(value: object) -> str:
    match value:
        case None | bool():
            return ""
        case str():
            return _wrong_text(value, "the text")
        case int():
            return "" if MIN_INTEGER <= value <= MAX_INTEGER else "the number does not fit into 64 bits"
        case float():
            return "" if value - value == 0 else "the number is not finite"
    return f"{type(value).__name__} is not a JSON value"


def _wrong_text(text: str, what: str) -> str:
    if text.isascii():
        return f"{what} contains a NUL character" if "\0" in text else ""
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"{what} contains half of a surrogate pair"
    return f"{what} contains a NUL character" if "\0" in text else ""
