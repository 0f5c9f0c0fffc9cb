"""One condition of any type: is it true in a context?"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestration.conditions.json_path import parse_path, select
from orchestration.conditions.names import CONDITION_TYPES, check_custom, names_of
from orchestration.conditions.simple import compare, parse_pattern_test, parse_simple, search
from orchestration.expressions.errors import LIMIT, SYNTAX, ExpressionError
from orchestration.expressions.evaluator import Evaluator
from orchestration.expressions.grammar import parse
from orchestration.expressions.limits import CONDITION_LIMITS, Limits

MAX_LISTED_KEYS = 200
MAX_SHOWN_EXPRESSION_CHARS = 1000
MAX_SHARED_STEPS = 2_000_000
"""Steps that the conditions of one batch, tree or rule set may take together; about a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionOutcome:
    """What came of a condition. `result` is false when it could not be evaluated; `error` then says why."""

    result: bool
    details: dict[str, Any]
    error: ExpressionError | None = None

    @property
    def successful(self) -> bool:
        """Whether it could be evaluated."""
        return self.error is None


@dataclass(slots=True)
class Purse:
    """Steps that several conditions share."""

    steps: int = MAX_SHARED_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionSettings:
    """What all conditions of one request share. `declared` names are null when the context lacks them."""

    declared: Collection[str] = frozenset()
    now: datetime | None = None
    limits: Limits = CONDITION_LIMITS


DEFAULT_SETTINGS = ConditionSettings()


def evaluate(
    condition_type: str,
    expression: str,
    context: Mapping[str, Any],
    settings: ConditionSettings = DEFAULT_SETTINGS,
    purse: Purse | None = None,
) -> ConditionOutcome:
    """Return whether a condition holds. It never raises: a condition that fails says so in its outcome.

    With a purse its steps are taken from there, so that many conditions are bounded together.

    details: expression, condition_type, context_keys, evaluation_successful, error (null, or what was wrong).
    """
    error: ExpressionError | None = None
    result = False
    try:
        result = _holds(condition_type, expression, context, settings, purse)
    except ExpressionError as failure:
        error = failure
    details = {
        "expression": expression[:MAX_SHOWN_EXPRESSION_CHARS] if isinstance(expression, str) else "",
        "condition_type": condition_type if condition_type in CONDITION_TYPES else "",
        "context_keys": [str(key) for key, _ in zip(context, range(MAX_LISTED_KEYS), strict=False)],
        "evaluation_successful": error is None,
        "error": None if error is None else error.message,
    }
    return ConditionOutcome(result=result, details=details, error=error)


def check(
    condition_type: str, expression: str, limits: Limits = CONDITION_LIMITS
) -> tuple[frozenset[str], bool]:
    """Return the context names a condition uses and whether it needs the whole context, without evaluating it.

    Raises: ExpressionError with the place of what is wrong.
    """
    if condition_type == "custom":
        check_custom(expression, limits)
    return names_of(condition_type, expression, limits)


def _holds(
    condition_type: str,
    expression: str,
    context: Mapping[str, Any],
    settings: ConditionSettings,
    purse: Purse | None,
) -> bool:
    limits = settings.limits
    if not isinstance(context, Mapping):
        raise ExpressionError(SYNTAX, "the context of a condition is an object")
    steps = limits.max_steps if purse is None else min(limits.max_steps, purse.steps)
    evaluator = Evaluator(context, declared=settings.declared, now=settings.now, limits=limits, steps=steps)
    try:
        match condition_type:
            case "python":
                return evaluator.truth(parse(expression, limits))
            case "custom":
                check_custom(expression, limits)
                return evaluator.truth(parse(expression, limits))
            case "simple":
                return compare(parse_simple(expression, limits), evaluator)
            case "regex":
                return search(parse_pattern_test(expression, limits), evaluator)
            case "json_path":
                return any(select(parse_path(expression, limits), evaluator, context))
    except RecursionError:
        raise ExpressionError(LIMIT, "the condition or its data is nested too deep") from None
    finally:
        if purse is not None:
            purse.steps -= steps - evaluator.steps_left
    names_of(condition_type, expression, limits)
    raise AssertionError("an unknown type has no names")
