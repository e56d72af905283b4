"""How pictures are brought to the network's size, as arithmetic that a graph can hold.

OpenCV's resizes and Darknet's are separable: rows and columns are weighted sums of the old ones.
The weights are matrices that depend on the two lengths alone, and lengths are tensors here, so that
a graph takes pictures of any size. Measured against `data/augment.py`, which is what training and
`Detector` do: at most one grey level, from OpenCV's fixed-point weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triscale.pixels import Fit

CUBIC = -0.75  # OpenCV's kernel, Keys 1981 with a = -0.75


def fitted(images: Tensor, size: tuple[int, int], *, fit: Fit) -> Tensor:
    """Pictures (N, H, W, 3) uint8 of any size -> (N, h, w, 3) float32, whole grey levels."""
    rows, columns = (torch.full((), side, dtype=torch.float32) for side in images.shape[1:3])
    if fit == "stretch":
        growing = (rows < size[0]) & (columns < size[1])
        shrinking = (rows > size[0]) & (columns > size[1])
        vertical = _stretch(rows, images.shape[1], size[0], growing, shrinking)
        horizontal = _stretch(columns, images.shape[2], size[1], growing, shrinking)
    else:
        place = placement_of(torch.stack([rows, columns]), size, fit=fit)
        left, top, width, height = place.unbind()
        vertical = _letterbox(rows, images.shape[1], size[0], top, height)
        horizontal = _letterbox(columns, images.shape[2], size[1], left, width)
    # (N, W, 3, H) -> (N, W, 3, h) -> (N, h, 3, W) -> (N, h, 3, w)
    tall = images.float().permute(0, 2, 3, 1) @ vertical.T
    wide = tall.permute(0, 3, 2, 1) @ horizontal.T
    return wide.permute(0, 1, 3, 2).round().clamp(0, 255)


def placement_of(sizes: Tensor, size: tuple[int, int], *, fit: Fit) -> Tensor:
    """`pixels.placement` for sizes (..., 2) in a graph -> (..., 4): left, top, width, height."""
    rows, columns = sizes.float().unbind(-1)
    height = torch.full_like(rows, size[0])
    width = torch.full_like(rows, size[1])
    if fit == "letterbox":
        wide = size[1] * rows < size[0] * columns
        # whole numbers far below 2^24: the quotients' floors are those of integers
        low = (rows * size[1] / columns + 1e-4).floor().clamp(min=1)
        narrow = (columns * size[0] / rows + 1e-4).floor().clamp(min=1)
        height, width = torch.where(wide, low, height), torch.where(wide, width, narrow)
    left, top = ((size[1] - width) / 2).floor(), ((size[0] - height) / 2).floor()
    return torch.stack([left, top, width, height], -1)


def _stretch(old: Tensor, length: int, new: int, growing: Tensor, shrinking: Tensor) -> Tensor:
    """(new, length) weights: cubic if both sides grow, area if both shrink, else linear."""
    scale = old / new
    target = torch.arange(new, dtype=torch.float32)[:, None]
    source = torch.arange(length, dtype=torch.float32)[None]
    # area: what of each old pixel lies inside the new one
    start = target * scale
    end = torch.minimum(start + scale, old)
    area = (torch.minimum(end, source + 1) - torch.maximum(start, source)).clamp(min=0)
    area = area / (end - start)
    centre = (target + 0.5) * scale - 0.5
    linear = _hat(torch.minimum(centre.clamp(min=0), old - 1), source)
    # cubic: two pixels on each side; those beyond the edge repeat the edge's
    cubic = _keys(centre, source)
    beyond = torch.arange(1, 3, dtype=torch.float32)[None]
    first = _keys(centre, -beyond).sum(1, keepdim=True)
    last = _keys(centre, old - 1 + beyond).sum(1, keepdim=True)
    cubic = cubic + torch.where(source == 0, first, 0) + torch.where(source == old - 1, last, 0)
    return torch.where(shrinking, area, torch.where(growing, cubic, linear))


def _letterbox(old: Tensor, length: int, new: int, start: Tensor, inner: Tensor) -> Tensor:
    """(new, length) weights, linear between corner pixels' centres; 0 in the bars."""
    target = torch.arange(new, dtype=torch.float32)[:, None] - start
    source = torch.arange(length, dtype=torch.float32)[None]
    at = target * ((old - 1) / (inner - 1).clamp(min=1))
    return torch.where((target >= 0) & (target < inner), _hat(at, source), 0)


def _hat(at: Tensor, source: Tensor) -> Tensor:
    """Weights of linear interpolation."""
    return (1 - (at - source).abs()).clamp(min=0)


def _keys(at: Tensor, source: Tensor) -> Tensor:
    """Weights of cubic convolution (Keys 1981, equation 15) with a = CUBIC."""
    d = (at - source).abs()
    near = ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1
    far = ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0))
