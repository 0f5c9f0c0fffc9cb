"""Prometheus metrics that every process has: what it costs the machine. Values are read when they are asked for."""

import sys
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from runtime.lean_prometheus import (
    Collector,
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)

if TYPE_CHECKING:
    import psutil


class ProcessMetrics(Collector):
    """CPU, memory, threads, open files and start time of this process, under Prometheus' usual names."""

    @cached_property
    def _process(self) -> "psutil.Process":
        """This process. Its library is loaded when somebody asks for the first time."""
        import psutil

        return psutil.Process()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        with self._process.oneshot():
            cpu = self._process.cpu_times()
            memory = self._process.memory_info()
            threads = self._process.num_threads()
            started_at = self._process.create_time()
        yield CounterMetricFamily(
            "process_cpu_seconds", "User and system CPU time", value=cpu.user + cpu.system
        )
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory", value=memory.rss)
        yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory", value=memory.vms)
        yield GaugeMetricFamily("process_threads", "Threads", value=threads)
        yield GaugeMetricFamily("process_start_time_seconds", "Start, seconds since 1970", value=started_at)
        if sys.platform != "win32":
            yield GaugeMetricFamily(
                "process_open_fds", "Open file descriptors", value=self._process.num_fds()
            )
        python = ".".join(str(part) for part in sys.version_info[:3])
        yield InfoMetricFamily("python", "The interpreter", value={"version": python})


def add_process_metrics(registry: CollectorRegistry) -> ProcessMetrics:
    """Return the process metrics after adding them to the registry."""
    collector = ProcessMetrics()
    registry.register(collector)
    return collector
