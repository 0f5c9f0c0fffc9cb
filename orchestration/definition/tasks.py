"""What a task's type, capability and parameters imply: who does it, how often, and what a repetition would do.

Pure tables and functions over what the author wrote. Nothing here looks at other tasks.
"""

from collections.abc import Mapping
from typing import Any

from orchestration import contracts
from orchestration.definition.models import MAX_ATTEMPTS, RetryConfig
from orchestration.retry import RetryPolicy, RetryStrategy
from orchestration.status import Effects

CAPABILITY_BY_TYPE: Mapping[str, str] = {
    "api_call": contracts.TASK_API_CALL.id,
    "data_transform": contracts.TASK_DATA_TRANSFORM.id,
    "subprocess": contracts.TASK_SUBPROCESS.id,
    "validation": contracts.TASK_VALIDATION.id,
    "file_operation": contracts.TASK_FILE_OPERATION.id,
    "custom": contracts.TASK_CUSTOM.id,
    "conditional": contracts.CONDITION_EVALUATE.id,
    "decision": contracts.DECISION_TREE.id,
    "parallel": contracts.TASK_EXECUTE.id,
    "sequential": contracts.TASK_EXECUTE.id,
}
"""Every task type of this release and the capability that does its work when the task names none."""

ENVELOPE_TYPES = frozenset({"parallel", "sequential"})
"""Types that say nothing about the work: it is in the parameters `task_type` and `task_config`."""

LATER_TYPES = frozenset({"loop", "foreach", "switch", "try", "sub_workflow", "manual", "wait", "signal"})
"""Constructs of the engine that this release does not perform yet."""

TASK_CONFIG_TYPES = frozenset(
    {"api_call", "data_transform", "subprocess", "validation", "file_operation", "custom"}
)
"""What `task_type` may be in the parameters of `task-execute`."""

OTHER_OFFERED_CAPABILITIES = frozenset(
    contract.id
    for contract in (
        contracts.CONDITION_VALIDATE, contracts.EXPRESSION_PARSE, contracts.STATE_GET, contracts.STATE_SET,
        contracts.STATE_UPDATE, contracts.STATE_QUERY, contracts.STATE_LIST, contracts.ALERT_CREATE,
        contracts.METRICS_GET, contracts.PERFORMANCE_REPORT,
    )
)  # fmt: skip
"""What a task may ask of our own agents besides the work of the executor and the evaluator."""

DEFAULT_RETRY_COUNT = 3
"""Retries of an api_call for which the author says nothing at all."""


def is_offered_to_tasks(capability: str) -> bool:
    """Return whether a definition may name a capability: any of a foreign agent, of ours those meant for tasks.

    The others drive the orchestrator itself; a definition, which anybody may have written, must not reach them.
    """
    if capability not in contracts.CONTRACTS:
        return True
    return capability in contracts.RENDERS_TEMPLATES or capability in OTHER_OFFERED_CAPABILITIES


def capability_of(task_type: str, capability: str | None) -> str:
    """Return who does the work: what the task names, else what its type implies; "" when neither says."""
    return capability or CAPABILITY_BY_TYPE.get(task_type, "")


