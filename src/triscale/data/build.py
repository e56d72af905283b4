"""From what a reader found in the label files to an Index, with one judgement of what is broken.

The readers (VOC, COCO, YOLO) only collect: pictures, objects as their file states them, and one
line for each thing that could not be read. What a usable box and a known class are is decided here,
once for all formats. The reference drops broken boxes in silence or with a log line; here a broken
label is an error, or, with `skip_bad`, a line in the report. All of it is arithmetic on packed
rows: a million pictures have no Python object each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from triscale.data.classes import class_numbers
from triscale.data.index import Index, PackedStrings
from triscale.data.options import DataConfig
from triscale.errors import DataError, UserError

_FAULTS = (
    "",
    "box is not finite",
    "box has zero area",
    "box reaches outside the picture of {width}x{height}",
    "not one of the {classes} classes",
)
_KINDS = ("", "not-finite-box", "empty-box", "outside-box", "unknown-class")
_UNKNOWN = 4  # the last of them
_BLOCK = 1 << 15  # pictures that are judged at once
_FILES = 512  # that a thread looks at before it takes more


class Problem(str):
    """A line about one thing that can't be used as it is; the rest of it is for programs."""

    kind: str  # broken-picture, missing-picture, broken-labels, ...: see doctor/findings.py
    file: str  # what is to be mended
    number: int  # of the object as in Found, in COCO the entry's position in its list; 0: none
    picture: str  # the picture that is concerned, if it is known

    def __new__(
        cls, line: str, kind: str = "", file: object = "", number: int = 0, picture: object = ""
    ) -> Self:
        problem = super().__new__(cls, line)
        problem.kind, problem.file = kind, str(file)
        problem.number, problem.picture = number, str(picture)
        return problem


class Found(NamedTuple):
    """One object as its label file states it."""

    number: int  # what a person finds it by: position, line or id in its file
    name: str  # class, as written
    box: tuple[float, float, float, float]  # as written: see Convention
    difficult: bool = False
    crowd: bool = False
    area: float = math.nan  # nan: the area of the box


class Picture(NamedTuple):
    """One readable picture with its labels."""

    path: str
    id: str
    size: tuple[int, int]  # height, width; from the picture's own header
    source: str  # the file that holds its labels
    objects: list[Found]


class Rows(NamedTuple):
    """The same for many pictures: n of them with m objects, as packed arrays."""

    paths: PackedStrings  # (n)
    ids: PackedStrings  # (n)
    sizes: NDArray[np.int32]  # (n, 2)
    sources: PackedStrings  # (n)
    offsets: NDArray[np.int64]  # (n + 1,) as in Index
    numbers: NDArray[np.int64]  # (m,)
    kinds: NDArray[np.int32]  # (m,) position of the object's name in `names`
    names: tuple[str, ...]
    boxes: NDArray[np.float64]  # (m, 4)
    difficult: NDArray[np.bool_]  # (m,)
    crowd: NDArray[np.bool_]  # (m,)
    areas: NDArray[np.float32]  # (m,)


class Convention(NamedTuple):
    """How a format writes boxes down."""

    item: str  # what `Found.number` counts
    keys: tuple[str, str, str, str]  # the four numbers of `Found.box`
    # (m, 4) as written, (m, 2) height and width -> (m, 4) xyxy pixels with continuous edges
    to_xyxy: Callable[[NDArray[np.float64], NDArray[np.int32]], NDArray[np.float64]]
    min_side: float = 0.0  # a continuous side of at most this means zero area


class Seen(NamedTuple):
    """What a reader looked at on disk besides the annotations; n pictures."""

    paths: PackedStrings  # (n)
    states: NDArray[np.int64]  # (n, 2) of `look`
    folders: dict[str, bool]  # whether they were there


class Scan(NamedTuple):
    """Everything that was found for one split."""

    name: str
    convention: Convention
    pictures: list[Picture] | Rows
    problems: list[Problem]
    names: tuple[str, ...]  # the classes that the files declare, or else mention, in order
    drop_empty: bool = False  # leave out pictures without objects
    seen: Seen | None = None  # all pictures that were looked at, for the cache
    file: str = ""  # where there is one that holds all labels


