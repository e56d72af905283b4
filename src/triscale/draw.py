"""Boxes on pictures: colours that stay apart, captions that can be read.

The colours are those of Okabe and Ito, "Color Universal Design" (2008), which people of all kinds
of colour vision tell apart. A class keeps its colour whatever else there is in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.files import write_atomically
from triscale.lettering import text_patch, writable

if TYPE_CHECKING:
    from triscale.detections import Detections

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
# Orange, sky blue, bluish green, yellow, blue, vermillion, reddish purple; black is left out.
_OKABE_ITO: tuple[Colour, ...] = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)


def draw_detections(
    image: Image,
    detections: Detections,
    *,
    classes: Sequence[str] = (),
    min_score: float = 0.0,
) -> Image:
    """A copy of an RGB image (H, W, 3) with boxes, class names and scores.

    Lines and letters grow with the picture. Of captions that collide the best detection's has the
    first choice of place and lies on top.
    """
    out = image.copy()
    shown = [k for k, score in enumerate(detections.scores.tolist()) if score >= min_score]
    labels = detections.labels.tolist()
    for k in reversed(shown):  # the best last, on top
        _outline(out, detections.boxes[k], colour_of(labels[k]), _line_width(image))
    captions: list[_Caption] = []
    for k in shown:
        text = _caption_text(labels[k], classes, float(detections.scores[k]), image)
        captions.append(_placed(text, detections.boxes[k], image, captions))
    for left, top, patch in reversed(captions):
        out[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return out


def draw_truth(image: Image, boxes: NDArray[np.float32]) -> Image:
    """A copy of an RGB image with ground-truth boxes (n, 4), thin and white."""
    out = image.copy()
    for box in boxes:
        _outline(out, box, _WHITE, max(1, _line_width(image) // 2))
    return out


@lru_cache
def colour_of(label: int) -> Colour:
    """The colour of a class: seven hues; the next seven are darker, the next lighter, then again.

    Lightness is what every eye sees, so that a hue's three classes stay apart too.
    """
    shade, hue = divmod(label, len(_OKABE_ITO))
    towards, share = ((0, 0.0), (0, 0.45), (255, 0.55))[shade % 3]
    red, green, blue = (round(c + (towards - c) * share) for c in _OKABE_ITO[hue])
    return red, green, blue


def write_picture(path: Path, image: Image) -> None:
    """Write an RGB image as JPEG or PNG, by the suffix, atomically."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix.lower() in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    assert done, path
    write_atomically(path, data.tobytes())


def contact_sheet(images: list[Image], *, columns: int, width: int = 360) -> Image:
    """Images side by side on one sheet, each scaled to `width` pixels."""
    scaled = [cv2.resize(i, (width, round(i.shape[0] * width / i.shape[1]))) for i in images]
    height = max(i.shape[0] for i in scaled)
    rows = -(-len(scaled) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for k, image in enumerate(scaled):
        y, x = k // columns * height, k % columns * width
        sheet[y : y + image.shape[0], x : x + width] = image
    return sheet


class _Caption(NamedTuple):
    """A piece of text and where it goes."""

    left: int
    top: int
    patch: Image


def _side(image: Image) -> float:
    """The side of a square as large as the picture."""
    return math.sqrt(image.shape[0] * image.shape[1])


def _line_width(image: Image) -> int:
    return round(1 + _side(image) / 450)


def _outline(image: Image, box: NDArray[np.float32], colour: Colour, line: int) -> None:
    """Draw one box, with a dark rim that keeps it visible on its own colour."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.round(box).astype(int).clip(0, [width - 1, height - 1] * 2).tolist()
    rim = max(1, line // 3)
    _frame(image, (x1 - rim, y1 - rim, x2 + rim, y2 + rim), line + 2 * rim, _BLACK)
    _frame(image, (x1, y1, x2, y2), line, colour)


def _frame(image: Image, corners: tuple[int, int, int, int], line: int, colour: Colour) -> None:
    """Four bars, inwards from the pixels at the corners, which belong to them."""
    x1, y1, x2, y2 = corners
    across, down = min(line, x2 - x1 + 1) - 1, min(line, y2 - y1 + 1) - 1
    cv2.rectangle(image, (x1, y1), (x2, y1 + down), colour, cv2.FILLED)
    cv2.rectangle(image, (x1, y2 - down), (x2, y2), colour, cv2.FILLED)
    cv2.rectangle(image, (x1, y1), (x1 + across, y2), colour, cv2.FILLED)
    cv2.rectangle(image, (x2 - across, y1), (x2, y2), colour, cv2.FILLED)


def _caption_text(label: int, classes: Sequence[str], score: float, image: Image) -> Image:
    """Name and score on the class's colour, as much of them as the picture is wide."""
    name = classes[label] if label < len(classes) else f"#{label}"
    name, font = writable(name, label)
    size = max(10, round(4 + 0.014 * _side(image)))
    height, width = image.shape[:2]
    patch = _patch(f"{name} {score:.2f}", size, font, label)
    for end in range(len(name), -1, -1):
        if patch.shape[1] <= width:
            break
        patch = _patch(name if end == len(name) else f"{name[:end]}…", size, font, label)
    return patch[:height, :width]


def _patch(text: str, size: int, font: Path, label: int) -> Image:
    return text_patch(text, size, font=font, colour=colour_of(label), margin=max(1, size // 5))


def _placed(
    patch: Image, box: NDArray[np.float32], image: Image, taken: list[_Caption]
) -> _Caption:
    """The caption at a corner of its box, inside the picture and on no other if possible."""
    rows, columns = patch.shape[:2]
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.round(box).astype(int).tolist()
    line = _line_width(image)
    left, right = x1 - 1, x2 + 2 - columns
    above, top, below, bottom = y1 - rows, y1 + line, y2 + 1, y2 - line - rows + 1
    # Where there is no room above the box, inside it is better than on its edge.
    heights = (above, top, below, bottom) if above >= 0 else (top, below, bottom, above)
    best, least = (0, 0), math.inf
    for y in heights:
        for x in (left, right):
            place = max(0, min(x, width - columns)), max(0, min(y, height - rows))
            hidden = sum(_shared(*place, patch, other) for other in taken)
            if hidden < least:
                best, least = place, hidden
            if not hidden:
                return _Caption(*place, patch)
    return _Caption(*best, patch)


def _shared(left: int, top: int, patch: Image, other: _Caption) -> int:
    """How many pixels a caption there would share with another."""
    (height, width), (rows, columns) = patch.shape[:2], other.patch.shape[:2]
    across = min(left + width, other.left + columns) - max(left, other.left)
    down = min(top + height, other.top + rows) - max(top, other.top)
    return across * down if across > 0 and down > 0 else 0
