"""What samples say together: how many objects lose their cell, which strides work.

From each figure that is bad follows a sentence with the setting that would help.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.anchors import STRIDES, Anchors
from triscale.page import Value
from triscale.preview.seen import Seen

TINY = 8  # pixels: a cell of the finest map
MANY_LOST, MANY_UNLIKE, MANY_TINY, MUCH_FILL = 0.02, 0.2, 0.1, 0.5  # from here on there is advice


class Objects(NamedTuple):
    """All m objects of some samples."""

    labels: NDArray[np.int64]  # (m,)
    lost: NDArray[np.bool_]  # (m,) has no prediction
    unlike: NDArray[np.bool_]  # (m,) no anchor overlaps it by half
    tiny: NDArray[np.bool_]  # (m,) the root of its area is below TINY pixels


def objects_of(samples: Sequence[Seen]) -> Objects:
    """The objects of some samples, at least one."""
    sides = [np.sqrt((s.boxes[:, 2:] - s.boxes[:, :2]).prod(1)) for s in samples]
    return Objects(
        np.concatenate([s.labels for s in samples]),
        np.concatenate([s.lost for s in samples]),
        np.concatenate([s.overlaps for s in samples]) <= 0.5,
        np.concatenate(sides) < TINY,
    )


class Figure(NamedTuple):
    """Something counted or measured, for a terminal and a page."""

    name: str
    value: str
    detail: str = ""


def figures_of(samples: Sequence[Seen]) -> list[Figure]:
    """What is to be known about some samples, at least one."""
    objects, many = objects_of(samples), len(samples)
    total = len(objects.labels)
    before = total + sum(s.cut_off for s in samples)
    sizes = sorted({s.size for s in samples})
    shapes = [f"{width}x{height}" for height, width in (sizes[0], sizes[-1])]
    strides, won = _pairs(samples)
    pairs, given = len(strides), int(won.sum())
    mixed = sum(s.draw.partner is not None for s in samples)
    mosaics = sum(bool(s.draw.tiles) for s in samples)
    return [
        Figure("samples", str(many)),
        Figure("input", " to ".join(dict.fromkeys(shapes))),
        *([_share("mixups", mixed, many)] if mixed else []),
        *([_share("mosaics", mosaics, many)] if mosaics else []),
        Figure("objects a sample", f"{total / many:.1f}"),
        _share("objects cut off", before - total, before),
        _share(f"objects smaller than {TINY} pixels", int(objects.tiny.sum()), total),
        _share("objects that no anchor overlaps by half", int(objects.unlike.sum()), total),
        _share("objects that lose their cell", int(objects.lost.sum()), total),
        Figure("predictions an object gets", f"{given / max(total, 1):.2f}"),
        *([_share("predictions lost to others", pairs - given, pairs)] if pairs > total else []),
        *(
            _share(f"at stride {stride}", int((won & (strides == stride)).sum()), given)
            for stride in np.unique(strides).tolist()[::-1]
        ),
        Figure("fill beside the pictures", f"{np.mean([s.filled for s in samples]):.0%}"),
        _share(
            "padding among the labels",
            sum(s.rows for s in samples) - total,
            sum(s.rows for s in samples),
        ),
    ]


def advice(samples: Sequence[Seen]) -> list[str]:
    """What to do about figures that are bad."""
    objects, said = objects_of(samples), list[str]()
    if not len(objects.labels):
        return ["There is no object in these samples."]
    lost, unlike, tiny = (
        float(each.mean()) for each in (objects.lost, objects.unlike, objects.tiny)
    )
    if lost >= MANY_LOST:
        said.append(
            f"{lost:.1%} of the objects have no prediction of their own: another object has its "
            "centre in the same cell and the same anchor. A larger --size parts them, as does a "
            "network with a finer map; --set assign.ratio=4 offers them other anchors."
        )
    if unlike >= MANY_UNLIKE:
        said.append(
            f"{unlike:.0%} of the objects overlap no anchor by half: "
            "`triscale anchors DATA` finds out whether others fit better."
        )
    if tiny >= MANY_TINY:
        said.append(
            f"{tiny:.0%} of the objects are smaller than {TINY} pixels: a larger --size, or less "
            "of augment.expand, keeps them recognisable."
        )
    if np.mean([s.filled for s in samples]) >= MUCH_FILL:
        said.append(
            "More than half of the input is fill: less of augment.expand or of "
            "augment.expand_ratio leaves more to learn from."
        )
    return said or ["Nothing here asks for other settings."]


def stride_rows(samples: Sequence[Seen], anchors: Anchors) -> list[tuple[Value, ...]]:
    """A row for each stride and anchor: predictions that objects ask for, and that they get."""
    rows: list[tuple[Value, ...]] = []
    strides, won = _pairs(samples)
    shapes = np.concatenate([s.pairs.anchors for s in samples])
    for stride, row in zip(STRIDES, anchors, strict=False):
        for width, height in row:
            # the grid's anchors are float32
            wanted = (strides == stride) & np.isclose(shapes, [width, height]).all(1)
            asked, got = int(wanted.sum()), int((wanted & won).sum())
            rows.append((stride, f"{width:g}x{height:g}", asked, got, asked - got))
    return rows


def class_rows(samples: Sequence[Seen], classes: Sequence[str]) -> list[tuple[Value, ...]]:
    """A row for each class: objects, and how many of them lose, are unlike, are tiny."""
    objects = objects_of(samples)
    rows: list[tuple[Value, ...]] = []
    for label, name in enumerate(classes):
        own = objects.labels == label
        counts = (int((own & each).sum()) for each in objects[1:])
        rows.append((name, int(own.sum()), *counts))
    return rows


def _pairs(samples: Sequence[Seen]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The strides of all pairs (P,), and which of them were won."""
    strides = np.concatenate([s.pairs.strides for s in samples])
    return strides, np.concatenate([s.pairs.won for s in samples])


def _share(name: str, number: int, total: int) -> Figure:
    return Figure(name, f"{number / total:.1%}" if total else "-", f"{number} of {total}")
