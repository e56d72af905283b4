"""What went right and wrong on each picture: for galleries."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pictures(NamedTuple):
    """The n pictures with an object or a detection, at the score threshold."""

    images: NDArray[np.integer[Any]]  # (n,) their numbers as in the packed arrays, ascending
    tp: NDArray[np.int64]  # (n,)
    fp: NDArray[np.int64]  # (n,)
    fn: NDArray[np.int64]  # (n,)
    f1: NDArray[np.float64]  # (n,) 2 TP / (2 TP + FP + FN); nan where there is nothing to count
