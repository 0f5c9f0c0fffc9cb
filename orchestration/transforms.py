"""Transformations of data: filter, map, reduce, group, sort, aggregate, join, custom.

Each takes data and gives new data; what it was given is never changed, though the result may share parts with it.
An object counts as one record. After a `group` the data are lists by key: filter and map see each group's list.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestration.expressions.errors import (
    FAILED,
    INVALID_INPUT,
    LIMIT,
    ExpressionError,
    TransformError,
    did_you_mean,
    shown,
)
from orchestration.expressions.evaluator import Evaluator
from orchestration.expressions.functions import MAX_INTEGER_KEY
from orchestration.expressions.grammar import Expression, parse
from orchestration.expressions.limits import DEFAULT_LIMITS
from orchestration.expressions.values import MISSING, key_text, kind, order_key, to_json

MAX_TRANSFORMATIONS = 100
MAX_ITEMS = 1_000_000
MAX_OPERATIONS = 200
MAX_STEPS = 20_000_000
"""Steps that all transformations of one task may take together; some seconds."""
STEPS_PER_PART = 200
"""Steps granted for each part of the data, so that an expression over small data cannot run long."""

Registered = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], Any]
"""An operator's own transformation: (data, config, context) -> data."""


@dataclass(slots=True)
class _Run:
    """One run through all transformations. `grouped` is true while the data are lists by key."""

    names: Mapping[str, Any]
    registered: Mapping[str, Registered]
    evaluator: Evaluator
    data: Any
    grouped: bool = False

    def evaluate(self, expression: Expression, item: Any, **more: Any) -> Any:
        """Return an expression's value for an item: item, data, acc, then the item's own keys, then the context."""
        self._look_at(item, more)
        return self.evaluator.run(expression)

    def holds(self, expression: Expression, item: Any, **more: Any) -> bool:
        """Return whether an expression counts as true for an item."""
        self._look_at(item, more)
        return self.evaluator.truth(expression)

    def _look_at(self, item: Any, more: dict[str, Any]) -> None:
        more["data"] = self.data
        more["item"] = item
        self.evaluator.layers = (more, item, self.names) if isinstance(item, Mapping) else (more, self.names)


def apply(
    data: Any,
    transformations: Sequence[Mapping[str, Any]],
    names: Mapping[str, Any],
    registered: Mapping[str, Registered] | None = None,
    *,
    declared: Collection[str] = frozenset(),
    now: datetime | None = None,
) -> tuple[Any, list[dict[str, Any]]]:
    """Return the transformed data and what was applied: [{type, config, result_size}].

    Args:
        transformations: [{type, config}]. The config may also stand next to the type.
        names: The context for expressions.
        registered: What `custom` with an `operation` may call.

    Raises: TransformError naming the transformation, with INVALID_INPUT when it is misdescribed, EXPRESSION_ERROR
        when it does not fit its data.
    """
    if not isinstance(transformations, list | tuple):
        raise TransformError(INVALID_INPUT, "transformations are a list of {type, config}")
    if len(transformations) > MAX_TRANSFORMATIONS:
        raise TransformError(LIMIT, f"there may be {MAX_TRANSFORMATIONS} transformations")
    evaluator = Evaluator(names, declared=declared, now=now, steps=steps_for(data))
    run = _Run(names, registered or {}, evaluator, data)
    applied: list[dict[str, Any]] = []
    for index, transformation in enumerate(transformations):
        try:
            kind_name, config = _described(transformation)
            run.data = _TRANSFORMATIONS[kind_name](run, config)
            run.grouped = kind_name == "group" or (run.grouped and kind_name in _KEEP_GROUPS)
        except ExpressionError as error:
            code = LIMIT if error.code == LIMIT else FAILED
            raise TransformError(code, error.message, index) from None
        except TransformError as error:
            raise TransformError(error.code, error.message, index) from None
        applied.append({"type": kind_name, "config": config, "result_size": size_of(run.data)})
    return run.data, applied


