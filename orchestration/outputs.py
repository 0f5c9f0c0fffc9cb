"""Which value each declared output gets, of a task and of a whole workflow."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def map_outputs(
    names: Sequence[str], *, result: Mapping[str, Any], outputs: Mapping[str, Any], primary: Any
) -> dict[str, Any]:
    """Return a value for each declared output of a finished task, in the order of the names.

    The first that applies: the executor's outputs[name]; result[name]; primary[name] when the primary value is an
    object; for the first name the primary value itself; else null.
    """
    return {name: _output(index, name, result, outputs, primary) for index, name in enumerate(names)}


def _output(
    index: int, name: str, result: Mapping[str, Any], outputs: Mapping[str, Any], primary: Any
) -> Any:
    if name in outputs:
        return outputs[name]
    if name in result:
        return result[name]
    if isinstance(primary, Mapping) and name in primary:
        return primary[name]
    return primary if index == 0 else None


def workflow_outputs(
    names: Iterable[str], context: Mapping[str, Any], primaries_newest_first: Iterable[Any]
) -> dict[str, Any]:
    """Return the outputs of a workflow: for each property of its output schema what is known of it.

    The context's value if it is not null; else the key of that name in the primary object of the task that finished
    last among those that have it; else the output is absent.
    """
    objects = [primary for primary in primaries_newest_first if isinstance(primary, Mapping)]
    found: dict[str, Any] = {}
    for name in names:
        value = context.get(name)
        if value is not None:
            found[name] = value
            continue
        for primary in objects:
            if name in primary:
                found[name] = primary[name]
                break
    return found
