"""Conditions of five types, alone, in batches, as decision trees and as rule sets: a context in, an outcome out."""

from orchestration.conditions.decisions import (
    BATCH_OPERATORS,
    RULE_MODES,
    BatchOutcome,
    RulesOutcome,
    TreeOutcome,
    batch,
    decision_tree,
    rule_engine,
)
from orchestration.conditions.names import CONDITION_TYPES, names_of
from orchestration.conditions.outcome import ConditionOutcome, ConditionSettings, check, evaluate

__all__ = [
    "BATCH_OPERATORS",
    "CONDITION_TYPES",
    "RULE_MODES",
    "BatchOutcome",
    "ConditionOutcome",
    "ConditionSettings",
    "RulesOutcome",
    "TreeOutcome",
    "batch",
    "check",
    "decision_tree",
    "evaluate",
    "names_of",
    "rule_engine",
]
