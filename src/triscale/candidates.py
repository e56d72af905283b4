"""Which predictions may be given to which object.

The reference pairs an object with one prediction: the anchor whose shape is nearest, at the cell
that holds the object's centre. With few pictures that is little to learn from, and later systems
take more: every anchor whose sides aren't too far from the object's, and the two neighbouring cells
that are nearest to its centre, whose predictions reach it when the decoding is grid-sensitive
(Bochkovskiy et al. 2020, "YOLOv4", section 3.4; multiple positives: Ge et al. 2021, "YOLOX",
section 2.1). All are functions of the boxes alone, with static shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from triscale.anchors import Grid

FIRST = 2.0  # the rank of what the reference would choose


class Candidates(NamedTuple):
    """K pairs for each of M padded objects."""

    slot: Tensor  # (B, M, K) int64 index into N
    active: Tensor  # (B, M, K) bool: a pair at all
    rank: Tensor  # (B, M, K) float32: of two objects that want a prediction the higher gets it
    offset: Tensor  # (B, M, K, 2) float64: of the object's centre from the cell's corner, in cells
    anchors: Tensor  # (B, M, K, 2) float64: w, h in pixels


def find_candidates(
    boxes: Tensor, grid: Grid, *, size: tuple[int, int], ratio: float, neighbours: bool
) -> Candidates:
    """The pairs of boxes (B, M, 4), float64 pixels of inputs of `size`, and predictions.

    Always the best anchor in the centre's cell; with a `ratio` all anchors whose sides are less
    than that many times the box's, and the reverse; with `neighbours` two more cells.
    """
    height, width = size
    kinds = grid.kinds
    wh = boxes[..., 2:] - boxes[..., :2]  # (B, M, 2)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    iou = _centred_iou(wh[..., None, :], kinds.anchors)  # (B, M, A)
    best = iou.argmax(-1, keepdim=True)  # (B, M, 1), the first on ties
    if ratio:
        chosen = torch.arange(iou.shape[-1], device=boxes.device).expand_as(iou)
        factor = wh.clamp(min=1e-9)[..., None, :] / kinds.anchors
        first = chosen == best
        active = first | (factor.maximum(1 / factor).amax(-1) < ratio)
        rank = torch.where(first, FIRST, iou)
    else:
        chosen, active = best, torch.ones_like(best, dtype=torch.bool)
        rank = torch.full_like(best, FIRST, dtype=torch.float64)

    # gluoncv: proportional to the map, not by its stride; it differs for sides that aren't
    # multiples of 32.
    cells = kinds.cells[chosen]  # (B, M, K, 2)
    x, y = centre.unbind(-1)
    at = torch.stack([x / width, y / height], -1)[..., None, :] * cells
    # A centre outside the picture belongs to the nearest cell. The reference loses such boxes.
    cell = at.floor().minimum(cells - 1).clamp(min=0)
    if neighbours:
        cell = _with_neighbours(cell, at)  # (B, M, 3 * K, 2)
        at, cells, chosen, active, rank = (
            torch.cat([field] * 3, 2) for field in (at, cells, chosen, active, rank)
        )
        active = active & ((cell >= 0) & (cell < cells)).all(-1)
        cell = cell.clamp(min=0).minimum(cells - 1)
        # after all that the object's own cell offers
        rank = rank - (torch.arange(rank.shape[2], device=rank.device) >= rank.shape[2] // 3) * 1.5
    place = (cell[..., 1] * cells[..., 0] + cell[..., 0]).long() * kinds.per_cell
    return Candidates(
        slot=kinds.starts[chosen] + place + chosen % kinds.per_cell,
        active=active,
        rank=rank.float(),
        offset=at - cell,
        anchors=kinds.anchors[chosen],
    )


def _with_neighbours(cell: Tensor, at: Tensor) -> Tensor:
    """Cells (B, M, K, 2) and after them the nearest beside, then the nearest above or below."""
    step = torch.where(at - cell < 0.5, -1.0, 1.0).to(cell)
    axes = torch.eye(2, dtype=cell.dtype, device=cell.device)
    return torch.cat([cell, cell + step * axes[0], cell + step * axes[1]], 2)


def _centred_iou(wh: Tensor, anchors: Tensor) -> Tensor:
    """IoU (B, M, A) of sizes (B, M, 1, 2) with anchors (A, 2), all centred on one point."""
    inter = torch.minimum(wh, anchors).clamp(min=0).prod(-1)
    return inter / (wh.clamp(min=0).prod(-1) + anchors.prod(-1) - inter)