def work_of(capability: str, parameters: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the kind of work, as a task type, and its own parameters; unwraps `task-execute`. "" for foreign work."""
    if capability == contracts.TASK_EXECUTE.id:
        inner = parameters.get("task_config")
        task_type = parameters.get("task_type")
        known = isinstance(task_type, str) and task_type in TASK_CONFIG_TYPES
        return (str(task_type) if known else ""), (inner if isinstance(inner, dict) else {})
    for task_type, name in CAPABILITY_BY_TYPE.items():
        if name == capability:
            return task_type, parameters
    if capability in (contracts.CONDITION_BATCH_EVALUATE.id, contracts.RULE_ENGINE.id):
        return "decision", parameters
    return "", parameters


def effects_of(capability: str, parameters: Mapping[str, Any]) -> Effects:
    """Return what a repeated attempt would do to the world, for a task that does not declare it.

    What is not known to be harmless is `once`: after the loss of its executor it is never repeated blindly.
    """
    task_type, own = work_of(capability, parameters)
    match task_type:
        case "data_transform" | "validation" | "conditional" | "decision":
            return Effects.NONE
        case "api_call":
            return Effects.READ if all(_is_read(call) for call in _calls(own)) else Effects.IDEMPOTENT
        case "file_operation":
            return _file_effects(own)
    if capability in (contracts.CONDITION_VALIDATE.id, contracts.EXPRESSION_PARSE.id):
        return Effects.NONE
    if capability in (contracts.STATE_GET.id, contracts.STATE_QUERY.id, contracts.STATE_LIST.id):
        return Effects.READ
    if capability in (contracts.METRICS_GET.id, contracts.PERFORMANCE_REPORT.id):
        return Effects.READ
    return Effects.ONCE


_UNKNOWN_CALL: Mapping[str, Any] = {"method": "known when the template is filled"}


def _calls(parameters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    branches = parameters.get("parallel_requests")
    if not branches:
        return [parameters]
    if not isinstance(branches, list):
        return [_UNKNOWN_CALL]
    return [branch if isinstance(branch, dict) else _UNKNOWN_CALL for branch in branches]


def _is_read(call: Mapping[str, Any]) -> bool:
    return call.get("method", "GET") in ("GET", "HEAD")


def _file_effects(parameters: Mapping[str, Any]) -> Effects:
    operations = parameters.get("operations")
    steps = operations if isinstance(operations, list) and operations else [parameters]
    kinds = {step.get("operation", "write") if isinstance(step, dict) else "?" for step in steps}
    if kinds == {"read"}:
        return Effects.READ
    return Effects.IDEMPOTENT if kinds <= {"read", "write", "copy", "delete"} else Effects.ONCE


def retry_policy(
    capability: str, parameters: Mapping[str, Any], own: RetryConfig | None, shared: RetryConfig | None
) -> RetryPolicy:
    """Return the one budget of attempts: the task's retry_config over the workflow's over the defaults.

    An api_call's `retry_count` joins it: each of `max_attempts` rounds may make `1 + retry_count` attempts, so the
    attempts multiply, are counted together and end at MAX_ATTEMPTS. Only what the author wrote multiplies.
    """
    given = {**_given(shared), **_given(own)}
    policy = _policy(given)
    task_type, call = work_of(capability, parameters)
    if task_type != "api_call":
        return policy
    codes = policy.retry_on_codes
    if "retry_on_codes" not in given:
        codes = (*codes, "RATE_LIMIT_EXCEEDED")
    count = call.get("retry_count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        count = 0 if given else DEFAULT_RETRY_COUNT
    rounds = policy.max_attempts if given and policy.strategy is not RetryStrategy.NONE else 1
    attempts = min(MAX_ATTEMPTS, rounds * (1 + count))
    grows = count > 0 and ("strategy" not in given or policy.strategy is RetryStrategy.NONE)
    return RetryPolicy(
        strategy=RetryStrategy.EXPONENTIAL_BACKOFF if grows else policy.strategy,
        max_attempts=attempts,
        initial_delay_seconds=policy.initial_delay_seconds,
        max_delay_seconds=policy.max_delay_seconds,
        backoff_multiplier=policy.backoff_multiplier,
        retry_on_codes=codes,
        non_retryable_codes=policy.non_retryable_codes,
    )


def _given(config: RetryConfig | None) -> dict[str, Any]:
    return {} if config is None else config.model_dump(exclude_none=True)


def _policy(given: Mapping[str, Any]) -> RetryPolicy:
    values = dict(given)
    if "strategy" in values:
        values["strategy"] = RetryStrategy(values["strategy"])
    for name in ("retry_on_codes", "non_retryable_codes"):
        if name in values:
            values[name] = tuple(values[name])
    return RetryPolicy(**values)
