"""A sample as training sees it, with what each object is given to.

A colour stands for a stride and for nothing else, with colours that stay apart for colour-blind
people (Okabe and Ito 2008, "Color Universal Design"); the class is written. Pixels are repeated,
not smoothed: what can't be recognised here, the network can't see either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.draw import Colour, Image
from triscale.lettering import text_patch, writable
from triscale.preview.seen import Seen

SHOWN_SIDE = 1000  # pixels: small inputs are enlarged to about so many
SMALL = 60  # pixels: what is drawn smaller isn't covered by captions, if there is another place
CROWD = 20  # objects: from here on captions are smaller
STRIDE_COLOURS: dict[int, Colour] = {32: (230, 159, 0), 16: (86, 180, 233), 8: (0, 190, 130)}
LOST: Colour = (255, 30, 100)
_BLACK, _PAPER, _INK = (0, 0, 0), (28, 28, 28), (235, 235, 235)
_FONT, _LINE = cv2.FONT_HERSHEY_SIMPLEX, 24


def draw_seen(seen: Seen, classes: Sequence[str]) -> Image:
    """The sample, enlarged by a whole number: cells, anchors, boxes, captions, and a legend."""
    scale = max(1, round(SHOWN_SIDE / max(seen.size)))
    out = seen.image.repeat(scale, 0).repeat(scale, 1)
    pairs, lost, strides = seen.pairs, seen.lost, seen.strides
    # on top what is lost, below it the first ones
    for p in np.lexsort((pairs.first, ~pairs.won)).tolist():
        stride, first = int(pairs.strides[p]), bool(pairs.first[p])
        colour = STRIDE_COLOURS[stride]
        corners = _cell(pairs.cells[p], stride, seen.size, scale)
        if pairs.won[p]:
            _fill(out, corners, colour, 0.5 if first else 0.2)
            _dashed(out, _anchor(seen, p, scale), colour, 2 if first else 1)
        cv2.rectangle(out, *corners, colour if pairs.won[p] else LOST, 2 if first else 1)
        if not pairs.won[p]:
            _cross(out, corners, 2 if first else 1)
    colours = [
        LOST if gone else STRIDE_COLOURS[int(s)] for s, gone in zip(strides, lost, strict=True)
    ]
    corners = [(_point(box[:2], scale), _point(box[2:], scale)) for box in seen.boxes]
    for (low, high), colour in zip(corners, colours, strict=True):
        cv2.rectangle(out, low, high, _BLACK, 4, cv2.LINE_AA)
        cv2.rectangle(out, low, high, colour, 2, cv2.LINE_AA)
    taken = np.zeros(out.shape[:2], np.bool_)
    for low, high in corners:
        width, height = high[0] - low[0], high[1] - low[1]
        if max(width, height) < SMALL:  # a caption would hide it
            _area(taken, low, width, height)[:] = True
    size = 13 if len(corners) < CROWD else 10
    for k, (low, high) in enumerate(corners):
        label = int(seen.labels[k])
        name, font = writable(classes[label], label)
        text = f"{name} s{strides[k]}"
        text += f" x{seen.weights[k]:.2f}" if seen.weights[k] != 1 else ""
        text += " lost" if lost[k] else ""
        _write(
            out, taken, text_patch(text, size, font=font, colour=colours[k], margin=3), low, high
        )
    return np.concatenate([out, _legend(seen, out.shape[1])])


def summary(seen: Seen) -> str:
    """A sample in a line."""
    height, width = seen.size
    parts = [f"{len(seen.labels)} objects"]
    parts += [f"{n} lost" for n in [int(seen.lost.sum())] if n]
    parts += [f"{n} cut off" for n in [seen.cut_off] if n]
    if seen.draw.partner is not None:
        parts.append(f"mixup {seen.draw.ratio:.2f} + {1 - seen.draw.ratio:.2f}")
    parts += ["mosaic"] if seen.draw.tiles else []
    return f"step {seen.step}, {width}x{height}: {', '.join(parts)}"


def _point(xy: NDArray[np.float32], scale: int) -> tuple[int, int]:
    return round(float(xy[0]) * scale), round(float(xy[1]) * scale)


def _cell(
    cell: NDArray[np.int64], stride: int, size: tuple[int, int], scale: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corners of a cell; a map is as large as its input, whether its stride divides that or not."""
    units = [side / math.ceil(side / stride) * scale for side in size[::-1]]
    low, high = (
        tuple(round((int(at) + end) * unit) - end for at, unit in zip(cell, units, strict=True))
        for end in (0, 1)
    )
    return (low[0], low[1]), (high[0], high[1])


