"""The pictures that a process decoded last.

A mosaic needs four pictures where another sample needs one, and decoding is most of the work. The
plan takes a mosaic's pictures from its neighbours in the order of the run, so a process that keeps
the last few decodes each about once. What isn't found is decoded again, to the same pixels.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray


class RecentPictures:
    """Decoded pictures by position in the index and reduction: the latest, in `limit` bytes."""

    def __init__(self, *, limit: int = 64 << 20) -> None:
        self._limit, self._bytes = limit, 0
        self._pictures: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()

    def get(self, image: int, *, reduction: int) -> NDArray[np.uint8] | None:
        """The pixels of an image, not to be written to; None if they aren't here."""
        if (pixels := self._pictures.get((image, reduction))) is not None:
            self._pictures.move_to_end((image, reduction))
        return pixels

    def put(self, image: int, pixels: NDArray[np.uint8], *, reduction: int) -> None:
        """Keep the pixels of an image that isn't here; those that rested longest make room."""
        assert (image, reduction) not in self._pictures
        self._pictures[image, reduction] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._pictures.popitem(last=False)[1].nbytes
