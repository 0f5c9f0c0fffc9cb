"""Expressions: a small, bounded subset of Python over JSON data. Values in, values out, nothing is ever changed."""

from orchestration.expressions.errors import (
    ConditionError,
    DataError,
    ExpressionError,
    RuleError,
    TemplateError,
    TransformError,
)
from orchestration.expressions.evaluator import Evaluator, evaluate
from orchestration.expressions.grammar import Expression, parse
from orchestration.expressions.limits import CONDITION_LIMITS, DEFAULT_LIMITS, Limits

__all__ = [
    "CONDITION_LIMITS",
    "DEFAULT_LIMITS",
    "ConditionError",
    "DataError",
    "Evaluator",
    "Expression",
    "ExpressionError",
    "Limits",
    "RuleError",
    "TemplateError",
    "TransformError",
    "evaluate",
    "parse",
]
