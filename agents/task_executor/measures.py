"""What the executor counts, for /metrics. Labels never carry text from outside."""

import asyncio
from collections.abc import Awaitable, Sized

import msgspec
import structlog

from agents.task_executor.spool import Spool
from amp.errors import AmpError
from runtime.clock import Clock
from runtime.lean_prometheus import CollectorRegistry, Counter, Gauge, Histogram

logger = structlog.stdlib.get_logger(__name__)


class Measures:
    """The metrics of one executor. `running` are the attempts under way."""

    def __init__(self, registry: CollectorRegistry, clock: Clock, *, running: Sized, spool: Spool) -> None:
        self._clock = clock
        self._finished = Counter(
            "amp_executor_tasks", "Tasks finished, by capability and outcome", ["capability", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "amp_executor_task_seconds", "How long tasks took", ["capability"], registry=registry
        )
        self._delivered = Counter(
            "amp_executor_results_delivered", "Endings put into inboxes, by outcome", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self._beats = Counter(
            "amp_executor_heartbeats", "Signs of life sent to engines, by outcome", ["outcome"],
            registry=registry,
        )  # fmt: skip
        for name, meaning, now in (
            ("amp_executor_running_attempts", "Attempts under way", lambda: float(len(running))),
            ("amp_executor_spooled_results", "Attempts in the spool", lambda: float(len(spool))),
            ("amp_executor_spool_bytes", "What they take, or may take", lambda: float(spool.bytes)),
        ):
            Gauge(name, meaning, registry=registry).set_function(now)

    def delivered(self, outcome: str) -> None:
        """Count an ending that went to an inbox: stored, unwanted or failed."""
        self._delivered.labels(outcome).inc()

    def beat(self, outcome: str) -> None:
        """Count a sign of life: told or not_told."""
        self._beats.labels(outcome).inc()

    async def task(self, capability: str, work: Awaitable[msgspec.Raw]) -> msgspec.Raw:
        """Return what `work` returns, counted and timed."""
        started = self._clock.monotonic()
        outcome = "failed"
        try:
            answer = await work
            outcome = "completed"
            return answer
        except AmpError as error:
            logger.debug("task_failed", capability=capability, code=error.code, reason=error.message)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._finished.labels(capability, outcome).inc()
            self._seconds.labels(capability).observe(self._clock.monotonic() - started)
