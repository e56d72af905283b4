"""The pictures that an exported file is compared on, and those that tell the ranges for 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.config import build
from triscale.data.index import Index
from triscale.data.open import open_dataset
from triscale.data.options import DataConfig, for_measuring
from triscale.errors import UserError
from triscale.pixels import GREY, Fit, placement
from triscale.weights.contents import WeightsInfo

FEW = 16  # pictures, where there is no mAP to be measured
CALIBRATION = 200  # pictures
SEED = 8


class Pictures(NamedTuple):
    """What an exported file is compared on."""

    images: Sequence[str] | Sequence[NDArray[np.uint8]]
    words: str  # where they are from
    truth: Index | None = None  # with their objects, if the mAP is to be measured
    format: str = ""  # of the data set


def choose_pictures(info: WeightsInfo, *, check: Path | None, measure: bool) -> Pictures:
    """The validation pictures of `check`, else of the data that the weights were trained with, else
    made-up ones; with `measure` all of them, and their objects."""
    section = info.recipe.get("data", {})
    if check:
        config = build(DataConfig, for_measuring(section), where="data")
        # the labels are compared with two networks alike: a broken one harms neither
        config = replace(config, skip_bad=True)
        data = open_dataset(check, config, classes=info.classes, splits=("val",))
        assert data.val
        if measure:
            return Pictures(data.val.paths, str(check), data.val, data.format)
        return Pictures(spread(data.val.paths, FEW), str(check))
    try:
        config = replace(build(DataConfig, section, where="data"), skip_bad=True)
        if config.path:
            val = open_dataset(Path(config.path), config, splits=("val",)).val
            assert val
            return Pictures(spread(val.paths, FEW), config.path)
    except UserError:  # it's no longer there, or not as it was
        pass
    words = "made-up pictures; --check DATA compares on real ones"
    return Pictures(made_up(FEW), words)


def training_pictures(data: Path) -> list[str]:
    """Pictures of the training split of a data set, whatever its classes."""
    train = open_dataset(data, DataConfig(skip_bad=True), splits=("train",)).train
    assert train
    return spread(train.paths, CALIBRATION)


def spread(paths: Sequence[str], number: int) -> list[str]:
    """At most `number` of the paths, evenly over all of them."""
    positions = np.linspace(0, len(paths) - 1, min(number, len(paths)))
    return [paths[int(position)] for position in positions.round()]


def with_bars(
    images: NDArray[np.uint8], sizes: NDArray[np.int64], *, fit: Fit
) -> NDArray[np.uint8]:
    """Fitted pictures (N, H, W, 3) for a graph that doesn't know their sizes (N, 2): the bars of a
    letterbox are painted grey, which the network's input does otherwise."""
    painted = np.full_like(images, round(255 * GREY))
    for image, new, (rows, columns) in zip(images, painted, sizes.tolist(), strict=True):
        left, top, width, height = placement((rows, columns), image.shape[:2], fit)
        inside = slice(top, top + height), slice(left, left + width)
        new[inside] = image[inside]
    return painted


def made_up(number: int) -> list[NDArray[np.uint8]]:
    """Pictures (H, W, 3) of soft blots and sharp boxes, always the same ones."""
    generator = np.random.default_rng(SEED)
    pictures: list[NDArray[np.uint8]] = []
    for _ in range(number):
        height, width = generator.integers(200, 700, 2).tolist()
        blots = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = cv2.resize(blots, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(8):
            x, y = generator.integers(0, (width, height)).tolist()
            w, h = generator.integers(20, 200, 2).tolist()
            colour = generator.integers(0, 256, 3).tolist()
            cv2.rectangle(picture, (x, y), (x + w, y + h), colour, thickness=-1)
        pictures.append(np.asarray(picture, np.uint8))
    return pictures
