"""What went right and wrong on each picture, and what to look at first: for galleries."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.metrics.matching import Matches
from triscale.metrics.voc import PackedDetections, PackedTruth


class Pictures(NamedTuple):
    """The n pictures with an object or a detection, at the score threshold."""

    images: NDArray[np.integer[Any]]  # (n,) their numbers as in the packed arrays, ascending
    tp: NDArray[np.int64]  # (n,)
    fp: NDArray[np.int64]  # (n,)
    fn: NDArray[np.int64]  # (n,)
    f1: NDArray[np.float64]  # (n,) 2 TP / (2 TP + FP + FN); nan where there is nothing to count


def by_picture(
    detections: PackedDetections, truth: PackedTruth, matches: Matches, *, threshold: float
) -> Pictures:
    """The counts of each picture, of the detections with at least the score `threshold`."""
    images = np.union1d(truth.images, detections.images)

    def count(numbers: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        return np.bincount(np.searchsorted(images, numbers), minlength=len(images))

    shown = detections.scores >= threshold
    tp = count(detections.images[shown & matches.correct])
    fp = count(detections.images[shown & matches.false])
    fn = count(truth.images[missed_objects(detections, truth, matches, threshold=threshold)])
    with np.errstate(invalid="ignore"):  # 0 / 0
        return Pictures(images, tp, fp, fn, 2 * tp / (2 * tp + fp + fn))


def confident_mistakes(
    detections: PackedDetections, matches: Matches, *, threshold: float
) -> NDArray[np.intp]:
    """Rows (F,) of the false detections with at least that score, the best score first."""
    wrong = matches.false & (detections.scores >= threshold)
    return matches.order[wrong[matches.order]]


def missed_objects(
    detections: PackedDetections, truth: PackedTruth, matches: Matches, *, threshold: float
) -> NDArray[np.intp]:
    """Rows (M,) of the objects that no detection of at least that score found, largest first."""
    rows = np.flatnonzero(matches.missing(detections.scores >= threshold))
    return rows[np.argsort(-truth.areas[rows], kind="stable")]
