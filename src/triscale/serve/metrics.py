"""Figures in Prometheus's text format (version 0.0.4): counts, histograms, the queue.

Several processes may share a port, and whoever asks reaches one of them. So each has a row of the
same shared numbers, and an answer adds the rows up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUTES = ("/", "/detect", "/docs", "/healthz", "/metrics", "/model", "/openapi.json", "other")
STATUSES = (200, 400, 401, 404, 405, 408, 413, 415, 422, 500, 503, 504)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_REQUESTS = len(ROUTES) * len(STATUSES)
_LATENCY = _REQUESTS  # where its buckets begin: one per limit, one above them, and the sum
_BATCHES = _LATENCY + len(SECONDS) + 2
_COMPUTE = _BATCHES + len(SIZES) + 2
_QUEUE = _COMPUTE + len(SECONDS) + 2
_READY = _QUEUE + 1
WIDTH = _READY + 1  # numbers of a row


class Metrics:
    """The figures of one process: row `row` of `cells`, (workers * WIDTH,) float64 as a buffer."""

    def __init__(self, cells: Any, *, row: int = 0) -> None:
        self._all: NDArray[np.float64] = np.frombuffer(cells, np.float64).reshape(-1, WIDTH)
        self._own = self._all[row]
        self._own[[_QUEUE, _READY]] = 0  # a process before this one may have left them

    def request(self, path: str, *, status: int, seconds: float) -> None:
        """A request was answered."""
        route = ROUTES.index(path if path in ROUTES else "other")
        number = STATUSES.index(status if status in STATUSES else 500)
        self._own[route * len(STATUSES) + number] += 1
        if path == "/detect":
            self._observe(_LATENCY, SECONDS, seconds)

    def batch(self, size: int, *, seconds: float) -> None:
        """Pictures went through the network together."""
        self._observe(_BATCHES, SIZES, size)
        self._observe(_COMPUTE, SECONDS, seconds)

    def queue(self, change: int) -> None:
        """So many pictures more, or less, wait or are computed."""
        self._own[_QUEUE] += change

    def ready(self) -> None:
        """The network is loaded."""
        self._own[_READY] = 1

    def text(self) -> str:
        """All of it, over all processes."""
        cells = self._all.sum(0).tolist()
        name = "triscale_requests_total"
        lines = _head(name, "counter", "Requests by path and HTTP status.")
        for number, value in enumerate(cells[:_REQUESTS]):
            if value:
                route, status = divmod(number, len(STATUSES))
                labels = f'path="{ROUTES[route]}",status="{STATUSES[status]}"'
                lines.append(f"{name}{{{labels}}} {value:.0f}")
        for name, start, limits, text in (
            ("triscale_request_seconds", _LATENCY, SECONDS, "Time of requests to /detect."),
            ("triscale_batch_pictures", _BATCHES, SIZES, "Pictures of a batch."),
            ("triscale_batch_seconds", _COMPUTE, SECONDS, "Time of a batch in the network."),
        ):
            lines += _histogram(name, text, limits=limits, cells=cells[start:])
        for name, at, text in (
            ("triscale_queue_pictures", _QUEUE, "Pictures that wait or are computed."),
            ("triscale_ready_workers", _READY, "Processes whose network is loaded."),
        ):
            lines += [*_head(name, "gauge", text), f"{name} {cells[at]:.0f}"]
        return "\n".join(lines) + "\n"

    def _observe(self, start: int, limits: Sequence[float], value: float) -> None:
        self._own[start + int(np.searchsorted(limits, value))] += 1
        self._own[start + len(limits) + 1] += value


def _histogram(
    name: str, text: str, *, limits: Sequence[float], cells: Sequence[float]
) -> list[str]:
    lines = _head(name, "histogram", text)
    counts = list(accumulate(cells[: len(limits) + 1]))
    for limit, count in zip([*map(str, limits), "+Inf"], counts, strict=True):
        lines.append(f'{name}_bucket{{le="{limit}"}} {count:.0f}')
    return [*lines, f"{name}_sum {cells[len(limits) + 1]:.6f}", f"{name}_count {counts[-1]:.0f}"]


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
