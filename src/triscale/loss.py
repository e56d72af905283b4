"""The YOLOv3 loss.

YOLOv3 (Redmon and Farhadi 2018, sections 2.1 and 2.2) trains objectness, box centre and classes
with binary cross-entropy and the box size with a distance; the weights, sums and the smoothing of
labels are those of GluonCV's training script. A recipe may add what the boxes' overlap lacks, and
may want the objectness to be that overlap instead of one. Only the objectness loss looks at every
prediction. The others are taken at the slots of the objects, so no (B, N, C) target is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from triscale.anchors import Grid
from triscale.boxes import box_iou
from triscale.config import require_amounts
from triscale.decode import decode_boxes, grid_at, moderate, predictions_at
from triscale.errors import UserError
from triscale.overlap import penalised_iou
from triscale.types import Losses, Predictions, Targets


@dataclass(frozen=True)
class LossConfig:
    """The `[loss]` section."""

    label_smooth: bool = False  # class targets s and 1 - s instead of 0 and 1
    ignore_iou: float = 0.7  # predictions that overlap an object better are no negatives
    # what the objectness of a matched prediction shall be: one, or its box's IoU with the object
    objectness_target: Literal["one", "iou"] = "one"
    iou: Literal["giou", "ciou"] = "ciou"  # what the iou term is made of
    iou_gain: float = 0.0  # weights of the terms; 0: without it
    distance_gain: float = 1.0  # of centre and scale
    objectness_gain: float = 1.0
    class_gain: float = 1.0

    def __post_init__(self) -> None:
        gains = ("iou_gain", "distance_gain", "objectness_gain", "class_gain")
        require_amounts(self, "loss", *gains)
        if not 0 < self.ignore_iou <= 1:
            raise UserError(
                f"loss.ignore_iou: expected a number above 0 and up to 1, got {self.ignore_iou}"
            )


def yolo_loss(
    predictions: Predictions,
    targets: Targets,
    ignore: Tensor,
    grid: Grid,
    config: LossConfig,
    *,
    global_batch: int | None = None,
) -> Losses:
    """The losses in float32: summed over an image's predictions, mean over the batch.

    `ignore` (B, N) bool takes predictions out of the negatives; a prediction that an object was
    given to stays a positive. With several processes whose gradients are *added*, `global_batch` is
    the number of images of all of them together.
    """
    batch = len(predictions.objectness) if global_batch is None else global_batch
    slot, weight = targets.slot, targets.weight
    rows = predictions_at(slot, predictions)  # (B, S, ...)

    iou_loss = weight.new_zeros(())
    overlap = None
    if config.iou_gain or config.objectness_target == "iou":
        boxes = decode_boxes(moderate(rows), grid_at(slot, grid))  # (B, S, 4)
        if config.objectness_target == "iou":
            overlap = box_iou(boxes.detach(), targets.box)
        if config.iou_gain:
            lack = 1 - penalised_iou(boxes, targets.box, kind=config.iou)
            iou_loss = (lack * (weight * config.iou_gain)).sum()

    box_weight = (targets.box_weight * weight * config.distance_gain)[..., None]  # (B, S, 1)
    centre_loss = binary_cross_entropy_with_logits(
        rows.centres.float(), targets.centre, weight=box_weight, reduction="sum"
    )
    scale_loss = (box_weight * (rows.scales.float() - targets.scale).abs()).sum()

    classes = rows.classes.float()  # (B, S, C)
    smoothing = min(1 / classes.shape[-1], 1 / 40) if config.label_smooth else 0.0
    # Not one_hot(): it reads the labels back to the host to check them.
    wanted = torch.full_like(classes, smoothing).scatter(
        -1, targets.label[..., None], 1 - smoothing
    )
    class_weight = (weight * config.class_gain)[..., None]
    class_loss = binary_cross_entropy_with_logits(
        classes, wanted, weight=class_weight, reduction="sum"
    )
    objectness_loss = _objectness_loss(predictions.objectness, slot, weight, ignore, overlap)
    return Losses(
        objectness=objectness_loss * config.objectness_gain / batch,
        centre=centre_loss / batch,
        scale=scale_loss / batch,
        classes=class_loss / batch,
        iou=iou_loss / batch,
    )


def _objectness_loss(
    objectness: Tensor, slot: Tensor, weight: Tensor, ignore: Tensor, overlap: Tensor | None
) -> Tensor:
    """The sum over (B, N), of which slots (B, S) with a weight shall be 1, or their `overlap`."""
    objectness = objectness.float()
    # Rows without a match point at slot 0 with weight 0. A maximum leaves a winner there as it is,
    # where a plain scatter would let whichever row comes last decide.
    given = torch.zeros_like(objectness).scatter_reduce(1, slot, weight, "amax")
    positive = given > 0
    wanted = positive.float()
    if overlap is not None:
        overlap = torch.where(weight > 0, overlap, 0.0)
        wanted = torch.zeros_like(objectness).scatter_reduce(1, slot, overlap, "amax")
    return binary_cross_entropy_with_logits(
        objectness,
        wanted,
        weight=torch.where(positive, given, (~ignore).float()),
        reduction="sum",
    )
