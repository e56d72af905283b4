"""Anchors from the boxes of a data set: how well some fit, and better ones by k-means.

YOLOv2 (Redmon and Farhadi 2017, section 2, "Dimension Clusters"): boxes are compared by shape
alone, as if they had one centre, and the distance is 1 - IoU, so that large boxes don't count for
more than small ones. Here a cluster moves to the median of its boxes, which a few odd labels don't
pull.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triscale.anchors import Anchors

Shapes = NDArray[np.float64]  # (n, 2) width, height

_RESTARTS, _ROUNDS = 8, 60


def shape_iou(shapes: Shapes, anchors: Shapes) -> NDArray[np.float64]:
    """IoU of boxes that share a centre: (n, 2), (k, 2) -> (n, k)."""
    inter = np.minimum(shapes[:, None], anchors).prod(-1)
    return inter / (shapes.prod(-1)[:, None] + anchors.prod(-1) - inter).clip(1e-9)


def flat(anchors: Anchors) -> Shapes:
    """The anchors of all strides: (k, 2)."""
    return np.array([pair for row in anchors for pair in row], np.float64).reshape(-1, 2)


def fit_of(shapes: Shapes, anchors: Shapes) -> tuple[float, float]:
    """How well anchors fit: the share of boxes that one overlaps by more than half, and the mean
    IoU with the best one; nan if there is no box."""
    if not len(shapes):
        return np.nan, np.nan
    best = shape_iou(shapes, anchors).max(1)
    return float((best > 0.5).mean()), float(best.mean())


def cluster(shapes: Shapes, number: int, *, rng: np.random.Generator) -> Shapes:
    """`number` shapes (k, 2) that boxes (n, 2) overlap well, the smallest first; n >= k.

    Of several starts from boxes drawn by `rng`, the one with the best mean IoU.
    """
    assert len(shapes) >= number, (len(shapes), number)
    found = [_descend(shapes, rng.choice(shapes, number, replace=False)) for _ in range(_RESTARTS)]
    best = max(found, key=lambda anchors: fit_of(shapes, anchors)[1])
    return best[best.prod(1).argsort(kind="stable")]


def _descend(shapes: Shapes, anchors: Shapes) -> Shapes:
    """The local optimum that Lloyd's rounds reach from `anchors`."""
    for _ in range(_ROUNDS):
        nearest = shape_iou(shapes, anchors).argmax(1)
        moved = anchors.copy()
        for k in np.unique(nearest):  # a cluster that has lost all its boxes stays where it is
            moved[k] = np.median(shapes[nearest == k], axis=0)
        if np.array_equal(moved, anchors):
            break
        anchors = moved
    return anchors


def deal(shapes: Shapes, num_strides: int) -> Anchors:
    """Anchors (k, 2), smallest first, in whole pixels: the largest for the deepest stride."""
    pairs = [(float(w), float(h)) for w, h in shapes.round().clip(1)]
    each = len(pairs) // num_strides
    assert each * num_strides == len(pairs), (len(pairs), num_strides)
    return tuple(tuple(pairs[i * each : (i + 1) * each]) for i in reversed(range(num_strides)))
