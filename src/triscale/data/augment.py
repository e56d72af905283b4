"""Training and validation transforms: geometry on uint8, colour as a matrix.

The reference's recipe, after SSD (Liu et al. 2016, section 2.2): colour distortion, expansion onto
a mean-coloured canvas, a random crop constrained by its overlap with the objects, a resize with a
random interpolation, a horizontal flip. What is random is drawn first (`draw_geometry`,
`draw_colour`) and then applied in one crop and one resize; the colour distortion is affine in RGB
and is only returned as a matrix, for the device to apply together with the normalisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.boxes import box_area, pairwise_iou
from triscale.config import require_amounts
from triscale.data.cut import (
    Boxes,
    Geometry,
    Interpolation,
    Place,
    centre_inside,
    cut,
    darknet_resize,
    find_place,
    interpolation_for,
    move_boxes,
    paste,
    resize,
    xyxy,
)
from triscale.errors import UserError
from triscale.pixels import Fit, placement
from triscale.types import Sample

_TRIALS = 50  # of a random crop for each least overlap


@dataclass(frozen=True)
class AugmentConfig:
    """The `[augment]` section; the defaults are the reference's, but for a hue shift in degrees."""

    colour: float = 0.5  # probability of each of brightness, contrast, saturation, hue
    brightness: float = 32.0  # largest shift, in grey levels
    contrast: float = 0.5  # factor from 1 - c to 1 + c
    saturation: float = 0.5
    hue: float = 18.0  # largest rotation in degrees
    expand: float = 0.5  # probability of placing the picture on a larger canvas
    expand_ratio: float = 4.0  # largest canvas, in sides of the picture
    crop: bool = True  # the overlap-constrained random crop
    flip: float = 0.5  # probability
    interpolations: tuple[Interpolation, ...] = ("nearest", "linear", "cubic", "area", "lanczos")
    # cut the cheap way: the visible part of the picture alone is resized, its borders lie on whole
    # pixels of the input, and a picture that shrinks by 2, 4 or 8 is decoded at that size
    fast_resize: bool = False
    random_shape: bool = True  # a new input size every few steps
    shape_min: int = 320
    shape_max: int = 608
    shape_step: int = 32
    shape_interval: int = 10  # steps
    mixup: bool = False
    mixup_alpha: float = 1.5  # ratio ~ Beta(alpha, alpha)
    mixup_off_epochs: int = 20  # no mixup in this many last epochs
    mosaic: float = 0.0  # probability; what is a mosaic is neither expanded nor cropped nor mixed
    mosaic_scale: tuple[float, float] = (0.5, 1.5)  # least and largest zoom; 1: pictures just fit
    mosaic_off_epochs: int = 10  # no mosaics in this many last epochs

    def __post_init__(self) -> None:
        for name in ("colour", "expand", "flip", "mosaic"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"augment.{name}: expected a probability, got {getattr(self, name)}"
                )
        require_amounts(self, "augment", "brightness", "contrast", "saturation", "hue")
        if not self.interpolations:
            raise UserError("augment.interpolations: expected at least one, got none")
        if not 32 <= self.shape_min <= self.shape_max or self.shape_step < 1:
            raise UserError(
                "augment.shape_min, shape_max, shape_step: expected 32 <= min <= max and a step of "
                f"at least 1, got {self.shape_min}, {self.shape_max}, {self.shape_step}"
            )
        least = {"shape_interval": 1, "mixup_off_epochs": 0, "mosaic_off_epochs": 0}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise UserError(
                    f"augment.{name}: expected at least {number}, got {getattr(self, name)}"
                )
        if not 0 < self.mixup_alpha < math.inf or not 1 <= self.expand_ratio < math.inf:
            raise UserError("augment.mixup_alpha, expand_ratio: expected > 0 and >= 1, finite")
        if not 0 < self.mosaic_scale[0] <= self.mosaic_scale[1] < math.inf:
            raise UserError(
                "augment.mosaic_scale: expected the least and the largest zoom, both positive, got "
                f"{list(self.mosaic_scale)}"
            )


