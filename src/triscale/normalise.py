"""uint8 pictures to network input, on the device.

Pictures travel as bytes; the colour distortion of training and the normalisation are both affine in
RGB, so the two are folded into one 3x4 matrix per picture and applied in one batched product.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from triscale.pixels import GREY, MEAN, NORMALISATIONS, InputConfig
from triscale.types import Batch


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
