"""When a failed attempt is tried again. Values in, values out; the caller owns the randomness."""

from enum import StrEnum

import msgspec

from orchestration.contracts import ErrorInfo


class RetryStrategy(StrEnum):
    """How the wait grows from attempt to attempt."""

    NONE = "none"
    FIXED_DELAY = "fixed_delay"
    LINEAR_BACKOFF = "linear_backoff"
    EXPONENTIAL_BACKOFF = "exponential_backoff"


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When an attempt is followed by another. `max_attempts` counts the first one."""

    strategy: RetryStrategy = RetryStrategy.FIXED_DELAY
    max_attempts: int = 3
    initial_delay_seconds: float = 1.0
    max_delay_seconds: float = 60.0
    backoff_multiplier: float = 2.0
    retry_on_codes: tuple[str, ...] = ("TIMEOUT", "NETWORK_ERROR")
    non_retryable_codes: tuple[str, ...] = ()


def delay_seconds(policy: RetryPolicy, attempt: int, jitter: float) -> float:
    """Return how long to wait before the attempt after this one, in seconds.

    Args:
        attempt: Attempts already made, from 1.
        jitter: Uniform draw in [0, 1). The caller owns the randomness, so a replay repeats it.

    Returns: A value in [0, policy.max_delay_seconds].
    Raises: ValueError if `attempt` is below 1 or `jitter` is outside its range.
    Source: "full jitter", M. Brooker, Exponential Backoff And Jitter, 2015.
    """
    if attempt < 1:
        raise ValueError(f"attempt counts from 1, got {attempt}")
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter must be in [0, 1), got {jitter}")
    cap = policy.max_delay_seconds
    match policy.strategy:
        case RetryStrategy.NONE:
            return 0.0
        case RetryStrategy.FIXED_DELAY:
            return min(cap, policy.initial_delay_seconds)
        case RetryStrategy.LINEAR_BACKOFF:
            return min(cap, policy.initial_delay_seconds * attempt)
        case RetryStrategy.EXPONENTIAL_BACKOFF:
            try:
                grown = policy.initial_delay_seconds * policy.backoff_multiplier ** (attempt - 1)
            except OverflowError:
                grown = cap
            return min(cap, grown) * (1 - jitter)


def should_retry(policy: RetryPolicy, attempt: int, error: ErrorInfo) -> bool:
    """Return whether the policy grants another attempt after this failed one.

    An error that says `retryable: false` is never tried again, nor is a code in `non_retryable_codes`. Otherwise the
    code must be listed in `retry_on_codes`; `*` stands for every code.
    """
    if policy.strategy is RetryStrategy.NONE or attempt >= policy.max_attempts:
        return False
    if error.retryable is False or error.code in policy.non_retryable_codes:
        return False
    return error.code in policy.retry_on_codes or "*" in policy.retry_on_codes
