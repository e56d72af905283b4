"""The index of a split: every picture and label as packed arrays.

Python objects per image or per box cost hundreds of bytes each and, because reading one touches its
reference count, are copied page by page into every loader process. Here a million images are a
handful of arrays that workers share untouched. Arrays that lie in files (see `cache.py`) are shared
by name: a process that isn't forked gets the paths and maps the same pages.
"""

from __future__ import annotations

import fcntl
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from triscale.errors import UserError

_BLOCK = 4096  # strings that exist at once as Python objects while all are visited


class StringPacker:
    """PackedStrings in the making."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._data, self._ends = bytearray(), array("q")

    def add(self, string: str) -> None:
        """Append a string; UnicodeEncodeError if it holds half a surrogate pair."""
        assert string.startswith(self.prefix)
        self._data += string[len(self.prefix) :].encode("utf-8", "surrogateescape")
        self._ends.append(len(self._data))

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The bytes, and where each string ends; no more can be added."""
        return np.asarray(memoryview(self._data)), np.asarray(memoryview(self._ends))

    def packed(self) -> PackedStrings:
        """All strings so far."""
        return PackedStrings.of(*self.arrays(), self.prefix)


class PackedStrings(Sequence[str]):
    """An immutable sequence of strings in two arrays: UTF-8 bytes, and where each string ends.

    All strings must begin with `prefix` (the folder of paths, say), which is kept once.
    """

    def __init__(self, strings: Iterable[str], *, prefix: str = "") -> None:
        packer = StringPacker(prefix)
        for string in strings:
            packer.add(string)
        self.prefix = prefix
        self.data, self.ends = packer.arrays()

    @classmethod
    def of(cls, data: NDArray[np.uint8], ends: NDArray[np.int64], prefix: str) -> PackedStrings:
        """The strings that these arrays hold."""
        packed = cls((), prefix=prefix)
        packed.data, packed.ends = data, ends
        return packed

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1
            ends = [int(self.ends[start - 1]) if start else 0, *self.ends[start:stop].tolist()]
            data = self.data[ends[0] : ends[-1]].tobytes()
            return [
                self.prefix + data[a - ends[0] : b - ends[0]].decode("utf-8", "surrogateescape")
                for a, b in pairwise(ends)
            ]
        position = range(len(self))[index]
        return self[position : position + 1][0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self[start : start + _BLOCK]

    def __reduce__(self) -> tuple[Any, ...]:
        return _strings_from, (_portable(self.data), _portable(self.ends), self.prefix)

    def select(self, positions: NDArray[np.int64]) -> PackedStrings:
        """The strings at some positions, in the wanted order."""
        starts = np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])[: len(self)]
        starts, counts = starts[positions], (self.ends - starts)[positions]
        parts = [np.zeros(0, np.uint8)]
        for i in range(0, len(positions), _BLOCK):  # an int64 for each byte would be too much
            parts.append(self.data[_rows(starts[i : i + _BLOCK], counts[i : i + _BLOCK])[0]])
        return PackedStrings.of(np.concatenate(parts), np.cumsum(counts), self.prefix)


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

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, field.name) for field in fields(self)]
        return _index_from, tuple(_portable(v) if isinstance(v, np.ndarray) else v for v in values)

    def objects(self, image: int) -> slice:
        """The slice of the object arrays that belongs to an image."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def select(self, images: NDArray[np.int64]) -> Index:
        """The index of some images (positions, in the wanted order)."""
        rows, ends = _rows(self.offsets[images], np.diff(self.offsets)[images])
        return replace(
            self,
            paths=self.paths.select(images),
            ids=self.ids.select(images),
            sizes=self.sizes[images],
            offsets=np.concatenate([np.zeros(1, np.int64), ends]),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            difficult=self.difficult[rows],
            crowd=self.crowd[rows],
            areas=self.areas[rows],
        )


class MappedFile(NamedTuple):
    """Names an array's file: what is sent to another process in the array's place."""

    path: str


def map_array(path: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped into memory, to be read only.

    While any process has it mapped, `in_use` says so.
    """
    with path.open("rb") as file:
        # The mapping keeps a duplicate of the descriptor and so, as long as it lives, the lock.
        fcntl.flock(file, fcntl.LOCK_SH)
        np.lib.format.read_magic(file)
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        if columns_first or dtype.hasobject:
            raise ValueError(f"{path}: expected a plain array")
        return np.asarray(np.memmap(file, dtype, "r", file.tell(), shape))


def in_use(path: Path) -> bool:
    """Whether some process has the array of this file mapped."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _portable(array: NDArray[Any]) -> NDArray[Any] | MappedFile:
    """What to send to another process: the file that holds just this array, or else the array."""
    mapped = array.base  # a part of the array would have the whole array as its base
    if isinstance(mapped, np.memmap) and mapped.filename:
        return MappedFile(str(mapped.filename))
    return array


def _received(sent: Any) -> Any:
    if not isinstance(sent, MappedFile):
        return sent
    try:
        return map_array(Path(sent.path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{sent.path}: this file of the opened data set is gone or was replaced ({error}); "
            "start the program again"
        ) from error


def _strings_from(data: Any, ends: Any, prefix: str) -> PackedStrings:
    return PackedStrings.of(_received(data), _received(ends), prefix)


def _index_from(*values: Any) -> Index:
    return Index(*map(_received, values))


def _rows(
    starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions start, start + 1, ... of each group laid end to end, and where each ends."""
    ends = np.cumsum(counts, dtype=np.int64)
    rows = np.arange(counts.sum(), dtype=np.int64)
    rows += np.repeat(starts - ends + counts, counts)
    return rows, ends
