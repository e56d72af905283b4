"""What the labels of a split say, by arithmetic on its judged objects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from triscale.data.build import Judged
from triscale.doctor.findings import Box, Finding
from triscale.kmeans import Shapes, shape_iou

TINY = 4.0  # pixels, the root of the area at the training size: a quarter of a cell of stride 8
WHOLE = 0.99  # of the picture's area
POOR_IOU = 0.2  # with the best anchor
SAME_BOX, SAME_PLACE = 0.9, 0.97  # IoU of two objects of one class, of different classes
_PIXELS = 2  # what is larger in a YOLO file was never meant as a part of a side
RARE = 10  # training objects of a class
IMBALANCE = 100  # times as many objects


def broken(judged: Judged, split: str) -> list[Finding]:
    """What the reader could not read and what is wrong with the objects that it could."""
    found: list[Finding] = []
    for problem in judged.scan.problems:
        kind, what = problem.kind, problem.removeprefix(f"{problem.file}: ")
        if kind == "broken-picture" and not os.path.lexists(problem.file):
            kind = "missing-picture"
        found.append(Finding(kind, split, problem.file, "", what, picture=problem.picture))
    for i, picture in _objects(judged, judged.faults != 0):
        kind, _, what = judged.fault(i)
        if judged.scan.convention.item == "line" and judged.rows.boxes[i].max() > _PIXELS:
            what += " (pixels? the numbers are parts of the picture's sides)"
        path, name = _place(judged, i, picture)
        seen, box = judged.rows.paths[picture], _written(judged, i, picture)
        found.append(Finding(kind, split, path, name, what, picture=seen, box=box))
    return found


def objects(judged: Judged, split: str, *, size: int, anchors: Shapes) -> list[Finding]:
    """Usable objects that are odd: tiny at an input of `size`, unlike all anchors (k, 2), ..."""
    usable = judged.faults == 0
    sides = judged.rows.sizes[:, ::-1].repeat(np.diff(judged.rows.offsets), axis=0)
    boxes = judged.boxes.astype(np.float64)
    spans = boxes[:, 2:] - boxes[:, :2] + judged.read.index.inclusive
    # faulty boxes may have no area at all; nobody looks at them here
    shapes = (spans / sides.clip(1)).clip(1e-6) * size
    found: list[Finding] = []

    def tell(kind: str, i: int, picture: int, what: str) -> None:
        path, name = _place(judged, i, picture)
        seen, box = judged.rows.paths[picture], _box(judged.boxes[i])
        found.append(Finding(kind, split, path, name, what, picture=seen, box=box))

    side = np.sqrt(shapes.prod(1))
    for i, picture in _objects(judged, usable & (side < TINY)):
        width, height = shapes[i]
        tell("tiny-box", i, picture, f"{width:.1f} x {height:.1f} pixels at a size of {size}")
    for i, picture in _objects(judged, usable & (side >= WHOLE**0.5 * size)):
        tell("whole-picture", i, picture, f"covers {(side[i] / size) ** 2:.1%} of its picture")
    fit = np.zeros(len(shapes))
    for start in range(0, len(shapes), 1 << 16):
        part = slice(start, start + (1 << 16))
        fit[part] = shape_iou(shapes[part], anchors).max(1)
    # a tiny or huge box has been told of
    told = (side < TINY) | (side >= WHOLE**0.5 * size)
    for i, picture in _objects(judged, usable & ~told & (fit < POOR_IOU)):
        width, height = shapes[i]
        what = f"{width:.0f} x {height:.0f} pixels at a size of {size}: IoU {fit[i]:.2f}"
        tell("odd-shape", i, picture, f"{what} with the best anchor")
    for i, j, picture, iou in _overlaps(judged, usable & ~judged.rows.crowd):
        same = judged.labels[i] == judged.labels[j]
        if iou >= (SAME_BOX if same else SAME_PLACE):
            kind = "repeated-box" if same else "two-classes"
            tell(kind, j, picture, f"overlaps {judged.object(i)} by {iou:.0%}")
    for picture in np.flatnonzero(np.diff(judged.rows.offsets) == 0).tolist():
        path = judged.rows.paths[picture]
        has_file = judged.scan.convention.item != "line" or os.path.lexists(
            judged.rows.sources[picture]
        )
        kind, what = ("no-objects", "no object") if has_file else ("no-labels", "no label file")
        found.append(Finding(kind, split, path, "", what, picture=path))
    return found


def classes(counts: Mapping[str, Sequence[int]], names: Sequence[str]) -> list[Finding]:
    """What the numbers of usable objects of each class say, by split."""
    found = _similar_names(names)
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    for label, (name, total) in enumerate(zip(names, totals, strict=True)):
        if not total:
            found.append(
                Finding("unused-class", "", "", f"class '{name}'", "no object in any split")
            )
            continue
        for split, numbers in counts.items():
            if not numbers[label]:
                what = f"no object in {split}, {total} in the other split"
                found.append(Finding("absent-class", split, "", f"class '{name}'", what))
        in_train = counts.get("train", [0] * len(names))[label]
        if 0 < in_train < RARE:
            what = f"{in_train} objects to learn from"
            found.append(Finding("rare-class", "train", "", f"class '{name}'", what))
    there = sorted((n, name) for n, name in zip(counts.get("train", ()), names, strict=False) if n)
    if there and there[-1][0] >= IMBALANCE * there[0][0]:
        (few, rare), (many, common) = there[0], there[-1]
        what = f"{many} objects of '{common}', {few} of '{rare}': {many / few:.0f} times as many"
        found.append(Finding("imbalance", "train", "", "", what))
    return found


def _similar_names(names: Sequence[str]) -> list[Finding]:
    first: dict[str, str] = {}
    found: list[Finding] = []
    for name in names:
        other = first.setdefault(re.sub(r"[\s_-]+", "", name.casefold()), name)
        if other != name:
            what = f"differs from '{other}' in case or spaces only"
            found.append(Finding("similar-names", "", "", f"class '{name}'", what))
    return found


def _place(judged: Judged, i: int, picture: int) -> tuple[str, str]:
    """The file that holds object `i`, and what it is called in there."""
    source, file = judged.rows.sources[picture], judged.scan.file
    if not file:
        return source, judged.object(i)
    return file, f"{source.removeprefix(f'{file}: ')}: {judged.object(i)}"


def _objects(judged: Judged, chosen: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """The chosen objects (m,), each with its picture."""
    rows = np.flatnonzero(chosen)
    pictures = np.searchsorted(judged.rows.offsets, rows, "right") - 1
    return zip(rows.tolist(), pictures.tolist(), strict=True)


def _overlaps(judged: Judged, chosen: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, float]]:
    """Each object of a picture with its nearest relative before it: (earlier, later, picture, IoU),
    where they overlap by SAME_BOX at least."""
    boxes = judged.boxes.astype(np.float64)
    extra = float(judged.read.index.inclusive)
    for picture, (start, stop) in enumerate(pairwise(judged.rows.offsets.tolist())):
        rows = start + np.flatnonzero(chosen[start:stop])
        if len(rows) < 2:
            continue
        own = boxes[rows] + (0, 0, extra, extra)
        areas = (own[:, 2:] - own[:, :2]).prod(1)
        inter = np.minimum(own[:, None, 2:], own[:, 2:]) - np.maximum(own[:, None, :2], own[:, :2])
        inter = inter.clip(0).prod(2)
        iou = np.tril(inter / (areas[:, None] + areas - inter), -1)
        for later in np.flatnonzero(iou.max(1) >= SAME_BOX).tolist():
            earlier = int(iou[later].argmax())
            yield int(rows[earlier]), int(rows[later]), picture, float(iou[later, earlier])


def _box(box: NDArray[np.float32]) -> Box:
    x1, y1, x2, y2 = (float(v) for v in box)
    return x1, y1, x2, y2


def _written(judged: Judged, i: int, picture: int) -> Box | None:
    """A box as it was written, in pixels, to be drawn; None if it is no numbers."""
    written = judged.rows.boxes[i : i + 1]
    if not np.isfinite(written).all():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        edges = judged.scan.convention.to_xyxy(written, judged.rows.sizes[picture : picture + 1])[0]
    if not np.isfinite(edges).all():
        return None
    x1, y1, x2, y2 = edges.clip(-1e6, 1e6).tolist()
    return x1, y1, x2, y2
