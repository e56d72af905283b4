"""Whether an exported file finds what the network finds: the two beside each other, on pictures.

Detections are matched, not compared by rank: two scores that differ in the seventh digit may change
places. What can't be matched counts only where it is clearly above the threshold, because at it a
rounding decides whether there is a detection at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from triscale.boxes import pairwise_iou
from triscale.detections import Detections


class Tolerance(NamedTuple):
    """What may differ."""

    score: float
    box: float  # pixels of the network input
    unmatched: float = 0.002  # share of the detections: where two boxes overlap by just the limit
    overlap: float = 0.9  # of two boxes that are the same detection
    loss: float = 0.001  # of mAP


# measured on yolov3-tiny and mobilenet0.25 on real pictures, then rounded up
TOLERANCES = {
    "fp32": Tolerance(1e-3, 0.1),
    "resize": Tolerance(0.03, 2.0, 0.02, loss=0.005),  # a grey level here and there
    "fp16": Tolerance(0.03, 2.0, 0.02, loss=0.005),
    # what counts is the mAP, and that nothing clear is lost
    "int8": Tolerance(math.inf, math.inf, 0.1, overlap=0.5, loss=0.01),
}


class Parity(NamedTuple):
    """The largest differences between matched detections, and how many weren't matched."""

    detections: int  # of the network
    unmatched: int  # of either
    score: float
    box: float  # pixels of the network input

    def rows(self, tolerance: Tolerance) -> list[tuple[str, float, float]]:
        """What was compared, how much differs, how much may."""
        return [
            ("scores differ by", self.score, tolerance.score),
            ("boxes differ by (px of the network input)", self.box, tolerance.box),
            (
                "detections without a counterpart",
                self.unmatched,
                int(tolerance.unmatched * self.detections) + 1,
            ),
        ]


def compare(
    expected: Sequence[Detections],
    found: Sequence[Detections],
    *,
    scales: Sequence[float],
    threshold: float,
    most: int,
    tolerance: Tolerance,
) -> Parity:
    """Detections of the same pictures beside each other.

    `scales` are the pixels of the network input for one of each picture, `threshold` the least
    score that both were asked for, `most` how many they may find in a picture.
    """
    score = box = 0.0
    unmatched = 0
    for a, b, scale in zip(expected, found, scales, strict=True):
        rows, columns = _matched(a, b, tolerance, scale)
        if len(rows):
            score = max(score, float(np.abs(a.scores[rows] - b.scores[columns]).max()))
            box = max(box, float(np.abs(a.boxes[rows] - b.boxes[columns]).max()) * scale)
        margin = 2 * min(tolerance.score, 0.3)
        for one, used in ((a, rows), (b, columns)):
            left = np.delete(one.scores, used)
            # a full list ends where the score of its last row is, not at the threshold
            full = len(one) >= most
            least = margin + (float(one.scores[-1]) if full else threshold)
            unmatched += int((left > least).sum())
    return Parity(sum(map(len, expected)), unmatched, score, box)


def _matched(
    a: Detections, b: Detections, tolerance: Tolerance, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each that belong together: one class, one place, then the nearest score."""
    overlap = pairwise_iou(a.boxes, b.boxes)
    # boxes that are cut at the border to a line have no area and overlap with nothing
    apart = np.abs(a.boxes[:, None] - b.boxes).max(-1, initial=0) * scale
    same = (overlap > tolerance.overlap) | (apart <= min(tolerance.box, 2.0))
    same &= a.labels[:, None] == b.labels
    distance = np.where(same, np.abs(a.scores[:, None] - b.scores), np.inf)
    rows, columns = list[int](), list[int]()
    for row in range(len(a) if len(b) else 0):
        column = int(distance[row].argmin())
        if np.isfinite(distance[row, column]):
            rows.append(row)
            columns.append(column)
            distance[:, column] = np.inf
    return np.array(rows, np.int64), np.array(columns, np.int64)
