"""All that a report says about detections, from one matching."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.metrics.calibration import Calibration
from triscale.metrics.curves import F1, PR
from triscale.metrics.errors import Errors
from triscale.metrics.pictures import Pictures
from triscale.metrics.sizes import SizeRow
from triscale.metrics.voc import PackedDetections, PackedTruth


class Analysis(NamedTuple):
    """D detections and G objects at an IoU of 0.5; rows are rows of the packed arrays."""

    threshold: float  # detections with this score or a higher one are "shown" below
    curves: list[PR]  # (C) one per class
    f1: F1
    confusion: NDArray[np.int64]  # (C+1, C+1) [true, predicted], last: background; shown only
    calibration: Calibration
    errors: Errors
    sizes: list[SizeRow]
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
    raise NotImplementedError
