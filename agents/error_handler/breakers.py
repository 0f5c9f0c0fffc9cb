"""The circuit breakers of all resources, bounded. The rules are `orchestration.breaker`; here they are kept."""

from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from amp.errors import InvalidParameters
from orchestration import breaker as rules
from orchestration.breaker import Breaker, BreakerPolicy, BreakerState
from orchestration.contracts import CircuitBreakerReply
from runtime.settings import CircuitBreakerSettings

MAX_RESOURCES = 10_000
MAX_RESOURCE_ID_CHARACTERS = 256

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class BreakerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request may say about a breaker. `outcome` (with check) reports how an admitted call went."""

    failure_threshold: _Count | None = None
    timeout_seconds: _Seconds | None = None
    timeout: _Seconds | None = None
    half_open_max_calls: _Count | None = None
    outcome: Literal["success", "failure"] | None = None


class BreakerBoard:
    """One breaker a resource, made when it is first asked for.

    When there are too many, the closed ones that were not used longest are forgotten: a closed breaker without
    failures is what a new one is anyway.
    """

    def __init__(self, settings: CircuitBreakerSettings, max_resources: int = MAX_RESOURCES) -> None:
        self._default = BreakerPolicy(
            failure_threshold=settings.failure_threshold,
            timeout_seconds=settings.timeout_seconds,
            half_open_max_calls=settings.half_open_max_calls,
        )
        self._max_resources = max_resources
        self._breakers: OrderedDict[str, tuple[Breaker, BreakerPolicy]] = OrderedDict()

    def operate(
        self, operation: str, resource_id: str, config: Mapping[str, Any], now: datetime
    ) -> CircuitBreakerReply:
        """Return a resource's breaker after `check`, `trip`, `reset` or `status`.

        Raises: InvalidParameters when the resource or the config is none.
        """
        if not 0 < len(resource_id) <= MAX_RESOURCE_ID_CHARACTERS:
            raise InvalidParameters(
                f"resource_id must have 1 to {MAX_RESOURCE_ID_CHARACTERS} characters",
                {"path": "$.resource_id"},
            )
        wanted = _config(config)
        known, policy = self._breakers.get(resource_id, (Breaker(), self._default))
        policy = _policy(policy, wanted)
        match operation:
            case "check" if wanted.outcome is not None:
                report = rules.succeeded if wanted.outcome == "success" else rules.failed
                breaker = report(known, policy, now)
                allowed = rules.admit(breaker, policy, now)[1]
            case "check":
                breaker, allowed = rules.admit(known, policy, now)
            case "trip":
                breaker, allowed = rules.trip(known, now, policy.timeout_seconds), False
            case "reset":
                breaker, allowed = Breaker(), True
            case _:
                breaker = rules.look(known, policy, now)
                allowed = rules.admit(breaker, policy, now)[1]
        if operation != "status":
            self._keep(resource_id, breaker, policy)
        return _reply(breaker, allowed)

    def failed(self, resource_id: str, now: datetime) -> None:
        """Count a failure of a resource that an error was reported about."""
        known, policy = self._breakers.get(resource_id, (Breaker(), self._default))
        self._keep(resource_id[:MAX_RESOURCE_ID_CHARACTERS], rules.failed(known, policy, now), policy)

    def counts(self, now: datetime) -> dict[str, int]:
        """Return how many breakers are in each state."""
        counts = {state.value: 0 for state in BreakerState}
        for breaker, policy in self._breakers.values():
            counts[rules.look(breaker, policy, now).state] += 1
        return counts

    def _keep(self, resource_id: str, breaker: Breaker, policy: BreakerPolicy) -> None:
        self._breakers[resource_id] = (breaker, policy)
        self._breakers.move_to_end(resource_id)
        if len(self._breakers) > self._max_resources:
            closed = (key for key, (kept, _) in self._breakers.items() if kept.state is BreakerState.CLOSED)
            del self._breakers[next(closed, next(iter(self._breakers)))]


def _config(config: Mapping[str, Any]) -> BreakerConfig:
    try:
        return msgspec.convert(config, BreakerConfig)
    except msgspec.ValidationError as problem:
        raise InvalidParameters(f"config: {problem}", {"path": "$.config"}) from None


def _policy(policy: BreakerPolicy, wanted: BreakerConfig) -> BreakerPolicy:
    timeout = wanted.timeout_seconds or wanted.timeout
    return BreakerPolicy(
        failure_threshold=wanted.failure_threshold or policy.failure_threshold,
        timeout_seconds=timeout or policy.timeout_seconds,
        half_open_max_calls=wanted.half_open_max_calls or policy.half_open_max_calls,
    )


def _reply(breaker: Breaker, allowed: bool) -> CircuitBreakerReply:
    return CircuitBreakerReply(
        state=breaker.state.value,
        failure_count=breaker.failure_count,
        last_failure=breaker.last_failure.isoformat() if breaker.last_failure else "",
        next_attempt=breaker.next_attempt.isoformat() if breaker.next_attempt else "",
        allowed=allowed,
    )
