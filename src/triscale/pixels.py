"""uint8 pictures to network input, on the device.

Pictures travel as bytes; the colour distortion of training and the normalisation are both affine in
RGB, so the two are folded into one 3x4 matrix per picture and applied in one batched product.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from triscale.types import Batch

# ImageNet statistics in 0..1, RGB: what the reference normalises with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# The grey that surrounds a picture placed on a larger canvas; 0 after normalisation.
FILL = tuple(round(255 * value) for value in MEAN)


def network_input(batch: Batch) -> Tensor:
    """(B, 3, H, W) float32 in channels-last memory, from a batch of uint8 pictures.

    Inside a picture's rectangle the colour matrix and the normalisation apply; outside lies the
    mean colour, which is 0 whatever the matrix is.
    """
    size, height, width, _ = batch.images.shape
    device = batch.images.device
    mean, gain = _constants(device)
    matrix = batch.colour[:, :, :3] * gain[:, None]  # (B, 3, 3)
    offset = (batch.colour[:, :, 3] - 255 * mean) * gain  # (B, 3)
    pixels = batch.images.reshape(size, height * width, 3).float()
    with torch.autocast(device.type, enabled=False):  # half precision would lose grey levels
        output = torch.baddbmm(offset[:, None], pixels, matrix.mT)
    output = output.view(size, height, width, 3)
    output *= _inside(batch.rectangle, height, width)
    return output.permute(0, 3, 1, 2)


@lru_cache  # a copy to a GPU in every step would wait for the step before
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """(3,), (3,): the mean in 0..1, and one over the deviation in grey levels."""
    with torch.inference_mode(False):  # whoever asks first, training can use them too
        return torch.tensor(MEAN, device=device), 1 / (255 * torch.tensor(STD, device=device))


def _inside(rectangle: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, 1): 1 where a pixel's centre lies in its picture's rectangle, else 0."""
    x = torch.arange(width, device=rectangle.device) + 0.5
    y = torch.arange(height, device=rectangle.device) + 0.5
    left, top, right, bottom = rectangle[:, :, None].unbind(1)  # (B, 1) each
    columns = (x >= left) & (x < right)  # (B, W)
    rows = (y >= top) & (y < bottom)  # (B, H)
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(-1).float()
