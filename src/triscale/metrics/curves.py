"""Precision against recall, and F1 against the score at which detections are cut off."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class PR(NamedTuple):
    """The precision-recall curve of a class, P <= 200 points; P is 0 if nothing was found."""

    recall: NDArray[np.float64]  # (P,) rising
    precision: NDArray[np.float64]  # (P,) the best at this recall or a higher one: AP's envelope
    scores: NDArray[np.float64]  # (P,) falling: detections from this score on reach the recall


class F1(NamedTuple):
    """F1 of all classes together when detections below a score are left out, P <= 200 points."""

    scores: NDArray[np.float64]  # (P,) falling
    f1: NDArray[np.float64]  # (P,) 2 TP / (2 TP + FP + FN)
    threshold: float  # the score with the best F1; 1.0 if nothing correct was found
    best: float  # its F1
