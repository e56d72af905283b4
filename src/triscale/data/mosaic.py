"""Mosaics: four pictures around a point of the network input, each cut to fill its quarter.

Bochkovskiy et al. 2020 (YOLOv4), section 3.3: one sample shows the objects of four pictures, out of
their usual surroundings. There the pictures lie on a larger canvas, parts of which stay empty. Here
each quarter is one crop of its picture, resized once to its final pixels: nothing larger than the
input is built, and none of the input is wasted on fill.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triscale.data.augment import AugmentConfig, View, draw_colour
from triscale.data.cut import Boxes, Geometry, find_place, xyxy
from triscale.types import Sample

_NEAREST_BORDER = 0.25  # of a side: the least distance of the common corner from the border
_SMALLEST_BOX = 2  # pixels; what is left of a smaller object can't be learned from


def draw_tiles(
    rng: np.random.Generator,
    pictures: Sequence[tuple[int, int]],
    boxes: Sequence[Boxes],
    *,
    size: tuple[int, int],
    config: AugmentConfig,
) -> list[View]:
    """Views of four pictures (height, width) with boxes (n, 4) each, for the quarters of an input
    of `size`, row by row.

    All have one colour and one zoom; at 1 a picture would just fit into the input, stretched as in
    validation.
    """
    colour = draw_colour(rng, config)
    y, x = (round(s * rng.uniform(_NEAREST_BORDER, 1 - _NEAREST_BORDER)) for s in size)
    zoom = rng.uniform(*config.mosaic_scale)
    views: list[View] = []
    quarters = [(height, width) for height in (y, size[0] - y) for width in (x, size[1] - x)]
    for picture, objects, quarter in zip(pictures, boxes, quarters, strict=True):
        scales = zoom * size[0] / picture[0], zoom * size[1] / picture[1]
        geometry = _draw_tile(rng, picture, objects, quarter=quarter, scales=scales, config=config)
        # without borders `cut` and `paste` differ in the reduced decoding only
        place = find_place(geometry, picture, quarter, reduce=True) if config.fast_resize else None
        views.append(View(quarter, colour, geometry, place))
    return views


def _draw_tile(
    rng: np.random.Generator,
    picture: tuple[int, int],
    boxes: Boxes,
    *,
    quarter: tuple[int, int],
    scales: tuple[float, float],
    config: AugmentConfig,
) -> Geometry:
    """A random crop that fills `quarter` when its height and width grow by `scales`.

    A picture that is too small for that is shown larger. One object, drawn first, keeps its centre:
    else half of the quarters would be empty where pictures have few objects.
    """
    rows = list(zip(quarter, picture, scales, strict=True))
    larger = max(1.0, *(q / (p * scale) for q, p, scale in rows))
    sides = [min(max(round(q / (scale * larger)), 1), p) for q, p, scale in rows]
    first, last = [0, 0], [p - s for p, s in zip(picture, sides, strict=True)]
    if len(boxes):
        x1, y1, x2, y2 = boxes[rng.integers(len(boxes))].tolist()
        for axis, centre in enumerate((int((y1 + y2) / 2), int((x1 + x2) / 2))):
            first[axis] = min(max(centre - sides[axis] + 1, 0), last[axis])
            last[axis] = min(max(centre, 0), last[axis])
    y, x = (int(rng.integers(a, b + 1)) for a, b in zip(first, last, strict=True))
    names = config.interpolations
    return Geometry(
        picture,
        (0, 0),
        (x, y, sides[1], sides[0]),
        names[rng.integers(len(names))],
        bool(rng.random() < config.flip),
    )


def join_tiles(tiles: Sequence[Sample]) -> Sample:
    """Four tiles, row by row, as one sample that counts as the first one's.

    A tile's boxes are those whose centre it shows, clipped. Boxes that have become too small are
    dropped here.
    """
    (y, x), (bottom, right) = tiles[0].image.shape[:2], tiles[3].image.shape[:2]
    size = y + bottom, x + right
    image = np.empty((*size, 3), np.uint8)
    moved: list[NDArray[np.float32]] = []
    for tile, (left, top) in zip(tiles, ((0, 0), (x, 0), (0, y), (x, y)), strict=True):
        height, width = tile.image.shape[:2]
        image[top : top + height, left : left + width] = tile.image
        moved.append(tile.boxes + xyxy(left, top))
    boxes = np.concatenate(moved)
    keep = (boxes[:, 2:] - boxes[:, :2] >= _SMALLEST_BOX).all(1)
    return tiles[0]._replace(
        image=image,
        boxes=boxes[keep],
        labels=np.concatenate([tile.labels for tile in tiles])[keep],
        weights=np.concatenate([tile.weights for tile in tiles])[keep],
        rectangle=np.array([0, 0, size[1], size[0]], np.float32),
    )
