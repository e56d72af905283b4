"""Box arithmetic on numpy arrays and torch tensors alike.

Boxes are (..., 4) xyxy in absolute pixels. The functions use only operators and methods that numpy
and torch share, so that the data path (numpy) and the targets (torch) cannot drift apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", "NDArray[np.float32]", "NDArray[np.float64]", "Tensor")


def box_area(boxes_xyxy: Array) -> Array:
    """Areas (...,) of boxes (..., 4); 0 where a box is inverted."""
    width = (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]).clip(0)
    height = (boxes_xyxy[..., 3] - boxes_xyxy[..., 1]).clip(0)
    return width * height


def intersection(a_xyxy: Array, b_xyxy: Array) -> Array:
    """Areas (...) in which boxes (..., 4) overlap boxes (..., 4); the leading axes broadcast."""
    # Any: clip is the one minimum and maximum that both libraries have as a method, and it takes
    # arrays in both, but torch's type stubs know numbers only.
    a, b = cast(Any, a_xyxy), cast(Any, b_xyxy)
    left, top = a[..., 0].clip(b[..., 0], None), a[..., 1].clip(b[..., 1], None)
    right, bottom = a[..., 2].clip(None, b[..., 2]), a[..., 3].clip(None, b[..., 3])
    return (right - left).clip(0) * (bottom - top).clip(0)


def box_iou(a_xyxy: Array, b_xyxy: Array, *, eps: float = 1e-15) -> Array:
    """Intersection over union (...) of boxes (..., 4) that broadcast; 0 for two empty boxes."""
    inter = intersection(a_xyxy, b_xyxy)
    union = cast(Any, box_area(a_xyxy) + box_area(b_xyxy) - inter)
    return inter / (union + eps)


def pairwise_iou(a_xyxy: Array, b_xyxy: Array) -> Array:
    """IoU of each with each: (n, 4), (m, 4) -> (n, m)."""
    return box_iou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :])


def clip_boxes(boxes_xyxy: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes (n, 4) cut at the borders of a picture of `size` (height, width)."""
    height, width = size
    return boxes_xyxy.clip(0, np.array([width, height, width, height], boxes_xyxy.dtype))
