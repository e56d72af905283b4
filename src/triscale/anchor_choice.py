"""Anchors for a data set, and whether they are worth more than the usual ones.

What `triscale train DATA` decides by itself and what `triscale anchors` shows is decided here, by
one rule. The constants are rules of thumb; `docs/recipes.md` has the figures that they come from.
"""

from __future__ import annotations

import numpy as np

from triscale.anchors import Anchors
from triscale.data.index import Index
from triscale.kmeans import Shapes, cluster, deal, fit_of

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
