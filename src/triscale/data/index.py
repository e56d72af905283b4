"""The index of a split: every picture and label as packed arrays.

Python objects per image or per box cost hundreds of bytes each and, because reading one touches its
reference count, are copied page by page into every loader process. Here a million images are a
handful of arrays that workers share untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


class PackedStrings(Sequence[str]):
    """An immutable sequence of strings in two arrays: UTF-8 bytes, and where each string ends."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self._ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices: nothing needs them
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True, eq=False)
class Index:
    """The labelled pictures of one split; n images, m objects, in a fixed order.

    `boxes` are xyxy pixels with continuous edges: an object that covers the pixel columns 0..9 has
    x1 = 0 and x2 = 10. With `inclusive` they follow the reference instead (x2 = 9, the last pixel),
    and every measurement adds the missing pixel.
    """

    name: str  # for messages: "2007_trainval"
    classes: tuple[str, ...]
    paths: PackedStrings  # (n) the picture files
    ids: PackedStrings  # (n) short names: "000012", COCO's number
    sizes: NDArray[np.int32]  # (n, 2) height, width
    offsets: NDArray[np.int64]  # (n + 1,) objects of image i are offsets[i]:offsets[i + 1]
    boxes: NDArray[np.float32]  # (m, 4)
    labels: NDArray[np.int32]  # (m,) class index
    difficult: NDArray[np.bool_]  # (m,) VOC: hard to recognise, not counted by the metric
    crowd: NDArray[np.bool_]  # (m,) COCO: the box surrounds a group
    areas: NDArray[np.float32]  # (m,) COCO: area of the mask; else of the box
    inclusive: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def objects(self, image: int) -> slice:
        """The slice of the object arrays that belongs to an image."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def select(self, images: NDArray[np.int64]) -> Index:
        """The index of some images (positions, in the wanted order)."""
        counts = np.diff(self.offsets)[images]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat(self.offsets[images] - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(
            self,
            paths=PackedStrings(self.paths[i] for i in images),
            ids=PackedStrings(self.ids[i] for i in images),
            sizes=self.sizes[images],
            offsets=offsets,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            difficult=self.difficult[rows],
            crowd=self.crowd[rows],
            areas=self.areas[rows],
        )