def _anchor(seen: Seen, pair: int, scale: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corners of a pair's anchor, which is compared with the object about the object's centre."""
    box = seen.boxes[seen.pairs.objects[pair]]
    centre, half = (box[:2] + box[2:]) / 2, seen.pairs.anchors[pair] / 2
    return _point(centre - half, scale), _point(centre + half, scale)


def _fill(
    image: Image, corners: tuple[tuple[int, int], tuple[int, int]], colour: Colour, part: float
) -> None:
    (x1, y1), (x2, y2) = corners
    patch = image[y1 : y2 + 1, x1 : x2 + 1]
    patch[:] = np.rint(patch * (1 - part) + np.array(colour) * part)


def _cross(image: Image, corners: tuple[tuple[int, int], tuple[int, int]], line: int) -> None:
    (x1, y1), (x2, y2) = corners
    cv2.line(image, (x1, y1), (x2, y2), LOST, line, cv2.LINE_AA)
    cv2.line(image, (x1, y2), (x2, y1), LOST, line, cv2.LINE_AA)


def _dashed(
    image: Image, corners: tuple[tuple[int, int], tuple[int, int]], colour: Colour, line: int
) -> None:
    """A rectangle of dashes with dark gaps, so that it is seen on any ground."""
    (x1, y1), (x2, y2) = corners
    cv2.rectangle(image, (x1, y1), (x2, y2), _BLACK, 1)
    for x in range(x1, x2, 12):
        for y in (y1, y2):
            cv2.line(image, (x, y), (min(x + 6, x2), y), colour, line)
    for y in range(y1, y2, 12):
        for x in (x1, x2):
            cv2.line(image, (x, y), (x, min(y + 6, y2)), colour, line)


def _write(
    image: Image,
    taken: NDArray[np.bool_],
    caption: Image,
    low: tuple[int, int],
    high: tuple[int, int],
) -> None:
    """A caption at a corner of a box, inside the picture, where the fewest others are."""
    (x1, y1), (x2, y2) = low, high
    rows, columns = image.shape[:2]
    caption = caption[:rows, :columns]
    height, width = caption.shape[:2]
    places = [(x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, x2 - width)]
    inside = [(min(max(x, 0), columns - width), min(max(y, 0), rows - height)) for x, y in places]
    at = min(inside, key=lambda at: int(_area(taken, at, width, height).sum()))
    _area(taken, at, width, height)[:] = True
    _area(image, at, width, height)[:] = caption


def _area(array: NDArray[Any], at: tuple[int, int], width: int, height: int) -> NDArray[Any]:
    return array[at[1] : at[1] + height, at[0] : at[0] + width]


def _legend(seen: Seen, width: int) -> Image:
    """Two lines under the picture: what it is, and what the lines mean."""
    strip = np.full((2 * _LINE + 10, width, 3), _PAPER, np.uint8)
    words: list[tuple[str, Colour]] = [("box: object  dashed: its anchor  filled: its cell", _INK)]
    used = np.unique(seen.pairs.strides).tolist()[::-1]
    words += [(f"stride {stride}", STRIDE_COLOURS[stride]) for stride in used]
    words += [] if seen.pairs.won.all() else [("crossed: lost to another object", LOST)]
    size = min(0.5, 0.5 * width / 900)  # the words take up to 880 pixels
    cv2.putText(strip, summary(seen), (8, _LINE - 4), _FONT, size, _INK, 1, cv2.LINE_AA)
    left = 8
    for text, colour in words:
        cv2.putText(strip, text, (left, 2 * _LINE), _FONT, size, colour, 1, cv2.LINE_AA)
        left += cv2.getTextSize(text, _FONT, size, 1)[0][0] + 16
    return strip