class View(NamedTuple):
    """What becomes of a picture: known before its pixels are."""

    size: tuple[int, int]  # height, width of the network input
    colour: NDArray[np.float32]  # (3, 4)
    geometry: Geometry
    place: Place | None  # None: cut the exact way

    @property
    def reduction(self) -> int:
        """The part of its size at which the picture is wanted."""
        return self.place.reduction if self.place else 1


# --- drawing -------------------------------------------------------------------------------------


def draw_colour(rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.float32]:
    """A random (3, 4) colour matrix: brightness; then contrast, saturation and hue."""
    matrix = np.eye(3, 4)
    if rng.random() < config.colour:
        matrix[:, 3] += rng.uniform(-config.brightness, config.brightness)
    # The reference applies contrast first or last by a coin; as a mere factor it commutes.
    for distortion in (_contrast, _saturation, _hue):
        if rng.random() < config.colour:
            matrix = distortion(rng, config) @ matrix
    return matrix.astype(np.float32)


def _contrast(rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.float64]:
    return np.eye(3) * rng.uniform(1 - config.contrast, 1 + config.contrast)


def _saturation(rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.float64]:
    return saturation_matrix(rng.uniform(1 - config.saturation, 1 + config.saturation))


def _hue(rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.float64]:
    return hue_matrix(np.deg2rad(rng.uniform(-config.hue, config.hue)))


def saturation_matrix(amount: float) -> NDArray[np.float64]:
    """(3, 3): `amount` of the colour and the rest of its grey (ITU-R BT.601 luma)."""
    return amount * np.eye(3) + (1 - amount) * np.tile([0.299, 0.587, 0.114], (3, 1))


def hue_matrix(angle: float) -> NDArray[np.float64]:
    """(3, 3): a rotation by `angle` radians about the luma axis of NTSC's YIQ colour space."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    to_rgb = np.array([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.107, 1.705]])
    cos, sin = np.cos(angle), np.sin(angle)
    return to_rgb @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ to_yiq


def draw_geometry(
    rng: np.random.Generator, size: tuple[int, int], boxes: Boxes, *, config: AugmentConfig
) -> Geometry:
    """A random geometry for a picture of `size` (height, width) with boxes (n, 4)."""
    height, width = size
    canvas, offset = size, (0, 0)
    if rng.random() < config.expand:
        ratio = rng.uniform(1, config.expand_ratio)
        canvas = int(height * ratio), int(width * ratio)
        offset = (
            int(rng.integers(canvas[1] - width + 1)),
            int(rng.integers(canvas[0] - height + 1)),
        )
    crop = (0, 0, canvas[1], canvas[0])
    if config.crop:
        crop = random_crop(rng, canvas, boxes + xyxy(*offset))
    names = config.interpolations
    return Geometry(
        canvas, offset, crop, names[rng.integers(len(names))], bool(rng.random() < config.flip)
    )


def random_crop(
    rng: np.random.Generator, size: tuple[int, int], boxes: Boxes
) -> tuple[int, int, int, int]:
    """A crop (x, y, width, height) of a picture, constrained by its IoU with the boxes (n, 4).

    For each of six least overlaps the first of 50 random crops that reaches it with every
    box becomes a candidate, next to the whole picture; one candidate that keeps the centre of some
    box is picked. All trials are drawn at once: the accepted ones are distributed as if they had
    been drawn one by one, and the search costs one array operation instead of hundreds of calls.
    """
    height, width = size
    minima = np.array([0.1, 0.3, 0.5, 0.7, 0.9]).repeat(_TRIALS)  # and none for the last trials
    number = len(minima) + _TRIALS if len(boxes) else 1
    scale = rng.uniform(0.3, 1, number)
    square = scale**2
    least, most = np.maximum(0.5, square), np.minimum(2, 1 / square)
    root = np.sqrt(least + (most - least) * rng.random(number))  # of the aspect ratio
    heights = (height * scale / root).astype(np.int64).clip(1)
    widths = (width * scale * root).astype(np.int64).clip(1)
    tops = rng.integers((height - heights).clip(1))
    lefts = rng.integers((width - widths).clip(1))
    trials = np.array([lefts, tops, widths, heights]).T
    found = trials[:1]
    if len(boxes):
        enough = _reaching(trials[: len(minima)], boxes, minima)
        first = {trial // _TRIALS: trial for trial in enough[::-1].tolist()}
        found = trials[[*sorted(first.values()), len(minima)]]
    candidates = [(0, 0, width, height)]
    for x, y, crop_width, crop_height in found.tolist():
        candidates.append((x, y, crop_width, crop_height))
    if not len(boxes):
        return candidates[1]
    for choice in rng.permutation(len(candidates)):
        if centre_inside(boxes, candidates[choice]).any():
            return candidates[choice]
    return candidates[0]


def _reaching(
    crops: NDArray[np.int64], boxes: Boxes, minima: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The positions of those crops (m, 4) whose IoU with every box (n, 4) is at least theirs of
    `minima` (m,)."""
    # An IoU is at most the smaller area over the larger one. That rules out nearly all crops of a
    # picture with a small object, and is cheap; the margin is for float32.
    areas, sizes = crops[:, 2] * crops[:, 3] * 1.001, box_area(boxes)
    possible = (areas >= minima * sizes.max()) & (areas * minima <= sizes.min() * 1.003)
    (found,) = possible.nonzero()
    corners = crops[found].astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    return found[pairwise_iou(corners, boxes).min(1) >= minima[found]]


