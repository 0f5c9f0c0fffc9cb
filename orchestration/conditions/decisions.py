"""Several conditions together: batches, decision trees and rule sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestration.conditions.outcome import (
    DEFAULT_SETTINGS,
    ConditionOutcome,
    ConditionSettings,
    Purse,
    evaluate,
)
from orchestration.expressions.errors import INVALID_INPUT, LIMIT, ConditionError

MAX_BATCH = 1000
MAX_RULES = 1000
MAX_TREE_DEPTH = 20
MAX_TREE_NODES = 1000

BATCH_OPERATORS = frozenset({"and", "or", "all", "any"})
RULE_MODES = frozenset({"first_match", "all_matches", "highest_priority"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutcome:
    """The joined result, and for each condition {expression, result, details, success} with error when it failed."""

    overall_result: bool
    individual_results: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeOutcome:
    """The leaf that was reached; `path` holds "true", "false" and "error"."""

    result: Any
    path: list[str]
    evaluations: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesOutcome:
    """The rules that matched, by priority, their actions, and the rules that were passed over with the reason."""

    matched_rules: list[dict[str, Any]]
    actions: list[Any]
    failed_rules: list[dict[str, Any]] = field(default_factory=list)


def batch(
    conditions: Sequence[Mapping[str, Any]],
    operator: str,
    context: Mapping[str, Any],
    settings: ConditionSettings = DEFAULT_SETTINGS,
) -> BatchOutcome:
    """Evaluate [{expression, type, context}]; each condition's own context is put over the common one.

    `and` and `all` need every condition, `or` and `any` one. A condition that fails counts as false.
    Raises: ConditionError when the list is misdescribed or has more than MAX_BATCH conditions.
    """
    if operator not in BATCH_OPERATORS:
        raise ConditionError(INVALID_INPUT, f"the operator is one of {', '.join(sorted(BATCH_OPERATORS))}")
    if len(conditions) > MAX_BATCH:
        raise ConditionError(
            LIMIT, f"a batch may have {MAX_BATCH} conditions, this one has {len(conditions)}"
        )
    purse = Purse()
    results: list[dict[str, Any]] = []
    for index, condition in enumerate(conditions):
        expression = _expression_of(condition, "expression", f"condition {index + 1}")
        own = condition.get("context")
        merged = {**context, **own} if isinstance(own, Mapping) else context
        outcome = evaluate(_type_of(condition), expression, merged, settings, purse)
        entry = {"expression": expression, "result": outcome.result, "details": outcome.details}
        results.append(entry | _success(outcome))
    values = [entry["result"] for entry in results]
    return BatchOutcome(
        overall_result=all(values) if operator in ("and", "all") else any(values), individual_results=results
    )


def decision_tree(
    tree: Any,
    context: Mapping[str, Any],
    settings: ConditionSettings = DEFAULT_SETTINGS,
    *,
    max_depth: int = MAX_TREE_DEPTH,
    max_nodes: int = MAX_TREE_NODES,
) -> TreeOutcome:
    """Walk {condition, type, true_branch, false_branch, error_branch} to a leaf: anything without `condition`.

    A condition that fails ends the walk: the result is its error_branch, else its false_branch.
    Raises: ConditionError when the tree is too deep, too large or misdescribed, also where the walk does not go.
    """
    _check_tree(tree, max_depth, max_nodes)
    purse = Purse()
    path: list[str] = []
    evaluations: list[dict[str, Any]] = []
    node = tree
    while _is_node(node):
        outcome = evaluate(_type_of(node), node["condition"], context, settings, purse)
        entry = {"condition": node["condition"], "type": _type_of(node), "result": outcome.result}
        evaluations.append(entry | _success(outcome))
        if not outcome.successful:
            path.append("error")
            return TreeOutcome(
                result=node.get("error_branch", node.get("false_branch")), path=path, evaluations=evaluations
            )
        branch = "true" if outcome.result else "false"
        path.append(branch)
        node = node.get(f"{branch}_branch")
    return TreeOutcome(result=node, path=path, evaluations=evaluations)


def rule_engine(
    rules: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any],
    mode: str = "first_match",
    settings: ConditionSettings = DEFAULT_SETTINGS,
) -> RulesOutcome:
    """Find the rules [{id, condition, type, action, priority}] that apply, highest priority first.

    first_match: the first one. all_matches: all. highest_priority: all that share the highest priority that matched.
    A rule that fails to evaluate is passed over.
    Raises: ConditionError when the set is misdescribed or has more than MAX_RULES rules.
    """
    if mode not in RULE_MODES:
        raise ConditionError(INVALID_INPUT, f"the mode is one of {', '.join(sorted(RULE_MODES))}")
    if len(rules) > MAX_RULES:
        raise ConditionError(LIMIT, f"there may be {MAX_RULES} rules, there are {len(rules)}")
    purse = Purse()
    matched: list[dict[str, Any]] = []
    actions: list[Any] = []
    failed: list[dict[str, Any]] = []
    for index, rule in sorted(enumerate(rules), key=lambda numbered: -_priority_of(numbered[1], numbered[0])):
        priority = _priority_of(rule, index)
        if matched and mode == "highest_priority" and priority < matched[0]["priority"]:
            break
        expression = _expression_of(rule, "condition", f"rule {index + 1}")
        outcome = evaluate(_type_of(rule), expression, context, settings, purse)
        name = rule.get("id", f"rule_{index + 1}")
        if outcome.error is not None:
            failed.append({"id": name, "condition": expression, "error": outcome.error.message})
        elif outcome.result:
            matched.append(
                {"id": name, "condition": expression, "priority": priority, "details": outcome.details}
            )
            actions.append(rule.get("action"))
            if mode == "first_match":
                break
    return RulesOutcome(matched_rules=matched, actions=actions, failed_rules=failed)


def _success(outcome: ConditionOutcome) -> dict[str, Any]:
    if outcome.error is None:
        return {"success": True}
    return {"success": False, "error": outcome.error.message}


def _type_of(described: Mapping[str, Any]) -> str:
    found = described.get("type", described.get("condition_type"))
    return found if isinstance(found, str) else "python"


def _expression_of(described: Any, key: str, which: str) -> str:
    expression = described.get(key) if isinstance(described, Mapping) else None
    if not isinstance(expression, str):
        raise ConditionError(INVALID_INPUT, f"{which} needs a text under '{key}'")
    return expression


def _priority_of(rule: Any, index: int) -> float:
    priority = rule.get("priority", 0) if isinstance(rule, Mapping) else 0
    if isinstance(priority, bool) or not isinstance(priority, int | float):
        raise ConditionError(INVALID_INPUT, f"rule {index + 1} needs a number under 'priority'")
    return priority


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "condition" in value


def _check_tree(tree: Any, max_depth: int, max_nodes: int) -> None:
    waiting = [(tree, 1)]
    nodes = 0
    while waiting:
        node, depth = waiting.pop()
        if not _is_node(node):
            continue
        nodes += 1
        if depth > max_depth:
            raise ConditionError(LIMIT, f"a decision tree may be {max_depth} levels deep")
        if nodes > max_nodes:
            raise ConditionError(LIMIT, f"a decision tree may have {max_nodes} nodes")
        _expression_of(node, "condition", f"the tree's node on level {depth}")
        waiting.extend((node.get(f"{branch}_branch"), depth + 1) for branch in ("true", "false", "error"))