class Judged(NamedTuple):
    """A split with a judgement of each of its m objects, usable or not."""

    scan: Scan
    rows: Rows
    boxes: NDArray[np.float32]  # (m, 4) xyxy of an Index, cut off at the picture's border
    labels: NDArray[np.int32]  # (m,) class index, -1 for an unknown class
    faults: NDArray[np.int8]  # (m,) 0: usable; else see `fault`
    read: Read

    def fault(self, i: int) -> tuple[str, str, str]:
        """The kind of what is wrong with object `i`, the object, and the fault in words."""
        height, width = self.rows.sizes[self.picture_of(i)].tolist()
        classes, number = len(self.read.index.classes), int(self.faults[i])
        what = _FAULTS[number].format(width=width, height=height, classes=classes)
        values = zip(self.scan.convention.keys, self.rows.boxes[i].tolist(), strict=True)
        box = " ".join(f"{key}={value:.6g}" for key, value in values)
        return _KINDS[number], self.object(i), f"{what}: {box}"

    def picture_of(self, i: int) -> int:
        """The picture that shows object `i`."""
        return int(np.searchsorted(self.rows.offsets, i, "right")) - 1

    def object(self, i: int) -> str:
        """Object `i` as a person finds it in its file."""
        rows = self.rows
        return f"{self.scan.convention.item} {rows.numbers[i]} ('{rows.names[rows.kinds[i]]}')"


@dataclass(frozen=True)
class Read:
    """A split that can be used, and one line for each thing that was left out of it."""

    index: Index
    skipped: tuple[str, ...]
    seen: Seen | None = None


def finish(
    scans: Sequence[Scan], config: DataConfig, *, classes: tuple[str, ...], source: str = ""
) -> list[Read]:
    """The scans as indices that share `classes`; `source` is what people call the data set.

    Raises DataError if anything is broken and `config.skip_bad` is off; UserError for a split
    without pictures.
    """
    reads = list[Read]()
    num_broken = 0
    for scan in scans:  # one judgement at a time: they are large
        judged = judge(scan, classes, inclusive=config.inclusive_boxes)
        reads.append(judged.read)
        num_broken += len(scan.problems) + int(np.count_nonzero(judged.faults))
    problems = [line for read in reads for line in read.skipped]
    if problems and not config.skip_bad:
        splits = " and ".join(scan.name for scan in scans)
        raise DataError(
            f"{num_broken} broken labels or pictures in {splits}; "
            "mend them (`triscale check` writes a copy without them), or skip just those with "
            "--set data.skip_bad=true",
            problems,
        )
    for read in reads:
        if not len(read.index):
            where = f"{source}: " * bool(source)
            raise UserError(f"{where}{read.index.name}: no usable picture in this split")
    return reads


def size_problem(said: tuple[float, float] | None, actual: tuple[int, int]) -> str | None:
    """What to say if a label file's (height, width) isn't the picture's; None if all is well."""
    height, width = actual
    if said is None:
        return f"no picture size; the picture itself is {width}x{height} (it is kept)"
    if said != actual:
        return f"made for a picture of {said[1]:g}x{said[0]:g}, but the picture is {width}x{height}"
    return None


def look(paths: Sequence[str]) -> NDArray[np.int64]:
    """(n, 2) size in bytes and time of the last change in ns of files; -1 where there is none."""
    states = np.full((len(paths), 2), -1, np.int64)

    def block(start: int) -> None:
        for i, path in enumerate(paths[start : start + _FILES], start):
            try:
                found = os.stat(path)
                states[i] = found.st_size, found.st_mtime_ns
            except (OSError, ValueError):  # ValueError: no file can be called so
                pass

    with ThreadPoolExecutor(8) as pool:  # threads hide the latency of network disks
        list(pool.map(block, range(0, len(paths), _FILES)))
    return states


