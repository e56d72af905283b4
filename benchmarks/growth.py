"""How do the costs grow: of data with the number of pictures, of a step with batch and side?

For each cost the figures at several sizes and the exponent of the growth, the slope of a
least-squares line through their logarithms: 0 doesn't grow, 1 is proportional; 2 against the side
is proportional to the area. The data sets are those of index_scale.py, small pictures that many
entries name, so what grows is our work and the system calls, not the disk's; the steps are those of
step.py in fp32. All sizes take turns.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Report, arguments, in_turns
from index_scale import BATCH, opened, write_set
from step import seconds

from triscale.data import open as opening
from triscale.data.augment import AugmentConfig
from triscale.data.cache import cached
from triscale.data.decoded import DecodedPictures, open_decoded
from triscale.data.index import Index
from triscale.data.loader import load
from triscale.data.options import DataConfig
from triscale.data.plan import Plan

COLUMNS = ("cost", "unit", "against", "at", "figures", "exponent")
UNITS = {"s": 1, "ms": 1e3, "us": 1e6}
SMALLEST = 1_000  # pictures
SAMPLE = 300  # pictures that are read
BOXES = 4  # of each picture
Cost = tuple[str, str, str]  # what, unit, against what


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=2, peers=False)
    parser.add_argument("--largest", type=int, default=100_000, help="data set, in pictures")
    parser.add_argument("--networks", nargs="*", default=["tiny", "mobilenet0.25"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--sides", nargs="+", type=int, default=[160, 224, 320, 416, 608])
    words = parser.parse_args()
    sizes = [SMALLEST]
    while sizes[-1] * 10 <= words.largest:
        sizes.append(sizes[-1] * 10)
    figures: dict[Cost, dict[int, float]] = {}
    with made_sets(sizes, figures) as sets:
        contenders = {k: f for n, index in sets.items() for k, f in costs_of_data(n, index).items()}
        add(figures, in_turns(contenders, rounds=words.rounds))
    for network in words.networks:
        step = partial(seconds, "ours fp32", network)
        by_batch: Cost = (f"step of {network} at 416", "s", "batch")
        by_side: Cost = (f"step of {network}, batch 4", "s", "side")
        contenders = {(by_batch, b): partial(step, b, 416) for b in words.batches}
        contenders |= {(by_side, side): partial(step, 4, side) for side in words.sides}
        add(figures, in_turns(contenders, rounds=words.rounds))
    rows = [row(cost, found) for cost, found in figures.items()]
    notes = (f"Steps with {torch.get_num_threads()} threads.",)
    Report("How the costs grow", COLUMNS, rows, notes).show(as_json=words.json)


@contextmanager
def made_sets(
    sizes: list[int], figures: dict[Cost, dict[int, float]]
) -> Generator[dict[int, tuple[Path, Index]]]:
    """Data sets of so many pictures with their indices, opened for the first time and timed."""
    # However small a set is: else the smallest would be read from JSON each time.
    opening.cached = partial(cached, min_bytes=0)
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        os.environ["TRISCALE_CACHE"] = f"{folder}/cache"
        sets: dict[int, tuple[Path, Index]] = {}
        first: Cost = ("data set opened for the first time", "s", "pictures")
        figures[first] = {}
        for number in sizes:
            root = Path(folder) / str(number)
            write_set(root, number, BOXES, 256)
            start = time.perf_counter()
            sets[number] = root, opened(root)
            figures[first][number] = time.perf_counter() - start
        yield sets


def costs_of_data(
    number: int, data: tuple[Path, Index]
) -> dict[tuple[Cost, int], Callable[[], float]]:
    """What is measured of one data set, each a function that returns seconds."""
    root, index = data
    config = AugmentConfig(mixup=True)
    plan = Plan(number, BATCH, 1000, seed=0, size=416, augment=config)
    epochs = iter(range(1000))  # a new one each time: the order of the last ones is remembered
    (kept,) = open_decoded([index], DataConfig(cache="ram"), say=lambda _: None)
    assert kept is not None
    for image in sampled(number):
        kept.put(image, load(index, image).image)

    def draws() -> None:
        epoch = next(epochs)
        for step in range(plan.first_step(epoch), plan.first_step(epoch + 1)):
            plan.draws(step)

    def keep() -> None:
        open_decoded([index], DataConfig(cache="ram"), say=lambda _: None)

    functions: Mapping[tuple[str, str], Callable[[], float]] = {
        ("data set opened again", "ms"): partial(timed, lambda: opened(root)),
        ("draws of an epoch", "s"): partial(timed, draws),
        ("cache for decoded pictures opened", "ms"): partial(timed, keep),
        ("a picture read and decoded", "us"): partial(read, partial(load, index), number),
        ("a picture from that cache", "us"): partial(read, partial(fetched, kept), number),
    }
    return {((*name, "pictures"), number): function for name, function in functions.items()}


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def read(function: Callable[[int], object], number: int) -> float:
    """Seconds for a picture, over a sample."""
    images = sampled(number)
    return timed(lambda: [function(image) for image in images]) / len(images)


def fetched(kept: DecodedPictures, image: int) -> None:
    assert kept.get(image) is not None


def sampled(number: int) -> list[int]:
    """The pictures that are read of so many."""
    return random.Random(0).sample(range(number), SAMPLE)


def add(
    figures: dict[Cost, dict[int, float]], found: Mapping[tuple[Cost, int], list[float]]
) -> None:
    for (cost, size), times in found.items():
        figures.setdefault(cost, {})[size] = statistics.median(times)


def row(cost: Cost, found: Mapping[int, float]) -> tuple[str | float, ...]:
    """A row of the table from the figures by size."""
    what, unit, against = cost
    shown = " / ".join(f"{value * UNITS[unit]:.3g}" for value in found.values())
    sizes = " / ".join(f"{size:,}" for size in found)
    return what, unit, against, sizes, shown, exponent(found)


def exponent(found: Mapping[int, float]) -> float:
    """The slope of log cost over log size; 0 for a single size."""
    if len(found) < 2:
        return 0.0
    return float(np.polyfit(np.log([*found]), np.log([*found.values()]), 1)[0])


if __name__ == "__main__":
    main()
