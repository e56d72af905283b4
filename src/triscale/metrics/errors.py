"""Why detections are wrong, and what each kind of mistake costs in AP.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020 (arXiv
2008.08115), section 2. A false detection has one kind, the first that fits its IoU with the objects
of its picture:

    location    0.1 to 0.5 with an object of its class
    class       0.5 or more with an object of another class
    duplicate   0.5 or more with an object of its class, which a better detection found
    background  below 0.1 with every object
    both        what is left: 0.1 to 0.5 with an object of another class

An object is missed if nothing found it and no mistake of class or location is about it. The cost of
a kind is what the mean AP gains when an oracle mends all mistakes of this kind and no others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
    about: NDArray[np.intp]  # (D,) the object that the mistake is about, or -1
    missed: NDArray[np.intp]  # (M',) rows of the truth that are counted as missed


def error_kinds(
    detections: PackedDetections,
    truth: PackedTruth,
    matches: Matches,
    *,
    num_classes: int,
) -> Errors:
    """The kind of each mistake and the costs, those in the AP that is an area (VOC2010 on).

    Mended means: of the mistakes of class (or location) about an object that nothing found, the one
    with the best score becomes correct, and the others of this kind go; the other false detections
    go; missed objects don't count as objects any more. A class that is left without any object has
    AP 1 if nothing is found of it, else 0.
    """
    kind_of = _kinds(matches)
    missing = matches.missing()
    about = np.where((kind_of == _CLASS) | (kind_of == _BOTH), matches.other, matches.own)
    about[(kind_of == -1) | (kind_of == _BACKGROUND)] = -1
    missed = missing.copy()
    missed[about[_explains(kind_of)]] = False

    order = by_class_best_first(detections, num_classes)
    totals = np.bincount(truth.labels[matches.counted], minlength=num_classes)

    def mean_ap(
        keep: NDArray[np.bool_],  # (D,)
        *,
        hits: NDArray[np.bool_] = matches.correct,  # (D,)
        labels: NDArray[np.integer[Any]] = detections.labels,  # (D,)
        objects: NDArray[np.bool_] = matches.counted,  # (G,)
    ) -> float:
        if not totals.any():
            return float("nan")
        in_order = order
        if labels is not detections.labels:
            in_order = by_class_best_first(detections._replace(labels=labels), num_classes)
        used = in_order[keep[in_order]]
        left = np.bincount(truth.labels[objects], minlength=num_classes)
        per_class = average_precisions(hits[used], labels[used], totals=left)
        empty = np.bincount(labels[used], minlength=num_classes) == 0
        return float(np.mean(np.where(left > 0, per_class, empty)[totals > 0]))

    seen = ~matches.ignored
    means = np.empty(6)
    for kind in (_CLASS, _LOCATION):
        mine = matches.order[kind_of[matches.order] == kind]  # best first
        mine = mine[missing[about[mine]]]
        _, first = np.unique(about[mine], return_index=True)
        mended = np.zeros(len(kind_of), np.bool_)
        mended[mine[first]] = True
        labels = detections.labels
        if kind == _CLASS:
            labels = labels.copy()
            labels[mended] = truth.labels[about[mended]]
        means[kind] = mean_ap(
            seen & ((kind_of != kind) | mended), hits=matches.correct | mended, labels=labels
        )
    for kind in (_BOTH, _DUPLICATE, _BACKGROUND):
        means[kind] = mean_ap(seen & (kind_of != kind))
    means[_MISSED] = mean_ap(seen, objects=matches.counted & ~missed)

    ap = mean_ap(seen)
    counts = np.bincount(kind_of[kind_of >= 0], minlength=6)
    counts[_MISSED] = np.count_nonzero(missed)
    return Errors(
        kinds=KINDS,
        counts=counts,
        ap=ap,
        d_ap=means - ap,
        fp_d_ap=mean_ap(matches.correct) - ap,
        fn_d_ap=mean_ap(seen, objects=matches.counted & ~missing) - ap,
        kind_of=kind_of,
        about=about,
        missed=np.flatnonzero(missed),
    )


def counts_at_threshold(
    errors: Errors, detections: PackedDetections, matches: Matches, *, threshold: float
) -> NDArray[np.int64]:
    """The mistakes (6,) that are left of `errors` without the detections below the score."""
    shown = detections.scores >= threshold
    counts = np.bincount(errors.kind_of[shown & (errors.kind_of >= 0)], minlength=6)
    missed = matches.missing(shown)
    missed[errors.about[shown & _explains(errors.kind_of)]] = False
    counts[_MISSED] = np.count_nonzero(missed)
    return counts


def _explains(kind_of: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Which detections (D,) explain that nothing found the object that they are about."""
    return (kind_of == _CLASS) | (kind_of == _LOCATION)


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
