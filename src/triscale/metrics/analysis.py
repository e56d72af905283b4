"""All that a report says about detections, from one matching."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.metrics.calibration import Calibration, calibration
from triscale.metrics.confusion import confusion_matrix
from triscale.metrics.curves import F1, PR, AtThreshold, at_threshold, f1_by_score, precision_recall
from triscale.metrics.errors import Errors, counts_at_threshold, error_kinds
from triscale.metrics.matching import match
from triscale.metrics.pictures import Pictures, by_picture, confident_mistakes, missed_objects
from triscale.metrics.sizes import SizeRow, by_size
from triscale.metrics.voc import PackedDetections, PackedTruth


class Analysis(NamedTuple):
    """D detections and G objects at an IoU of 0.5; rows are rows of the packed arrays.

    Shown are the detections with at least the score `threshold`; what doesn't say so is over all
    scores. The kind of a mistake is errors.kind_of[row], the object it is about errors.about[row].
    """

    threshold: float
    at_threshold: AtThreshold  # precision, recall, f1
    curves: list[PR]  # (C) one per class
    f1: F1
    confusion: NDArray[np.int64]  # (C+1, C+1) [true, predicted], last: background; shown only
    calibration: Calibration
    shown_ece: float  # expected calibration error of the shown ones: most scores are near 0
    errors: Errors
    shown_counts: NDArray[np.int64]  # (6,) mistakes by kind, shown only
    sizes: list[SizeRow]  # the recall of the shown
    images: Pictures  # shown only
    mistakes: NDArray[np.intp]  # (F,) rows of false detections that are shown, best score first
    missed: NDArray[np.intp]  # (M,) rows of objects that no shown detection finds, largest first


def analyse(
    detections: PackedDetections,
    truth: PackedTruth,
    *,
    num_classes: int,
    inclusive: bool,
    threshold: float | None = None,
) -> Analysis:
    """Everything at once; `threshold` None: the score with the best F1.

    `inclusive`: x2 and y2 are the last pixels, as in `voc_ap`.
    """
    matches = match(detections, truth, inclusive=inclusive)
    f1 = f1_by_score(detections, matches)
    least = f1.threshold if threshold is None else threshold
    errors = error_kinds(detections, truth, matches, num_classes=num_classes)
    return Analysis(
        threshold=least,
        at_threshold=at_threshold(detections, matches, threshold=least),
        curves=precision_recall(detections, truth, matches, num_classes=num_classes),
        f1=f1,
        confusion=confusion_matrix(
            detections, truth, matches, num_classes=num_classes, threshold=least
        ),
        calibration=calibration(detections, matches),
        shown_ece=calibration(detections, matches, least=least).ece,
        errors=errors,
        shown_counts=counts_at_threshold(errors, detections, matches, threshold=least),
        sizes=by_size(
            detections,
            truth,
            matches,
            num_classes=num_classes,
            inclusive=inclusive,
            threshold=least,
        ),
        images=by_picture(detections, truth, matches, threshold=least),
        mistakes=confident_mistakes(detections, matches, threshold=least),
        missed=missed_objects(detections, truth, matches, threshold=least),
    )
