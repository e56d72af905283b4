"""uint8 pictures to network input, on the device.

Pictures travel as bytes; the colour distortion of training and the normalisation are both affine in
RGB, so the two are folded into one 3x4 matrix per picture and applied in one batched product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from triscale.types import Batch

Fit = Literal["stretch", "letterbox"]


class Normalisation(NamedTuple):
    """x -> (x - mean) / std, per channel RGB, for pixels in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# ImageNet's statistics: what the reference normalises with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NORMALISATIONS = {
    "imagenet": Normalisation(MEAN, STD),
    "unit": Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # Darknet's
}
# What surrounds a picture on a larger canvas: the mean colour, around a letterbox Darknet's grey.
FILL = tuple(round(255 * value) for value in MEAN)
GREY = 0.5


@dataclass(frozen=True)
class InputConfig:
    """The `[input]` section: what the network is given. Weights keep it in their header."""

    normalise: Literal["imagenet", "unit"] = "imagenet"
    fit: Fit = "stretch"  # in validation and prediction: to a square, or whole with grey bars


def network_input(batch: Batch, config: InputConfig) -> Tensor:
    """(B, 3, H, W) float32 in channels-last memory, from a batch of uint8 pictures.

    Inside a picture's rectangle the colour matrix and the normalisation apply; outside lies the
    fill, whatever the matrix is.
    """
    size, height, width, _ = batch.images.shape
    device = batch.images.device
    mean, gain, fill = _constants(config, device)
    matrix = batch.colour[:, :, :3] * gain[:, None]  # (B, 3, 3)
    offset = (batch.colour[:, :, 3] - 255 * mean) * gain - fill  # (B, 3)
    pixels = batch.images.reshape(size, height * width, 3).float()
    with torch.autocast(device.type, enabled=False):  # half precision would lose grey levels
        output = torch.baddbmm(offset[:, None], pixels, matrix.mT)
    output = output.view(size, height, width, 3)
    output *= _inside(batch.rectangle, height, width)
    if config != InputConfig():  # else the fill is 0
        output += fill
    return output.permute(0, 3, 1, 2)


def placement(picture: tuple[int, int], size: tuple[int, int], fit: Fit) -> tuple[int, ...]:
    """Where a picture of (height, width) lies in a network input of `size`: left, top, width,
    height in pixels.

    A letterbox keeps the aspect ratio, rounds the shorter side down and centres, as Darknet does.
    """
    (rows, columns), (height, width) = picture, size
    if fit == "stretch":
        return 0, 0, width, height
    if width * rows < height * columns:
        height = max(rows * width // columns, 1)
    else:
        width = max(columns * height // rows, 1)
    return (size[1] - width) // 2, (size[0] - height) // 2, width, height


@lru_cache  # a copy to a GPU in every step would wait for the step before
def _constants(config: InputConfig, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(3,) each: the mean in 0..1, one over the deviation in grey levels, the normalised fill."""
    with torch.inference_mode(False):  # whoever asks first, training can use them too
        mean, std = (torch.tensor(v, device=device) for v in NORMALISATIONS[config.normalise])
        fill = torch.tensor(MEAN if config.fit == "stretch" else [GREY] * 3, device=device)
        return mean, 1 / (255 * std), (fill - mean) / std


def _inside(rectangle: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, 1): 1 where a pixel's centre lies in its picture's rectangle, else 0."""
    x = torch.arange(width, device=rectangle.device) + 0.5
    y = torch.arange(height, device=rectangle.device) + 0.5
    left, top, right, bottom = rectangle[:, :, None].unbind(1)  # (B, 1) each
    columns = (x >= left) & (x < right)  # (B, W)
    rows = (y >= top) & (y < bottom)  # (B, H)
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(-1).float()
