"""What do the metrics of a whole split cost, beside other programs?

VOC's 11-point measure on a split as large as VOC2007's test and COCO's numbers on one as large as
COCO's val2017, 100 detections in each picture: some around the objects, the rest anywhere. Ours are
timed from the detections of each picture, so joining them is included. hotcoco, which ours stands
on, starts from joined arrays in its own layout, or with these loaded.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from harness import Peer, Report, arguments, in_turns, peers, ratio

from triscale.detections import Detections
from triscale.metrics.coco import coco_ap
from triscale.metrics.voc import PackedDetections, PackedTruth, pack_detections, voc_ap

PER_PICTURE = 100
SIDE = 500.0  # of a picture
COLUMNS = ("metric", "program", "ms", "ours / it", "mAP")

Measures = dict[str, Callable[[], tuple[float, float]]]  # name -> (seconds, mAP)
Rows = list[tuple[str | float, ...]]


class Split(NamedTuple):
    """A made-up split: its objects and what a detector might say."""

    truth: PackedTruth
    found: list[Detections]  # of each picture, best first
    num_classes: int

    def packed(self) -> PackedDetections:
        """All detections in one."""
        return pack_detections(self.found, np.arange(len(self.found)))

    def __str__(self) -> str:
        return (
            f"{len(self.found):,} pictures, {len(self.truth.images):,} objects, "
            f"{PER_PICTURE} detections in each picture, {self.num_classes} classes"
        )


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--voc", type=int, default=4952, help="pictures; VOC2007's test has 4952")
    parser.add_argument("--coco", type=int, default=5000, help="pictures; val2017 has 5000")
    chosen = parser.parse_args()
    voc = made_up(chosen.voc, num_classes=20, objects=3, seed=1)
    coco = made_up(chosen.coco, num_classes=80, objects=7, seed=2)
    versions = {"numpy": np.__version__, "hotcoco": hotcoco.__version__}
    with (
        peers(["gluoncv"] if chosen.peers else [], threads=1) as running,
        tempfile.TemporaryDirectory() as folder,
    ):
        versions |= {k: v for peer in running.values() for k, v in peer.versions.items()}
        measures = voc_measures(voc, running, path=Path(folder) / "split.npz")
        rows = measured("VOC07", measures, rounds=chosen.rounds)
    rows += measured("COCO", coco_measures(coco), rounds=chosen.rounds)
    if chosen.peers:  # takes half a minute a round
        rows += measured("COCO", pycocotools_measures(coco), rounds=1, warm_up=0)
    notes = (f"VOC07: {voc}.", f"COCO: {coco}. hotcoco uses all cores, pycocotools one; one round.")
    Report("The metrics of a whole split", COLUMNS, rows, notes, versions).show(as_json=chosen.json)


def measured(metric: str, measures: Measures, *, rounds: int, warm_up: int = 1) -> Rows:
    """A row for each; the first is ours."""
    means: dict[str, float] = {}

    def one(name: str) -> float:
        seconds, means[name] = measures[name]()
        return seconds

    calls = {name: lambda name=name: one(name) for name in measures}
    figures = in_turns(calls, rounds=rounds, warm_up=warm_up)
    ours = next(iter(figures.values()))
    return [
        (metric, name, 1000 * statistics.median(theirs), ratio(ours, theirs), f"{means[name]:.6f}")
        for name, theirs in figures.items()
    ]


def voc_measures(split: Split, running: dict[str, Peer], *, path: Path) -> Measures:
    """Ours and the reference's VOC07MApMetric, which gets MXNet's arrays or numpy's."""
    packed, truth = split.packed(), split.truth
    np.savez(
        path,
        **{f"det_{name}": getattr(packed, name) for name in packed._fields},
        **{f"gt_{n}": getattr(truth, n) for n in ("images", "boxes", "labels", "difficult")},
    )

    def theirs(peer: Peer, numpy: bool) -> tuple[float, float]:
        words = {"path": str(path), "num_classes": split.num_classes, "numpy": numpy}
        answer = peer.ask("voc07", **words)
        return answer["seconds"], answer["map"]

    return {
        "triscale": lambda: timed(
            lambda: (
                voc_ap(  # inclusive, as the reference counts pixels: the results are equal
                    split.packed(), truth, num_classes=split.num_classes, inclusive=True
                ).mean
            )
        ),
        **{
            f"{name}, {kind} arrays": lambda peer=peer, kind=kind: theirs(peer, kind == "numpy")
            for name, peer in running.items()
            for kind in ("MXNet", "numpy")
        },
    }


