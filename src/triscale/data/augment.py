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
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.boxes import clip_boxes, pairwise_iou
from triscale.errors import UserError
from triscale.pixels import FILL, Fit, placement
from triscale.types import Sample

Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
_CV2 = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
Boxes = NDArray[np.float32]
Image = NDArray[np.uint8]


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
    random_shape: bool = True  # a new input size every few steps
    shape_min: int = 320
    shape_max: int = 608
    shape_step: int = 32
    shape_interval: int = 10  # steps
    mixup: bool = False
    mixup_alpha: float = 1.5  # ratio ~ Beta(alpha, alpha)
    mixup_off_epochs: int = 20  # no mixup in this many last epochs

    def __post_init__(self) -> None:
        for name in ("colour", "expand", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"augment.{name}: expected a probability, got {getattr(self, name)}"
                )
        for name in ("brightness", "contrast", "saturation", "hue"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"augment.{name}: expected 0 or a positive number, got {getattr(self, name)}"
                )
        if not self.interpolations:
            raise UserError("augment.interpolations: expected at least one, got none")
        if not 32 <= self.shape_min <= self.shape_max or self.shape_step < 1:
            raise UserError(
                "augment.shape_min, shape_max, shape_step: expected 32 <= min <= max and a step of "
                f"at least 1, got {self.shape_min}, {self.shape_max}, {self.shape_step}"
            )
        if self.shape_interval < 1 or self.mixup_off_epochs < 0:
            raise UserError("augment.shape_interval, mixup_off_epochs: expected >= 1 and >= 0")
        if not 0 < self.mixup_alpha < math.inf or not 1 <= self.expand_ratio < math.inf:
            raise UserError("augment.mixup_alpha, expand_ratio: expected > 0 and >= 1, finite")


class Geometry(NamedTuple):
    """How the network input is cut from a picture; integers, in pixels of the canvas."""

    canvas: tuple[int, int]  # height, width of the canvas that the picture lies on
    offset: tuple[int, int]  # x, y of the picture's top left corner on it
    crop: tuple[int, int, int, int]  # x, y, width, height
    interpolation: Interpolation
    flip: bool


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
        crop = random_crop(rng, canvas, boxes + _xyxy(*offset))
    names = config.interpolations
    return Geometry(
        canvas, offset, crop, names[rng.integers(len(names))], bool(rng.random() < config.flip)
    )


def random_crop(
    rng: np.random.Generator, size: tuple[int, int], boxes: Boxes, *, num_trials: int = 50
) -> tuple[int, int, int, int]:
    """A crop (x, y, width, height) of a picture, constrained by its IoU with the boxes (n, 4).

    For each of six least overlaps the first of `num_trials` random crops that reaches it with every
    box becomes a candidate, next to the whole picture; one candidate that keeps the centre of some
    box is picked. All trials are drawn at once: the accepted ones are distributed as if they had
    been drawn one by one, and the search costs one array operation instead of hundreds of calls.
    """
    height, width = size
    minima = np.array([0.1, 0.3, 0.5, 0.7, 0.9, -np.inf])
    shape = (len(minima), num_trials) if len(boxes) else (1, 1)
    scale = rng.uniform(0.3, 1, shape)
    aspect = rng.uniform(np.maximum(0.5, scale**2), np.minimum(2, 1 / scale**2))
    heights = (height * scale / np.sqrt(aspect)).astype(np.int64).clip(1)
    widths = (width * scale * np.sqrt(aspect)).astype(np.int64).clip(1)
    tops = rng.integers((height - heights).clip(1))
    lefts = rng.integers((width - widths).clip(1))
    crops = np.stack([lefts, tops, widths, heights], -1)
    if not len(boxes):
        return _as_crop(crops[0, 0])
    corners = np.stack([lefts, tops, lefts + widths, tops + heights], -1).astype(np.float32)
    iou = pairwise_iou(corners.reshape(-1, 4), boxes).reshape(*shape, -1)  # (6, trials, n)
    accepted = iou.min(-1) >= minima[:, None]
    first = accepted.argmax(1)
    found = [crops[i, first[i]] for i in range(len(minima)) if accepted[i, first[i]]]
    candidates = [(0, 0, width, height), *map(_as_crop, found)]
    for choice in rng.permutation(len(candidates)):
        if _centre_inside(boxes, candidates[choice]).any():
            return candidates[choice]
    return candidates[0]


def _as_crop(row: NDArray[np.int64]) -> tuple[int, int, int, int]:
    x, y, width, height = row.tolist()
    return x, y, width, height


def _centre_inside(boxes: Boxes, crop: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    x, y, width, height = crop
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centres >= (x, y)) & (centres < (x + width, y + height))
    return inside[:, 0] & inside[:, 1]


def _xyxy(x: float, y: float) -> Boxes:
    return np.array([x, y, x, y], np.float32)


# --- applying ------------------------------------------------------------------------------------


