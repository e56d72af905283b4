"""Which prediction must find which object, and with what.

YOLOv3 (Redmon and Farhadi 2018, section 2.1) gives every object to exactly one prediction: the
anchor whose shape is nearest, at the cell that holds the object's centre. Predictions that overlap
an object well without being chosen are left out of the objectness loss ("ignored"). The rules, down
to the constants, are those of GluonCV's training script; a recipe may ask for more predictions for
each object (see candidates.py), and for a choice among them by what the network says already.

The targets have one row per padded pair, (B, S), instead of one per prediction, (B, N): orders of
magnitude less where an object has one pair, so they can be made on the device in every step. Shapes
are static and no value is read back, so nothing here makes the host wait for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from triscale.anchors import Grid
from triscale.boxes import box_area, box_iou
from triscale.candidates import Candidates, find_candidates
from triscale.config import require_amounts
from triscale.decode import decode_boxes, grid_at, moderate, predictions_at
from triscale.errors import UserError
from triscale.types import Predictions, Targets


@dataclass(frozen=True)
class AssignConfig:
    """The `[assign]` section; the defaults are the reference's: one prediction for each object."""

    # besides the best anchor all whose sides are less than so many times the object's, and the
    # reverse; 0: the best alone
    ratio: float = 0.0
    neighbours: bool = False  # the two nearest neighbouring cells too; needs model.scale_x_y >= 2
    # of them at most so many for each object, chosen by what the network says; 0: all
    dynamic: int = 0
    score_power: float = 1.0  # ... by score ** score_power * IoU ** iou_power
    iou_power: float = 6.0

    def __post_init__(self) -> None:
        if self.ratio != 0 and not 1 < self.ratio < math.inf:
            raise UserError(f"assign.ratio: expected 0 or more than 1, got {self.ratio}")
        if self.dynamic < 0:
            raise UserError(f"assign.dynamic: expected at least 0, got {self.dynamic}")
        require_amounts(self, "assign", "score_power", "iou_power")


@torch.no_grad()
def assign(
    boxes: Tensor,
    labels: Tensor,
    weights: Tensor,
    grid: Grid,
    *,
    size: tuple[int, int],
    config: AssignConfig | None = None,
    predictions: Predictions | None = None,
) -> Targets:
    """The targets (B, S) of a batch of network inputs of `size` (height, width).

    `boxes` (B, M, 4) in pixels of the network input, `labels` (B, M) with -1 for padding, `weights`
    (B, M) the mixup ratios. Where two objects claim one prediction, the one that it is nearer to
    gets it, and among equals the later one. `predictions` are needed for the dynamic choice only.
    """
    config = config or AssignConfig()
    height, width = size
    found = claims(boxes, labels, grid, size=size, config=config, predictions=predictions)
    num_pairs = found.slot.shape[2]
    slot, active, rank = (
        field.flatten(1) for field in (found.slot, found.active, found.rank)
    )  # (B, S) with S = M * K
    weight = weights.float().repeat_interleave(num_pairs, 1)
    weight = weight * _winners(slot, active, rank, num_predictions=len(grid.cells))
    matched = weight > 0
    exact = boxes.double()
    wh = exact[..., 2:] - exact[..., :2]  # (B, M, 2)
    # the sigmoid that decodes to this place
    centre = (found.offset + (grid.scale_x_y - 1) / 2) / grid.scale_x_y
    return Targets(
        slot=slot * matched,
        centre=centre.clamp(0, 1).float().flatten(1, 2),
        # A box thinner than a pixel counts as one pixel: ln(0) has no place in a loss.
        scale=(wh.clamp(min=1)[..., None, :] / found.anchors).log().float().flatten(1, 2),
        box=boxes.float().repeat_interleave(num_pairs, 1),
        box_weight=(2 - wh.prod(-1) / (width * height)).float().repeat_interleave(num_pairs, 1),
        label=labels.repeat_interleave(num_pairs, 1) * matched,
        weight=weight,
    )


def claims(
    boxes: Tensor,
    labels: Tensor,
    grid: Grid,
    *,
    size: tuple[int, int],
    config: AssignConfig,
    predictions: Predictions | None = None,
) -> Candidates:
    """The predictions that the objects ask for, of which two may ask for the same; see `assign`."""
    # In float32 a centre on the edge of a cell can fall to the wrong side of it.
    found = find_candidates(
        boxes.double(), grid, size=size, ratio=config.ratio, neighbours=config.neighbours
    )
    found = found._replace(active=found.active & (labels >= 0)[..., None])
    if config.dynamic:
        assert predictions is not None
        found = best_few(found, boxes, labels, predictions=predictions, grid=grid, config=config)
    return found