def judge(scan: Scan, classes: tuple[str, ...], *, inclusive: bool) -> Judged:
    """Each object's box, class and fault, and the usable ones with lines about everything else."""
    rows = scan.pictures if isinstance(scan.pictures, Rows) else _pack(scan.pictures)
    numbers = class_numbers(rows.names, classes)
    label_of = np.array([numbers.get(name, -1) for name in rows.names], np.int32)
    labels = label_of[rows.kinds]
    boxes = np.empty(rows.boxes.shape, np.float32)
    areas = rows.areas.copy()
    faults = np.empty(len(labels), np.int8)
    for start in range(0, len(rows.paths), _BLOCK):  # so that the steps in between stay small
        part = slice(start, start + _BLOCK)
        offsets = rows.offsets[start : start + _BLOCK + 1]
        objects = slice(offsets[0], offsets[-1])
        limits = np.repeat(rows.sizes[part], np.diff(offsets), axis=0)
        boxes[objects], box_areas, faults[objects] = _judge_boxes(
            rows.boxes[objects], limits, scan.convention, inclusive=inclusive
        )
        areas[objects] = np.where(np.isnan(areas[objects]), box_areas, areas[objects])
    faults[(faults == 0) & (labels < 0)] = _UNKNOWN
    keep = np.equal(faults, 0)
    kept = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])
    index = Index(
        name=scan.name,
        classes=classes,
        paths=rows.paths,
        ids=rows.ids,
        sizes=rows.sizes,
        offsets=kept[rows.offsets],
        boxes=boxes[keep],
        labels=labels[keep],
        difficult=rows.difficult[keep],
        crowd=rows.crowd[keep],
        areas=areas[keep],
        inclusive=inclusive,
    )
    counts = np.diff(index.offsets)
    if scan.drop_empty and not counts.all():
        index = index.select(np.flatnonzero(counts))
    judged = Judged(scan, rows, boxes, labels, faults, Read(index, (), scan.seen))
    skipped = (*scan.problems, *_problems(judged))
    return judged._replace(read=Read(index, skipped, scan.seen))


def _judge_boxes(
    written: NDArray[np.float64],
    sizes: NDArray[np.int32],
    convention: Convention,
    *,
    inclusive: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    """(m, 4) as written, (m, 2) -> (m, 4) xyxy of an Index, (m,) areas, (m,) faults or 0."""
    finite = np.all(np.isfinite(written), axis=1)
    with np.errstate(over="ignore"):  # what becomes infinite is outside
        edges = convention.to_xyxy(np.where(finite[:, None], written, 0), sizes)
    limits = sizes[:, [1, 0, 1, 0]]
    # One pixel over the border is a 0- or 1-based mix-up or rounding: cut off without a word.
    outside = ((edges < -1) | (edges > limits + 1)).any(1)
    flat = (edges[:, 2:] - edges[:, :2] <= convention.min_side).any(1)
    edges = np.clip(edges, 0, limits)
    boxes = (edges - (0, 0, inclusive, inclusive)).astype(np.float32)  # float32 is what must hold
    vanished = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    faults = np.select([~finite, flat, outside, vanished], [1, 2, 3, 2], 0)
    return boxes, (edges[:, 2:] - edges[:, :2]).prod(1), faults


def _pack(pictures: list[Picture]) -> Rows:
    objects = [found for picture in pictures for found in picture.objects]
    with np.errstate(over="ignore"):
        areas = np.array([o.area for o in objects], np.float64).astype(np.float32)
    kinds = {name: i for i, name in enumerate(dict.fromkeys(o.name for o in objects))}
    return Rows(
        paths=PackedStrings(p.path for p in pictures),
        ids=PackedStrings(p.id for p in pictures),
        sizes=np.array([p.size for p in pictures], np.int32).reshape(-1, 2),
        sources=PackedStrings(p.source for p in pictures),
        offsets=np.cumsum([0, *(len(p.objects) for p in pictures)], dtype=np.int64),
        numbers=np.array([o.number for o in objects], np.int64),
        kinds=np.array([kinds[o.name] for o in objects], np.int32),
        names=tuple(kinds),
        boxes=np.array([o.box for o in objects], np.float64).reshape(-1, 4),
        difficult=np.array([o.difficult for o in objects], np.bool_),
        crowd=np.array([o.crowd for o in objects], np.bool_),
        areas=areas,
    )


def _problems(judged: Judged) -> list[str]:
    """A line for each broken object; the first one of an unknown class speaks for all of it."""
    rows, faults = judged.rows, judged.faults
    strangers = np.flatnonzero(faults == _UNKNOWN)
    _, first, counts = np.unique(rows.kinds[strangers], return_index=True, return_counts=True)
    alike = dict(zip(strangers[first].tolist(), counts.tolist(), strict=True))
    others = np.flatnonzero((faults != 0) & (faults != _UNKNOWN))
    lines: list[str] = []
    for i in sorted([*others.tolist(), *alike]):
        source = rows.sources[int(np.searchsorted(rows.offsets, i, "right")) - 1]
        _, where, what = judged.fault(i)
        more = alike.get(i, 1) - 1
        lines.append(
            f"{source}: {where}: {what}" + f" (and {more} more of this class)" * bool(more)
        )
    return lines
