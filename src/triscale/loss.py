"""The YOLOv3 loss.

YOLOv3 (Redmon and Farhadi 2018, sections 2.1 and 2.2) trains objectness, box centre and classes
with binary cross-entropy and the box size with a distance; the weights, sums and the smoothing of
labels are those of GluonCV's training script. Only the objectness loss looks at every prediction.
The others are taken at the slots of the objects, so no (B, N, C) target is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from triscale.errors import UserError
from triscale.types import Losses, Predictions, Targets


@dataclass(frozen=True)
class LossConfig:
    """The `[loss]` section."""

    label_smooth: bool = False  # class targets s and 1 - s instead of 0 and 1
    ignore_iou: float = 0.7  # predictions that overlap an object better are no negatives

    def __post_init__(self) -> None:
        if not 0 < self.ignore_iou <= 1:
            raise UserError(
                f"loss.ignore_iou: expected a number above 0 and up to 1, got {self.ignore_iou}"
            )


def yolo_loss(
    predictions: Predictions,
    targets: Targets,
    ignore: Tensor,
    config: LossConfig,
    *,
    global_batch: int | None = None,
) -> Losses:
    """The four losses in float32: summed over an image's predictions, mean over the batch.

    `ignore` (B, N) bool takes predictions out of the negatives; a prediction that an object was
    given to stays a positive. With several processes whose gradients are *added*, `global_batch` is
    the number of images of all of them together.
    """
    batch = len(predictions.objectness) if global_batch is None else global_batch
    slot, weight = targets.slot, targets.weight

    # Rows without a match point at slot 0 with weight 0. A maximum leaves a winner there as it is,
    # where a plain scatter would let whichever row comes last decide.
    objectness = predictions.objectness.float()  # (B, N)
    given = torch.zeros_like(objectness).scatter_reduce(1, slot, weight, "amax")
    positive = given > 0
    objectness_loss = binary_cross_entropy_with_logits(
        objectness,
        positive.float(),
        weight=torch.where(positive, given, (~ignore).float()),
        reduction="sum",
    )

    box_weight = (targets.box_weight * weight)[..., None]  # (B, M, 1)
    centre_loss = binary_cross_entropy_with_logits(
        _at(predictions.centres, slot), targets.centre, weight=box_weight, reduction="sum"
    )
    scale_loss = (box_weight * (_at(predictions.scales, slot) - targets.scale).abs()).sum()

    classes = _at(predictions.classes, slot)  # (B, M, C)
    smoothing = min(1 / classes.shape[-1], 1 / 40) if config.label_smooth else 0.0
    # Not one_hot(): it reads the labels back to the host to check them.
    wanted = torch.full_like(classes, smoothing).scatter(
        -1, targets.label[..., None], 1 - smoothing
    )
    class_loss = binary_cross_entropy_with_logits(
        classes, wanted, weight=weight[..., None], reduction="sum"
    )
    return Losses(
        objectness=objectness_loss / batch,
        centre=centre_loss / batch,
        scale=scale_loss / batch,
        classes=class_loss / batch,
    )


def _at(field: Tensor, slot: Tensor) -> Tensor:
    """The rows (B, M, K) of a field (B, N, K) at the slots (B, M), as float32."""
    return field.gather(1, slot[..., None].expand(-1, -1, field.shape[-1])).float()