def cut(image: Image, geometry: Geometry, size: tuple[int, int]) -> tuple[Image, Boxes]:
    """The crop, resized to `size` (height, width), and the rectangle (4,) the image covers in it.

    Only the crop is ever built, not the whole canvas.
    """
    x, y, width, height = geometry.crop
    left, top = geometry.offset[0] - x, geometry.offset[1] - y  # of the image, in the crop
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + image.shape[1], width), min(top + image.shape[0], height)
    if x2 > x1 and y2 > y1:
        patch = image[y1 - top : y2 - top, x1 - left : x2 - left]
    else:  # the crop lies beside the image: only fill
        x1 = y1 = x2 = y2 = 0
        patch = image[:0, :0]
    if (x1, y1, x2, y2) != (0, 0, width, height):
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = FILL
        canvas[y1:y2, x1:x2] = patch
        patch = canvas
    rectangle = np.array([x1, y1, x2, y2], np.float32)
    rectangle *= _xyxy(size[1] / width, size[0] / height)
    out = resize(patch, size, interpolation=geometry.interpolation)
    if geometry.flip:
        out = cv2.flip(out, 1).astype(np.uint8, copy=False)
        rectangle[[0, 2]] = size[1] - rectangle[[2, 0]]
    return out, rectangle


def move_boxes(
    boxes: Boxes, geometry: Geometry, size: tuple[int, int]
) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes (n, 4) of the picture in the network input of `size`, and which of them (n,) to keep.

    A box is kept if its centre lies in the crop; it is clipped at the crop's border.
    """
    x, y, width, height = geometry.crop
    shifted = boxes + _xyxy(*geometry.offset)
    keep = _centre_inside(shifted, geometry.crop)
    moved = clip_boxes(shifted - _xyxy(x, y), (height, width))
    keep &= (moved[:, :2] < moved[:, 2:]).all(1)
    moved *= _xyxy(size[1] / width, size[0] / height)
    if geometry.flip:
        moved[:, [0, 2]] = size[1] - moved[:, [2, 0]]
    return moved, keep


def resize(image: Image, size: tuple[int, int], *, interpolation: Interpolation) -> Image:
    """An image resized to (height, width)."""
    if image.shape[:2] == size:
        return image.copy()
    return cv2.resize(image, size[::-1], interpolation=_CV2[interpolation]).astype(
        np.uint8, copy=False
    )


def interpolation_for(old: tuple[int, int], new: tuple[int, int]) -> Interpolation:
    """The validation rule: cubic if both sides grow, area if both shrink, else linear."""
    if new[0] > old[0] and new[1] > old[1]:
        return "cubic"
    if new[0] < old[0] and new[1] < old[1]:
        return "area"
    return "linear"


def mix(first: Image, second: Image, ratio: float) -> Image:
    """Mixup (Zhang et al. 2018; for objects 2019, section 3.1) of two images.

    They are aligned at the top left; the canvas takes the larger height and width and is black
    where no image lies.
    """
    height, width = np.maximum(first.shape[:2], second.shape[:2]).tolist()
    padded = [
        cv2.copyMakeBorder(
            image, 0, height - image.shape[0], 0, width - image.shape[1], cv2.BORDER_CONSTANT
        )
        for image in (first, second)
    ]
    # The reference truncates where OpenCV rounds: half a level less is the same, but for a margin
    # that keeps a whole number (the mix of two equal pixels) from falling to the one below.
    return cv2.addWeighted(padded[0], ratio, padded[1], 1 - ratio, -0.499).astype(
        np.uint8, copy=False
    )


def train_transform(
    sample: Sample, size: tuple[int, int], *, rng: np.random.Generator, config: AugmentConfig
) -> Sample:
    """A sample as training sees it: `size` (height, width), boxes moved along."""
    colour = draw_colour(rng, config)
    picture = sample.image.shape[0], sample.image.shape[1]
    geometry = draw_geometry(rng, picture, sample.boxes, config=config)
    image, rectangle = cut(sample.image, geometry, size)
    boxes, keep = move_boxes(sample.boxes, geometry, size)
    return sample._replace(
        image=image,
        boxes=boxes[keep],
        labels=sample.labels[keep],
        weights=sample.weights[keep],
        colour=colour,
        rectangle=rectangle,
    )


def val_transform(sample: Sample, size: tuple[int, int], *, fit: Fit = "stretch") -> Sample:
    """A sample fitted into `size` (height, width): stretched, or whole on a canvas."""
    old = sample.image.shape[0], sample.image.shape[1]
    left, top, width, height = placement(old, size, fit)
    if fit == "stretch":
        image = resize(sample.image, size, interpolation=interpolation_for(old, size))
    else:
        image = np.zeros((*size, 3), np.uint8)  # the fill comes with the normalisation
        image[top : top + height, left : left + width] = _darknet_resize(
            sample.image, (height, width)
        )
    return sample._replace(
        image=image,
        boxes=sample.boxes * _xyxy(width / old[1], height / old[0]) + _xyxy(left, top),
        rectangle=np.array([left, top, left + width, top + height], np.float32),
    )


def _darknet_resize(image: Image, size: tuple[int, int]) -> Image:
    """An image resized to (height, width) as Darknet does: linear between the corner pixels'
    centres, and without smoothing where it shrinks."""
    # Not OpenCV's: its resize puts the centres elsewhere, its remap has 32 steps between pixels.
    resized: NDArray[Any] = image
    for axis, (old, new) in enumerate(zip(image.shape[:2], size, strict=True)):
        at = np.linspace(0, old - 1, new, dtype=np.float32)
        before = at.astype(np.int64).clip(0, max(old - 2, 0))
        part = (at - before).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        after = np.minimum(before + 1, old - 1)
        resized = resized.take(before, axis) * (1 - part) + resized.take(after, axis) * part
    return np.rint(resized).astype(np.uint8)
