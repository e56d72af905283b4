"""Which prediction must find which object.

YOLOv3 (Redmon and Farhadi 2018, section 2.1) gives every object to exactly one prediction: the
anchor whose shape is nearest, at the cell that holds the object's centre. Predictions that overlap
an object well without being chosen are left out of the objectness loss ("ignored"). The rules, down
to the constants, are those of GluonCV's training script.

The targets have one row per padded object, (B, M), instead of one per prediction, (B, N): three
orders of magnitude smaller, so they can be made on the device in every step. Shapes are static and
no value is read back, so nothing here makes the host wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triscale.anchors import Grid
from triscale.boxes import box_area
from triscale.types import Targets


@torch.no_grad()
def assign(
    boxes: Tensor, labels: Tensor, weights: Tensor, grid: Grid, *, size: tuple[int, int]
) -> Targets:
    """The targets (B, M) of a batch of network inputs of `size` (height, width).

    `boxes` (B, M, 4) in pixels of the network input, `labels` (B, M) with -1 for padding, `weights`
    (B, M) the mixup ratios. Where two objects claim one prediction the later one gets it.
    """
    height, width = size
    # In float32 a centre on the edge of a cell can fall to the wrong side of it.
    boxes = boxes.double()
    wh = boxes[..., 2:] - boxes[..., :2]  # (B, M, 2)
    centre_x = (boxes[..., 0] + boxes[..., 2]) / 2  # (B, M)
    centre_y = (boxes[..., 1] + boxes[..., 3]) / 2

    starts, per_cell = _map_starts(grid)
    anchors = torch.cat([grid.anchors[start : start + per_cell] for start in starts]).double()
    best = _centred_iou(wh[..., None, :], anchors).argmax(-1)  # (B, M), the first on ties

    slot = torch.zeros_like(best)
    centre = torch.zeros_like(wh)
    for k, (start, (rows, columns)) in enumerate(zip(starts, grid.maps, strict=True)):
        # gluoncv: proportional to the map, not by its stride; it differs for sides that aren't
        # multiples of 32.
        x = centre_x / width * columns
        y = centre_y / height * rows
        # A centre outside the picture belongs to the nearest cell. The reference loses such boxes.
        column = x.floor().clamp(0, columns - 1)
        row = y.floor().clamp(0, rows - 1)
        inside = torch.stack([x - column, y - row], -1).clamp(0, 1)
        position = start + (row * columns + column).long() * per_cell + best - k * per_cell
        here = best // per_cell == k
        slot = torch.where(here, position, slot)
        centre = torch.where(here[..., None], inside, centre)

    valid = labels >= 0
    weight = weights.float() * (valid & ~_lost(slot, valid))
    matched = weight > 0
    return Targets(
        slot=slot * matched,
        centre=centre.float(),
        # A box thinner than a pixel counts as one pixel: ln(0) has no place in a loss.
        scale=(wh.clamp(min=1) / anchors[best]).log().float(),
        box_weight=(2 - wh.prod(-1) / (width * height)).float(),
        label=labels * matched,
        weight=weight,
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


def _map_starts(grid: Grid) -> tuple[list[int], int]:
    """The first prediction of each feature map, and the number of anchors per cell."""
    num_cells = [rows * columns for rows, columns in grid.maps]
    per_cell, rest = divmod(len(grid.anchors), sum(num_cells))
    assert rest == 0, "every cell has the same number of anchors"
    return [sum(num_cells[:k]) * per_cell for k in range(len(num_cells))], per_cell


def _centred_iou(wh: Tensor, anchors: Tensor) -> Tensor:
    """IoU (B, M, A) of sizes (B, M, 1, 2) with anchors (A, 2), all centred on one point."""
    inter = torch.minimum(wh, anchors).clamp(min=0).prod(-1)
    return inter / (wh.clamp(min=0).prod(-1) + anchors.prod(-1) - inter)


def _lost(slot: Tensor, valid: Tensor) -> Tensor:
    """(B, M) bool: a later object of the image has the same slot."""
    same = (slot[:, :, None] == slot[:, None, :]) & valid[:, None, :]  # (B, M, M)
    return same.triu(diagonal=1).any(-1)