def best_few(
    found: Candidates,
    boxes: Tensor,
    labels: Tensor,
    *,
    predictions: Predictions,
    grid: Grid,
    config: AssignConfig,
) -> Candidates:
    """The candidates that the network itself is nearest to, at most `config.dynamic` an object.

    They are ordered by score and IoU (Feng et al. 2021, "TOOD", section 3.2), and an object gets as
    many as the sum of its best IoUs says, at least one (Ge et al. 2021, "OTA", section 3.3).
    """
    pairs = found.slot.shape  # (B, M, K)
    slot = found.slot.flatten(1)
    # only the object's class: all classes of all candidates would be more than the predictions
    image = torch.arange(pairs[0], device=slot.device)[:, None, None]
    of_class = predictions.classes[image, found.slot, labels.clamp(min=0)[..., None]]
    said = predictions_at(slot, predictions._replace(classes=predictions.centres))
    decoded = decode_boxes(moderate(said), grid_at(slot, grid)).view(*pairs, 4)
    iou = box_iou(decoded, boxes.float()[..., None, :]) * found.active
    score = of_class.float().sigmoid() * said.objectness.float().sigmoid().view(pairs)
    # The small numbers keep an order where one of the two is nothing yet.
    worth = (score + 1e-6) ** config.score_power * (iou + 1e-3) ** config.iou_power
    worth = torch.where(found.active, worth, -1.0)
    number = iou.topk(min(config.dynamic, pairs[2]), dim=-1).values.sum(-1, keepdim=True)
    place = worth.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    # An object's best one is given up last.
    rank = torch.where(place == 0, 2.0, worth / worth.amax(-1, keepdim=True).clamp(min=1e-30))
    return found._replace(
        active=found.active & (place < number.floor().clamp(min=1)), rank=rank.clamp(min=0)
    )


@torch.no_grad()
def ignored(pred_boxes: Tensor, boxes: Tensor, labels: Tensor, *, threshold: float = 0.7) -> Tensor:
    """(B, N) bool: the predictions whose IoU with any object of their image is above `threshold`.

    `pred_boxes` (B, N, 4) and `boxes` (B, M, 4) in the same pixels, `labels` (B, M) with -1 for
    padding. The maximum runs over the M columns in place, so memory stays at a few (B, N).
    """
    boxes = boxes.float() * (labels >= 0)[..., None]  # padding: an empty box, IoU 0
    low = pred_boxes[..., :2].float().permute(2, 0, 1).contiguous()  # (2, B, N)
    high = pred_boxes[..., 2:].float().permute(2, 0, 1).contiguous()
    areas = box_area(pred_boxes.float()) + 1e-15  # (B, N), so that no empty pair is 0 / 0
    box_areas = box_area(boxes)  # (B, M)
    overlap_low, overlap_high = torch.empty_like(low), torch.empty_like(low)
    inter, union, best = torch.empty_like(areas), torch.empty_like(areas), torch.zeros_like(areas)
    # No early stop for images with few objects: M is the batch's largest count already.
    for m in range(boxes.shape[1]):
        corners = boxes[:, m].T[..., None]  # (4, B, 1)
        torch.maximum(low, corners[:2], out=overlap_low)
        torch.minimum(high, corners[2:], out=overlap_high)
        overlap_high.sub_(overlap_low).clamp_(min=0)
        torch.mul(overlap_high[0], overlap_high[1], out=inter)
        torch.add(areas, box_areas[:, m, None], out=union).sub_(inter)
        torch.maximum(best, inter.div_(union), out=best)
    return best > threshold


def _winners(slot: Tensor, active: Tensor, rank: Tensor, *, num_predictions: int) -> Tensor:
    """(B, S) bool: the pairs, of those that are active, that get the prediction they want."""
    order = torch.arange(slot.shape[1], device=slot.device)
    # by rank, then by order; above 0
    key = ((rank + 2) * 2**20).long() * 2**32 + order  # ranks are above -2
    key = torch.where(active, key, 0)
    best = key.new_zeros(len(slot), num_predictions).scatter_reduce(1, slot, key, "amax")
    return active & (best.gather(1, slot) == key)
