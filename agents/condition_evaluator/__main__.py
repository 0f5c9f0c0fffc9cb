"""Runs the condition evaluator: `python -m agents.condition_evaluator`."""

from agents.base import main
from agents.condition_evaluator.agent import ConditionEvaluator

if __name__ == "__main__":
    main(ConditionEvaluator)
