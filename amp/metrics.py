"""The router's figures for Prometheus, read from its counters when somebody asks. Counting itself costs an addition."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from amp.router import Router


class RouterCollector(Collector):
    """Collects one router's figures."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    def collect(self) -> Iterator[Metric]:
        """Return the figures as they are now."""
        router, routing = self._router, self._router.routing
        counters = routing.counters
        totals = (
            ("frames_received", "Frames that came in", router.frames_in),
            ("frames_sent", "Frames that were queued to go out", router.frames_out),
            ("requests", "Requests that came in", counters.requests),
            ("replies", "Responses and errors that came in", counters.replies),
            ("events", "Events that came in", counters.events),
            ("requests_queued", "Requests that had to wait for credit", counters.queued),
            ("requests_repeated", "Requests sent again while they were under way", counters.duplicates),
            ("late_replies", "Replies whose request was not known any more", counters.late_replies),
            ("requests_lost", "Requests whose agent disappeared", counters.agents_lost),
        )
        for name, text, value in totals:
            yield CounterMetricFamily(f"amp_router_{name}", text, value=value)
        errors = CounterMetricFamily("amp_router_errors", "Errors the router answered", labels=["code"])
        for code, value in sorted(counters.errors.items()):
            errors.add_metric([code], value)
        yield errors
        gauges = (
            ("connections", "Open connections", router.connections),
            ("agents", "Agents on the mesh", len(routing.registry.agents)),
            ("capabilities", "Capabilities on the mesh", len(routing.registry.offers)),
            ("requests_pending", "Requests under way", len(routing.pending)),
            ("queue_depth", "Requests that wait for credit", routing.queues.count),
            ("queue_bytes", "Bytes of requests that wait for credit", routing.queues.size),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"amp_router_{name}", text, value=value)


def exposition(router: "Router") -> bytes:
    """Return the figures in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(RouterCollector(router))
    return generate_latest(registry)
