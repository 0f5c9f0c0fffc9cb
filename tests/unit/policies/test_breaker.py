from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orchestration.breaker import Breaker, BreakerPolicy, BreakerState, admit, failed, look, succeeded, trip

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POLICY = BreakerPolicy(failure_threshold=3, timeout_seconds=60, half_open_max_calls=2)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def opened() -> Breaker:
    breaker = Breaker()
    for _ in range(POLICY.failure_threshold):
        breaker = failed(breaker, POLICY, NOW)
    return breaker


def test_opens_at_the_threshold_of_failures_in_a_row() -> None:
    breaker = failed(failed(Breaker(), POLICY, NOW), POLICY, NOW)
    assert breaker.state is BreakerState.CLOSED
    assert succeeded(breaker, POLICY, NOW).failure_count == 0
    breaker = failed(breaker, POLICY, NOW)
    assert breaker.state is BreakerState.OPEN
    assert breaker.next_attempt == after(60)
    assert breaker.last_failure == NOW


def test_open_refuses_until_its_time_then_admits_the_probes_only() -> None:
    breaker, allowed = admit(opened(), POLICY, after(59.9))
    assert not allowed
    breaker, first = admit(breaker, POLICY, after(60))
    breaker, second = admit(breaker, POLICY, after(60))
    breaker, third = admit(breaker, POLICY, after(60))
    assert (first, second, third) == (True, True, False)
    assert breaker.state is BreakerState.HALF_OPEN


def test_good_probes_close_and_a_bad_one_opens_again() -> None:
    half = admit(admit(opened(), POLICY, after(60))[0], POLICY, after(60))[0]
    good = succeeded(succeeded(half, POLICY, after(61)), POLICY, after(61))
    assert good == Breaker(last_failure=NOW)
    bad = failed(succeeded(half, POLICY, after(61)), POLICY, after(62))
    assert bad.state is BreakerState.OPEN
    assert bad.next_attempt == after(122)


def test_success_that_was_never_admitted_does_not_close() -> None:
    half = look(opened(), POLICY, after(60))
    assert succeeded(half, POLICY, after(60)) == half
    assert succeeded(opened(), POLICY, after(1)) == opened()


def test_unreported_probes_are_handed_out_again() -> None:
    breaker = opened()
    for _ in range(POLICY.half_open_max_calls):
        breaker, _ = admit(breaker, POLICY, after(60))
    assert not admit(breaker, POLICY, after(119))[1]
    assert admit(breaker, POLICY, after(121))[1]


def test_trip_by_hand_is_no_failure() -> None:
    breaker = trip(Breaker(), NOW, 10)
    assert breaker.state is BreakerState.OPEN
    assert (breaker.failure_count, breaker.last_failure, breaker.next_attempt) == (0, None, after(10))
    assert look(breaker, POLICY, after(10)).state is BreakerState.HALF_OPEN


def test_failure_while_open_is_counted_but_does_not_prolong() -> None:
    breaker = failed(opened(), POLICY, after(30))
    assert (breaker.failure_count, breaker.next_attempt) == (4, after(60))


class BreakerModel(RuleBasedStateMachine):
    """Whatever happens in whatever order: never more probes than allowed, never closed without good probes."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = NOW

    @rule(seconds=st.floats(0, 200))
    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def call(self) -> None:
        before = look(self.breaker, POLICY, self.now)
        self.breaker, allowed = admit(self.breaker, POLICY, self.now)
        match before.state:
            case BreakerState.CLOSED:
                assert allowed
            case BreakerState.OPEN:
                assert not allowed
                assert self.breaker.next_attempt is not None
                assert self.now < self.breaker.next_attempt
            case BreakerState.HALF_OPEN:
                assert allowed == (before.probes_started < POLICY.half_open_max_calls)

    @rule()
    def success(self) -> None:
        before = look(self.breaker, POLICY, self.now)
        self.breaker = succeeded(self.breaker, POLICY, self.now)
        if before.state is BreakerState.HALF_OPEN and self.breaker.state is BreakerState.CLOSED:
            assert before.probes_started == POLICY.half_open_max_calls
            assert before.probes_succeeded == POLICY.half_open_max_calls - 1
        assert not (before.state is BreakerState.OPEN and self.breaker.state is not BreakerState.OPEN)

    @rule()
    def failure(self) -> None:
        before = look(self.breaker, POLICY, self.now)
        self.breaker = failed(self.breaker, POLICY, self.now)
        assert self.breaker.last_failure == self.now
        reached = before.failure_count + 1 >= POLICY.failure_threshold
        assert (self.breaker.state is BreakerState.OPEN) == (
            before.state is not BreakerState.CLOSED or reached
        )

    @rule(timeout=st.floats(1, 100))
    def trip_by_hand(self, timeout: float) -> None:
        self.breaker = trip(self.breaker, self.now, timeout)
        assert not admit(self.breaker, POLICY, self.now)[1]

    @invariant()
    def counts_stay_in_bounds(self) -> None:
        assert 0 <= self.breaker.probes_succeeded <= self.breaker.probes_started <= POLICY.half_open_max_calls
        if self.breaker.state is BreakerState.CLOSED:
            assert self.breaker.failure_count < POLICY.failure_threshold
            assert self.breaker.next_attempt is None
        else:
            assert self.breaker.next_attempt is not None

    @invariant()
    def never_stuck(self) -> None:
        """Whatever state, a call is possible again after at most one timeout."""
        later = self.now + timedelta(seconds=200)
        assert admit(self.breaker, POLICY, later)[1]


TestBreakerModel = BreakerModel.TestCase
TestBreakerModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
