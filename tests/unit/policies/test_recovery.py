from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.contracts import ErrorInfo
from orchestration.recovery import (
    MAX_DELAY_SECONDS,
    PATTERNS,
    FailureContext,
    PastError,
    Recovery,
    RecoveryPolicy,
    choose,
    pattern_of,
    recommendations,
    severity_of,
)
from orchestration.status import RecoveryAction, Severity

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POLICY = RecoveryPolicy()


def past(minutes_ago: float, action: RecoveryAction | None = None, task_id: str = "pay") -> PastError:
    return PastError(at=NOW - timedelta(minutes=minutes_ago), code="X", task_id=task_id, action=action)


def decide(
    code: str,
    message: str = "",
    *,
    wish: str = "auto",
    history: list[PastError] | None = None,
    policy: RecoveryPolicy = POLICY,
    retryable: bool | None = None,
    retry_after: float | None = None,
    **context: object,
) -> Recovery:
    error = ErrorInfo(code=code, message=message, retryable=retryable, retry_after_seconds=retry_after)
    known = wish if wish in ("fail", "auto") else RecoveryAction(wish)
    return choose(
        error,
        FailureContext(at=NOW, task_id="pay", wish=known, **context),  # type: ignore[arg-type]
        history or [],
        policy,
    )


@pytest.mark.parametrize(
    ("code", "message", "severity"),
    [
        ("SYSTEM_FAILURE", "", "critical"),
        ("WORKER_MEMORY_EXHAUSTED", "", "critical"),
        ("DISK_FULL", "", "critical"),
        ("TASK_EXECUTION_FAILED", "possible security breach", "critical"),
        ("DATA_CORRUPTION", "", "critical"),
        ("STATE_CORRUPTION", "", "critical"),
        ("TIMEOUT", "", "high"),
        ("TIMEOUT_EXCEEDED", "", "high"),
        ("NETWORK_ERROR", "", "high"),
        ("AUTHENTICATION_FAILED", "", "high"),
        ("PERMISSION_DENIED", "", "high"),
        ("TASK_EXECUTION_FAILED", "network-error while reading", "high"),
        ("VALIDATION_ERROR", "", "medium"),
        ("INVALID_INPUT", "", "medium"),
        ("RESOURCE_NOT_FOUND", "", "medium"),
        ("RESOURCE_NOT_AVAILABLE", "", "medium"),
        ("INSUFFICIENT_RESOURCES", "", "medium"),
        ("TEMPLATE_UNRESOLVED", "", "medium"),
        ("RATE_LIMIT_EXCEEDED", "", "low"),
        ("TASK_EXECUTION_FAILED", "it timed out", "medium"),
        ("TASK_EXECUTION_FAILED", "host unreachable", "high"),
        ("TASK_EXECUTION_FAILED", "who knows", "low"),
        ("", "", "low"),
    ],
)
def test_severity_comes_from_code_then_message(code: str, message: str, severity: str) -> None:
    assert severity_of(ErrorInfo(code=code, message=message), FailureContext(at=NOW), []) == severity


def test_code_outweighs_what_a_message_quotes() -> None:
    error = ErrorInfo(code="VALIDATION_ERROR", message="the field says SYSTEM_FAILURE")
    assert severity_of(error, FailureContext(at=NOW), []) is Severity.MEDIUM


@pytest.mark.parametrize(("earlier", "severity"), [(0, "low"), (1, "low"), (2, "medium"), (4, "high")])
def test_unknown_errors_grow_severe_by_frequency(earlier: int, severity: str) -> None:
    history = [past(9.9) for _ in range(earlier)] + [past(10.1) for _ in range(20)]
    assert severity_of(ErrorInfo(code="ODD", message=""), FailureContext(at=NOW), history) == severity


