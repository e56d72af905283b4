"""What each detection met among the objects of its picture: found once, read by every analysis.

The rule is `voc_ap`'s: a detection is matched to the object of its class that it overlaps most,
and the best detection of an object is correct. On top of it, as in COCO's rule, a crowd is no
object, and what lies in a crowd of its class, and isn't correct, is ignored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.boxes import box_area, box_iou, intersection
from triscale.metrics.voc import (
    PackedDetections,
    PackedTruth,
    by_class_best_first,
    first_maximum,
    found_in,
    rows_of,
)

_PAIRS_AT_A_TIME = 1 << 19  # of detections and objects: some 100 MB


class Matches(NamedTuple):
    """The D detections and the G objects of a data set; objects are rows of the truth, -1: none."""

    order: NDArray[np.intp]  # (D,) rows of the detections, best score first
    own: NDArray[np.intp]  # (D,) the object of its class that it overlaps most
    own_iou: NDArray[np.float64]  # (D,) 0 where there is none
    other: NDArray[np.intp]  # (D,) the object of any other class that it overlaps most
    other_iou: NDArray[np.float64]  # (D,)
    correct: NDArray[np.bool_]  # (D,) the first, by score, to find an object that counts
    ignored: NDArray[np.bool_]  # (D,) neither correct nor false: on a difficult object, in a crowd
    counted: NDArray[np.bool_]  # (G,) neither difficult nor a crowd
    finder: NDArray[np.intp]  # (G,) the correct detection of the object, or -1
    iou_threshold: float

    @property
    def false(self) -> NDArray[np.bool_]:
        """The detections (D,) that are neither correct nor ignored."""
        return ~(self.correct | self.ignored)

    def missing(self, shown: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """The objects (G,) that count and that none of the detections `shown` (D,) found."""
        found = self.finder >= 0 if shown is None else np.append(shown, False)[self.finder]
        return self.counted & ~found


def match(
    detections: PackedDetections,
    truth: PackedTruth,
    *,
    inclusive: bool = False,
    iou_threshold: float = 0.5,
) -> Matches:
    """The matches of a data set; `inclusive`: x2 and y2 are the last pixels."""
    num_detections, num_objects = len(detections.scores), len(truth.labels)
    own, other = np.full((2, num_detections), -1, np.intp)
    own_iou, other_iou = np.zeros((2, num_detections))
    in_crowd = np.zeros(num_detections, np.bool_)

    images, of_image = np.unique(truth.images, return_inverse=True)
    by_image = np.argsort(of_image, kind="stable")
    counts = np.bincount(of_image, minlength=len(images))
    starts = np.cumsum(counts) - counts
    rows, image = found_in(images, detections.images)  # of pictures with objects
    ends = np.cumsum(counts[image])
    borders = np.searchsorted(ends, np.arange(0, ends[-1:].sum(), _PAIRS_AT_A_TIME))
    for part in np.split(np.arange(len(rows)), borders[1:]):
        if len(part) == 0:
            continue
        mine, count = rows[part], counts[image[part]]
        begins = np.cumsum(count) - count
        # Every pair of a detection of this part and an object of its picture: P in all.
        detection = np.repeat(mine, count)
        place = np.arange(len(detection)) + np.repeat(starts[image[part]] - begins, count)
        objects = by_image[place]
        found = rows_of(detections.boxes, detection, inclusive)
        there = rows_of(truth.boxes, objects, inclusive)
        overlap = np.nan_to_num(box_iou(found, there))  # (P,)
        same = detections.labels[detection] == truth.labels[objects]
        crowd = truth.crowd[objects]
        for wanted, best, best_iou in (
            (same & ~crowd, own, own_iou),
            (~same & ~crowd, other, other_iou),
        ):
            chosen, highest = first_maximum(np.where(wanted, overlap, 0.0), begins, count)
            met = highest > 0
            best[mine[met]] = objects[chosen[met]]
            best_iou[mine[met]] = highest[met]
        inside = np.flatnonzero(same & crowd)
        common = intersection(found[inside], there[inside])
        enough = common >= iou_threshold * box_area(found[inside])
        in_crowd[detection[inside[enough & (common > 0)]]] = True

    order = by_class_best_first(detections._replace(labels=np.zeros_like(detections.labels)), 1)
    matched = own_iou >= iou_threshold
    counted = ~(truth.difficult | truth.crowd)
    on_counted = matched & np.append(counted, False)[own]
    finder = np.full(num_objects, -1, np.intp)
    found_by, objects = order[on_counted[order]], own[order][on_counted[order]]
    finder[objects[::-1]] = found_by[::-1]  # of several the last written stays: the best
    correct = np.zeros(num_detections, np.bool_)
    correct[finder[finder >= 0]] = True
    ignored = (matched & ~on_counted) | (in_crowd & ~correct)
    return Matches(
        order, own, own_iou, other, other_iou, correct, ignored, counted, finder, iou_threshold
    )
