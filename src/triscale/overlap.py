"""IoU of paired boxes and what makes a loss of it: GIoU and CIoU.

Rezatofighi et al. 2019, "Generalized Intersection over Union", and Zheng et al. 2020,
"Distance-IoU Loss" (section 3.3 of its journal version for the aspect ratio).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from triscale.boxes import box_area, box_iou

_EPS = 1e-7


def penalised_iou(a_xyxy: Tensor, b_xyxy: Tensor, *, kind: Literal["giou", "ciou"]) -> Tensor:
    """Up to 1 (...) for paired boxes (..., 4): their IoU less what keeps them apart."""
    iou = box_iou(a_xyxy, b_xyxy, eps=_EPS)
    low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    width, height = (high - low).unbind(-1)  # of the smallest box around both
    if kind == "giou":
        union = (box_area(a_xyxy) + box_area(b_xyxy)) / (1 + iou)
        around = width * height + _EPS
        return iou - (around - union) / around
    centres = (a_xyxy[..., :2] + a_xyxy[..., 2:] - b_xyxy[..., :2] - b_xyxy[..., 2:]) / 2
    distance = centres.square().sum(-1) / (width.square() + height.square() + _EPS)
    shapes = [(box[..., 2:] - box[..., :2]).clamp(min=_EPS) for box in (a_xyxy, b_xyxy)]
    angles = [torch.atan2(shape[..., 0], shape[..., 1]) for shape in shapes]
    aspect = (4 / math.pi**2) * (angles[0] - angles[1]).square()
    with torch.no_grad():
        trade_off = aspect / (1 - iou + aspect + _EPS)
    return iou - distance - trade_off * aspect
