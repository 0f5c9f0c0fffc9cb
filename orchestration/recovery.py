"""What to do about a task that failed for good: severity, recovery action, advice. Values in, values out.

The error handler answers with `choose`, and the engine uses the very same function when no handler answers in
time, so everything that the decision needs comes in as an argument: the time with the context, what happened
before with the history. No choice here grants a task an unbounded number of further rounds.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from orchestration.contracts import ErrorInfo
from orchestration.status import RecoveryAction, Severity

SEVERITY_WINDOW = timedelta(minutes=10)
ACTION_WINDOW = timedelta(minutes=30)
ADVICE_WINDOW = timedelta(minutes=60)
HIGH_AT_ERRORS = 5
MEDIUM_AT_ERRORS = 3
ESCALATE_AT_ERRORS = 3
PAUSE_AT_ERRORS = 2
ADVICE_ABOVE_ERRORS = 5
MAX_DELAY_SECONDS = 3600.0
"""Longest wait that a recovery asks for, whatever a `Retry-After` says."""
MAX_CLASSIFIED_CHARACTERS = 2000
"""How much of an error's message is looked at. Messages may come from strangers and be of any length."""


class FailureContext(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when it went wrong, and what the author of the definition wants done about it.

    `wish` is the definition's `on_error`: `fail` (the default) gives up, `auto` leaves it to the table,
    anything else is done. `retries_granted` and `pauses_granted` are rounds that recovery gave this task
    before, as far as the asker knows; the history may know more.
    """

    at: datetime
    workflow_instance_id: str = ""
    workflow_id: str = ""
    task_id: str = ""
    agent_id: str = ""
    attempt: int = 0
    wish: Literal["fail", "auto"] | RecoveryAction = "fail"
    fallback: str = ""
    retries_granted: int = 0
    pauses_granted: int = 0


class PastError(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier failure of the same instance that recovery was asked about, and what was chosen then."""

    at: datetime
    code: str = ""
    task_id: str = ""
    action: RecoveryAction | None = None


class RecoveryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How generous recovery is. The counts are rounds for one task of one instance, over its whole life."""

    max_retry_attempts: int = 3
    retry_delay_seconds: float = 5.0
    pause_duration_seconds: float = 300.0
    max_pauses: int = 3


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """A decision. `delay_seconds` belongs to retry and pause; `escalated` says that people must be told."""

    action: RecoveryAction
    severity: Severity
    delay_seconds: float = 0.0
    reason: str = ""
    recommendations: tuple[str, ...] = ()
    escalated: bool = False


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """A known kind of error, recognised by text when its code says nothing."""

    name: str
    expression: str
    severity: Severity
    action: RecoveryAction
    max_retries: int = 0
    delay_seconds: float = 0.0


PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        name="timeout", expression=r"timeout|timed out", severity=Severity.MEDIUM,
        action=RecoveryAction.RETRY, max_retries=3, delay_seconds=5.0,
    ),
    Pattern(
        name="network", expression=r"network|connection|unreachable", severity=Severity.HIGH,
        action=RecoveryAction.RETRY, max_retries=2, delay_seconds=10.0,
    ),
    Pattern(
        name="validation", expression=r"validation|invalid|schema", severity=Severity.MEDIUM,
        action=RecoveryAction.SKIP,
    ),
)  # fmt: skip
"""The built-in patterns, first match wins."""

SEVERITIES: Mapping[Severity, tuple[str, ...]] = {
    Severity.CRITICAL: (
        "SYSTEM_FAILURE", "MEMORY_EXHAUSTED", "DISK_FULL", "SECURITY_BREACH", "DATA_CORRUPTION",
        "STATE_CORRUPTION",
    ),
    Severity.HIGH: (
        "TIMEOUT", "NETWORK_ERROR", "AUTHENTICATION_FAILED", "AUTHORIZATION_FAILED", "PERMISSION_DENIED",
    ),
    Severity.MEDIUM: (
        "VALIDATION_ERROR", "INVALID_INPUT", "INVALID_PARAMETERS", "INVALID_SCHEMA", "RESOURCE_NOT_FOUND",
        "RESOURCE_NOT_AVAILABLE", "INSUFFICIENT_RESOURCES", "AGENT_NOT_FOUND", "CAPABILITY_NOT_FOUND",
        "TEMPLATE_UNRESOLVED", "EXPRESSION_", "CONDITION_EVALUATION_FAILED",
    ),
    Severity.LOW: ("RATE_LIMIT",),
}  # fmt: skip
"""Substrings of an error's code, or failing that of its message, most severe first."""

ACTIONS: Mapping[str, RecoveryAction] = {
    "TIMEOUT": RecoveryAction.RETRY,
    "NETWORK_ERROR": RecoveryAction.RETRY,
    "INVALID_INPUT": RecoveryAction.SKIP,
    "VALIDATION_ERROR": RecoveryAction.SKIP,
    "RESOURCE_NOT_AVAILABLE": RecoveryAction.PAUSE,
    "INSUFFICIENT_RESOURCES": RecoveryAction.PAUSE,
    "RATE_LIMIT_EXCEEDED": RecoveryAction.PAUSE,
    "AUTHENTICATION_FAILED": RecoveryAction.ESCALATE,
    "AUTHORIZATION_FAILED": RecoveryAction.ESCALATE,
    "PERMISSION_DENIED": RecoveryAction.ESCALATE,
}
"""What `auto` does about a code that contains the key, first match wins."""

_ADVICE: Mapping[str, tuple[str, ...]] = {
    "TIMEOUT": (
        "Raise timeout_seconds of the task",
        "Check load and latency of the service it calls",
    ),
    "MEMORY": ("Process the data in smaller parts", "Give the process more memory"),
    "NETWORK": ("Check that the service can be reached", "Check name resolution, proxies and firewalls"),
    "VALIDATION": ("Compare the input with the schema and the rules of the task",),
    "AUTHENTICATION": ("Renew the credentials of the task",),
    "PERMISSION": ("Grant the credentials of the task the missing right",),
    "RATE_LIMIT": ("Call the service less often or ask for a higher limit",),
    "TEMPLATE": ("Correct the name in the template or declare it as an input or output",),
}
_SEVERITY_ADVICE: Mapping[Severity, str] = {
    Severity.CRITICAL: "Act at once: the error concerns more than this task",
    Severity.HIGH: "Watch the service behind the task; the error is likely to come back",
    Severity.MEDIUM: "Look at the task and its input",
}
_FREQUENCY_ADVICE = "High error frequency: look for a common cause of the errors of this instance"

_PATTERNS = tuple((pattern, re.compile(pattern.expression, re.IGNORECASE)) for pattern in PATTERNS)
_SEPARATORS = re.compile(r"[^A-Z0-9]+")


def choose(
    error: ErrorInfo, context: FailureContext, history: Sequence[PastError], policy: RecoveryPolicy
) -> Recovery:
    """Return what to do about a task whose own retry policy is exhausted.

    Args:
        history: Earlier failures of the same instance that recovery was asked about, in any order, without
        this
            one. Failed attempts that the task's own retry policy covered do not belong here.

    Returns: Never ROLLBACK: nothing can be undone without compensations, so that wish gives up instead.
    """
    severity = severity_of(error, context, history)
    action, delay_seconds, reason = _decide(error, context, history, policy, severity)
    return Recovery(
        action=action,
        severity=severity,
        delay_seconds=delay_seconds,
        reason=reason,
        recommendations=recommendations(error, severity, _count(history, context.at, ADVICE_WINDOW)),
        escalated=action is RecoveryAction.ESCALATE or severity is Severity.CRITICAL,
    )


def read_question(
    error: Mapping[str, Any], context: Mapping[str, Any], at: datetime
) -> tuple[ErrorInfo, FailureContext]:
    """Return what `error-handle` was asked, as the values that `choose` takes.

    Args:
        error: code, message, details, and where known retryable, retry_after_seconds (or both within details).
        context: As in `contracts.ErrorHandleRequest`; `handler_retries` are the rounds that recovery granted
            this task before. Without `on_error` nobody wished for anything, and the table decides.

    Raises: ValueError naming the field that is wrong.
    """
    given = error.get("details")
    details: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    told = {key: details[key] for key in ("retryable", "retry_after_seconds") if key in details}
    try:
        info = msgspec.convert({"message": "", "code": "", **told, **error, "details": details}, ErrorInfo)
    except msgspec.ValidationError as problem:
        raise ValueError(f"error: {problem}") from None
    if not info.code and not info.message:
        raise ValueError("error: neither code nor message is given")
    try:
        asked = msgspec.convert({key: value for key, value in context.items() if value is not None}, _Asked)
    except msgspec.ValidationError as problem:
        raise ValueError(f"context: {problem}") from None
    return info, FailureContext(
        at=at,
        workflow_instance_id=asked.workflow_instance_id,
        workflow_id=asked.workflow_id,
        task_id=asked.task_id,
        agent_id=asked.agent_id,
        attempt=asked.attempt,
        wish=_wish(asked.on_error.action),
        fallback=asked.on_error.fallback,
        retries_granted=asked.handler_retries,
    )


class _OnError(msgspec.Struct):
    action: str = "fail"
    fallback: str = ""


class _Asked(msgspec.Struct):
    """The context of a question as it comes over the wire; other keys do not matter here."""

    workflow_instance_id: str = ""
    workflow_id: str = ""
    task_id: str = ""
    agent_id: str = ""
    attempt: int = 0
    handler_retries: int = 0
    on_error: _OnError = msgspec.field(default_factory=lambda: _OnError(action="auto"))


def _wish(action: str) -> Literal["fail", "auto"] | RecoveryAction:
    match action:
        case "fail" | "auto":
            return action
    try:
        return RecoveryAction(action)
    except ValueError:
        known = ", ".join(("fail", "auto", *RecoveryAction))
        raise ValueError(f"context.on_error.action {action[:100]!r} is none of {known}") from None


def severity_of(error: ErrorInfo, context: FailureContext, history: Sequence[PastError]) -> Severity:
    """Return how bad an error is: by its code, else by its message, else by how often errors came lately.

    The code counts first because a message may quote anything.
    """
    for text in (_normalized(error.code), _normalized(error.message)):
        for severity, needles in SEVERITIES.items():
            if any(needle in text for needle in needles):
                return severity
    pattern = pattern_of(error)
    if pattern is not None:
        return pattern.severity
    count = _count(history, context.at, SEVERITY_WINDOW)
    if count >= HIGH_AT_ERRORS:
        return Severity.HIGH
    return Severity.MEDIUM if count >= MEDIUM_AT_ERRORS else Severity.LOW


def pattern_of(error: ErrorInfo) -> Pattern | None:
    """Return the built-in pattern that an error's code and message match, None when there is none."""
    text = f"{error.code} {error.message[:MAX_CLASSIFIED_CHARACTERS]}"
    return next((pattern for pattern, expression in _PATTERNS if expression.search(text)), None)


def recommendations(error: ErrorInfo, severity: Severity, errors_in_hour: int) -> tuple[str, ...]:
    """Return advice for people: by the kind of error, by severity, and when errors come often."""
    code = _normalized(error.code)
    advice = [line for kind, lines in _ADVICE.items() if kind in code for line in lines]
    if severity in _SEVERITY_ADVICE:
        advice.append(_SEVERITY_ADVICE[severity])
    if errors_in_hour > ADVICE_ABOVE_ERRORS:
        advice.append(_FREQUENCY_ADVICE)
    return tuple(advice)


def _decide(
    error: ErrorInfo,
    context: FailureContext,
    history: Sequence[PastError],
    policy: RecoveryPolicy,
    severity: Severity,
) -> tuple[RecoveryAction, float, str]:
    """Return action, delay in seconds and reason. All control flow of the decision is here."""
    retry = _retry(error, context, history, policy)
    pause = _pause(error, context, history, policy)
    match context.wish:
        case "auto":
            return _automatic(error, context, history, severity, retry, pause)
        case "fail":
            return RecoveryAction.ABORT, 0.0, "the definition asks for no recovery"
        case RecoveryAction.RETRY:
            return retry or (RecoveryAction.ABORT, 0.0, _why_no_retry(error, policy))
        case RecoveryAction.PAUSE:
            if error.retryable is False:
                return RecoveryAction.PAUSE, 0.0, "paused until somebody resumes: a retry alone cannot help"
            return pause or (RecoveryAction.ABORT, 0.0, f"paused {policy.max_pauses} times already")
        case RecoveryAction.FALLBACK if not context.fallback:
            return RecoveryAction.ABORT, 0.0, "a fallback is wished for but none is named"
        case RecoveryAction.ROLLBACK:
            return RecoveryAction.ABORT, 0.0, "rollback is wished for but the workflow has no compensations"
        case wish:
            return wish, 0.0, f"the definition asks for {wish}"


def _automatic(
    error: ErrorInfo,
    context: FailureContext,
    history: Sequence[PastError],
    severity: Severity,
    retry: tuple[RecoveryAction, float, str] | None,
    pause: tuple[RecoveryAction, float, str] | None,
) -> tuple[RecoveryAction, float, str]:
    """Return what the table, then the fallback, then the patterns, then the frequency of errors say."""
    if severity is Severity.CRITICAL:
        return RecoveryAction.ESCALATE, 0.0, "the error is critical"
    code = _normalized(error.code)
    pattern = pattern_of(error)
    wanted = next((action for needle, action in ACTIONS.items() if needle in code), None)
    if wanted is None and not context.fallback and pattern is not None:
        wanted = pattern.action
    if wanted is None and not context.fallback:
        count = _count(history, context.at, ACTION_WINDOW)
        if count >= ESCALATE_AT_ERRORS:
            return RecoveryAction.ESCALATE, 0.0, f"{count} errors in 30 minutes"
        wanted = RecoveryAction.PAUSE if count >= PAUSE_AT_ERRORS else RecoveryAction.RETRY
    match wanted:
        case RecoveryAction.RETRY if retry:
            return retry
        case RecoveryAction.PAUSE if pause:
            return pause
        case RecoveryAction.SKIP | RecoveryAction.ESCALATE:
            return wanted, 0.0, f"{error.code or 'this kind of error'} means {wanted}"
    if context.fallback:
        return RecoveryAction.FALLBACK, 0.0, f"task {context.fallback!r} stands in"
    return RecoveryAction.ESCALATE, 0.0, "no automatic recovery is left"


def _retry(
    error: ErrorInfo, context: FailureContext, history: Sequence[PastError], policy: RecoveryPolicy
) -> tuple[RecoveryAction, float, str] | None:
    """Return a retry with its delay, None when it cannot help or the budget is used up."""
    granted = max(context.retries_granted, _granted(history, context.task_id, RecoveryAction.RETRY))
    pattern = pattern_of(error)
    budget, first_delay = policy.max_retry_attempts, policy.retry_delay_seconds
    if pattern is not None and pattern.action is RecoveryAction.RETRY:
        budget, first_delay = min(budget, pattern.max_retries), max(first_delay, pattern.delay_seconds)
    if error.retryable is False or granted >= budget:
        return None
    grown = first_delay * 2.0 ** min(granted, 30)
    delay_seconds = min(MAX_DELAY_SECONDS, max(grown, error.retry_after_seconds or 0.0))
    return RecoveryAction.RETRY, delay_seconds, f"round {granted + 1} of {budget} that recovery grants"


def _pause(
    error: ErrorInfo, context: FailureContext, history: Sequence[PastError], policy: RecoveryPolicy
) -> tuple[RecoveryAction, float, str] | None:
    """Return a pause with its length.

    None when the task was paused for often enough, or when it may not simply run again after the pause.
    """
    granted = max(context.pauses_granted, _granted(history, context.task_id, RecoveryAction.PAUSE))
    if error.retryable is False or granted >= policy.max_pauses:
        return None
    wait = min(MAX_DELAY_SECONDS, max(policy.pause_duration_seconds, error.retry_after_seconds or 0.0))
    return RecoveryAction.PAUSE, wait, f"pause {granted + 1} of {policy.max_pauses}"


def _why_no_retry(error: ErrorInfo, policy: RecoveryPolicy) -> str:
    if error.retryable is False:
        return f"{error.code} cannot be cured by a retry"
    return f"the retries that recovery grants are used up (max_retry_attempts {policy.max_retry_attempts})"


def _granted(history: Iterable[PastError], task_id: str, action: RecoveryAction) -> int:
    return sum(1 for past in history if past.task_id == task_id and past.action is action)


def _count(history: Iterable[PastError], at: datetime, window: timedelta) -> int:
    """Return how many errors there were in the window that ends at `at`, this one included."""
    return 1 + sum(1 for past in history if at - window < past.at <= at)


def _normalized(text: str) -> str:
    """Return text in the spelling of error codes: `network error` becomes `NETWORK_ERROR`."""
    return _SEPARATORS.sub("_", text[:MAX_CLASSIFIED_CHARACTERS].upper())
