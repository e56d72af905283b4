"""Whether a score of 0.8 is right in 8 of 10 cases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Calibration(NamedTuple):
    """The reliability diagram: detections in B bins of equal width by score."""

    score: NDArray[np.float64]  # (B,) mean score; nan in an empty bin
    precision: NDArray[np.float64]  # (B,) share of correct detections; nan in an empty bin
    # that it hides tuple.count harms nobody
    count: NDArray[np.int64]  # (B,)  # pyright: ignore[reportIncompatibleMethodOverride]
    ece: float  # expected calibration error, 0..1; nan without detections
