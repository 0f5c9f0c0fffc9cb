"""The kinds of conditions, and which context names a condition uses. Nothing here evaluates."""

from orchestration.conditions.json_path import parse_path
from orchestration.conditions.simple import parse_pattern_test, parse_simple
from orchestration.expressions.errors import NOT_ALLOWED, SYNTAX, ExpressionError
from orchestration.expressions.functions import CUSTOM_FUNCTIONS
from orchestration.expressions.grammar import parse
from orchestration.expressions.limits import CONDITION_LIMITS, Limits

CONDITION_TYPES = frozenset({"python", "simple", "regex", "custom", "json_path"})


def names_of(
    condition_type: str, expression: str, limits: Limits = CONDITION_LIMITS
) -> tuple[frozenset[str], bool]:
    """Return the context names a condition uses, and whether it needs the whole context.

    Raises: ExpressionError with the place, when the condition cannot be parsed.
    """
    match condition_type:
        case "python" | "custom":
            return parse(expression, limits).names, False
        case "simple":
            return parse_simple(expression, limits).names, False
        case "regex":
            return parse_pattern_test(expression, limits).names, False
        case "json_path":
            path = parse_path(expression, limits)
            return path.names, path.whole_context
    known = ", ".join(sorted(CONDITION_TYPES))
    raise ExpressionError(SYNTAX, f"there is no condition type of this name; there are {known}")


def check_custom(expression: str, limits: Limits = CONDITION_LIMITS) -> None:
    """Raise ExpressionError unless the expression is one call of a custom function: `fn(arg, ...)`."""
    functions = parse(expression, limits).functions
    called = expression.strip().partition("(")[0].strip()
    if called not in CUSTOM_FUNCTIONS or called not in functions or not expression.rstrip().endswith(")"):
        known = ", ".join(sorted(CUSTOM_FUNCTIONS))
        raise ExpressionError(
            NOT_ALLOWED, f"a custom condition is one call, as in is_empty(name), of: {known}"
        )
