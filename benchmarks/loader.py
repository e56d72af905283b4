"""How fast is the whole loader, and how much memory do its processes take?

Batches of eight 640x480 pictures with random shapes, a new one every ten batches, nothing done with
them. Each of ours runs in a process of its own, so that its peak is its own: the proportional set
size (PSS) of it and its workers, looked at every 0.2 s. `growth`: the peak of the second half over
that of the first. GluonCV's loader makes the targets too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from data_path import pictures
from harness import Report, arguments, in_turns, peers, ratio
from peers.serving import watched_memory

from triscale.data.loader import make_loader
from triscale.data.open import open_dataset
from triscale.data.options import DataConfig
from triscale.data.plan import Plan, PlanSampler
from triscale.recipe import load_recipe

BATCH, SKIP = 8, 10  # pictures; batches that aren't timed
RECIPES = ("gluoncv-voc", "small", "bof")
WORKERS = (0, 2)
COLUMNS = (
    *("recipe", "workers", "samples/s", "x gluoncv", "peak MB", "gluoncv's / it", "growth"),
    *("x ultralytics", "ultralytics' MB / it"),
)

Answer = dict[str, Any]  # seconds per sample, peak_pss_mb, pss_mb


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--batches", type=int, default=100, help="timed, in each measurement")
    parser.add_argument("--one", nargs=3, help="ROOT RECIPE WORKERS: one measurement, as JSON")
    chosen = parser.parse_args()
    if chosen.one:
        root, recipe, workers = chosen.one
        print(json.dumps(measured(Path(root), recipe, int(workers), batches=chosen.batches)))
        return
    answers: dict[str, list[Answer]] = {}
    names = ["gluoncv", "ultralytics"] if chosen.peers else []
    with pictures() as root, peers(names, threads=1) as running:

        def asked(name: str, ask: Callable[[], Answer]) -> Callable[[], float]:
            def measure() -> float:
                answer = ask()
                answers.setdefault(name, []).append(answer)
                return answer["seconds"]

            return measure

        measures: dict[str, Callable[[], float]] = {}
        for workers in WORKERS:
            for recipe in RECIPES:
                measures[f"{recipe}, {workers}"] = asked(
                    f"{recipe}, {workers}",
                    lambda r=recipe, w=workers: in_own_process(root, r, w, batches=chosen.batches),
                )
            for name, peer in running.items():
                words = {"root": str(root.resolve()), "batch": BATCH, "workers": workers}
                words |= {"mosaic": False} if name == "ultralytics" else {}
                measures[f"{name}, {workers}"] = asked(
                    f"{name}, {workers}", lambda p=peer, words=words: p.ask("loader", **words)
                )
        figures = in_turns(measures, rounds=chosen.rounds, warm_up=0)
        versions = {k: v for peer in running.values() for k, v in peer.versions.items()}
    rows: list[tuple[str | float, ...]] = []
    for name, values in figures.items():
        recipe, workers = name.split(", ")
        halves = [split(answer["pss_mb"]) for answer in answers[name]]
        row: list[str | float] = [recipe, int(workers), 1 / statistics.median(values)]
        beside: dict[str, list[str | float]] = {}
        for peer in ("gluoncv", "ultralytics"):
            beside[peer] = ["", ""]
            if recipe in RECIPES and (theirs := f"{peer}, {workers}") in figures:
                beside[peer] = [
                    ratio(figures[theirs], values),
                    peak(answers[theirs]) / peak(answers[name]),
                ]
        row += [beside["gluoncv"][0], peak(answers[name]), beside["gluoncv"][1]]
        row += [statistics.median(last / first for first, last in halves), *beside["ultralytics"]]
        rows.append(tuple(row))
    notes = (
        f"Pictures: {root.name}. {BATCH} in a batch; sizes 320 to 608; mixup is off. Ultralytics: "
        "its default pipeline at 416 without mosaic. Of its memory and GluonCV's, what earlier "
        "measurements of the same process left behind counts too.",
    )
    Report("The whole loader", COLUMNS, rows, notes, versions).show(as_json=chosen.json)


def peak(answers: list[Answer]) -> float:
    """MB, the median over the rounds."""
    return statistics.median(answer["peak_pss_mb"] for answer in answers)


def split(series: list[float]) -> tuple[float, float]:
    """The peaks of the two halves of a series, its first fifth left out."""
    series = series[len(series) // 5 :]
    half = len(series) // 2
    return max(series[: half or 1]), max(series[half:])


def in_own_process(root: Path, recipe: str, workers: int, *, batches: int) -> Answer:
    """`measured`, in a process of its own."""
    command = [sys.executable, __file__, "--batches", str(batches)]
    command += ["--one", str(root), recipe, str(workers)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout)


def measured(root: Path, recipe: str, workers: int, *, batches: int) -> Answer:
    """Seconds per sample of our loader, and the memory of all its processes."""
    torch.set_num_threads(1)
    overrides = ["augment.mixup=false", "augment.random_shape=true"]
    config = load_recipe(recipe, overrides=overrides).augment
    with watched_memory(every=0.2) as series:
        index = open_dataset(root, DataConfig(skip_bad=True), splits=("train",)).train
        assert index is not None
        epochs = -(-(SKIP + batches) * BATCH // len(index))
        plan = Plan(len(index), BATCH, epochs, seed=0, size=416, augment=config)
        sampler = PlanSampler(plan, start=0, stop=SKIP + batches)
        start = 0.0
        for number, _ in enumerate(make_loader(index, sampler, config=config, workers=workers)):
            if number == SKIP - 1:
                start = time.perf_counter()
        seconds = time.perf_counter() - start
        while len(series) < 4:
            time.sleep(0.1)
    answer = {"seconds": seconds / (batches * BATCH), "count": batches * BATCH}
    return {**answer, "peak_pss_mb": max(series), "pss_mb": series}


if __name__ == "__main__":
    main()
