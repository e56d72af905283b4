"""Why detections are wrong, and what each kind of mistake costs in AP.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020 (arXiv
2008.08115), section 2. A false detection has one kind, by its IoU with the objects of its picture:

    location    0.1 to 0.5 with an object of its class
    class       0.5 or more with an object of another class
    duplicate   0.5 or more with an object of its class, which a better detection found
    background  below 0.1 with every object
    both        what is left: 0.1 to 0.5 with an object of another class

An object is missed if nothing found it and no mistake of class or location is about it. The cost of
a kind is what the mean AP gains when an oracle mends all mistakes of this kind and no others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.metrics.matching import Matches
from triscale.metrics.voc import (
    PackedDetections,
    PackedTruth,
    average_precisions,
    by_class_best_first,
)

KINDS = ("class", "location", "both", "duplicate", "background", "missed")
_CLASS, _LOCATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(6)
_BACKGROUND_IOU = 0.1  # TIDE's t_b; its t_f is the IoU of the matches


class Errors(NamedTuple):
    """The six kinds; what d_ap holds is in 0..1, and AP is the mean over the classes."""

    kinds: tuple[str, ...]  # names, in the order of the arrays: KINDS
    counts: NDArray[np.int64]  # (6,) over all scores
    ap: float  # mean AP as it is; nan without objects
    d_ap: NDArray[np.float64]  # (6,) what the mean AP gains once this kind alone is mended
    fp_d_ap: float  # the same without any false detection
    fn_d_ap: float  # the same without any missed object
    kind_of: NDArray[np.int8]  # (D,) place in `kinds`; -1: correct or ignored
    missed: NDArray[np.intp]  # (M',) rows of the truth that are counted as missed


def error_kinds(
    detections: PackedDetections,
    truth: PackedTruth,
    matches: Matches,
    *,
    num_classes: int,
    use_07: bool = False,
) -> Errors:
    """The kind of each mistake and the costs; `use_07`: of the 11-point AP, else of the area.

    Mended means: of the mistakes of class (or location) about an object that nothing found, the one
    with the best score becomes correct, and the others of this kind go; the other false detections
    go; missed objects don't count as objects any more. A class that is left without any object has
    AP 1 if nothing is found of it, else 0.
    """
    kind_of = _kinds(matches)
    missing = matches.counted & (matches.finder < 0)
    target = np.where(kind_of == _CLASS, matches.other, matches.own)
    target[(kind_of != _CLASS) & (kind_of != _LOCATION)] = -1
    missed = missing.copy()
    missed[target[target >= 0]] = False

    order = by_class_best_first(detections, num_classes)
    totals = np.bincount(truth.labels[matches.counted], minlength=num_classes)

    def mean_ap(
        keep: NDArray[np.bool_],  # (D,)
        *,
        hits: NDArray[np.bool_] = matches.correct,  # (D,)
        relabelled: NDArray[np.integer] | None = None,  # (D,)
        gone: NDArray[np.bool_] | None = None,  # (G,) objects that don't count any more
    ) -> float:
        labels = detections.labels if relabelled is None else relabelled
        in_order = order
        if relabelled is not None:
            in_order = by_class_best_first(detections._replace(labels=labels), num_classes)
        left = totals
        if gone is not None:
            left = totals - np.bincount(truth.labels[gone], minlength=num_classes)
        used = in_order[keep[in_order]]
        per_class = average_precisions(hits[used], labels[used], totals=left, use_07=use_07)
        empty = np.bincount(labels[used], minlength=num_classes) == 0
        per_class = np.where(left > 0, per_class, empty.astype(np.float64))
        return float(np.mean(per_class[totals > 0])) if totals.any() else float("nan")

    seen = ~matches.ignored
    means = np.empty(6)
    for kind in (_CLASS, _LOCATION):
        mine = matches.order[kind_of[matches.order] == kind]  # best first
        mine = mine[missing[target[mine]]]
        _, first = np.unique(target[mine], return_index=True)
        mended = np.zeros(len(kind_of), np.bool_)
        mended[mine[first]] = True
        labels = None
        if kind == _CLASS:
            labels = detections.labels.copy()
            labels[mended] = truth.labels[target[mended]]
        means[kind] = mean_ap(
            seen & ((kind_of != kind) | mended), hits=matches.correct | mended, relabelled=labels
        )
    for kind in (_BOTH, _DUPLICATE, _BACKGROUND):
        means[kind] = mean_ap(seen & (kind_of != kind))
    means[_MISSED] = mean_ap(seen, gone=missed)

    ap = mean_ap(seen)
    counts = np.bincount(kind_of[kind_of >= 0], minlength=6)
    counts[_MISSED] = np.count_nonzero(missed)
    return Errors(
        kinds=KINDS,
        counts=counts,
        ap=ap,
        d_ap=means - ap,
        fp_d_ap=mean_ap(matches.correct) - ap,
        fn_d_ap=mean_ap(seen, gone=missing) - ap,
        kind_of=kind_of,
        missed=np.flatnonzero(missed),
    )


def _kinds(matches: Matches) -> NDArray[np.int8]:
    """The kind of each detection (D,), -1 if it isn't false."""
    foreground = matches.iou_threshold
    own, other = matches.own_iou, matches.other_iou
    kinds = np.select(
        [
            ~matches.false,
            (own >= _BACKGROUND_IOU) & (own < foreground),
            other >= foreground,
            own >= foreground,
            np.maximum(own, other) < _BACKGROUND_IOU,
        ],
        [-1, _LOCATION, _CLASS, _DUPLICATE, _BACKGROUND],
        default=_BOTH,
    )
    return kinds.astype(np.int8)
