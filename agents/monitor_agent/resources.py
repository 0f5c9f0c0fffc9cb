"""How busy this machine is, in percent. Read when asked for; nothing is sampled in between."""

from pathlib import Path

import psutil

from runtime.clock import Clock

FRESH_SECONDS = 1.0
"""Over less time than this a share of CPU or network means nothing."""


class Resources:
    """CPU since the last look, memory, the data folder's disk, and the network since the last look.

    `network_percent` is null where the system does not tell the speed of its links.
    """

    def __init__(self, clock: Clock, data_dir: Path) -> None:
        self._clock = clock
        self._data_dir = data_dir
        self._seen_bytes = _network_bytes()
        self._seen_at = clock.monotonic()
        self._read: dict[str, float | None] | None = None
        psutil.cpu_percent(interval=None)

    def read(self) -> dict[str, float | None]:
        """Return cpu_percent, memory_percent, disk_percent, network_percent; the last ones when just read."""
        if self._read is None or self._clock.monotonic() - self._seen_at >= FRESH_SECONDS:
            self._read = self._measure()
        return dict(self._read)

    def _measure(self) -> dict[str, float | None]:
        folder = self._data_dir if self._data_dir.exists() else Path.cwd()
        return {
            "cpu_percent": psutil.cpu_percent(interval=None),
            "memory_percent": psutil.virtual_memory().percent,
            "disk_percent": psutil.disk_usage(str(folder)).percent,
            "network_percent": self._network_percent(),
        }

    def _network_percent(self) -> float | None:
        now, count = self._clock.monotonic(), _network_bytes()
        seconds, moved = now - self._seen_at, count - self._seen_bytes
        self._seen_at, self._seen_bytes = now, count
        speeds = [link.speed for name, link in psutil.net_if_stats().items() if link.isup and link.speed > 0]
        if not speeds or seconds <= 0:
            return None
        bytes_per_second = sum(speeds) * 1_000_000 / 8
        return round(min(100.0, max(0.0, 100.0 * moved / seconds / bytes_per_second)), 3)


def _network_bytes() -> int:
    counters = psutil.net_io_counters()
    return counters.bytes_sent + counters.bytes_recv if counters else 0
