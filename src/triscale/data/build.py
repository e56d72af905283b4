"""From what a reader found in the label files to an Index, with one judgement of what is broken.

The readers (VOC, COCO, YOLO) only collect: pictures, objects as their file states them, and one
line for each thing that could not be read. What a usable box and a known class are is decided here,
once for all formats. The reference drops broken boxes in silence or with a log line; here a broken
label is an error, or, with `skip_bad`, a line in the report.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.data.classes import class_numbers
from triscale.data.index import Index, PackedStrings
from triscale.data.options import DataConfig
from triscale.errors import DataError, UserError

_UNKNOWN = 4  # the fault of an object of no known class


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


class Convention(NamedTuple):
    """How a format writes boxes down."""

    item: str  # what `Found.number` counts
    keys: tuple[str, str, str, str]  # the four numbers of `Found.box`
    # (m, 4) as written, (m, 2) height and width -> (m, 4) xyxy pixels with continuous edges
    to_xyxy: Callable[[NDArray[np.float64], NDArray[np.int32]], NDArray[np.float64]]
    min_side: float = 0.0  # a continuous side of at most this means zero area


class Scan(NamedTuple):
    """Everything that was found for one split."""

    name: str
    convention: Convention
    pictures: list[Picture]
    problems: list[str]
    names: tuple[str, ...]  # the classes that the files declare, or else mention, in order
    drop_empty: bool = False  # leave out pictures without objects


@dataclass(frozen=True)
class Read:
    """A split that can be used, and one line for each thing that was left out of it."""

    index: Index
    skipped: tuple[str, ...]


def finish(scans: Sequence[Scan], config: DataConfig, *, classes: tuple[str, ...]) -> list[Read]:
    """The scans as indices that share `classes`.

    Raises DataError if anything is broken and `config.skip_bad` is off; UserError for a split
    without pictures.
    """
    packed = [_pack(scan, classes, config.inclusive_boxes) for scan in scans]
    reads = [read for read, _ in packed]
    problems = [line for read in reads for line in read.skipped]
    if problems and not config.skip_bad:
        splits = " and ".join(scan.name for scan in scans)
        raise DataError(
            f"{sum(broken for _, broken in packed)} broken labels or pictures in {splits}; "
            "mend them, or skip just those with --set data.skip_bad=true",
            problems,
        )
    for read in reads:
        if not len(read.index):
            raise UserError(f"{read.index.name}: no usable picture in this split")
    return reads


def size_problem(said: tuple[float, float] | None, actual: tuple[int, int]) -> str | None:
    """What to say if a label file's (height, width) isn't the picture's; None if all is well."""
    height, width = actual
    if said is None:
        return f"no picture size; the picture itself is {width}x{height} (it is kept)"
    if said != actual:
        return f"made for a picture of {said[1]:g}x{said[0]:g}, but the picture is {width}x{height}"
    return None


def _pack(scan: Scan, classes: tuple[str, ...], inclusive: bool) -> tuple[Read, int]:
    """The usable objects with lines about everything else, and how much that is."""
    pictures, convention = scan.pictures, scan.convention
    objects = [found for picture in pictures for found in picture.objects]
    owner = np.repeat(np.arange(len(pictures)), [len(p.objects) for p in pictures])
    sizes = np.array([p.size for p in pictures], np.int32).reshape(-1, 2)
    written = np.array([o.box for o in objects], np.float64).reshape(-1, 4)
    numbers = class_numbers({o.name for o in objects}, classes)
    labels = np.array([numbers.get(o.name, -1) for o in objects], np.int32)

    finite = np.all(np.isfinite(written), axis=1)
    edges = convention.to_xyxy(np.where(finite[:, None], written, 0), sizes[owner])  # (m, 4)
    limits = sizes[owner][:, [1, 0, 1, 0]]
    # One pixel over the border is a 0- or 1-based mix-up or rounding: cut off without a word.
    outside = ((edges < -1) | (edges > limits + 1)).any(1)
    flat = (edges[:, 2:] - edges[:, :2] <= convention.min_side).any(1)
    edges = np.clip(edges, 0, limits)
    areas = np.array([o.area for o in objects], np.float32)
    areas = np.where(np.isnan(areas), (edges[:, 2:] - edges[:, :2]).prod(1), areas)
    boxes = (edges - (0, 0, inclusive, inclusive)).astype(np.float32)  # float32 is what must hold
    vanished = (boxes[:, 2:] <= boxes[:, :2]).any(1)

    faults = np.select([~finite, flat, outside, vanished, labels < 0], [1, 2, 3, 2, _UNKNOWN], 0)
    problems = list(scan.problems)
    strangers = Counter(objects[i].name for i in np.flatnonzero(faults == _UNKNOWN))
    for i in np.flatnonzero(faults):
        alike = strangers.pop(objects[i].name, 0) if faults[i] == _UNKNOWN else 1
        if not alike:  # the first of an unknown class has spoken for all of it
            continue
        line = _problem(pictures[owner[i]], objects[i], int(faults[i]), convention, len(classes))
        problems.append(line + (f" (and {alike - 1} more of this class)" if alike > 1 else ""))

    keep = np.equal(faults, 0)
    counts = np.bincount(owner[keep], minlength=len(pictures))
    index = Index(
        name=scan.name,
        classes=classes,
        paths=PackedStrings(p.path for p in pictures),
        ids=PackedStrings(p.id for p in pictures),
        sizes=sizes,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes[keep],
        labels=labels[keep],
        difficult=np.array([o.difficult for o in objects], np.bool_)[keep],
        crowd=np.array([o.crowd for o in objects], np.bool_)[keep],
        areas=areas[keep].astype(np.float32),
        inclusive=inclusive,
    )
    if scan.drop_empty and not counts.all():
        index = index.select(np.flatnonzero(counts))
    return Read(index, tuple(problems)), len(scan.problems) + int(np.count_nonzero(faults))


def _problem(
    picture: Picture, found: Found, fault: int, convention: Convention, num_classes: int
) -> str:
    height, width = picture.size
    what = (
        "",
        "box is not finite",
        "box has zero area",
        f"box reaches outside the picture of {width}x{height}",
        f"not one of the {num_classes} classes",
    )[fault]
    where = f"{picture.source}: {convention.item} {found.number} ('{found.name}')"
    box = " ".join(f"{k}={v:.6g}" for k, v in zip(convention.keys, found.box, strict=True))
    return f"{where}: {what}: {box}"