@pytest.mark.parametrize(
    ("code", "action"),
    [
        ("SYSTEM_FAILURE", "escalate"),
        ("TIMEOUT", "retry"),
        ("NETWORK_ERROR", "retry"),
        ("INVALID_INPUT", "skip"),
        ("VALIDATION_ERROR", "skip"),
        ("RESOURCE_NOT_AVAILABLE", "pause"),
        ("RATE_LIMIT_EXCEEDED", "pause"),
        ("AUTHENTICATION_FAILED", "escalate"),
        ("PERMISSION_DENIED", "escalate"),
        ("ODD", "retry"),
    ],
)
def test_auto_follows_the_table(code: str, action: str) -> None:
    assert decide(code).action == action


@pytest.mark.parametrize(
    ("earlier", "action"), [(0, "retry"), (1, "pause"), (2, "escalate"), (9, "escalate")]
)
def test_auto_answers_unknown_errors_by_frequency(earlier: int, action: str) -> None:
    history = [past(29, task_id=f"other{number}") for number in range(earlier)]
    assert decide("ODD", history=history).action == action


def test_errors_outside_the_window_do_not_count() -> None:
    assert decide("ODD", history=[past(31) for _ in range(10)]).action is RecoveryAction.RETRY


def test_auto_uses_the_fallback_before_frequency_and_patterns() -> None:
    assert decide("ODD", fallback="manual").action is RecoveryAction.FALLBACK
    assert decide("ODD", "connection reset", fallback="manual").action is RecoveryAction.FALLBACK
    assert decide("ODD", "connection reset").action is RecoveryAction.RETRY
    assert decide("ODD", "bad schema").action is RecoveryAction.SKIP


def test_auto_with_used_up_retries_falls_back_else_escalates() -> None:
    assert decide("TIMEOUT", retries_granted=3, fallback="manual").action is RecoveryAction.FALLBACK
    recovery = decide("TIMEOUT", retries_granted=3)
    assert (recovery.action, recovery.escalated) == (RecoveryAction.ESCALATE, True)


def test_default_wish_aborts_with_true_severity_and_advice() -> None:
    recovery = decide("DISK_FULL", wish="fail")
    assert recovery.action is RecoveryAction.ABORT
    assert recovery.severity is Severity.CRITICAL
    assert recovery.escalated
    assert recovery.recommendations
    assert not decide("TIMEOUT", wish="fail").escalated


@pytest.mark.parametrize("wish", ["skip", "escalate", "abort", "pause", "retry"])
def test_explicit_wish_is_done(wish: str) -> None:
    recovery = decide("INVALID_INPUT", wish=wish)
    assert recovery.action == wish
    assert recovery.escalated == (wish == "escalate")


def test_explicit_fallback_needs_a_name() -> None:
    assert decide("ODD", wish="fallback", fallback="b").action is RecoveryAction.FALLBACK
    assert decide("ODD", wish="fallback").action is RecoveryAction.ABORT


def test_rollback_gives_up_because_nothing_can_be_undone() -> None:
    assert decide("ODD", wish="rollback").action is RecoveryAction.ABORT


def test_explicit_retry_ends_with_the_budget_of_asker_or_history() -> None:
    used = [past(1000, RecoveryAction.RETRY) for _ in range(3)]
    assert decide("ODD", wish="retry", retries_granted=2).action is RecoveryAction.RETRY
    assert decide("ODD", wish="retry", retries_granted=3).action is RecoveryAction.ABORT
    assert decide("ODD", wish="retry", history=used).action is RecoveryAction.ABORT
    assert (
        decide("ODD", wish="retry", policy=RecoveryPolicy(max_retry_attempts=0)).action
        is RecoveryAction.ABORT
    )


def test_retries_of_other_tasks_do_not_use_up_the_budget() -> None:
    used = [past(1000, RecoveryAction.RETRY, task_id="other") for _ in range(9)]
    assert decide("ODD", wish="retry", history=used).action is RecoveryAction.RETRY


def test_hopeless_errors_are_never_retried() -> None:
    assert decide("TEMPLATE_UNRESOLVED", wish="retry", retryable=False).action is RecoveryAction.ABORT
    assert decide("TIMEOUT", retryable=False).action is RecoveryAction.ESCALATE
    assert decide("RESOURCE_NOT_AVAILABLE", retryable=False).action is RecoveryAction.ESCALATE


