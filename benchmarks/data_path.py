"""How many samples a second does one core make: a JPEG decoded, augmented, cut to the input?

The pictures are 640x480: those of BCCD, or made-up ones. Ours: one process, one thread; the boxes
come out as boxes, since the targets are made on the device. `decode` is a JPEG to pixels,
`transform` pixels to a sample, `both` a file to a sample. GluonCV is asked for the same with its
targets and without them, Ultralytics for its default pipeline (files to samples) without mosaic and
with it; GluonCV may use more than one thread. For mosaics both keep the pictures decoded last.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from harness import SHARED, Peer, Report, arguments, in_turns, peers, ratio

from triscale.data.augment import AugmentConfig, train_transform
from triscale.data.index import Index
from triscale.data.loader import load, read
from triscale.data.open import open_dataset
from triscale.data.options import DataConfig
from triscale.data.pictures import read_picture
from triscale.data.plan import Plan
from triscale.data.recent import RecentPictures
from triscale.recipe import load_recipe
from triscale.types import Draw

Measure = Callable[[], float]  # seconds per sample
SIDES = tuple(range(320, 609, 32))
SIZES = {"416": (416,), "320-608": SIDES}
RECIPES = ("gluoncv-voc", "small", "bof")
MOSAIC = ["augment.mosaic=1", "augment.mosaic_off_epochs=0"]
MOSAIC_PEER = "ultralytics with mosaic"
COLUMNS = (
    *("recipe", "what", "size", "samples/s"),
    *("x gluoncv", "x without targets", "x ultralytics", "x with mosaic"),
)


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each of our measurements")
    chosen = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    names = ["gluoncv", "ultralytics"] if chosen.peers else []
    with pictures() as root, peers(names, threads=1) as running:
        index = open_dataset(root, DataConfig(skip_bad=True), splits=("train",)).train
        assert index is not None
        our, their = ours(index, seconds=chosen.seconds), theirs(running, root)
        figures = in_turns(our | their, rounds=chosen.rounds)
        versions = {k: v for peer in running.values() for k, v in peer.versions.items()}
    rows = [row(name, figures) for name in our]
    others = "; ".join(f"{name} {1 / statistics.median(figures[name]):.3g}" for name in their)
    notes = (
        f"{len(index)} pictures of {root.name}, {len(index.boxes) / len(index):.1f} objects in "
        "each. 320-608: each sample has one of the ten sizes. Mixup is off.",
        *([f"The others, samples/s: {others}."] if others else []),
    )
    Report("Samples per second and core", COLUMNS, rows, notes, versions).show(as_json=chosen.json)


def ours(index: Index, *, seconds: float) -> dict[str, Measure]:
    """Names like `small, both, 416`, and what measures each."""
    held = [load(index, image) for image in range(min(64, len(index)))]
    paths = [Path(path) for path in index.paths]
    measures = {
        "-, decode, -": lambda: loop(lambda i: read_picture(paths[i % len(paths)]), seconds)
    }
    for name in RECIPES:
        config = load_recipe(name, overrides=["augment.mixup=false"]).augment
        for shown, sides in SIZES.items():

            def transform(
                i: int, config: AugmentConfig = config, sides: tuple[int, ...] = sides
            ) -> object:
                side, rng = sides[i * 7 % len(sides)], np.random.Generator(np.random.PCG64(i))
                return train_transform(held[i % len(held)], (side, side), rng=rng, config=config)

            def both(
                i: int, config: AugmentConfig = config, sides: tuple[int, ...] = sides
            ) -> object:
                side = sides[i * 7 % len(sides)]
                return read(index, Draw(i % len(index), (side, side), i), config)

            for what, work in (("transform", transform), ("both", both)):
                measures[f"{name}, {what}, {shown}"] = lambda work=work: loop(work, seconds)
    measures["bof + mosaic, both, 416"] = mosaics(index, seconds=seconds)
    return measures


def mosaics(index: Index, *, seconds: float) -> Measure:
    """What measures mosaics in the order of a run."""
    words = [*MOSAIC, "augment.mixup=false", "augment.random_shape=false"]
    config, recent = load_recipe("bof", overrides=words).augment, RecentPictures()
    plan = Plan(len(index), 8, 3, seed=0, size=416, augment=config)
    draws = [draw for step in range(plan.steps) for draw in plan.draws(step)]
    return lambda: loop(
        lambda i: read(index, draws[i % len(draws)], config, recent=recent), seconds
    )


def loop(work: Callable[[int], object], seconds: float) -> float:
    """Seconds of a call of `work`, which is given 0, 1, 2, ..."""
    number, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(8):
            work(number)
            number += 1
    return (time.perf_counter() - start) / number


def theirs(running: Mapping[str, Peer], root: Path) -> dict[str, Measure]:
    """Names like `gluoncv, both, 416`, and what measures each."""
    measures: dict[str, Measure] = {}
    path = str(root.resolve())
    if "gluoncv" in running:
        for shown, sides in SIZES.items():
            for what in ("transform", "both"):
                for name, targets in (("gluoncv", True), ("gluoncv without targets", False)):
                    words = {"decode": what == "both", "targets": targets, "size": list(sides)}
                    measures[f"{name}, {what}, {shown}"] = lambda words=words: running[
                        "gluoncv"
                    ].ask("transform", root=path, seconds=1, **words)["seconds"]
    if "ultralytics" in running:
        for name, mosaic in (("ultralytics", False), (MOSAIC_PEER, True)):
            measures[f"{name}, both, 416"] = lambda mosaic=mosaic: running["ultralytics"].ask(
                "transform", root=path, size=416, mosaic=mosaic, seconds=1
            )["seconds"]
    return measures


def row(name: str, figures: Mapping[str, list[float]]) -> tuple[str | float, ...]:
    """Ours, and how many times as fast as each peer at the same."""
    recipe, what, size = name.split(", ")
    keys = [f"{peer}, {what}, {size}" for peer in ("gluoncv", "gluoncv without targets")]
    keys += [f"{peer}, {what}, 416" for peer in ("ultralytics", MOSAIC_PEER)]
    if "mosaic" in recipe:  # beside its like only
        keys[:-1] = [""] * 3
    times = [ratio(figures[key], figures[name]) if key in figures else "" for key in keys]
    return recipe, what, size, 1 / statistics.median(figures[name]), *times


@contextmanager
def pictures() -> Generator[Path]:
    """A folder in VOC's layout with a split `train`: BCCD, or made up for as long as it is used."""
    if (SHARED / "data" / "bccd").is_dir():
        yield SHARED / "data" / "bccd"
        return
    with tempfile.TemporaryDirectory(prefix="made-up-") as folder:
        root = Path(folder)
        write_pictures(root, number=64)
        yield root


def write_pictures(root: Path, *, number: int) -> None:
    """JPEGs of 640x480, 30 KB or so, with eight objects each."""
    rng = np.random.default_rng(0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("\n".join(f"{i:04}" for i in range(number)))
    for i in range(number):
        coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
        image = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
        objects = ""
        for x, y in rng.integers(1, (500, 340), (8, 2)).tolist():
            image[y : y + 130, x : x + 130] //= 2
            objects += (
                f"<object><name>square</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
                f"<xmax>{x + 130}</xmax><ymax>{y + 130}</ymax></bndbox></object>"
            )
        cv2.imwrite(str(root / f"JPEGImages/{i:04}.jpg"), image)
        (root / f"Annotations/{i:04}.xml").write_text(
            f"<annotation><size><width>640</width><height>480</height></size>{objects}</annotation>"
        )


if __name__ == "__main__":
    main()