def steps_for(data: Any) -> int:
    """Return how many steps work over the data may take: some for each of its parts, and a fixed share."""
    most = MAX_STEPS // STEPS_PER_PART
    parts, waiting = 0, [data]
    while waiting and parts < most:
        part = waiting.pop()
        parts += 1
        if type(part) is dict:
            waiting += part.values()
        elif type(part) is list:
            waiting += part
    return min(MAX_STEPS, DEFAULT_LIMITS.max_steps + parts * STEPS_PER_PART)


def size_of(data: Any) -> int:
    """Return how many elements a list or object has; one for anything else, none for null."""
    if isinstance(data, list | Mapping):
        return len(data)
    return 0 if data is None else 1


def check(transformations: Any) -> list[tuple[int, str]]:
    """Return what is wrong with transformations before any data is seen, as (index, message)."""
    if not isinstance(transformations, list):
        return [(0, "transformations are a list of {type, config}")]
    problems: list[tuple[int, str]] = []
    for index, transformation in enumerate(transformations[:MAX_TRANSFORMATIONS]):
        try:
            kind_name, config = _described(transformation)
            for key in _NEEDED.get(kind_name, ()):
                _needed(config, key)
            for key in ("condition", "expression"):
                if isinstance(config.get(key), str):
                    parse(config[key])
        except (ExpressionError, TransformError) as error:
            problems.append((index, error.message))
    if len(transformations) > MAX_TRANSFORMATIONS:
        problems.append((MAX_TRANSFORMATIONS, f"there may be {MAX_TRANSFORMATIONS} transformations"))
    return problems


