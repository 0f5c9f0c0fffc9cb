"""What a change, a filter and a projection make of a state. Pure; never reads a table or a clock."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from agents.state_manager.errors import InvalidRequest, StateExists, StateNotFound
from agents.state_manager.fencing import encoded
from agents.state_manager.storage.base import DecideState, StateChange, StoredState

MAX_FILTERS = 50
MAX_PATH_PARTS = 20
MAX_DESCRIPTION_CHARS = 1000
MAX_INDEXED_TEXT_CHARS = 256
"""Longer texts are found by a scan, not by the index."""

_MISSING = object()


def put_whole(state: dict[str, Any], *, overwrite: bool, description: str, max_bytes: int) -> DecideState:
    """Return the decision of `state-set`: the whole value, over an existing one only with `overwrite`."""
    check_size(state, max_bytes)

    def decide(stored: StoredState | None) -> StateChange:
        if stored is not None and not overwrite:
            raise StateExists(
                f"a state of {stored.workflow_instance_id!r} exists at version {stored.version}; "
                "set overwrite to true to replace it, or use state-update",
                version=stored.version,
            )
        return StateChange(state=state, description=cut(description or "set"))

    return decide


def change_keys(updates: dict[str, Any], *, replace: bool, description: str, max_bytes: int) -> DecideState:
    """Return the decision of `state-update`: a shallow merge, or the whole replaced."""
    check_size(updates, max_bytes)

    def decide(stored: StoredState | None) -> StateChange:
        changed = updates if replace or stored is None else {**stored.state, **updates}
        check_size(changed, max_bytes)
        return StateChange(
            state=changed, description=cut(description or ("replace" if replace else "update"))
        )

    return decide


def drop_keys(keys: Collection[str]) -> DecideState:
    """Return the decision of `state-delete`: some keys, or with no keys the whole state and its history."""

    def decide(stored: StoredState | None) -> StateChange | None:
        if stored is None:
            raise StateNotFound("there is no such state")
        if not keys:
            return None
        left = {key: value for key, value in stored.state.items() if key not in keys}
        return StateChange(state=left, description="delete " + cut(", ".join(sorted(keys))))

    return decide


def check_size(state: Mapping[str, Any], max_bytes: int) -> None:
    """Raise InvalidRequest when a state is larger than the setting `state_manager.max_state_bytes`."""
    size = len(encoded(state, "state"))
    if size > max_bytes:
        raise InvalidRequest(
            f"the state would have {size} bytes; state_manager.max_state_bytes is {max_bytes}"
        )


def cut(text: str) -> str:
    """Return a description within its bound."""
    return text if len(text) <= MAX_DESCRIPTION_CHARS else text[: MAX_DESCRIPTION_CHARS - 1] + "…"


def indexed_texts(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the top-level values that the index of states holds."""
    return {
        key: value
        for key, value in state.items()
        if isinstance(value, str) and len(value) <= MAX_INDEXED_TEXT_CHARS
    }


def project(state: Mapping[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """Return only the values at these (dotted) paths, under the paths as written; all without paths."""
    if not paths:
        return dict(state)
    found = ((path, value_at(state, path)) for path in paths)
    return {path: value for path, value in found if value is not _MISSING}


def value_at(state: Mapping[str, Any], path: str) -> Any:
    """Return the value under a key, or under dotted keys; a private marker when there is none."""
    if path in state:
        return state[path]
    value: Any = state
    for part in path.split(".", MAX_PATH_PARTS):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


class StateFilter:
    """A compiled `filters` object of `state-query`.

    Raises: InvalidRequest naming the key when an operator is unknown or its operand of the wrong kind.
    """

    def __init__(self, filters: Mapping[str, Any]) -> None:
        if len(filters) > MAX_FILTERS:
            raise InvalidRequest(f"{len(filters)} filters; at most {MAX_FILTERS}")
        self._tests = [(path, *_compile(path, wanted)) for path, wanted in filters.items()]

    def matches(self, state: Mapping[str, Any]) -> bool:
        """Tell whether every filter holds. A missing value only satisfies `exists: false`, `ne` and `not_in`."""
        return all(test(value_at(state, path), operand) for path, test, operand in self._tests)

    def equal_texts(self) -> dict[str, str]:
        """Return the filters that an index of top-level texts can answer."""
        return {
            path: operand
            for path, test, operand in self._tests
            if test is _equal
            and isinstance(operand, str)
            and len(operand) <= MAX_INDEXED_TEXT_CHARS
            and "." not in path
        }


Test = Callable[[Any, Any], bool]


def _compile(path: str, wanted: Any) -> tuple[Test, Any]:
    if not (isinstance(wanted, Mapping) and "op" in wanted):
        return _equal, wanted
    name, operand = wanted["op"], wanted.get("value")
    test = _TESTS.get(name) if isinstance(name, str) else None
    if test is None:
        raise InvalidRequest(f"filters.{path}.op {name!r} is unknown; known: {', '.join(_TESTS)}")
    if name in ("in", "not_in") and not isinstance(operand, list):
        raise InvalidRequest(f"filters.{path}.value must be a list for {name!r}")
    return test, operand


def _equal(value: Any, operand: Any) -> bool:
    if isinstance(value, bool) or isinstance(operand, bool):
        return value is operand
    return value is not _MISSING and bool(value == operand)


def _ordered(value: Any, operand: Any) -> int | None:
    """Return -1, 0 or 1, or None when the two have no order: only numbers and texts have one, among themselves."""
    numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (value, operand))
    if numbers or (isinstance(value, str) and isinstance(operand, str)):
        return int(value > operand) - int(value < operand)
    return None


def _contains(value: Any, operand: Any) -> bool:
    if isinstance(value, str):
        return isinstance(operand, str) and operand in value
    if isinstance(value, list):
        return any(_equal(item, operand) for item in value)
    return isinstance(value, Mapping) and isinstance(operand, str) and operand in value


_TESTS: Mapping[str, Test] = {
    "eq": _equal,
    "ne": lambda value, operand: not _equal(value, operand),
    "gt": lambda value, operand: _ordered(value, operand) == 1,
    "gte": lambda value, operand: _ordered(value, operand) in (0, 1),
    "lt": lambda value, operand: _ordered(value, operand) == -1,
    "lte": lambda value, operand: _ordered(value, operand) in (-1, 0),
    "in": lambda value, operand: any(_equal(value, item) for item in operand),
    "not_in": lambda value, operand: not any(_equal(value, item) for item in operand),
    "contains": _contains,
    "exists": lambda value, operand: (value is not _MISSING) == (operand is not False),
}
