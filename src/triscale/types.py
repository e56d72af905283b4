"""The tensor bundles that travel between the parts, each described once.

Letters in shapes: B images in a batch, N predictions per image (over strides 32, 16, 8; inside a
stride row by row, then by anchor), M ground-truth boxes per image after padding, C classes, H and W
pixels, K detections. Boxes are xyxy in absolute pixels unless a name says otherwise; a box that
covers a whole picture is (0, 0, W, H). Bundles are never unpacked by position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class Draw(NamedTuple):
    """One sample of the plan: everything random about it is decided by these numbers."""

    # position of the image in its Index; that it hides tuple.index harms nobody
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    size: tuple[int, int]  # (height, width) of the network input
    seed: int  # seeds the sample's own generator
    augment: bool = True  # False: only resize, as in validation
    partner: int | None = None  # second image of a mixup
    ratio: float = 1.0  # weight of the first image of a mixup
    tiles: tuple[int, ...] = ()  # the three other images of a mosaic, which has no partner


class Sample(NamedTuple):
    """One picture with its labels (numpy, on the loader's side)."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    # (n, 4) xyxy pixels of `image`; while it is decoded at a part of its size, of the whole picture
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]  # (n,) class index from 0
    weights: NDArray[np.float32]  # (n,) mixup ratio, 1 without mixup
    image_id: int  # position in the Index
    original_size: tuple[int, int]  # (height, width) of the picture on disk
    colour: NDArray[np.float32]  # (3, 4) affine map of 0..255 RGB, applied on the device
    rectangle: NDArray[np.float32]  # (4,) xyxy: where `colour` applies; outside is fill


class Batch(NamedTuple):
    """A collated batch; `images.permute(0, 3, 1, 2)` is channels-last without a copy."""

    images: Tensor  # (B, H, W, 3) uint8 RGB
    boxes: Tensor  # (B, M, 4) float32, padded with -1
    labels: Tensor  # (B, M) int64, padded with -1
    weights: Tensor  # (B, M) float32, padded with 0
    image_ids: Tensor  # (B,) int64
    original_sizes: Tensor  # (B, 2) int64: height, width
    colour: Tensor  # (B, 3, 4) float32
    rectangle: Tensor  # (B, 4) float32

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; copies overlap with compute where memory is pinned."""
        return Batch(*(field.to(device, non_blocking=True) for field in self))

    def split(self, parts: int) -> list[Batch]:
        """The pictures in order in `parts` batches of nearly equal size, none of them empty."""
        fields = [field.tensor_split(min(parts, len(self.labels))) for field in self]
        return [Batch(*part) for part in zip(*fields, strict=True)]


class Predictions(NamedTuple):
    """What the network says, as raw logits; t_x, t_y, t_w, t_h, t_o of YOLOv3, section 2.1."""

    centres: Tensor  # (B, N, 2)
    scales: Tensor  # (B, N, 2)
    objectness: Tensor  # (B, N)
    classes: Tensor  # (B, N, C)


class Targets(NamedTuple):
    """One row per padded pair of an object and a prediction: what the prediction must say.

    The reference pairs each object with one prediction: there S is M.
    """

    slot: Tensor  # (B, S) int64 index into N; 0 where weight is 0
    centre: Tensor  # (B, S, 2) what the sigmoids of t_x and t_y shall be
    scale: Tensor  # (B, S, 2) log of size over anchor size
    box: Tensor  # (B, S, 4) float32 xyxy of the object, in pixels of the network input
    box_weight: Tensor  # (B, S) 2 - relative area
    label: Tensor  # (B, S) int64; 0 where weight is 0
    weight: Tensor  # (B, S) objectness target weight: mixup ratio, 0 for padding and lost cells


class Losses(NamedTuple):
    """The terms, each a scalar: sum over an image's predictions, mean over the batch."""

    objectness: Tensor
    centre: Tensor
    scale: Tensor
    classes: Tensor
    iou: Tensor

    @property
    def total(self) -> Tensor:
        """The quantity that is differentiated: the sum of all."""
        return self.objectness + self.centre + self.scale + self.classes + self.iou
