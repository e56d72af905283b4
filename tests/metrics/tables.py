"""Detections and objects as rows of a table: random, real, and matched by plain loops."""

from __future__ import annotations

import gzip
import json
import math
import tarfile
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from triscale.metrics.voc import PackedDetections, PackedTruth

# Rows of a table: image, x1, y1, x2, y2, class, and a score or what an object is.
Row = tuple[float, ...]
NORMAL, DIFFICULT, CROWD = range(3)
A, B = (0, 0, 10, 10), (20, 20, 30, 30)  # boxes far from each other


def packed_detections(rows: list[Row] | NDArray[np.float64]) -> PackedDetections:
    table = np.array(rows, np.float64).reshape(-1, 7)
    return PackedDetections(
        table[:, 0].astype(int), table[:, 1:5], table[:, 6], table[:, 5].astype(int)
    )


def packed_truth(rows: list[Row] | NDArray[np.float64]) -> PackedTruth:
    table = np.array(rows, np.float64).reshape(-1, 7)
    return PackedTruth(
        images=table[:, 0].astype(int),
        boxes=table[:, 1:5],
        labels=table[:, 5].astype(int),
        difficult=table[:, 6] == DIFFICULT,
        crowd=table[:, 6] == CROWD,
        areas=(table[:, 3:5] - table[:, 1:3]).prod(1),
    )


def random_tables(
    seed: int, *, pictures: int = 50, crowds: bool = True
) -> tuple[PackedDetections, PackedTruth]:
    """Crowded pictures of three classes with all kinds of mistakes and equal scores."""
    rng = np.random.default_rng(seed)
    truth: list[Row] = []
    rows: list[Row] = []
    for image in rng.permutation(pictures) * 1000:  # numbers with gaps, in no order
        for _ in range(rng.integers(0, 6)):
            corner, label = rng.integers(0, 60, 2), rng.integers(0, 3)
            box = [*corner, *(corner + rng.integers(10, 40, 2))]
            kind = rng.choice(3, p=[0.75, 0.15, 0.1] if crowds else [0.8, 0.2, 0])
            truth.append((image, *box, label, kind))
            for _ in range(rng.integers(0, 4)):
                near = np.array(box) + rng.integers(-7, 8, 4)
                wrong = rng.random() < 0.3
                rows.append(
                    (image, *near, rng.integers(0, 3) if wrong else label, rng.integers(0, 50) / 50)
                )
        rows.append((image, 0, 0, 20, 20, rng.integers(0, 3), rng.random()))
    rows.append((0, *(math.nan,) * 4, 0, 0.9))
    return packed_detections(rows), packed_truth(truth)


class ByHand(NamedTuple):
    """What a loop over everything finds; -1 is no object."""

    own: list[tuple[int, float]]  # per detection: the object of its class, and the IoU
    other: list[tuple[int, float]]
    state: list[str]  # correct, false or ignored
    finder: dict[int, int]  # object -> detection
    order: list[int]


def iou(a: NDArray[np.float64], b: NDArray[np.float64], plus: int = 0) -> float:
    """Of two boxes; `plus` 1 where the last pixel belongs to them."""
    if math.isnan(a.sum() + b.sum()):
        return 0.0
    w = min(a[2], b[2]) - max(a[0], b[0]) + plus
    h = min(a[3], b[3]) - max(a[1], b[1]) + plus
    inter = max(w, 0) * max(h, 0)
    areas = [max(x[2] - x[0] + plus, 0) * max(x[3] - x[1] + plus, 0) for x in (a, b)]
    return inter / (sum(areas) - inter) if inter else 0.0


def by_hand(detections: PackedDetections, truth: PackedTruth, plus: int = 0) -> ByHand:
    """The rule of the matching, one detection after the other."""
    count = len(detections.scores)
    none = (-1, 0.0)
    own, other, state = [none] * count, [none] * count, [""] * count
    finder: dict[int, int] = {}
    order = sorted(range(count), key=lambda i: -detections.scores[i])
    for i in order:
        in_crowd = False
        for j in range(len(truth.labels)):
            if truth.images[j] != detections.images[i]:
                continue
            a, b = detections.boxes[i], truth.boxes[j]
            same = truth.labels[j] == detections.labels[i]
            if truth.crowd[j]:
                w = min(a[2], b[2]) - max(a[0], b[0]) + plus
                h = min(a[3], b[3]) - max(a[1], b[1]) + plus
                area = (a[2] - a[0] + plus) * (a[3] - a[1] + plus)
                in_crowd |= bool(same and min(w, h) > 0 and w * h >= 0.5 * area)
                continue
            best = own if same else other
            if iou(a, b, plus) > best[i][1]:
                best[i] = (j, iou(a, b, plus))
        j, overlap = own[i]
        if overlap >= 0.5 and truth.difficult[j]:
            state[i] = "ignored"
        elif overlap >= 0.5 and j not in finder:
            finder[j] = i
            state[i] = "correct"
        else:
            state[i] = "ignored" if in_crowd else "false"
    return ByHand(own, other, state, finder, order)


def voc2007_test(shared: Path, classes: list[str]) -> tuple[list[Row], list[Row]]:
    """What Darknet's tiny network finds in the 4,952 pictures of VOC2007 test, and their objects.

    Corners are 0-based and inclusive.
    """
    detections: list[Row] = []
    numbers: dict[str, int] = {}
    file = shared / "oracles" / "darknet-tiny" / "voc07test_detections.jsonl.gz"
    with gzip.open(file, "rt") as lines:
        for image, line in enumerate(lines):
            name, (width, height), found = json.loads(line)
            numbers[name] = image
            for label, score, x, y, w, h in found:
                if label in classes:
                    # 0-based and inclusive: the last column of pixels is width - 1.
                    x1, x2 = (min(max(v, 0), width - 1) for v in (x - w / 2, x + w / 2))
                    y1, y2 = (min(max(v, 0), height - 1) for v in (y - h / 2, y + h / 2))
                    detections.append((image, x1, y1, x2, y2, classes.index(label), score))
    truth: list[Row] = []
    with tarfile.open(shared / "data" / "VOC2007_annotations_imagesets.tar.xz") as archive:
        for member in archive:
            image = Path(member.name).stem
            if not member.name.endswith(".xml") or image not in numbers:
                continue
            content = archive.extractfile(member)
            assert content is not None
            for item in ElementTree.parse(content).iter("object"):
                corners = [
                    int(item.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")
                ]
                label = classes.index(item.findtext("name", ""))
                difficult = int(item.findtext("difficult", ""))
                truth.append((numbers[image], *(v - 1 for v in corners), label, difficult))
    assert len(numbers) == 4952
    return detections, truth
