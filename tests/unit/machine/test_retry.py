"""When a failed attempt is tried again, and after how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from orchestration.contracts import ErrorInfo
from orchestration.retry import RetryPolicy, RetryStrategy, delay_seconds, should_retry


@pytest.mark.parametrize(
    ("strategy", "attempt", "jitter", "expected"),
    [
        ("none", 1, 0.0, 0.0),
        ("fixed_delay", 1, 0.9, 2.0),
        ("fixed_delay", 5, 0.0, 2.0),
        ("linear_backoff", 3, 0.0, 6.0),
        ("linear_backoff", 100, 0.0, 30.0),
        ("exponential_backoff", 1, 0.0, 2.0),
        ("exponential_backoff", 4, 0.0, 16.0),
        ("exponential_backoff", 4, 0.5, 8.0),
        ("exponential_backoff", 9999, 0.0, 30.0),
    ],
)
def test_delays(strategy: str, attempt: int, jitter: float, expected: float) -> None:
    policy = RetryPolicy(strategy=RetryStrategy(strategy), initial_delay_seconds=2, max_delay_seconds=30)
    assert delay_seconds(policy, attempt, jitter) == expected


@given(some.sampled_from(RetryStrategy), some.integers(1, 10_000), some.floats(0, 1, exclude_max=True))
def test_a_delay_is_never_negative_and_never_above_the_cap(
    strategy: RetryStrategy, attempt: int, jitter: float
) -> None:
    policy = RetryPolicy(strategy=strategy, max_delay_seconds=45)
    assert 0 <= delay_seconds(policy, attempt, jitter) <= 45


@pytest.mark.parametrize(("attempt", "jitter"), [(0, 0.5), (1, 1.0), (1, -0.1)])
def test_values_out_of_range_are_refused(attempt: int, jitter: float) -> None:
    with pytest.raises(ValueError, match=r"attempt|jitter"):
        delay_seconds(RetryPolicy(), attempt, jitter)


@pytest.mark.parametrize(
    ("changes", "attempt", "code", "retryable", "expected"),
    [
        ({}, 1, "TIMEOUT", None, True),
        ({}, 2, "NETWORK_ERROR", None, True),
        ({}, 3, "TIMEOUT", None, False),
        ({}, 1, "OTHER", None, False),
        ({}, 1, "TIMEOUT", False, False),
        ({"retry_on_codes": ("*",)}, 1, "OTHER", None, True),
        ({"retry_on_codes": ("*",), "non_retryable_codes": ("OTHER",)}, 1, "OTHER", None, False),
        ({"strategy": RetryStrategy.NONE}, 1, "TIMEOUT", None, False),
    ],
)
def test_which_attempts_are_followed_by_another(
    changes: dict[str, object], attempt: int, code: str, retryable: bool | None, expected: bool
) -> None:
    policy = RetryPolicy(**changes)  # type: ignore[arg-type]
    assert should_retry(policy, attempt, ErrorInfo(code=code, message="", retryable=retryable)) is expected
