"""Which classes are taken for which, and what is missed or found in the background."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triscale.metrics.matching import Matches
from triscale.metrics.voc import PackedDetections, PackedTruth


def confusion_matrix(
    detections: PackedDetections,
    truth: PackedTruth,
    matches: Matches,
    *,
    num_classes: int,
    threshold: float,
) -> NDArray[np.int64]:
    """How often an object of a class (row) was given a class (column): (C+1, C+1).

    Detections with at least the score `threshold`, best first, take an object each: the object of
    their class that they overlap most, or, if that is too far away or taken, the one of another
    class. Far away is an IoU below that of the matches. The last row counts detections that took
    nothing, the last column objects that nothing took. So a better detection of a wrong class
    takes an object from a worse one of the right class, unlike in AP, where classes don't meet.
    Difficult objects aren't counted, nor what takes one, nor what lies in a crowd of its class.
    """
    order = matches.order[detections.scores[matches.order] >= threshold]
    least = matches.iou_threshold
    own = np.where(matches.own_iou >= least, matches.own, -1)[order]
    other = np.where(matches.other_iou >= least, matches.other, -1)[order]
    took = np.full(len(order), -1, np.intp)
    free = [*np.ones(len(truth.labels), np.bool_).tolist(), False]  # the last one is object -1
    counted = [*matches.counted.tolist(), False]
    for i, candidates in enumerate(zip(own.tolist(), other.tolist(), strict=True)):
        for g in candidates:
            if free[g]:
                took[i] = g
                free[g] = not counted[g]  # a difficult object may be taken again
                break

    true = np.append(truth.labels, num_classes)[took]  # the object -1 is the background
    used = np.append(matches.counted, True)[took] & ~(matches.ignored[order] & (took < 0))
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (true[used], detections.labels[order][used]), 1)
    left = np.array(free[:-1], np.bool_) & matches.counted
    matrix[:, num_classes] += np.bincount(truth.labels[left], minlength=num_classes + 1)
    return matrix
