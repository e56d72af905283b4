"""Tiny samples, and data sets on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from triscale.data.index import Index, PackedStrings
from triscale.types import Sample


def noise(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make_sample(image: NDArray[np.uint8], rows: ArrayLike) -> Sample:
    """A sample of a picture with rows x1, y1, x2, y2, label."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    height, width = image.shape[:2]
    return Sample(
        image=image,
        boxes=table[:, :4],
        labels=table[:, 4].astype(np.int64),
        weights=np.ones(len(table), np.float32),
        image_id=0,
        original_size=(height, width),
        colour=np.eye(3, 4, dtype=np.float32),
        rectangle=np.array([0, 0, width, height], np.float32),
    )


def write_index(
    folder: Path, pictures: Sequence[NDArray[np.uint8]], objects: Sequence[ArrayLike]
) -> Index:
    """The index of RGB pictures, written as PNG (lossless), with rows x1, y1, x2, y2, label."""
    paths = [folder / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        cv2.imwrite(str(path), picture[..., ::-1])
    tables = [np.reshape(rows, (-1, 5)) for rows in objects]
    rows = np.concatenate(tables)
    return Index(
        name="tiny",
        classes=tuple("abcdefghijklmnopqrst"),
        paths=PackedStrings(map(str, paths)),
        ids=PackedStrings(path.stem for path in paths),
        sizes=np.array([picture.shape[:2] for picture in pictures], np.int32),
        offsets=np.cumsum([0, *map(len, tables)]),
        boxes=rows[:, :4].astype(np.float32),
        labels=rows[:, 4].astype(np.int32),
        difficult=np.zeros(len(rows), np.bool_),
        crowd=np.zeros(len(rows), np.bool_),
        areas=np.zeros(len(rows), np.float32),
    )
