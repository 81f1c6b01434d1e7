"""Figures of a running process as Prometheus text, and the small HTTP endpoint that serves them."""

from __future__ import annotations

import resource
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the histogram of durations, seconds."""
REQUEST_SECONDS = 5.0
"""How long a caller of the endpoint may take to send its request."""
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and durations; safe to share between threads.

    Args:
        prefix: of all names.
        gauges: called at each look for figures of the moment.
    """

    def __init__(self, prefix: str, gauges: Callable[[], Mapping[str, float]] = dict) -> None:
        self._prefix, self._gauges = prefix, gauges
        self._guard = threading.Lock()
        self._counters: dict[tuple[str, Labels], float] = {}
        self._durations: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Raise a counter."""
        key = (name, tuple(sorted(labels.items())))
        with self._guard:
            self._counters[key] = self._counters.get(key, 0) + amount

    def took(self, seconds: float, **labels: str) -> None:
        """Count a duration."""
        key = tuple(sorted(labels.items()))
        with self._guard:
            self._durations.setdefault(key, [0] * (len(BUCKETS) + 1))[bisect_left(BUCKETS, seconds)] += 1
            self._sums[key] = self._sums.get(key, 0.0) + seconds

    def value(self, name: str, **labels: str) -> float:
        """A counter's value, 0 when it was never raised."""
        return self._counters.get((name, tuple(sorted(labels.items()))), 0)

    def text(self) -> str:
        """All figures in Prometheus' text format."""
        lines = []
        with self._guard:
            counters, sums = dict(self._counters), dict(self._sums)
            durations = {key: list(found) for key, found in self._durations.items()}
        for (name, labels), value in sorted(counters.items()):
            lines.append(f"{self._prefix}_{name}{_shown(labels)} {value:g}")
        lines.append(f"# TYPE {self._prefix}_seconds histogram")
        for labels, counts in sorted(durations.items()):
            total = 0
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), counts):
                total += count
                lines.append(f"{self._prefix}_seconds_bucket{_shown((*labels, ('le', bound)))} {total}")
            lines.append(f"{self._prefix}_seconds_sum{_shown(labels)} {sums[labels]:g}")
            lines.append(f"{self._prefix}_seconds_count{_shown(labels)} {total}")
        for name, value in sorted((dict(self._gauges()) | process_figures()).items()):
            lines.append(f"{self._prefix}_{name} {value:g}")
        return "\n".join(lines) + "\n"


def process_figures() -> dict[str, float]:
    """Memory and processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "process_cpu_seconds": used.ru_utime + used.ru_stime,
        "process_resident_bytes": pages * resource.getpagesize(),
        "process_threads": threading.active_count(),
    }


def _shown(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""


class MetricsEndpoint:
    """``GET /metrics`` and ``GET /health`` on a port of their own, until ``stop``.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        metrics: served at ``/metrics``.
        healthy: ``/health`` answers 200 while it is true, else 503.

    Raises:
        ValueError: when the port cannot be had.
    """

    def __init__(self, host: str, port: int, metrics: Metrics, healthy: Callable[[], bool] = lambda: True) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                if self.path not in ("/metrics", "/health"):
                    self.send_error(404)
                    return
                good = healthy()
                told = metrics.text() if self.path == "/metrics" else f"{'serving' if good else 'stopping'}\n"
                body = told.encode()
                self.send_response(200 if good or self.path == "/metrics" else 503)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"metrics cannot be served on {host}:{port} ({error}); choose another port") from None
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
