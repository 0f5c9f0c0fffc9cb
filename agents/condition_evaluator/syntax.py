"""Showing what an expression is made of, as plain objects. Nothing is evaluated."""

import ast
from typing import Any

_LEFT_OUT = frozenset({"ctx", "kind", "type_comment"})


def tree_of(node: ast.AST) -> dict[str, Any]:
    """Return a syntax tree as nested objects: `type` is the kind of node, `position` its first character."""
    shown: dict[str, Any] = {"type": type(node).__name__}
    position = getattr(node, "col_offset", None)
    if position is not None:
        shown["position"] = position
    for name, value in ast.iter_fields(node):
        if name not in _LEFT_OUT:
            shown[name] = _value(value)
    return shown


def _value(value: Any) -> Any:
    if isinstance(value, ast.operator | ast.unaryop | ast.boolop | ast.cmpop):
        return type(value).__name__
    if isinstance(value, ast.AST):
        return tree_of(value)
    if isinstance(value, list):
        return [_value(each) for each in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
