"""What the templates and conditions of a definition refer to. Parsed at check time, never evaluated."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WHOLE_CONTEXT = frozenset({"workflow_context", "inputs", "user_input", "request_data"})
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][^{}]*)\}")
_CODE = frozenset({"expression", "condition", "key", "until"})


@dataclass(frozen=True, slots=True)
class Names:
    """Context names that a value refers to."""

    names: frozenset[str]
    whole_context: bool
    has_templates: bool


def names_of_expression(source: str) -> frozenset[str]:
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except SyntaxError:
        return frozenset()
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def names_of_parameters(value: Any) -> Names:
    names: set[str] = set()
    has = False
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Mapping):
            pending.extend(inner for key, inner in item.items() if key not in _CODE)
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, str):
            for found in _PLACEHOLDER.findall(item):
                has = True
                names |= names_of_expression(found)
    return Names(frozenset(names), bool(names & WHOLE_CONTEXT), has)
