"""The reference's random decisions one by one, in plain Python: an oracle for the vectorised crop.

They are drawn from a `Dice`, which is either Python's own generator or the recording of a seeded
run of the reference; a recording also checks that it is asked for exactly what the reference asked.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from triscale.data.augment import Geometry, Interpolation, hue_matrix, saturation_matrix

Box = tuple[float, float, float, float]
MINIMA = (0.1, 0.3, 0.5, 0.7, 0.9, -math.inf)
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "linear", "cubic", "area", "lanczos")


class Dice(Protocol):
    """The calls that the crop makes; `choice` is a whole number below n."""

    def uniform(self, low: float, high: float) -> float: ...
    def randrange(self, n: int) -> int: ...
    def choice(self, n: int) -> int: ...


class PythonDice(random.Random):
    """Fresh random numbers."""

    def choice(self, n: int) -> int:  # type: ignore[override]
        return self.randrange(n)


class Recording:
    """The recorded numbers of one seeded run of the reference."""

    def __init__(self, records: Iterable[tuple[str, list[Any], dict[str, Any], Any]]) -> None:
        self._records = iter(records)

    def next(self, *expected: Any) -> Any:
        """The next recorded result, which must have been asked for with the `expected` numbers."""
        _, arguments, _, value = next(self._records)
        assert arguments == pytest.approx(list(expected))
        return value

    def uniform(self, low: float, high: float) -> float:
        return self.next(low, high)

    def randrange(self, n: int) -> int:
        return self.next(n)

    def choice(self, n: int) -> int:
        return self.next(0, n)

    def gate(self) -> bool:
        return self.next(0, 1) > 0.5

    def coin(self) -> bool:
        _, _, _, value = next(self._records)  # numpy.random.choice([False, True], p=...)
        return value

    def is_finished(self) -> bool:
        return next(self._records, None) is None


def crop_one_by_one(
    dice: Dice, size: tuple[int, int], boxes: list[Box]
) -> tuple[int, int, int, int]:
    """The reference's constrained crop (x, y, w, h) of a picture of `size` (height, width)."""
    height, width = size
    if not boxes:
        return _trial(dice, size)
    candidates = [(0, 0, width, height)]
    for minimum in MINIMA:
        for _ in range(50):
            crop = _trial(dice, size)
            if min(_iou(crop, box) for box in boxes) >= minimum:
                candidates.append(crop)
                break
    while candidates:
        crop = candidates.pop(dice.choice(len(candidates)))
        if any(keeps_centre(crop, box) for box in boxes):
            return crop
    return 0, 0, width, height


def _trial(dice: Dice, size: tuple[int, int]) -> tuple[int, int, int, int]:
    scale = dice.uniform(0.3, 1)
    ratio = dice.uniform(max(0.5, scale**2), min(2, 1 / scale**2))
    height = int(size[0] * scale / math.sqrt(ratio))
    width = int(size[1] * scale * math.sqrt(ratio))
    top = dice.randrange(size[0] - height)
    left = dice.randrange(size[1] - width)
    return left, top, width, height


def _iou(crop: tuple[int, int, int, int], box: Box) -> float:
    x, y, w, h = crop
    across = min(x + w, box[2]) - max(x, box[0])
    down = min(y + h, box[3]) - max(y, box[1])
    inter = max(across, 0) * max(down, 0)
    return inter / (w * h + (box[2] - box[0]) * (box[3] - box[1]) - inter)


def keeps_centre(crop: tuple[int, int, int, int], box: Box) -> bool:
    x, y, w, h = crop
    centre_x, centre_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return x <= centre_x < x + w and y <= centre_y < y + h


def recorded_colour(dice: Recording) -> NDArray[np.float64]:
    """The (3, 4) matrix of a recorded colour distortion."""
    matrix = np.eye(3, 4)
    if dice.gate():
        matrix[:, 3] += dice.uniform(-32, 32)
    contrast_first = dice.choice(2)
    for step in ("contrast", "colour", "hue") if contrast_first else ("colour", "hue", "contrast"):
        if not dice.gate():
            continue
        if step == "contrast":
            matrix *= dice.uniform(0.5, 1.5)
        elif step == "colour":
            matrix = saturation_matrix(dice.uniform(0.5, 1.5)) @ matrix
        else:  # gluoncv: an angle of up to 18 pi
            matrix = hue_matrix(dice.uniform(-18, 18) * math.pi) @ matrix
    return matrix


def recorded_geometry(dice: Recording, size: tuple[int, int], boxes: list[Box]) -> Geometry:
    """The geometry that follows a recorded colour distortion."""
    height, width = size
    canvas, x, y = size, 0, 0
    if dice.gate():
        ratio = dice.uniform(1, 4)
        canvas = int(height * ratio), int(width * ratio)
        y, x = dice.next(0, canvas[0] - height), dice.next(0, canvas[1] - width)
    shifted = [(x1 + x, y1 + y, x2 + x, y2 + y) for x1, y1, x2, y2 in boxes]
    crop = crop_one_by_one(dice, canvas, shifted)
    interpolation = INTERPOLATIONS[dice.choice(5)]
    assert not dice.coin()  # the vertical flip is off
    return Geometry(canvas, (x, y), crop, interpolation, dice.coin())
