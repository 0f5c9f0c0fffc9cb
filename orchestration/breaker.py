"""Circuit breakers as values: stop calling what keeps failing, probe it after a while. Time is an argument.

closed: calls pass, failures in a row are counted. open: calls are refused until `next_attempt`.
half_open: a few probes pass; all of them good closes the breaker, one bad opens it again.
"""

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec


class BreakerState(StrEnum):
    """Whether calls pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a breaker opens, for how long, and how many probes close it again."""

    failure_threshold: int = 5
    timeout_seconds: float = 300.0
    half_open_max_calls: int = 3


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about one resource.

    `failure_count` counts failures in a row. `next_attempt` is when an open breaker lets a probe through,
    and when a half-open one hands out new probes should the earlier ones never have been reported.
    """

    state: BreakerState = BreakerState.CLOSED
    failure_count: int = 0
    last_failure: datetime | None = None
    next_attempt: datetime | None = None
    probes_started: int = 0
    probes_succeeded: int = 0


def look(breaker: Breaker, policy: BreakerPolicy, now: datetime) -> Breaker:
    """Return the breaker as it stands now.

    Open becomes half_open when its time has come. No call is counted.
    """
    if breaker.next_attempt is None or now < breaker.next_attempt or breaker.state is BreakerState.CLOSED:
        return breaker
    return msgspec.structs.replace(
        breaker,
        state=BreakerState.HALF_OPEN,
        next_attempt=now + timedelta(seconds=policy.timeout_seconds),
        probes_started=0,
        probes_succeeded=0,
    )


def admit(breaker: Breaker, policy: BreakerPolicy, now: datetime) -> tuple[Breaker, bool]:
    """Return the breaker after somebody asked to make a call, and whether the call may be made.

    In half_open each admitted call takes one of the probes; its outcome is then due with `succeeded` or
    `failed`.
    """
    current = look(breaker, policy, now)
    match current.state:
        case BreakerState.CLOSED:
            return current, True
        case BreakerState.OPEN:
            return current, False
        case BreakerState.HALF_OPEN:
            if current.probes_started >= policy.half_open_max_calls:
                return current, False
            return msgspec.structs.replace(current, probes_started=current.probes_started + 1), True


def succeeded(breaker: Breaker, policy: BreakerPolicy, now: datetime) -> Breaker:
    """Return the breaker after a call went well.

    A late success of a call from before it opened changes nothing.
    """
    current = look(breaker, policy, now)
    match current.state:
        case BreakerState.CLOSED:
            return msgspec.structs.replace(current, failure_count=0)
        case BreakerState.OPEN:
            return current
        case BreakerState.HALF_OPEN:
            if current.probes_started <= current.probes_succeeded:
                return current
            good = current.probes_succeeded + 1
            if good >= policy.half_open_max_calls:
                return Breaker(last_failure=current.last_failure)
            return msgspec.structs.replace(current, probes_succeeded=good)


def failed(breaker: Breaker, policy: BreakerPolicy, now: datetime) -> Breaker:
    """Return the breaker after a call failed.

    It opens at the threshold, and at once when it was half open.
    """
    current = look(breaker, policy, now)
    count = current.failure_count + 1
    if current.state is BreakerState.OPEN:
        return msgspec.structs.replace(current, failure_count=count, last_failure=now)
    if current.state is BreakerState.HALF_OPEN or count >= policy.failure_threshold:
        return _opened(count, now, now, policy.timeout_seconds)
    return msgspec.structs.replace(current, failure_count=count, last_failure=now)


def trip(breaker: Breaker, now: datetime, timeout_seconds: float) -> Breaker:
    """Return the breaker opened by hand for `timeout_seconds`."""
    return _opened(breaker.failure_count, breaker.last_failure, now, timeout_seconds)


def _opened(count: int, last_failure: datetime | None, now: datetime, timeout_seconds: float) -> Breaker:
    return Breaker(
        state=BreakerState.OPEN,
        failure_count=count,
        last_failure=last_failure,
        next_attempt=now + timedelta(seconds=timeout_seconds),
    )
