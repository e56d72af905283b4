"""Whether a score of 0.8 is right in 8 of 10 cases.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2: reliability diagram
and expected calibration error. For detectors the accuracy of a bin is its precision: Kueppers et
al., "Multivariate Confidence Calibration for Object Detection", CVPR workshops 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.metrics.matching import Matches
from triscale.metrics.voc import PackedDetections


class Calibration(NamedTuple):
    """The reliability diagram: detections in B bins of equal width by score."""

    score: NDArray[np.float64]  # (B,) mean score; nan in an empty bin
    precision: NDArray[np.float64]  # (B,) share of correct detections; nan in an empty bin
    # that it hides tuple.count harms nobody
    count: NDArray[np.int64]  # (B,)  # pyright: ignore[reportIncompatibleMethodOverride]
    ece: float  # expected calibration error, 0..1; nan without detections


def calibration(
    detections: PackedDetections, matches: Matches, *, bins: int = 10, least: float = 0.0
) -> Calibration:
    """Scores against precision, of the detections with a score of at least `least`.

    The error is the mean over the detections of the gap of their bin between score and precision.
    """
    used = ~matches.ignored & (detections.scores >= least)
    scores = detections.scores[used].astype(np.float64)
    # Bin b holds b / B <= score < (b + 1) / B, and the last one the score 1 too.
    place = np.floor(scores * bins).astype(np.int64).clip(0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = np.bincount(place, scores, bins)
    hits = np.bincount(place, matches.correct[used], bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a bin is empty
        ece = np.abs(sums - hits).sum() / np.float64(count.sum())
        return Calibration(sums / count, hits / count, count, float(ece))