def _described(transformation: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(transformation, Mapping):
        raise TransformError(
            INVALID_INPUT, f"it is {kind(transformation)}, not an object with type and config"
        )
    kind_name = transformation.get("type")
    if not isinstance(kind_name, str) or kind_name not in _TRANSFORMATIONS:
        known = ", ".join(_TRANSFORMATIONS)
        hint = did_you_mean(kind_name, _TRANSFORMATIONS) if isinstance(kind_name, str) else ""
        raise TransformError(INVALID_INPUT, f"the type is one of {known}{hint}")
    config = transformation.get("config", MISSING)
    if config is MISSING:
        config = {key: value for key, value in transformation.items() if key != "type"}
    if not isinstance(config, Mapping):
        raise TransformError(INVALID_INPUT, f"the config of {kind_name} is an object, not {kind(config)}")
    return kind_name, config


def _needed(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value.strip():
        raise TransformError(INVALID_INPUT, f"a text under '{key}' is needed in the config")
    return value


def _records(run: _Run, what: str) -> list[Any]:
    """Return the data as a list of records; an object is one."""
    if isinstance(run.data, list):
        if len(run.data) > MAX_ITEMS:
            raise TransformError(LIMIT, f"{what} takes {MAX_ITEMS} items at most")
        return run.data
    if isinstance(run.data, Mapping):
        return [run.data]
    raise TransformError(FAILED, f"{what} needs a list or an object, not {kind(run.data)}")


def _per_group(run: _Run, work: Callable[[list[Any]], Any]) -> dict[str, Any]:
    return {key: work(items) for key, items in run.data.items()}


# --- the transformations ----------------------------------------------------------------------------------


def _filter(run: _Run, config: Mapping[str, Any]) -> Any:
    condition = parse(_needed(config, "condition" if "condition" in config else "expression"))
    if run.grouped:
        return {key: items for key, items in run.data.items() if run.holds(condition, items, key=key)}
    if isinstance(run.data, Mapping):
        return run.data if run.holds(condition, run.data) else None
    return [item for item in _records(run, "filter") if run.holds(condition, item)]


def _map(run: _Run, config: Mapping[str, Any]) -> Any:
    expression = parse(_needed(config, "expression"))
    if run.grouped:
        return [run.evaluate(expression, items, key=key) for key, items in run.data.items()]
    if isinstance(run.data, Mapping):
        return run.evaluate(expression, run.data)
    return [run.evaluate(expression, item) for item in _records(run, "map")]


def _reduce(run: _Run, config: Mapping[str, Any]) -> Any:
    expression = parse(_needed(config, "expression"))
    items = list(run.data.values()) if run.grouped else _records(run, "reduce")
    result = config.get("initial", 0)
    for item in items:
        result = run.evaluate(expression, item, acc=result)
    return result


def _group(run: _Run, config: Mapping[str, Any]) -> Any:
    if run.grouped:
        raise TransformError(INVALID_INPUT, "the data are grouped already")
    key_of = _key_reader(run, _needed(config, "group_by"))
    groups: dict[str, list[Any]] = {}
    for item in _records(run, "group"):
        groups.setdefault(key_text(key_of(item)), []).append(item)
    return groups


def _sort(run: _Run, config: Mapping[str, Any]) -> Any:
    source = config.get("key")
    key_of = _key_reader(run, _needed(config, "key")) if source is not None else _itself
    backwards = config.get("reverse", False)
    if not isinstance(backwards, bool):
        raise TransformError(INVALID_INPUT, "reverse is true or false")

    def sort(items: list[Any]) -> list[Any]:
        keyed = [(key_of(item), item) for item in items]
        known = [pair for pair in keyed if pair[0] is not None]
        known.sort(key=lambda pair: order_key(_sortable(pair[0])), reverse=backwards)
        return [item for _, item in known] + [item for key, item in keyed if key is None]

    return _per_group(run, sort) if run.grouped else sort(_records(run, "sort"))


def _aggregate(run: _Run, config: Mapping[str, Any]) -> Any:
    operations = config.get("operations")
    if not isinstance(operations, list) or not 0 < len(operations) <= MAX_OPERATIONS:
        raise TransformError(
            INVALID_INPUT, f"operations are a list of 1 to {MAX_OPERATIONS} of {{type, field}}"
        )
    checked = [_operation(operation) for operation in operations]

    def aggregate(items: list[Any]) -> dict[str, Any]:
        return {key: _aggregated(run, kind_name, name, items) for kind_name, name, key in checked}

    return _per_group(run, aggregate) if run.grouped else aggregate(_records(run, "aggregate"))


def _join(run: _Run, config: Mapping[str, Any]) -> Any:
    left_key, right_key = _needed(config, "left_key"), _needed(config, "right_key")
    how = config.get("type", config.get("join_type", "inner"))
    if how not in ("inner", "left"):
        raise TransformError(INVALID_INPUT, "the type of a join is inner or left")
    right = config.get("join_data")
    right = [right] if isinstance(right, Mapping) else right
    if not isinstance(right, list):
        raise TransformError(INVALID_INPUT, f"join_data is a list of objects, not {kind(right)}")
    if len(right) > MAX_ITEMS:
        raise TransformError(LIMIT, f"a join takes {MAX_ITEMS} items at most")
    matches = {_match_key(record, right_key): record for record in right if isinstance(record, Mapping)}
    matches.pop(None, None)

    def join(items: list[Any]) -> list[Any]:
        joined: list[Any] = []
        for item in items:
            if not isinstance(item, Mapping):
                raise TransformError(FAILED, f"a join needs objects, not {kind(item)}")
            found = matches.get(_match_key(item, left_key))
            if found is not None:
                joined.append({**item, **found})
            elif how == "left":
                joined.append(item)
        return joined

    return _per_group(run, join) if run.grouped else join(_records(run, "join"))


def _custom(run: _Run, config: Mapping[str, Any]) -> Any:
    if isinstance(config.get("expression"), str):
        return run.evaluate(parse(config["expression"]), run.data)
    name = _needed(config, "operation" if "operation" in config else "expression")
    work = run.registered.get(name)
    if work is None:
        raise TransformError(
            INVALID_INPUT,
            f"no transformation {shown(name)} is registered{did_you_mean(name, run.registered)}",
        )
    # The operator's code gets copies, so that it cannot change the context behind everyone's back.
    made = work(to_json(run.data, DEFAULT_LIMITS), config, run.names)
    return to_json(made, DEFAULT_LIMITS)


_TRANSFORMATIONS: Mapping[str, Callable[[_Run, Mapping[str, Any]], Any]] = {
    "filter": _filter,
    "map": _map,
    "reduce": _reduce,
    "group": _group,
    "sort": _sort,
    "aggregate": _aggregate,
    "join": _join,
    "custom": _custom,
}
_KEEP_GROUPS = frozenset({"filter", "sort", "join"})
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "map": ("expression",),
    "reduce": ("expression",),
    "group": ("group_by",),
    "join": ("left_key", "right_key"),
}


# --- keys and numbers -------------------------------------------------------------------------------------


def _key_reader(run: _Run, source: str) -> Callable[[Any], Any]:
    """Return what reads an item's key: a field, dotted fields (null when missing), or an expression over the item."""
    if all(part.replace("-", "_").isidentifier() for part in source.split(".")):
        path = tuple(source.split("."))
        return lambda item: field_value(item, path)
    expression = parse(source)
    return lambda item: run.evaluate(expression, item)


def field_value(item: Any, path: Sequence[str]) -> Any:
    """Return the value of a field of an item, dotted fields as a path; null when something is missing on the way."""
    value = item
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _itself(item: Any) -> Any:
    return item


def _sortable(value: Any) -> Any:
    if isinstance(value, list | Mapping):
        raise TransformError(FAILED, f"{kind(value)} has no order; sort by a field")
    return value


def _match_key(record: Mapping[str, Any], name: str) -> Any:
    """Return a record's join key, with bools kept apart from numbers; None when it has none."""
    value = field_value(record, (name,)) if name in record else field_value(record, name.split("."))
    if value is None or isinstance(value, list | Mapping):
        return None
    if type(value) is int and not -MAX_INTEGER_KEY <= value <= MAX_INTEGER_KEY:
        return ("", str(value))
    return (isinstance(value, bool), value)


def _operation(operation: Any) -> tuple[str, str, str]:
    if not isinstance(operation, Mapping) or operation.get("type") not in _AGGREGATES:
        raise TransformError(INVALID_INPUT, f"an operation's type is one of {', '.join(_AGGREGATES)}")
    kind_name = operation["type"]
    name = operation.get("field", "")
    if not isinstance(name, str) or (not name and kind_name != "count"):
        raise TransformError(INVALID_INPUT, f"the operation {kind_name} needs a field")
    key = operation.get("result_key") or (f"{kind_name}_{name}" if name else kind_name)
    return kind_name, name, str(key)


def _aggregated(run: _Run, kind_name: str, name: str, items: list[Any]) -> Any:
    if not name:
        return len(items)
    path = name.split(".")
    values = [value for value in (field_value(item, path) for item in items) if value is not None]
    if kind_name in ("sum", "avg"):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TransformError(FAILED, f"{kind_name} of {shown(name)} needs numbers, not {kind(value)}")
    elif kind_name != "count" and len({_order_class(value) for value in values}) > 1:
        raise TransformError(FAILED, f"{kind_name} of {shown(name)} needs values of one kind")
    return run.evaluator.number(_AGGREGATES[kind_name](values))


def _order_class(value: Any) -> str:
    if isinstance(value, list | Mapping):
        raise TransformError(FAILED, f"{kind(value)} has no order")
    return kind(value)


_AGGREGATES: Mapping[str, Callable[[list[Any]], Any]] = {
    "sum": sum,
    "avg": lambda values: sum(values) / len(values) if values else None,
    "min": lambda values: min(values, default=None),
    "max": lambda values: max(values, default=None),
    "count": len,
}
