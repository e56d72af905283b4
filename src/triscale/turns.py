"""Measuring side by side: by turns, so that a machine whose speed drifts harms all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def in_turns(
    contenders: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    seconds: float = 0.0,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """The figures of `rounds` rounds, A B A B, and of more until `seconds` are over.

    `warm_up` rounds before them aren't counted.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    number, end = -warm_up, 0.0
    while number < rounds or time.perf_counter() < end:
        if number == 0:
            end = time.perf_counter() + seconds
        for name, measure in contenders.items():
            figure = measure()
            if number >= 0:
                figures[name].append(figure)
        number += 1
    return figures


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of ours / theirs, round by round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def steady(call: Callable[[], object], *, least: float = 0.3, rest: float = 0.2) -> float:
    """The seconds of a call among calls that follow each other for `least` seconds.

    The first one wakes threads and fills caches: it counts only if it takes all that time. Before
    it the threads of what ran last, which may wait by spinning, have `rest` seconds to fall asleep.
    """
    time.sleep(rest)
    times: list[float] = []
    while not times or sum(times) < least:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.mean(times[1:] or times)


def noise(number: int) -> list[NDArray[np.uint8]]:
    """Drawn pictures of 640x480, always the same ones."""
    import numpy as np

    shape = (number, 480, 640, 3)
    return list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