# --- whole transforms -----------------------------------------------------------------------------


def draw_view(
    rng: np.random.Generator,
    picture: tuple[int, int],
    boxes: Boxes,
    *,
    size: tuple[int, int],
    config: AugmentConfig,
    reduce: bool = False,
) -> View:
    """A random view of a picture (height, width) with boxes (n, 4), as training sees it.

    With `reduce` it may ask for the picture at a part of its size.
    """
    colour = draw_colour(rng, config)
    geometry = draw_geometry(rng, picture, boxes, config=config)
    place = find_place(geometry, picture, size, reduce=reduce) if config.fast_resize else None
    return View(size, colour, geometry, place)


def apply_view(sample: Sample, view: View) -> Sample:
    """The sample as the view shows it; its picture is reduced as the view asks, its boxes not."""
    geometry, place = view.geometry, view.place
    if place:
        image, rectangle = paste(sample.image, geometry, view.size, place=place)
    else:
        image, rectangle = cut(sample.image, geometry, view.size)
    boxes, keep = move_boxes(sample.boxes, geometry, view.size, place=place)
    return sample._replace(
        image=image,
        boxes=boxes[keep],
        labels=sample.labels[keep],
        weights=sample.weights[keep],
        colour=view.colour,
        rectangle=rectangle,
    )


def train_transform(
    sample: Sample, size: tuple[int, int], *, rng: np.random.Generator, config: AugmentConfig
) -> Sample:
    """A whole picture's sample as training sees it: `size` (height, width), boxes moved along."""
    picture = sample.image.shape[0], sample.image.shape[1]
    return apply_view(sample, draw_view(rng, picture, sample.boxes, size=size, config=config))


def val_transform(sample: Sample, size: tuple[int, int], *, fit: Fit = "stretch") -> Sample:
    """A sample fitted into `size` (height, width): stretched, or whole on a canvas."""
    old = sample.image.shape[0], sample.image.shape[1]
    left, top, width, height = placement(old, size, fit)
    if fit == "stretch":
        image = resize(sample.image, size, interpolation=interpolation_for(old, size))
    else:
        image = np.zeros((*size, 3), np.uint8)  # the fill comes with the normalisation
        image[top : top + height, left : left + width] = darknet_resize(
            sample.image, (height, width)
        )
    return sample._replace(
        image=image,
        boxes=sample.boxes * xyxy(width / old[1], height / old[0]) + xyxy(left, top),
        rectangle=np.array([left, top, left + width, top + height], np.float32),
    )