def test_pause_for_a_hopeless_error_waits_for_people() -> None:
    recovery = decide("OUTCOME_UNKNOWN", wish="pause", retryable=False)
    assert (recovery.action, recovery.delay_seconds) == (RecoveryAction.PAUSE, 0.0)


def test_delays_grow_and_honour_retry_after_within_a_cap() -> None:
    assert [decide("ODD", retries_granted=n).delay_seconds for n in range(3)] == [5, 10, 20]
    assert decide("NETWORK_ERROR").delay_seconds == 10
    assert decide("TIMEOUT").delay_seconds == 5
    assert decide("TIMEOUT", retry_after=60).delay_seconds == 60
    assert decide("TIMEOUT", retry_after=1e9).delay_seconds == MAX_DELAY_SECONDS
    assert decide("RATE_LIMIT_EXCEEDED").delay_seconds == 300
    assert decide("RATE_LIMIT_EXCEEDED", retry_after=400).delay_seconds == 400


def test_pauses_are_bounded() -> None:
    assert decide("RATE_LIMIT_EXCEEDED", pauses_granted=2).action is RecoveryAction.PAUSE
    assert decide("RATE_LIMIT_EXCEEDED", pauses_granted=3).action is RecoveryAction.ESCALATE
    assert decide("RATE_LIMIT_EXCEEDED", wish="pause", pauses_granted=3).action is RecoveryAction.ABORT


def test_patterns_recognise_text() -> None:
    named = {pattern.name: pattern for pattern in PATTERNS}
    assert pattern_of(ErrorInfo(code="A", message="It TIMED OUT")) is named["timeout"]
    assert pattern_of(ErrorInfo(code="A", message="Connection refused")) is named["network"]
    assert pattern_of(ErrorInfo(code="SCHEMA", message="")) is named["validation"]
    assert pattern_of(ErrorInfo(code="A", message="x" * 5000 + "timeout")) is None


def test_frequent_errors_are_named_in_the_advice() -> None:
    rare = recommendations(ErrorInfo(code="TIMEOUT", message=""), Severity.HIGH, 5)
    often = recommendations(ErrorInfo(code="TIMEOUT", message=""), Severity.HIGH, 6)
    assert len(often) == len(rare) + 1
    assert "frequency" in often[-1]


@given(
    code=st.sampled_from(
        ["TIMEOUT", "NETWORK_ERROR", "ODD", "RATE_LIMIT_EXCEEDED", "INVALID_INPUT", "DISK_FULL"]
    ),
    wish=st.sampled_from(["fail", "auto", *RecoveryAction]),
    budget=st.integers(0, 6),
    pauses=st.integers(0, 4),
    gaps=st.lists(st.floats(0, 7200), min_size=40, max_size=40),
    fallback=st.sampled_from(["", "stand_in"]),
)
def test_recovery_never_grants_unbounded_rounds(
    code: str, wish: RecoveryAction, budget: int, pauses: int, gaps: list[float], fallback: str
) -> None:
    """However often a task fails and whatever the gaps, rounds that start by themselves stay within the budgets."""
    policy = RecoveryPolicy(max_retry_attempts=budget, max_pauses=pauses)
    at, history, granted = NOW, [], []
    for gap in gaps:
        at += timedelta(seconds=gap)
        context = FailureContext(at=at, task_id="pay", wish=wish, fallback=fallback)
        recovery = choose(ErrorInfo(code=code, message=""), context, history, policy)
        history.append(PastError(at=at, code=code, task_id="pay", action=recovery.action))
        granted.append(recovery.action)
        assert 0 <= recovery.delay_seconds <= MAX_DELAY_SECONDS
    assert granted.count(RecoveryAction.RETRY) <= budget
    assert granted.count(RecoveryAction.PAUSE) <= pauses


@given(code=st.text(max_size=50), message=st.text(max_size=3000), wish=st.sampled_from(["fail", "auto"]))
def test_any_text_gets_a_decision(code: str, message: str, wish: str) -> None:
    recovery = decide(code, message, wish=wish)
    assert recovery.reason
    assert recovery.action is RecoveryAction.ABORT or wish == "auto"
