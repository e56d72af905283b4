"""Anchors for a data set, and whether they are worth more than the usual ones.

What `triscale train DATA` decides by itself and what `triscale anchors` shows is decided here, by
one rule. The constants are rules of thumb; `docs/recipes.md` has the figures that they come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triscale.anchors import STRIDES, Anchors
from triscale.data.index import Index
from triscale.kmeans import Shapes, cluster, deal, fit_of, flat, shape_iou

POOR_RECALL, BETTER = 0.8, 0.05  # of the usual anchors; what others must add to it
BOXES_PER_ANCHOR = 100  # fewer say too little about objects to come
_SAMPLE = 4000  # boxes that k-means looks at


def shapes_of(index: Index) -> Shapes:
    """(m, 2) width and height of the boxes, in parts of their pictures."""
    sizes = index.sizes[:, ::-1].repeat(np.diff(index.offsets), axis=0)
    boxes = index.boxes.astype(np.float64)
    return ((boxes[:, 2:] - boxes[:, :2]) / sizes).clip(1e-6)


def propose(shapes: Shapes, number: int, num_strides: int, *, rng: np.random.Generator) -> Anchors:
    """`number` anchors for boxes (m, 2) in pixels, by k-means on some of them; m >= number."""
    sample = rng.choice(shapes, min(len(shapes), _SAMPLE), replace=False)
    return deal(cluster(sample, number, rng=rng), num_strides)


def objection(shapes: Shapes, usual: Shapes, found: Shapes) -> str:
    """Why the anchors `found` aren't worth more than the `usual` ones; empty if they are."""
    before, after = (fit_of(shapes, anchors)[0] for anchors in (usual, found))
    if len(shapes) < BOXES_PER_ANCHOR * len(found):
        return (
            f"{len(shapes)} boxes say too little about objects to come, "
            f"{BOXES_PER_ANCHOR} for each of {len(found)} anchors would do"
        )
    if before >= POOR_RECALL:
        return (
            f"{before:.0%} of the boxes overlap a usual one by half, {POOR_RECALL:.0%} are enough"
        )
    # of equal anchors the first gets all objects, and the other strides none
    if len(np.unique(found, axis=0)) < len(found):
        return "k-means finds fewer shapes than there are anchors"
    if after < before + BETTER:
        return f"{after:.0%} with k-means', {100 * BETTER:.0f} points more are wanted"
    return ""


def overall_rows(shapes: Shapes, sets: Sequence[Anchors]) -> list[tuple[str, ...]]:
    """How well sets of anchors fit boxes (m, 2), m >= 1: a row for each figure."""
    overlaps = [shape_iou(shapes, flat(anchors)) for anchors in sets]
    best = [overlap.max(1) for overlap in overlaps]
    rows = [
        ("boxes that overlap one by half", *(f"{(b > 0.5).mean():.1%}" for b in best)),
        ("by a quarter", *(f"{(b > 0.25).mean():.1%}" for b in best)),
        ("mean IoU with the best one", *(f"{b.mean():.3f}" for b in best)),
    ]
    for i, stride in enumerate(STRIDES[: len(sets[0])]):
        nearest = [o.argmax(1) // len(a[0]) == i for o, a in zip(overlaps, sets, strict=True)]
        rows.append((f"boxes that go to stride {stride}", *(f"{n.mean():.1%}" for n in nearest)))
    return rows


def class_rows(
    shapes: Shapes, labels: NDArray[np.int32], classes: Sequence[str], *, sets: Sequence[Anchors]
) -> list[tuple[str, ...]]:
    """A row for each class: name, number of boxes, share that overlaps an anchor by half."""
    rows: list[tuple[str, ...]] = []
    for label, name in enumerate(classes):
        own = shapes[labels == label]
        recalls = (f"{fit_of(own, flat(anchors))[0]:.1%}" if len(own) else "-" for anchors in sets)
        rows.append((name, str(len(own)), *recalls))
    return rows
