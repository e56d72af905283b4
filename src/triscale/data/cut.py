"""Pictures and boxes cut, moved and resized: what is done with a drawn geometry.

There are two ways. `cut` gives the reference's pixels: it resizes the crop together with the fill
that surrounds the picture. `paste` is cheap: it resizes only what is seen of the picture, to whole
pixels of the input, from a picture that may have been decoded at a part of its size.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.boxes import clip_boxes
from triscale.pixels import FILL

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


class Geometry(NamedTuple):
    """How the network input is cut from a picture; integers, in pixels of the canvas."""

    canvas: tuple[int, int]  # height, width of the canvas that the picture lies on
    offset: tuple[int, int]  # x, y of the picture's top left corner on it
    crop: tuple[int, int, int, int]  # x, y, width, height
    interpolation: Interpolation
    flip: bool


class Place(NamedTuple):
    """The visible part of a picture and where it goes, in whole pixels (x1, y1, x2, y2)."""

    reduction: int  # 1, 2, 4 or 8: the picture is taken at this part of its size
    source: tuple[int, int, int, int]  # of the picture so reduced; 0, 0, 0, 0 if nothing is seen
    target: tuple[int, int, int, int]  # of the network input, before a flip


def cut(image: Image, geometry: Geometry, size: tuple[int, int]) -> tuple[Image, Boxes]:
    """The crop, resized to `size` (height, width), and the rectangle (4,) the image covers in it.

    Only the crop is ever built, not the whole canvas.
    """
    x, y, width, height = geometry.crop
    left, top = geometry.offset[0] - x, geometry.offset[1] - y  # of the image, in the crop
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + image.shape[1], width), min(top + image.shape[0], height)
    if x2 <= x1 or y2 <= y1:  # the crop lies beside the image: only fill
        x1 = y1 = x2 = y2 = 0
    patch = _framed(image[y1 - top : y2 - top, x1 - left : x2 - left], (x1, y1), (height, width))
    rectangle = np.array([x1, y1, x2, y2], np.float32)
    rectangle *= xyxy(size[1] / width, size[0] / height)
    out = resize(patch, size, interpolation=geometry.interpolation)
    return _flipped(out, rectangle) if geometry.flip else (out, rectangle)


def find_place(
    geometry: Geometry, picture: tuple[int, int], size: tuple[int, int], *, reduce: bool
) -> Place:
    """`cut` in whole pixels of the input, of a picture (height, width) that may be reduced.

    It is never reduced so far that it would have to grow again.
    """
    x, y, width, height = geometry.crop
    columns = _snap(geometry.offset[0] - x, picture[1], width, size[1])
    rows = _snap(geometry.offset[1] - y, picture[0], height, size[0])
    if columns is None or rows is None:
        return Place(1, (0, 0, 0, 0), (0, 0, 0, 0))
    fits = [f for f in (8, 4, 2) if all((b - a) // f >= d - c for a, b, c, d in (columns, rows))]
    f = fits[0] if fits and reduce else 1
    (x1, x2, left, right), (y1, y2, top, bottom) = columns, rows
    source = x1 // f, y1 // f, -(-x2 // f), -(-y2 // f)
    return Place(f, source, (left, top, right, bottom))


def _snap(start: int, length: int, crop: int, side: int) -> tuple[int, int, int, int] | None:
    """Along one axis the visible pixels of a picture of `length`, at `start` in the crop, and the
    whole pixels of the input of `side` that they become."""
    first, last = max(-start, 0), min(length, crop - start)
    if last <= first:
        return None
    begin = min(round((start + first) * side / crop), side - 1)
    return first, last, begin, max(round((start + last) * side / crop), begin + 1)


def paste(
    image: Image, geometry: Geometry, size: tuple[int, int], *, place: Place
) -> tuple[Image, Boxes]:
    """`cut` of an image that is reduced as `place` says: only what is seen of it is resized."""
    (x1, y1, x2, y2), (left, top, right, bottom) = place.source, place.target
    patch = image[y1:y2, x1:x2]
    if patch.size:
        shape = bottom - top, right - left
        patch = resize(patch, shape, interpolation=geometry.interpolation)
    out, rectangle = _framed(patch, (left, top), size), np.array(place.target, np.float32)
    return _flipped(out, rectangle) if geometry.flip else (out, rectangle)


def _framed(patch: Image, corner: tuple[int, int], size: tuple[int, int]) -> Image:
    """A canvas of `size` (height, width) with the patch at a corner (x, y), or the patch itself."""
    if patch.shape[:2] == size:
        return patch
    if not patch.size:
        patch, corner = np.array([[FILL]], np.uint8), (0, 0)
    (left, top), (height, width) = corner, patch.shape[:2]
    margins = top, size[0] - top - height, left, size[1] - left - width
    # An assignment to a numpy array costs 20 times as much.
    return cv2.copyMakeBorder(patch, *margins, cv2.BORDER_CONSTANT, value=FILL).astype(
        np.uint8, copy=False
    )


def _flipped(image: Image, rectangle: Boxes) -> tuple[Image, Boxes]:
    """Both flipped in place."""
    rectangle[[0, 2]] = image.shape[1] - rectangle[[2, 0]]
    return cv2.flip(image, 1, dst=image).astype(np.uint8, copy=False), rectangle


def move_boxes(
    boxes: Boxes, geometry: Geometry, size: tuple[int, int], *, place: Place | None = None
) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes (n, 4) of the picture in the network input of `size`, and which of them (n,) to keep.

    A box is kept if its centre lies in the crop; it is clipped at the crop's border.
    """
    x, y, width, height = geometry.crop
    shifted = boxes + xyxy(*geometry.offset)
    keep = centre_inside(shifted, geometry.crop)
    if place:
        (x1, y1, x2, y2), (left, top, right, bottom) = place.source, place.target
        scale = (right - left) / max(x2 - x1, 1), (bottom - top) / max(y2 - y1, 1)
        moved = (boxes / place.reduction - xyxy(x1, y1)) * xyxy(*scale) + xyxy(left, top)
        moved = moved.clip(xyxy(left, top), xyxy(right, bottom))
    else:
        moved = clip_boxes(shifted - xyxy(x, y), (height, width))
        moved *= xyxy(size[1] / width, size[0] / height)
    keep &= (moved[:, :2] < moved[:, 2:]).all(1)
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
        image
        if image.shape[:2] == (height, width)
        else cv2.copyMakeBorder(
            image, 0, height - image.shape[0], 0, width - image.shape[1], cv2.BORDER_CONSTANT
        )
        for image in (first, second)
    ]
    # The reference truncates where OpenCV rounds: half a level less is the same, but for a margin
    # that keeps a whole number (the mix of two equal pixels) from falling to the one below.
    return cv2.addWeighted(padded[0], ratio, padded[1], 1 - ratio, -0.499).astype(
        np.uint8, copy=False
    )


def centre_inside(boxes: Boxes, crop: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Which of the boxes (n, 4) have their centre in a crop (x, y, width, height)."""
    x, y, width, height = crop
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centres >= (x, y)) & (centres < (x + width, y + height))
    return inside[:, 0] & inside[:, 1]


def xyxy(x: float, y: float) -> Boxes:
    """A point (x, y) as something to move or scale boxes by."""
    return np.array([x, y, x, y], np.float32)


def darknet_resize(image: Image, size: tuple[int, int]) -> Image:
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