def coco_measures(split: Split) -> Measures:
    """Ours, and hotcoco alone from arrays that are ready for it and from datasets."""
    truth, results = split.truth, results_of(split)
    pictures = [{"id": i} for i in range(len(split.found))]
    classes = [{"id": c + 1, "name": str(c)} for c in range(split.num_classes)]
    columns = (truth.images, truth.labels + 1, xywh(truth.boxes))

    def loaded() -> tuple[hotcoco.COCO, hotcoco.COCO]:
        dataset = hotcoco.COCO.from_arrays(pictures, classes, *columns, area=truth.areas)
        return dataset, dataset.load_res(results)

    ready = loaded()
    return {
        "triscale": lambda: timed(lambda: our_coco_ap(split)),
        "hotcoco, from arrays": lambda: timed(
            lambda: summarised(hotcoco.COCOeval(*loaded(), "bbox"))
        ),
        "hotcoco, all loaded": lambda: timed(lambda: summarised(hotcoco.COCOeval(*ready, "bbox"))),
    }


def pycocotools_measures(split: Split) -> Measures:
    """Ours and the official program, its results as an array."""
    results = results_of(split)
    with redirect_stdout(io.StringIO()):
        dataset = pycocotools.coco.COCO()
        dataset.dataset = dataset_of(split)
        dataset.createIndex()

    def official() -> float:
        with redirect_stdout(io.StringIO()):
            found = dataset.loadRes(results)
            return summarised(pycocotools.cocoeval.COCOeval(dataset, found, "bbox"))

    return {
        "triscale, beside pycocotools": lambda: timed(lambda: our_coco_ap(split)),
        "pycocotools": lambda: timed(official),
    }


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """How long it took, and what it said."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def our_coco_ap(split: Split) -> float:
    """COCO's AP, from the detections of each picture."""
    return coco_ap(split.packed(), split.truth, num_classes=split.num_classes).summary["AP"]


def summarised(evaluation: Any) -> float:
    """COCO's AP by one of the two programs with COCOeval."""
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return float(precision[precision > -1].mean())


def made_up(images: int, *, num_classes: int, objects: int, seed: int) -> Split:
    """`objects` in a picture on average, two detections around each of them, and noise."""
    rng = np.random.default_rng(seed)
    total = images * objects
    truth_images = np.sort(rng.integers(0, images, total))
    corner = rng.uniform(0, 0.8 * SIDE, (total, 2))
    sides = np.exp(rng.uniform(np.log(8), np.log(0.6 * SIDE), (total, 2)))
    boxes = np.concatenate([corner, (corner + sides).clip(max=SIDE)], axis=1)
    labels = rng.integers(0, num_classes, total)
    truth = PackedTruth(
        truth_images,
        boxes.astype(np.float32),
        labels,
        rng.random(total) < 0.1,
        np.zeros(total, np.bool_),
        (boxes[:, 2:] - boxes[:, :2]).prod(1),
    )
    borders = np.searchsorted(truth_images, np.arange(images + 1))
    found: list[Detections] = []
    for first, end in pairwise(borders.tolist()):
        near = np.repeat(np.arange(first, end), 2)[:PER_PICTURE]
        jitter = rng.normal(0, 0.1, (len(near), 4)) * np.tile(sides[near], 2)
        anywhere = rng.uniform(0, SIDE, (PER_PICTURE - len(near), 2, 2))
        noise = np.sort(anywhere, axis=1).reshape(-1, 4)
        # Noise is less sure, and of classes that the picture has as often as of others.
        guess = rng.integers(0, num_classes, len(noise))
        if end > first:
            seen = labels[rng.integers(first, end, len(noise))]
            guess = np.where(rng.random(len(noise)) < 0.5, seen, guess)
        scores = np.concatenate([rng.beta(3, 2, len(near)), rng.beta(0.5, 8, len(noise))])
        order = np.argsort(-scores)
        found.append(
            Detections(
                np.concatenate([boxes[near] + jitter, noise])[order].astype(np.float32),
                scores[order].astype(np.float32),
                np.concatenate([labels[near], guess])[order],
            )
        )
    return Split(truth, found, num_classes)


def results_of(split: Split) -> np.ndarray[Any, Any]:
    """The detections as both programs take them: image, x, y, width, height, score, class."""
    packed = split.packed()
    columns = (packed.images, *xywh(packed.boxes).T, packed.scores, packed.labels + 1)
    return np.column_stack(columns)  # (D, 7)


def dataset_of(split: Split) -> dict[str, Any]:
    """The objects as the content of a COCO file."""
    truth = split.truth
    columns = (truth.images, truth.labels + 1, xywh(truth.boxes), truth.areas)
    return {
        "images": [{"id": i} for i in range(len(split.found))],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(split.num_classes)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": a, "iscrowd": 0}
            for n, (i, c, b, a) in enumerate(zip(*(v.tolist() for v in columns), strict=True), 1)
        ],
    }


def xywh(boxes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Corners and sides (n, 4) of boxes (n, 4)."""
    wide = boxes.astype(np.float64)
    return np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], axis=1)


if __name__ == "__main__":
    main()
