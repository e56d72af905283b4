"""AP and recall by the size of the objects.

The areas of "small" and "large" and what is ignored are COCO's (Lin et al., ECCV 2014, and
https://cocodataset.org, Detection, Evaluate). Where pictures are large or small as a whole these
limits say little, so the thirds of the data's own objects stand beside them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from triscale.boxes import box_area
from triscale.metrics.matching import Matches
from triscale.metrics.voc import (
    PackedDetections,
    PackedTruth,
    average_precisions,
    by_class_best_first,
    rows_of,
)


class SizeRow(NamedTuple):
    """The objects with low <= area < high, in pixels of the pictures."""

    name: str
    objects: int  # that count
    ap: float  # at the IoU of the matches, area measure, mean over the classes; nan without objects
    recall: float  # share of the objects found from the score threshold on; nan without objects
    low: float
    high: float


def by_size(
    detections: PackedDetections,
    truth: PackedTruth,
    matches: Matches,
    *,
    num_classes: int,
    inclusive: bool,
    threshold: float,
) -> list[SizeRow]:
    """COCO's three sizes, then the thirds of the objects; `threshold` is for the recall.

    Objects of another size are ignored, and so are correct detections of them and false ones whose
    own area is of another size.
    """
    every = np.arange(len(detections.scores))
    area = box_area(rows_of(detections.boxes, every, inclusive))  # (D,)
    order = by_class_best_first(detections, num_classes)
    order = order[~matches.ignored[order]]
    found = ~matches.missing(detections.scores >= threshold)  # (G,) of those that count

    counted = truth.areas[matches.counted].astype(np.float64)
    thirds = np.quantile(counted, (1 / 3, 2 / 3)).tolist() if len(counted) else [0.0, 0.0]
    rows: list[SizeRow] = []
    for names, (small, large) in (
        (("small", "medium", "large"), (32.0**2, 96.0**2)),
        (("smallest third", "middle third", "largest third"), thirds),
    ):
        limits = (0.0, small, large, math.inf)
        for name, low, high in zip(names, limits[:-1], limits[1:], strict=True):
            fits = matches.counted & (truth.areas >= low) & (truth.areas < high)
            used = (area >= low) & (area < high)
            used[matches.finder[matches.finder >= 0]] = fits[matches.finder >= 0]
            mine = order[used[order]]
            per_class = average_precisions(
                matches.correct[mine],
                detections.labels[mine],
                totals=np.bincount(truth.labels[fits], minlength=num_classes),
            )
            total, nan = int(np.count_nonzero(fits)), float("nan")
            ap = float(np.nanmean(per_class)) if total else nan
            recall = int(np.count_nonzero(found & fits)) / total if total else nan
            rows.append(SizeRow(name, total, ap, recall, low, high))
    return rows
