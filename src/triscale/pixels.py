"""What the network is given: the sizes, the place and the colours of its pictures, as numbers.

Nothing here needs torch: who runs an exported network needs it too. `normalise.py` does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

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
