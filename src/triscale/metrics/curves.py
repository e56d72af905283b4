"""Precision against recall, and F1 against the score at which detections are cut off.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, for the curve and
its envelope; F1 is van Rijsbergen's: the harmonic mean of precision and recall. A detection never
depends on worse ones, so one matching holds for every score threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.metrics.matching import Matches
from triscale.metrics.voc import (
    PackedDetections,
    PackedTruth,
    by_class_best_first,
    recall_and_envelope,
)

_POINTS = 199  # of a curve; one more is added


class PR(NamedTuple):
    """The precision-recall curve of a class, P <= 200 points; P is 0 if nothing was found."""

    recall: NDArray[np.float64]  # (P,) rising
    precision: NDArray[np.float64]  # (P,) the best at this recall or a higher one: AP's envelope
    scores: NDArray[np.float64]  # (P,) falling: detections from this score on reach the recall


class F1(NamedTuple):
    """F1 of all classes together when detections below a score are left out, P <= 200 points."""

    scores: NDArray[np.float64]  # (P,) falling
    f1: NDArray[np.float64]  # (P,) 2 TP / (2 TP + FP + FN)
    threshold: float  # the score with the best F1, the highest of several; 0.5 if all are false
    best: float  # its F1; nan without objects


class AtThreshold(NamedTuple):
    """All classes together, detections below a score left out; nan where nothing defines it."""

    precision: float
    recall: float
    f1: float


def precision_recall(
    detections: PackedDetections, truth: PackedTruth, matches: Matches, *, num_classes: int
) -> list[PR]:
    """The curve of each class (C)."""
    order = by_class_best_first(detections, num_classes)
    order = order[~matches.ignored[order]]
    borders = np.searchsorted(detections.labels[order], np.arange(num_classes + 1))
    totals = np.bincount(truth.labels[matches.counted], minlength=num_classes)
    curves: list[PR] = []
    for c in range(num_classes):
        mine = order[borders[c] : borders[c + 1] if totals[c] else borders[c]]
        recall, envelope = recall_and_envelope(matches.correct[mine], max(int(totals[c]), 1))
        # Where the recall rises: between these points the envelope is level.
        hits = np.flatnonzero(matches.correct[mine])
        hits = hits[_spread(recall[hits])]
        curves.append(PR(recall[hits], envelope[hits], detections.scores[mine[hits]].astype(float)))
    return curves


def f1_by_score(detections: PackedDetections, matches: Matches) -> F1:
    """F1 at each score, thinned, and the score where it is best."""
    order = matches.order[~matches.ignored[matches.order]]
    scores = detections.scores[order].astype(np.float64)
    # Equal scores stay or go together: a threshold can only lie at the last of them.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    correct = np.cumsum(matches.correct[order])[last]
    total = np.count_nonzero(matches.counted)
    f1 = 2 * correct / (last + 1 + total)  # TP + FP and TP + FN
    scores = scores[last]
    if not f1.any():
        return F1(scores[:0], f1[:0], 0.5, 0.0 if total else float("nan"))
    best = int(f1.argmax())
    shown = np.union1d(_spread(-scores), best)
    return F1(scores[shown], f1[shown], float(scores[best]), float(f1[best]))


def at_threshold(
    detections: PackedDetections, matches: Matches, *, threshold: float
) -> AtThreshold:
    """Precision, recall and F1 of the detections with at least that score."""
    shown = detections.scores >= threshold
    true = int(np.count_nonzero(shown & matches.correct))
    found = true + int(np.count_nonzero(shown & matches.false))
    total = int(np.count_nonzero(matches.counted))
    nan = float("nan")
    return AtThreshold(
        true / found if found else nan,
        true / total if total else nan,
        2 * true / (found + total) if found + total else nan,
    )


def _spread(rising: NDArray[np.float64]) -> NDArray[np.intp]:
    """Places, at most 199, of values (n,) that lie evenly between the first and the last."""
    if len(rising) <= _POINTS:
        return np.arange(len(rising))
    return np.unique(np.searchsorted(rising, np.linspace(rising[0], rising[-1], _POINTS)))
