"""The condition evaluator: conditions, decision trees and rules, where user logic may burn CPU."""

from agents.condition_evaluator.agent import ConditionEvaluator

__all__ = ["ConditionEvaluator"]
