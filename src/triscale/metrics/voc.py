"""Average precision as the PASCAL VOC development kit computes it.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2; with
the reference's reading of the details. All images and classes are matched in one pass over packed
arrays: half a million detections take a fraction of a second, without a loop over any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.boxes import box_iou

if TYPE_CHECKING:
    from triscale.detections import Detections


class PackedDetections(NamedTuple):
    """The D detections of a whole data set."""

    images: NDArray[np.integer[Any]]  # (D,) any number that names the picture
    boxes: NDArray[np.floating[Any]]  # (D, 4) xyxy
    scores: NDArray[np.floating[Any]]  # (D,)
    labels: NDArray[np.integer[Any]]  # (D,) class index


class PackedTruth(NamedTuple):
    """The G ground-truth objects of a whole data set, boxes at the scale of the detections."""

    images: NDArray[np.integer[Any]]  # (G,)
    boxes: NDArray[np.floating[Any]]  # (G, 4) xyxy
    labels: NDArray[np.integer[Any]]  # (G,)
    difficult: NDArray[np.bool_]  # (G,) VOC: found or not, it doesn't count
    crowd: NDArray[np.bool_]  # (G,) COCO: a group; detections inside it don't count
    areas: NDArray[np.floating[Any]]  # (G,) COCO: decides between small, medium and large


class VocResult(NamedTuple):
    """Average precisions, 0..1."""

    mean: float  # over the classes with ground truth; nan if there are none
    per_class: NDArray[np.float64]  # (C,), nan for a class without ground truth


def pack_detections(
    detections: Sequence[Detections], images: Sequence[int] | NDArray[np.int64]
) -> PackedDetections:
    """The detections of some pictures, joined; `images` holds the number of each picture."""
    counts = [len(found.scores) for found in detections]
    empty = np.zeros((0, 4), np.float32)
    return PackedDetections(
        np.repeat(np.asarray(images, np.int64), counts),
        np.concatenate([empty, *(found.boxes for found in detections)]),
        np.concatenate([empty[:, 0], *(found.scores for found in detections)]),
        np.concatenate([np.zeros(0, np.int64), *(found.labels for found in detections)]),
    )


def voc_ap(
    detections: PackedDetections,
    truth: PackedTruth,
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
    use_07: bool = True,
    inclusive: bool = False,
) -> VocResult:
    """Average precision per class and its mean.

    `use_07`: the 11-point measure of VOC2007, else the area under the envelope (VOC2010 on).
    `inclusive`: x2 and y2 are the last pixels, so boxes are one pixel larger than their difference.
    A detection is matched to the object of its image and class that it overlaps most, difficult or
    not, and to no other: if that one is difficult the detection is ignored, if it was found before
    by a better detection this one is false. Equal scores keep their order.
    """
    order = by_class_best_first(detections, num_classes)
    best = _best_objects(detections, truth, num_classes, iou_threshold, inclusive)[order]
    labels = detections.labels[order]

    ignored = np.append(truth.difficult, False)[best]  # the object -1 is the appended one
    # np.unique returns where each object turns up first, that is with its best detection.
    matched = np.flatnonzero(best >= 0)
    _, first = np.unique(best[matched], return_index=True)
    correct = np.zeros(len(best), np.bool_)
    correct[matched[first]] = True

    totals = np.bincount(truth.labels[~truth.difficult], minlength=num_classes)
    per_class = average_precisions(
        correct[~ignored], labels[~ignored], totals=totals, use_07=use_07
    )
    mean = float(np.mean(per_class[totals > 0])) if totals.any() else float("nan")
    return VocResult(mean, per_class)


def average_precisions(
    hits: NDArray[np.bool_],
    labels: NDArray[np.integer[Any]],
    *,
    totals: NDArray[np.integer[Any]],
    use_07: bool = False,
) -> NDArray[np.float64]:
    """The AP of each class (C,), nan where `totals` (C,), the objects to be found, is 0.

    `hits` (D,): which detections are correct, by class and best first; `labels` (D,): the classes.
    """
    measure = _eleven_points if use_07 else _area
    borders = np.searchsorted(labels, np.arange(len(totals) + 1))
    per_class = np.full(len(totals), np.nan)
    for c in np.flatnonzero(totals):
        mine = slice(borders[c], borders[c + 1])
        per_class[c] = measure(*recall_and_envelope(hits[mine], int(totals[c])))
    return per_class


def recall_and_envelope(
    hits: NDArray[np.bool_], total: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall (D,) after each detection, best first; best precision (D,) at that recall or more."""
    cumulated = np.cumsum(hits)
    precision = cumulated / np.arange(1, len(hits) + 1)
    return cumulated / total, np.maximum.accumulate(precision[::-1])[::-1]


