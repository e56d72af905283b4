"""Average precision and recall as COCO defines them.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and https://cocodataset.org
(Detection, Evaluate). The matching is hotcoco's, a compiled and permissively licensed equal of
pycocotools; the averages are taken here, because its summary prints.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.metrics.voc import PackedDetections, PackedTruth

# Places in the arrays of the evaluation: IoU .50, .55, ... .95; area ranges; detections per image.
_IOU_50, _IOU_75 = 0, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_MAX_1, _MAX_10, _MAX_100 = range(3)


class CocoResult(NamedTuple):
    """COCO's numbers, 0..1; nan where nothing in the ground truth defines them (COCO prints -1)."""

    summary: dict[str, float]  # AP AP50 AP75 APsmall APmedium APlarge AR1 AR10 AR100 ARsmall ...
    per_class: NDArray[np.float64]  # (C,) AP of each class


def coco_ap(
    detections: PackedDetections,
    truth: PackedTruth,
    *,
    num_classes: int,
    inclusive: bool = False,
) -> CocoResult:
    """The 12 standard numbers and the AP per class, over at most 100 detections per image.

    The boxes must be in pixels of the original pictures: the area ranges are. `inclusive`: x2 and
    y2 are the last pixels. Low scores belong in it: they can only raise the figures (the reference
    left out those below 0.05).
    """
    from hotcoco import COCO, COCOeval  # here, so that whoever needs VOC's figures only doesn't

    # A picture without objects counts too: what is found in it is false.
    images = np.union1d(truth.images, detections.images)
    truth_coco = COCO.from_arrays(
        [{"id": image} for image in images.tolist()],
        [{"id": c, "name": str(c)} for c in range(num_classes)],
        truth.images,
        truth.labels,
        _xywh(truth.boxes, inclusive).T,
        area=truth.areas,
        iscrowd=truth.crowd,
    )
    # (D, 7), built by columns: half a million short rows would take longer to write
    found = np.vstack(
        [
            detections.images,
            _xywh(detections.boxes, inclusive),
            detections.scores,
            detections.labels,
        ]
    ).T
    evaluation = COCOeval(truth_coco, truth_coco.load_res(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    curves = evaluation.eval
    assert curves is not None
    precision: NDArray[np.float64] = curves["precision"]  # (IoU, recall, C, area, detections)
    recall: NDArray[np.float64] = curves["recall"]  # (IoU, C, area, detections)

    summary = {
        "AP": _mean(precision[..., _ALL, _MAX_100]),
        "AP50": _mean(precision[_IOU_50, ..., _ALL, _MAX_100]),
        "AP75": _mean(precision[_IOU_75, ..., _ALL, _MAX_100]),
        "APsmall": _mean(precision[..., _SMALL, _MAX_100]),
        "APmedium": _mean(precision[..., _MEDIUM, _MAX_100]),
        "APlarge": _mean(precision[..., _LARGE, _MAX_100]),
        "AR1": _mean(recall[..., _ALL, _MAX_1]),
        "AR10": _mean(recall[..., _ALL, _MAX_10]),
        "AR100": _mean(recall[..., _ALL, _MAX_100]),
        "ARsmall": _mean(recall[..., _SMALL, _MAX_100]),
        "ARmedium": _mean(recall[..., _MEDIUM, _MAX_100]),
        "ARlarge": _mean(recall[..., _LARGE, _MAX_100]),
    }
    per_class = [_mean(precision[:, :, c, _ALL, _MAX_100]) for c in range(num_classes)]
    return CocoResult(summary, np.array(per_class))


def _xywh(boxes_xyxy: NDArray[np.floating[Any]], inclusive: bool) -> NDArray[np.float64]:
    """Corners and sides (4, n) of boxes (n, 4)."""
    columns = boxes_xyxy.T.astype(np.float64, order="C")
    columns[2:] -= columns[:2]
    columns[2:] += inclusive
    return columns


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else float("nan")