def by_class_best_first(detections: PackedDetections, num_classes: int) -> NDArray[np.intp]:
    """The order (D,) by class, then by score, the best first; equal ones as they came."""
    # np.lexsort((-scores, labels)), but numpy sorts integers of 16 bits by counting, in a quarter
    # of the time. As integers floats keep their order, negative ones after all other bits turned.
    scores = detections.scores.astype(np.result_type(detections.scores, np.float32))
    falling = 0.0 - np.fmax(scores, -np.inf)  # what isn't a number comes last; there is no -0.0
    width = falling.itemsize
    bits = falling.view(f"i{width}")
    bits ^= (bits >> 8 * width - 1) & np.iinfo(bits.dtype).max
    *low, high = bits.astype(f"<i{width}").view("<i2").reshape(-1, width // 2).T
    labels = detections.labels.astype(np.min_scalar_type(num_classes))
    return np.lexsort((*(digit.view("<u2") for digit in low), high, labels))


def _best_objects(
    detections: PackedDetections,
    truth: PackedTruth,
    num_classes: int,
    iou_threshold: float,
    inclusive: bool,
) -> NDArray[np.int64]:
    """The object that each detection is matched to, or -1: (D,)."""
    best = np.full(len(detections.images), -1, np.int64)
    images, of_image = np.unique(truth.images, return_inverse=True)  # their numbers have gaps
    # One number per (image, class): the objects of equal number lie side by side once sorted.
    group = of_image * num_classes + truth.labels
    by_group = np.argsort(group, kind="stable")
    groups, starts, counts = np.unique(group[by_group], return_index=True, return_counts=True)
    rows, image = found_in(images, detections.images)
    known, which = found_in(groups, image * num_classes + detections.labels[rows])
    rows = rows[known]  # those that have something to be compared with
    if len(rows) == 0:
        return best
    start, count = starts[which], counts[which]

    ends = np.cumsum(count)
    begins = ends - count
    # Every (detection, object) pair of equal image and class, detection by detection: P in all.
    objects = by_group[np.arange(ends[-1]) + np.repeat(start - begins, count)]
    found = rows_of(detections.boxes, np.repeat(rows, count), inclusive)
    overlap = box_iou(found, rows_of(truth.boxes, objects, inclusive))  # (P,)
    overlap = np.nan_to_num(overlap)  # a box of a network gone astray overlaps nothing
    chosen, highest = first_maximum(overlap, begins, count)
    matched = highest >= iou_threshold
    best[rows[matched]] = objects[chosen[matched]]
    return best


def found_in(
    known: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The positions of those values that are among the known ones, which are sorted, and where."""
    if len(known) == 0:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    place = np.searchsorted(known, values)
    found = np.flatnonzero(known.take(place, mode="clip") == values)
    return found, place[found]


def first_maximum(
    values: NDArray[np.float64], begins: NDArray[np.intp], counts: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Of each run of values (P,): where it first reaches its maximum, and that maximum.

    `begins` and `counts` say where the runs lie, one behind the other, none empty.
    """
    highest = np.maximum.reduceat(values, begins)
    at_maximum = np.flatnonzero(values == np.repeat(highest, counts))
    return at_maximum[np.searchsorted(at_maximum, begins)], highest


def rows_of(
    boxes_xyxy: NDArray[np.floating[Any]], rows: NDArray[np.intp], inclusive: bool
) -> NDArray[np.float64]:
    """Those rows of boxes (n, 4), with x2 and y2 behind the last pixel."""
    # Each coordinate in one piece of memory: what is computed from them takes a third of the time.
    columns = np.ascontiguousarray(boxes_xyxy[rows].T, np.float64)
    columns[2:] += inclusive
    return columns.T


def _eleven_points(recall: NDArray[np.float64], envelope: NDArray[np.float64]) -> float:
    # gluoncv: the steps are arange's, 0.30000000000000004 among them, which matters for a recall
    # of exactly 0.3.
    reached = np.searchsorted(recall, np.arange(0.0, 1.1, 0.1))
    return float(np.append(envelope, 0.0)[reached].sum() / 11)


def _area(recall: NDArray[np.float64], envelope: NDArray[np.float64]) -> float:
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
